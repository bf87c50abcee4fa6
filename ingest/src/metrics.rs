//! What ingest tells about itself on `/metrics`.

use std::collections::BTreeMap;

use plimsoll_lake::CommitReport;
use plimsoll_nats::PartitionId;
use plimsoll_service::ops::Ops;
use prometheus_client::metrics::{
    counter::Counter,
    family::Family,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
};

type Labels = Vec<(&'static str, String)>;

/// Counters and gauges, prefixed `plimsoll_ingest_`.
#[derive(Debug, Clone)]
pub struct Metrics {
    messages: Counter,
    committed_rows: Counter,
    committed_points: Counter,
    committed_messages: Counter,
    contained_messages: Counter,
    superseded_messages: Counter,
    commits: Counter,
    commit_conflicts: Counter,
    commit_seconds: Histogram,
    lag_messages: Family<Labels, Gauge>,
    partitions: Gauge,
    /// Commits that failed and were tried again.
    pub commit_failures: Counter,
    /// Messages that a reader yielded twice.
    pub repeated: Counter,
    /// Messages put aside.
    pub dead: Counter,
    /// Rows gathered for the next commit.
    pub pending_rows: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    #[must_use]
    pub fn register(ops: &Ops) -> Self {
        let metrics = Self {
            messages: Counter::default(),
            committed_rows: Counter::default(),
            committed_points: Counter::default(),
            committed_messages: Counter::default(),
            contained_messages: Counter::default(),
            superseded_messages: Counter::default(),
            commits: Counter::default(),
            commit_conflicts: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            lag_messages: Family::default(),
            partitions: Gauge::default(),
            commit_failures: Counter::default(),
            repeated: Counter::default(),
            dead: Counter::default(),
            pending_rows: Gauge::default(),
        };
        let m = metrics.clone();
        ops.register("plimsoll_ingest", |registry| {
            registry.register("messages", "Messages read from the stream", m.messages);
            registry.register("committed_rows", "Rows committed to the lake", m.committed_rows);
            registry.register("committed_points", "Values committed to the lake", m.committed_points);
            registry.register("committed_messages", "Messages whose rows were committed", m.committed_messages);
            registry.register("contained_messages", "Messages that the lake contained already", m.contained_messages);
            registry.register(
                "superseded_messages",
                "Messages dropped because their stream was wiped",
                m.superseded_messages,
            );
            registry.register("commits", "Commits", m.commits);
            registry.register(
                "commit_conflicts",
                "Transactions repeated because another writer was faster",
                m.commit_conflicts,
            );
            registry.register("commit_failures", "Commits that failed and were tried again", m.commit_failures);
            registry.register("commit_seconds", "Time that a commit took", m.commit_seconds);
            registry.register("repeated_messages", "Messages refused because they were read twice", m.repeated);
            registry.register("dead_messages", "Messages put aside on DEAD", m.dead);
            registry.register("pending_rows", "Rows gathered for the next commit", m.pending_rows);
            registry.register(
                "lag_messages",
                "Messages of a partition that the stream still holds for this member",
                m.lag_messages,
            );
            registry.register("partitions", "Partitions that this member reads", m.partitions);
        });
        metrics
    }

    /// Tells of messages that were read, and how many each partition still has for this member.
    pub(crate) fn read(&self, messages: u64, pending: &BTreeMap<PartitionId, u64>) {
        self.messages.inc_by(messages);
        for (partition, pending) in pending {
            let pending = i64::try_from(*pending).unwrap_or(i64::MAX);
            self.lag_messages.get_or_create(&labels(*partition)).set(pending);
        }
    }

    pub(crate) fn partition_started(&self, partition: PartitionId) {
        let known = self.lag_messages.get(&labels(partition)).is_some();
        if !known {
            self.partitions.inc();
            self.lag_messages.get_or_create(&labels(partition)).set(0);
        }
    }

    pub(crate) fn partition_stopped(&self, partition: PartitionId) {
        if self.lag_messages.remove(&labels(partition)) {
            self.partitions.dec();
        }
    }

    pub(crate) fn committed(&self, report: &CommitReport) {
        self.commits.inc();
        self.committed_rows.inc_by(report.rows as u64);
        self.committed_points.inc_by(report.points as u64);
        self.committed_messages.inc_by(report.messages as u64);
        self.contained_messages.inc_by(report.contained as u64);
        self.superseded_messages.inc_by(report.superseded as u64);
        self.commit_conflicts.inc_by(u64::from(report.conflicts));
        self.commit_seconds.observe(report.duration.as_secs_f64());
    }
}

fn labels(partition: PartitionId) -> Labels {
    vec![("partition", partition.to_string())]
}
