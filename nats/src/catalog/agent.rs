//! The agent itself.

use super::*;

pub const AGENT: MeasurementSpec = MeasurementSpec {
    name: "agent",
    description: "The agent itself: what it takes, and what waits to be published",
    tags: &[],
    fields: &[
        field(
            "cpu_seconds_total",
            FieldType::Float,
            FieldKind::Counter,
            "seconds",
            "Processor time that the agent has used",
            ("process.cpu.time", "process_cpu_seconds_total"),
        ),
        bytes(
            "resident_bytes",
            "Memory of the agent that is in RAM",
            ("process.memory.usage", "process_resident_memory_bytes"),
        ),
        count("open_files", "File descriptors that the agent has open", ("", "process_open_fds")),
        gauge("uptime_seconds", "seconds", "Time since the agent started", ("process.uptime", "")),
        count("buffer_batches", "Batches and events in memory that the broker has not acknowledged", ("", "")),
        bytes("buffer_bytes", "What they take in memory", ("", "")),
        count("spool_batches", "Batches and events on disk that the broker has not acknowledged", ("", "")),
        bytes("spool_bytes", "Size of the spool on disk", ("", "")),
        count("spool_segments", "Files of the spool", ("", "")),
        total("published_batches_total", "count", "Batches and events that the broker has stored", ("", "")),
        total("published_bytes_total", "bytes", "Their payload as it was sent", ("", "")),
        total(
            "dropped_batches_total",
            "count",
            "Batches and events lost: the oldest of a full spool or buffer, and what the broker will never take",
            ("", ""),
        ),
        total("dropped_events_total", "count", "Events lost before they were numbered, in a flood of them", ("", "")),
        total("corrupt_records_total", "count", "Damaged places found in the spool", ("", "")),
    ],
};
