//! Processors, pressure, memory and load.

use super::*;

const CPU_NAMES: (&str, &str) = ("system.cpu.utilization", "node_cpu_seconds_total");
const MEMORY_USAGE: &str = "system.memory.usage";

pub const CPU: MeasurementSpec = MeasurementSpec {
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
};

pub const PRESSURE: MeasurementSpec =
    MeasurementSpec { name: "pressure", description: "Time that tasks waited for a resource", tags: &[], fields: &[] };

pub const MEMORY: MeasurementSpec = MeasurementSpec {
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
        bytes("swap_free_bytes", "Swap space that nothing uses", ("system.paging.usage", "node_memory_SwapFree_bytes")),
        bytes("swap_used_bytes", "Swap space in use", ("system.paging.usage", "")),
        percent(
            "swap_used_percent",
            "Used in percent of swap space; nil without swap",
            ("system.paging.utilization", ""),
        ),
    ],
};

pub const LOAD: MeasurementSpec = MeasurementSpec {
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
};
