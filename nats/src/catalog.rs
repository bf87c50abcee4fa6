//! The built-in measurements: what agents send, in which units, and what others call it.
//!
//! Docs and API are generated from this. OpenTelemetry names follow its semantic conventions for system metrics;
//! node_exporter names are those of its default collectors.

use serde::Serialize;

use crate::batch::FieldType;

/// A built-in measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MeasurementSpec {
    /// The measurement's name; also its table in the lake.
    pub name: &'static str,
    /// What it tells.
    pub description: &'static str,
    /// The tags that tell its series apart.
    pub tags: &'static [TagSpec],
    /// Its fields.
    pub fields: &'static [FieldSpec],
}

/// A tag of a measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TagSpec {
    /// The tag's name.
    pub name: &'static str,
    /// What its values are.
    pub description: &'static str,
}

/// Whether a field goes up and down or only up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldKind {
    /// A value at a time.
    Gauge,
    /// A cumulative count, which starts anew when its source does.
    Counter,
}

/// A field of a measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FieldSpec {
    /// The field's name.
    pub name: &'static str,
    /// The type of its values.
    #[serde(rename = "type")]
    pub field_type: FieldType,
    /// Gauge or counter.
    pub kind: FieldKind,
    /// The unit: `percent`, `bytes`, `seconds`, `celsius`, `count` or `bool`.
    pub unit: &'static str,
    /// What it tells.
    pub description: &'static str,
    /// The OpenTelemetry metric that holds the same.
    pub opentelemetry: Option<&'static str>,
    /// The node_exporter metric that holds the same.
    pub node_exporter: Option<&'static str>,
}

const fn tag(name: &'static str, description: &'static str) -> TagSpec {
    TagSpec { name, description }
}

