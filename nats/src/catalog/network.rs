//! Interfaces, wireless links and sockets.

use super::*;

const NETWORK_IO: &str = "system.network.io";
const NETWORK_PACKETS: &str = "system.network.packet.count";
const NETWORK_ERRORS: &str = "system.network.errors";
const NETWORK_DROPS: &str = "system.network.packet.dropped";

pub const NETWORK: MeasurementSpec = MeasurementSpec {
    name: "network",
    description: "Traffic of network interfaces",
    tags: &[tag("interface", "Name of the interface, such as `eth0`")],
    fields: &[
        total("receive_bytes_total", "bytes", "Bytes received", (NETWORK_IO, "node_network_receive_bytes_total")),
        total("transmit_bytes_total", "bytes", "Bytes sent", (NETWORK_IO, "node_network_transmit_bytes_total")),
        total(
            "receive_packets_total",
            "count",
            "Packets received",
            (NETWORK_PACKETS, "node_network_receive_packets_total"),
        ),
        total(
            "transmit_packets_total",
            "count",
            "Packets sent",
            (NETWORK_PACKETS, "node_network_transmit_packets_total"),
        ),
        total(
            "receive_errors_total",
            "count",
            "Packets received with an error",
            (NETWORK_ERRORS, "node_network_receive_errs_total"),
        ),
        total(
            "transmit_errors_total",
            "count",
            "Packets that failed to be sent",
            (NETWORK_ERRORS, "node_network_transmit_errs_total"),
        ),
        total(
            "receive_drops_total",
            "count",
            "Packets dropped on receipt",
            (NETWORK_DROPS, "node_network_receive_drop_total"),
        ),
        total(
            "transmit_drops_total",
            "count",
            "Packets dropped before being sent",
            (NETWORK_DROPS, "node_network_transmit_drop_total"),
        ),
    ],
};

pub const WIFI: MeasurementSpec =
    MeasurementSpec { name: "wifi", description: "Wireless links", tags: &[], fields: &[] };

pub const SOCKETS: MeasurementSpec =
    MeasurementSpec { name: "sockets", description: "Sockets and TCP", tags: &[], fields: &[] };
