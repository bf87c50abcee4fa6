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
        text(
            "kind",
            "`ethernet`, `wifi`, `infiniband`, `loopback`, `virtual` (bridges, bonds, tunnels, those of containers) or `other`",
            ("", ""),
        ),
        flag("up", "Whether packets can pass", ("", "node_network_up")),
        field(
            "speed_bits_per_second",
            FieldType::Integer,
            FieldKind::Gauge,
            "bits_per_second",
            "Speed agreed on with the other end; nil where there is none, as of virtual interfaces other than bonds",
            ("", "node_network_speed_bytes"),
        ),
    ],
};

pub const WIFI: MeasurementSpec = MeasurementSpec {
    name: "wifi",
    description: "Wireless links",
    tags: &[tag("interface", "Name of the interface, such as `wlan0`")],
    fields: &[
        gauge("signal_dbm", "dbm", "Signal strength; nil where the driver uses a scale of its own", ("", "")),
        gauge("noise_dbm", "dbm", "Noise; nil where the driver does not tell", ("", "")),
        gauge("link_quality", "count", "Quality of the link, with most drivers up to 70", ("", "")),
        total("discarded_packets_total", "count", "Packets thrown away, for whatever reason", ("", "")),
        total("missed_beacons_total", "count", "Beacons of the access point that were missed", ("", "")),
    ],
};

const TCP_STATES: (&str, &str) = ("system.network.connection.count", "");

pub const SOCKETS: MeasurementSpec = MeasurementSpec {
    name: "sockets",
    description: "Sockets and TCP, of IPv4 and IPv6 together. Numbers by state are nil in most samples: they are counted every five \
                  seconds or, with very many sockets, less often",
    tags: &[],
    fields: &[
        count("sockets", "Sockets of any kind in use", ("", "node_sockstat_sockets_used")),
        count(
            "tcp_connections",
            "Open TCP connections: those established and in CLOSE_WAIT",
            ("", "node_netstat_Tcp_CurrEstab"),
        ),
        count(
            "tcp_time_wait",
            "TCP sockets in TIME_WAIT, with those in FIN_WAIT2 that no program holds any more",
            ("system.network.connection.count", "node_sockstat_TCP_tw"),
        ),
        count("tcp_orphaned", "TCP sockets that no program holds any more", ("", "node_sockstat_TCP_orphan")),
        count("tcp_established", "TCP sockets in ESTABLISHED; nil in most samples", TCP_STATES),
        count("tcp_syn_sent", "TCP sockets in SYN_SENT; nil in most samples", TCP_STATES),
        count("tcp_syn_received", "TCP sockets in SYN_RECV; nil in most samples", TCP_STATES),
        count("tcp_fin_wait1", "TCP sockets in FIN_WAIT1; nil in most samples", TCP_STATES),
        count("tcp_fin_wait2", "TCP sockets in FIN_WAIT2; nil in most samples", TCP_STATES),
        count("tcp_close_wait", "TCP sockets in CLOSE_WAIT; nil in most samples", TCP_STATES),
        count("tcp_last_ack", "TCP sockets in LAST_ACK; nil in most samples", TCP_STATES),
        count("tcp_closing", "TCP sockets in CLOSING; nil in most samples", TCP_STATES),
        count("tcp_listen", "TCP sockets in LISTEN; nil in most samples", TCP_STATES),
        total("tcp_active_opens_total", "count", "Connections begun", ("", "node_netstat_Tcp_ActiveOpens")),
        total("tcp_passive_opens_total", "count", "Connections accepted", ("", "node_netstat_Tcp_PassiveOpens")),
        total(
            "tcp_failed_opens_total",
            "count",
            "Connections that came to nothing",
            ("", "node_netstat_Tcp_AttemptFails"),
        ),
        total(
            "tcp_established_resets_total",
            "count",
            "Open connections that ended by a reset",
            ("", "node_netstat_Tcp_EstabResets"),
        ),
        total("tcp_sent_resets_total", "count", "Resets sent", ("", "node_netstat_Tcp_OutRsts")),
        total("tcp_received_segments_total", "count", "Segments received", ("", "node_netstat_Tcp_InSegs")),
        total("tcp_sent_segments_total", "count", "Segments sent", ("", "node_netstat_Tcp_OutSegs")),
        total("tcp_retransmitted_segments_total", "count", "Segments sent again", ("", "node_netstat_Tcp_RetransSegs")),
        total("tcp_receive_errors_total", "count", "Segments received with an error", ("", "node_netstat_Tcp_InErrs")),
        total(
            "tcp_listen_overflows_total",
            "count",
            "Connections refused since the queue of a listening socket was full",
            ("", "node_netstat_TcpExt_ListenOverflows"),
        ),
        total(
            "tcp_listen_drops_total",
            "count",
            "Connections that a listening socket dropped for this or another reason",
            ("", "node_netstat_TcpExt_ListenDrops"),
        ),
        count("udp_sockets", "UDP sockets in use", ("", "node_sockstat_UDP_inuse")),
        total("udp_received_datagrams_total", "count", "Datagrams received", ("", "node_netstat_Udp_InDatagrams")),
        total("udp_sent_datagrams_total", "count", "Datagrams sent", ("", "node_netstat_Udp_OutDatagrams")),
        total("udp_no_port_total", "count", "Datagrams to a port without a socket", ("", "node_netstat_Udp_NoPorts")),
        total(
            "udp_receive_errors_total",
            "count",
            "Datagrams that could not be received",
            ("", "node_netstat_Udp_InErrors"),
        ),
        total(
            "udp_receive_buffer_errors_total",
            "count",
            "Of these, those that found the buffer of the socket full",
            ("", "node_netstat_Udp_RcvbufErrors"),
        ),
        total(
            "udp_send_buffer_errors_total",
            "count",
            "Datagrams that found the buffer for sending full",
            ("", "node_netstat_Udp_SndbufErrors"),
        ),
    ],
};
