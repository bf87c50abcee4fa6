//! Processes and containers.

use super::*;

const DISK_IO: &str = "process.disk.io";
const CPU_TIME: &str = "container.cpu.time";
const CONTAINER_DISK_IO: &str = "container.disk.io";

const fn text(name: &'static str, description: &'static str) -> FieldSpec {
    field(name, FieldType::Text, FieldKind::Gauge, "text", description, ("", ""))
}

const fn seconds_total(
    name: &'static str,
    description: &'static str,
    names: (&'static str, &'static str),
) -> FieldSpec {
    field(name, FieldType::Float, FieldKind::Counter, "seconds", description, names)
}

pub const PROCESS: MeasurementSpec = MeasurementSpec {
    name: "process",
    description: "The largest processes by processor time, memory and I/O, and the watched ones",
    tags: &[
        tag("pid", "The process's id, which another may bear after its end: `started_at_seconds` tells them apart"),
        tag(
            "name",
            "The program's name as the kernel keeps it, in 15 bytes; of a kernel worker without what it works on",
        ),
    ],
    fields: &[
        count("parent_pid", "Id of the parent; 0 where it is the kernel or outside the host", ("", "")),
        text(
            "command",
            "The program, with its arguments where the agent is told to; `[name]` where the process has none",
        ),
        text("user", "Who it runs as: the name in the host's `/etc/passwd`, else the number"),
        text("state", "`running`, `sleeping`, `blocked`, `idle`, `stopped`, `zombie` or `other`"),
        count("threads", "Its threads", ("process.thread.count", "")),
        count(
            "open_files",
            "Open file descriptors; nil where the agent may not look",
            ("process.unix.file_descriptor.count", ""),
        ),
        percent(
            "cpu_percent",
            "Processor time since the previous sample, in percent of one core; nil where the process was not known then",
            ("process.cpu.utilization", ""),
        ),
        seconds_total("cpu_seconds_total", "Processor time since its start", ("process.cpu.time", "")),
        bytes("resident_bytes", "Memory that it occupies, shared memory included", ("process.memory.usage", "")),
        bytes("virtual_bytes", "Address space", ("process.memory.virtual", "")),
        total(
            "read_bytes_total",
            "bytes",
            "Bytes fetched from storage for it; nil where the agent may not look",
            (DISK_IO, ""),
        ),
        total(
            "written_bytes_total",
            "bytes",
            "Bytes that it sent to storage, at once or later; nil where the agent may not look",
            (DISK_IO, ""),
        ),
        gauge("read_bytes_per_second", "bytes_per_second", "Bytes read since they were last looked at", ("", "")),
        gauge("written_bytes_per_second", "bytes_per_second", "Bytes written since they were last looked at", ("", "")),
        field(
            "started_at_seconds",
            FieldType::Integer,
            FieldKind::Gauge,
            "seconds",
            "Unix time of its start",
            ("", ""),
        ),
    ],
};

pub const PROCESSES: MeasurementSpec = MeasurementSpec {
    name: "processes",
    description: "All processes together",
    tags: &[],
    fields: &[
        count("processes", "Processes, whatever their state", ("system.process.count", "")),
        count("running", "Processes that run or wait for a processor", ("system.process.count", "")),
        count("sleeping", "Processes that wait for something to happen", ("system.process.count", "")),
        count("blocked", "Processes in uninterruptible sleep, mostly for I/O", ("system.process.count", "")),
        count("idle", "Kernel threads that have nothing to do", ("system.process.count", "")),
        count("stopped", "Processes stopped by a signal or a debugger", ("system.process.count", "")),
        count("zombie", "Processes that have ended and whose parent has not asked how", ("system.process.count", "")),
        count("other", "Processes in another state, such as parked kernel threads", ("system.process.count", "")),
        count("threads", "Threads of all processes", ("", "")),
    ],
};

pub const CONTAINER: MeasurementSpec = MeasurementSpec {
    name: "container",
    description: "Containers, by their cgroup v2; a field is nil where its controller is off",
    tags: &[
        tag("container_id", "The first 12 characters of the id; of LXC and systemd-nspawn the name"),
        tag("name", "The name that the engine gave; empty where no engine tells it"),
        tag("image", "The image it was made of; empty where no engine tells it"),
        tag(
            "runtime",
            "`docker`, `podman`, `containerd`, `crio`, `kubernetes`, `lxc`, `nspawn`, or `oci` where only the id is known",
        ),
    ],
    fields: &[
        percent(
            "cpu_percent",
            "Processor time since the previous sample, in percent of one core",
            ("container.cpu.usage", ""),
        ),
        seconds_total("cpu_usage_seconds_total", "Processor time", (CPU_TIME, "")),
        seconds_total("cpu_user_seconds_total", "Processor time in programs", (CPU_TIME, "")),
        seconds_total("cpu_system_seconds_total", "Processor time in the kernel", (CPU_TIME, "")),
        total("cpu_periods_total", "count", "Periods of the processor limit that have passed", ("", "")),
        total("cpu_throttled_periods_total", "count", "Periods in which the limit was reached", ("", "")),
        seconds_total("cpu_throttled_seconds_total", "Time that threads were held back by the limit", ("", "")),
        bytes("memory_used_bytes", "Memory charged to it, caches included", ("container.memory.usage", "")),
        bytes("memory_limit_bytes", "Most memory that it may use; nil without a limit of its own", ("", "")),
        bytes(
            "memory_working_set_bytes",
            "Memory used without the file cache that was not needed lately",
            ("container.memory.working_set", ""),
        ),
        bytes("memory_anon_bytes", "Memory of programs that no file stands behind", ("", "")),
        bytes("memory_file_bytes", "File cache, shared memory included", ("", "")),
        bytes("swap_used_bytes", "Swap in use", ("", "")),
        total("oom_kills_total", "count", "Processes killed for want of memory", ("", "")),
        total("read_bytes_total", "bytes", "Bytes read from block devices", (CONTAINER_DISK_IO, "")),
        total("written_bytes_total", "bytes", "Bytes written to block devices", (CONTAINER_DISK_IO, "")),
        total("reads_total", "count", "Reads of block devices", ("", "")),
        total("writes_total", "count", "Writes to block devices", ("", "")),
        count("pids", "Processes and threads", ("", "")),
        count("pids_limit", "Most processes and threads that it may have; nil without a limit", ("", "")),
    ],
};
