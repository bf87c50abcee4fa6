//! The pipeline itself.

use super::*;

const NONE: (&str, &str) = ("", "");

const fn messages(name: &'static str, description: &'static str) -> FieldSpec {
    count(name, description, NONE)
}

const fn counter(name: &'static str, description: &'static str) -> FieldSpec {
    total(name, "count", description, NONE)
}

pub const PLIMSOLL: MeasurementSpec = MeasurementSpec {
    name: "plimsoll",
    description: "Ingest itself, each 10 s: how far it is behind, what it commits, and its maintenance of the lake",
    tags: &[
        tag("member", "The port of the member's HTTP endpoints, which tells members of one host apart"),
        tag(
            "partition",
            "The partition of the stream; `total` in the row of the member as a whole, which alone has the other fields",
        ),
        tag("service", "`ingest`"),
    ],
    fields: &[
        messages("lag_messages", "Messages that the stream still holds for the member"),
        gauge(
            "lag_seconds",
            "seconds",
            "Age of the oldest message that was read and is not committed, since the broker stored it; in `total` the longest",
            NONE,
        ),
        count("partitions", "Partitions that the member reads", NONE),
        count("pending_rows", "Rows gathered for the next commit", NONE),
        messages("queued_messages", "Messages read and not yet gathered"),
        counter("messages_total", "Messages read from the stream"),
        counter("committed_rows_total", "Rows committed to the lake"),
        counter("committed_points_total", "Values committed to the lake"),
        total("committed_bytes_total", "bytes", "Payload of the messages that were committed", NONE),
        counter("commits_total", "Commits"),
        seconds_total("commit_seconds_total", "Time that commits took", NONE),
        counter("commit_conflicts_total", "Transactions repeated because another writer was faster"),
        counter("commit_failures_total", "Commits that failed and were tried again"),
        counter("dead_messages_total", "Messages put aside on DEAD"),
        counter("superseded_messages_total", "Messages dropped because their stream was wiped"),
        counter("dropped_reports_total", "Batches of this measurement that the broker did not take"),
        counter("maintenance_runs_total", "Runs of maintenance that ended well"),
        counter("maintenance_failures_total", "Runs of maintenance that failed"),
        counter("rolled_up_rows_total", "Rows that rollups have taken in"),
        counter("deleted_rows_total", "Rows deleted because of their age"),
        counter("merged_files_total", "Small files that were merged"),
        counter("deleted_files_total", "Files that were deleted"),
        counter("postponed_steps_total", "Steps of maintenance left to a later run"),
        count("lake_files", "Files of the lake after maintenance; nil but of the member that maintains it", NONE),
        bytes("lake_bytes", "Their size", NONE),
    ],
};