const fn field(
    name: &'static str,
    field_type: FieldType,
    kind: FieldKind,
    unit: &'static str,
    description: &'static str,
    names: (&'static str, &'static str),
) -> FieldSpec {
    const fn known(name: &'static str) -> Option<&'static str> {
        if name.is_empty() { None } else { Some(name) }
    }
    FieldSpec {
        name,
        field_type,
        kind,
        unit,
        description,
        opentelemetry: known(names.0),
        node_exporter: known(names.1),
    }
}

const fn percent(name: &'static str, description: &'static str, names: (&'static str, &'static str)) -> FieldSpec {
    field(name, FieldType::Float, FieldKind::Gauge, "percent", description, names)
}

const fn bytes(name: &'static str, description: &'static str, names: (&'static str, &'static str)) -> FieldSpec {
    field(name, FieldType::Integer, FieldKind::Gauge, "bytes", description, names)
}

const fn count(name: &'static str, description: &'static str, names: (&'static str, &'static str)) -> FieldSpec {
    field(name, FieldType::Integer, FieldKind::Gauge, "count", description, names)
}

const fn total(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    names: (&'static str, &'static str),
) -> FieldSpec {
    field(name, FieldType::Integer, FieldKind::Counter, unit, description, names)
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    names: (&'static str, &'static str),
) -> FieldSpec {
    field(name, FieldType::Float, FieldKind::Gauge, unit, description, names)
}

const CPU_NAMES: (&str, &str) = ("system.cpu.utilization", "node_cpu_seconds_total");
const MEMORY_USAGE: &str = "system.memory.usage";
const DISK_IO: &str = "system.disk.io";
const DISK_OPERATIONS: &str = "system.disk.operations";
const NETWORK_IO: &str = "system.network.io";
const NETWORK_PACKETS: &str = "system.network.packet.count";
const NETWORK_ERRORS: &str = "system.network.errors";
const NETWORK_DROPS: &str = "system.network.packet.dropped";

/// Every built-in measurement, by name.
pub const MEASUREMENTS: &[MeasurementSpec] = &[
    MeasurementSpec {
        name: "cpu",
        description: "Processor time since the previous sample, in percent of one core or of all cores together",
        tags: &[tag("core", "`total` for all cores together, else the core's number")],
        fields: &[
            percent("usage_percent", "Time not spent idle or waiting for I/O", CPU_NAMES),
            percent("user_percent", "Time in user mode, guests and nice left out", CPU_NAMES),
            percent("nice_percent", "Time in user mode at low priority, guests left out", CPU_NAMES),
            percent("system_percent", "Time in the kernel", CPU_NAMES),
            percent("iowait_percent", "Time idle while I/O was pending", CPU_NAMES),
            percent("irq_percent", "Time serving hardware interrupts", CPU_NAMES),
            percent("softirq_percent", "Time serving soft interrupts", CPU_NAMES),
            percent("steal_percent", "Time that the hypervisor gave to others", CPU_NAMES),
            percent(
                "guest_percent",
                "Time running guests, at any priority",
                ("system.cpu.utilization", "node_cpu_guest_seconds_total"),
            ),
            percent("idle_percent", "Time idle with no I/O pending", CPU_NAMES),
        ],
    },
    MeasurementSpec {
        name: "memory",
        description: "Main memory and swap",
        tags: &[],
        fields: &[
            bytes("total_bytes", "Usable main memory", ("system.memory.limit", "node_memory_MemTotal_bytes")),
            bytes(
                "available_bytes",
                "Memory that programs can get without swapping",
                ("system.linux.memory.available", "node_memory_MemAvailable_bytes"),
            ),
            bytes("used_bytes", "Total less available", (MEMORY_USAGE, "")),
            percent("used_percent", "Used in percent of total", ("system.memory.utilization", "")),
            bytes("free_bytes", "Memory that nothing uses", (MEMORY_USAGE, "node_memory_MemFree_bytes")),
            bytes("buffers_bytes", "Memory in block device buffers", (MEMORY_USAGE, "node_memory_Buffers_bytes")),
            bytes(
                "cached_bytes",
                "Memory in the page cache, shared memory included",
                (MEMORY_USAGE, "node_memory_Cached_bytes"),
            ),
            bytes("swap_total_bytes", "Swap space", ("system.paging.usage", "node_memory_SwapTotal_bytes")),
            bytes(
                "swap_free_bytes",
                "Swap space that nothing uses",
                ("system.paging.usage", "node_memory_SwapFree_bytes"),
            ),
            bytes("swap_used_bytes", "Swap space in use", ("system.paging.usage", "")),
            percent(
                "swap_used_percent",
                "Used in percent of swap space; nil without swap",
                ("system.paging.utilization", ""),
            ),
        ],
    },
    MeasurementSpec {
        name: "load",
        description: "Load averages and runnable tasks",
        tags: &[],
        fields: &[
            gauge(
                "load1",
                "count",
                "Average number of running or uninterruptible tasks over one minute",
                ("system.cpu.load_average.1m", "node_load1"),
            ),
            gauge("load5", "count", "The same over five minutes", ("system.cpu.load_average.5m", "node_load5")),
            gauge("load15", "count", "The same over fifteen minutes", ("system.cpu.load_average.15m", "node_load15")),
            count("runnable_tasks", "Tasks that run or could run now", ("", "node_procs_running")),
            count("tasks", "All tasks, threads included", ("system.process.count", "")),
        ],
    },
    MeasurementSpec {
        name: "filesystem",
        description: "Space and inodes of mounted file systems; pseudo file systems are left out",
        tags: &[
            tag("device", "What is mounted"),
            tag("fstype", "Type of the file system"),
            tag("mountpoint", "Where it is mounted"),
        ],
        fields: &[
            bytes("total_bytes", "Size", ("system.filesystem.limit", "node_filesystem_size_bytes")),
            bytes("used_bytes", "Space in use", ("system.filesystem.usage", "")),
            bytes(
                "available_bytes",
                "Space that programs without privileges can use",
                ("system.filesystem.usage", "node_filesystem_avail_bytes"),
            ),
            percent(
                "used_percent",
                "Used in percent of used and available together, as `df` shows it",
                ("system.filesystem.utilization", ""),
            ),
            count(
                "total_inodes",
                "Inodes; nil where the file system has no fixed number",
                ("", "node_filesystem_files"),
            ),
            count("used_inodes", "Inodes in use", ("", "")),
            count("free_inodes", "Inodes that nothing uses", ("", "node_filesystem_files_free")),
            percent("used_inodes_percent", "Inodes in use in percent of all", ("", "")),
            field(
                "read_only",
                FieldType::Bool,
                FieldKind::Gauge,
                "bool",
                "Whether it is mounted read-only",
                ("", "node_filesystem_readonly"),
            ),
        ],
    },
    MeasurementSpec {
        name: "diskio",
        description: "Input and output of block devices",
        tags: &[tag("device", "Name of the whole device, such as `nvme0n1`")],
        fields: &[
            total("read_bytes_total", "bytes", "Bytes read", (DISK_IO, "node_disk_read_bytes_total")),
            total("written_bytes_total", "bytes", "Bytes written", (DISK_IO, "node_disk_written_bytes_total")),
            total("reads_total", "count", "Reads completed", (DISK_OPERATIONS, "node_disk_reads_completed_total")),
            total("writes_total", "count", "Writes completed", (DISK_OPERATIONS, "node_disk_writes_completed_total")),
            field(
                "busy_seconds_total",
                FieldType::Float,
                FieldKind::Counter,
                "seconds",
                "Time with at least one request in flight",
                ("system.disk.io_time", "node_disk_io_time_seconds_total"),
            ),
            count("in_flight", "Requests in flight", ("", "node_disk_io_now")),
            percent("busy_percent", "Time with a request in flight since the previous sample", ("", "")),
        ],
    },
    MeasurementSpec {
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
    },
    MeasurementSpec {
        name: "temperature",
        description: "Temperature sensors, where the host has some",
        tags: &[tag("sensor", "Chip and label of the sensor")],
        fields: &[
            gauge("temperature_celsius", "celsius", "Current reading", ("hw.temperature", "node_hwmon_temp_celsius")),
            gauge(
                "critical_celsius",
                "celsius",
                "Reading at which the hardware is in danger, where known",
                ("hw.temperature.limit", "node_hwmon_temp_crit_celsius"),
            ),
        ],
    },
];

/// The built-in measurement of that name.
#[must_use]
pub fn measurement(name: &str) -> Option<&'static MeasurementSpec> {
    MEASUREMENTS.iter().find(|spec| spec.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::Name;

    #[test]
    fn names_units_and_kinds_follow_the_contract() {
        let mut measurements = HashSet::new();
        for spec in MEASUREMENTS {
            assert!(measurements.insert(spec.name), "{} is there twice", spec.name);
            let mut columns = HashSet::new();
            for name in spec.tags.iter().map(|t| t.name).chain(spec.fields.iter().map(|f| f.name)) {
                Name::parse(name).expect("valid name");
                assert!(columns.insert(name), "{}.{name} is there twice", spec.name);
            }
            for field in spec.fields {
                assert_eq!(field.name.ends_with("_total"), field.kind == FieldKind::Counter, "{}", field.name);
                if !matches!(field.unit, "count" | "bool") {
                    assert!(field.name.contains(field.unit), "{} does not name {}", field.name, field.unit);
                }
            }
        }
    }
}
