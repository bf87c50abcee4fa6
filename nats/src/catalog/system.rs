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
        gauge(
            "frequency_hertz",
            "hertz",
            "Speed at which the core runs, or the average of all; nil where the kernel does not tell, as in most virtual machines",
            ("system.cpu.frequency", "node_cpu_scaling_frequency_hertz"),
        ),
    ],
};

pub const PRESSURE: MeasurementSpec = MeasurementSpec {
    name: "pressure",
    description: "Time that tasks waited for a resource (pressure stall information)",
    tags: &[tag("resource", "`cpu`, `memory` or `io`")],
    fields: &[
        percent("some_avg10_percent", "Time in which some tasks waited, of the last ten seconds", ("", "")),
        percent(
            "full_avg10_percent",
            "Time in which all tasks waited at once, of the last ten seconds; nil for `cpu`",
            ("", ""),
        ),
        seconds_total(
            "some_seconds_total",
            "Time in which some tasks waited",
            ("", "node_pressure_io_waiting_seconds_total"),
        ),
        seconds_total(
            "full_seconds_total",
            "Time in which all tasks waited at once; nil for `cpu`",
            ("", "node_pressure_io_stalled_seconds_total"),
        ),
    ],
};

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
        bytes("slab_bytes", "Memory in the kernel's own structures", ("", "node_memory_Slab_bytes")),
        bytes(
            "slab_reclaimable_bytes",
            "The part of it that the kernel can give back",
            ("system.linux.memory.slab.usage", "node_memory_SReclaimable_bytes"),
        ),
        bytes("shared_bytes", "Shared memory and tmpfs", ("", "node_memory_Shmem_bytes")),
        bytes("dirty_bytes", "Memory that waits to be written to disk", ("", "node_memory_Dirty_bytes")),
        bytes("writeback_bytes", "Memory that is being written to disk", ("", "node_memory_Writeback_bytes")),
        bytes(
            "anonymous_huge_bytes",
            "Memory of programs in transparent huge pages",
            ("", "node_memory_AnonHugePages_bytes"),
        ),
        bytes("huge_page_bytes", "Size of one reserved huge page", ("", "node_memory_Hugepagesize_bytes")),
        count("huge_pages", "Reserved huge pages", ("", "node_memory_HugePages_Total")),
        count("huge_pages_free", "Reserved huge pages that nothing uses", ("", "node_memory_HugePages_Free")),
        total("minor_faults_total", "count", "Page faults served from memory", ("system.paging.faults", "")),
        total(
            "major_faults_total",
            "count",
            "Page faults that had to wait for a disk",
            ("system.paging.faults", "node_vmstat_pgmajfault"),
        ),
        total(
            "swap_in_bytes_total",
            "bytes",
            "Memory read back from swap",
            ("system.paging.operations", "node_vmstat_pswpin"),
        ),
        total(
            "swap_out_bytes_total",
            "bytes",
            "Memory written to swap",
            ("system.paging.operations", "node_vmstat_pswpout"),
        ),
        total("oom_kills_total", "count", "Processes killed for want of memory", ("", "node_vmstat_oom_kill")),
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
