//! What ingest tells about itself on `/metrics`, and as the measurement `plimsoll`.

mod lag;
mod maintenance;

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use plimsoll_lake::CommitReport;
use plimsoll_nats::{PartitionId, now_ms, reader::StoredMessage};
use plimsoll_service::ops::Ops;
use prometheus_client::metrics::{
    counter::Counter,
    family::Family,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
};

use self::lag::Uncommitted;
pub use self::maintenance::MaintenanceMetrics;

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
    /// Sum of the times that commits took: a histogram does not tell its own.
    commit_seconds_sum: Counter<f64, AtomicU64>,
    commit_rows: Histogram,
    commit_bytes: Histogram,
    committed_bytes: Counter,
    uncommitted: Uncommitted,
    /// Maintenance by this member.
    pub maintenance: MaintenanceMetrics,
    /// Messages that wait between the readers and the batcher.
    pub queued_messages: Gauge,
    /// Batches of the measurement `plimsoll` that could not be published.
    pub dropped_reports: Counter,
    lag_messages: Family<Labels, Gauge>,
    partitions: Gauge,
    /// Commits that failed and were tried again.
    pub commit_failures: Counter,
    /// Time that commits have waited for those of other members.
    pub commit_wait_seconds: Counter<f64, AtomicU64>,
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
            commit_wait_seconds: Counter::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            commit_seconds_sum: Counter::default(),
            commit_rows: Histogram::new(exponential_buckets(1.0, 10.0, 8)),
            commit_bytes: Histogram::new(exponential_buckets(1024.0, 8.0, 8)),
            committed_bytes: Counter::default(),
            uncommitted: Uncommitted::default(),
            maintenance: MaintenanceMetrics::new(),
            queued_messages: Gauge::default(),
            dropped_reports: Counter::default(),
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
            registry.register(
                "commit_wait_seconds",
                "Time that commits have waited for those of other members",
                m.commit_wait_seconds,
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
            registry.register("commit_rows", "Rows of a commit", m.commit_rows);
            registry.register("commit_bytes", "Payload of the messages of a commit, in bytes", m.commit_bytes);
            registry.register(
                "committed_bytes",
                "Payload of the messages that were committed, in bytes",
                m.committed_bytes,
            );
            registry.register("queued_messages", "Messages read and not yet gathered", m.queued_messages);
            registry.register(
                "dropped_reports",
                "Batches of the measurement `plimsoll` lost because the broker was away",
                m.dropped_reports,
            );
            registry.register_collector(Box::new(m.uncommitted));
            m.maintenance.register(registry);
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

    /// Notes a message that is to be committed.
    pub(crate) fn message(&self, message: &StoredMessage) {
        self.uncommitted.read(message.partition, message.stored_ms, message.payload().len());
    }

    /// What was gathered is handed over to be committed, after what was handed over before.
    pub(crate) fn handed_over(&self) {
        self.uncommitted.handed_over();
    }

    pub(crate) fn partition_started(&self, partition: PartitionId) {
        self.uncommitted.started(partition);
        let known = self.lag_messages.get(&labels(partition)).is_some();
        if !known {
            self.partitions.inc();
            self.lag_messages.get_or_create(&labels(partition)).set(0);
        }
    }

    pub(crate) fn partition_stopped(&self, partition: PartitionId) {
        self.uncommitted.stopped(partition);
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
        self.commit_seconds_sum.inc_by(report.duration.as_secs_f64());
        let bytes = self.uncommitted.committed();
        self.commit_rows.observe(report.rows as f64);
        self.commit_bytes.observe(bytes as f64);
        self.committed_bytes.inc_by(bytes);
    }

    /// The present values of the measurement `plimsoll`: the member's own, and those of each partition that it reads.
    pub(crate) fn values(&self) -> (Values, Vec<(PartitionId, Values)>) {
        let partitions: Vec<(PartitionId, Lag)> = self.lags().collect();
        let total = |counter: &Counter| i64::try_from(counter.get()).unwrap_or(i64::MAX);
        let integers = [
            ("lag_messages", Some(partitions.iter().map(|(_, lag)| lag.messages).sum::<i64>())),
            ("partitions", Some(self.partitions.get())),
            ("pending_rows", Some(self.pending_rows.get())),
            ("queued_messages", Some(self.queued_messages.get())),
            ("messages_total", Some(total(&self.messages))),
            ("committed_rows_total", Some(total(&self.committed_rows))),
            ("committed_points_total", Some(total(&self.committed_points))),
            ("committed_bytes_total", Some(total(&self.committed_bytes))),
            ("commits_total", Some(total(&self.commits))),
            ("commit_conflicts_total", Some(total(&self.commit_conflicts))),
            ("commit_failures_total", Some(total(&self.commit_failures))),
            ("dead_messages_total", Some(total(&self.dead))),
            ("superseded_messages_total", Some(total(&self.superseded_messages))),
            ("dropped_reports_total", Some(total(&self.dropped_reports))),
            ("maintenance_runs_total", Some(total(&self.maintenance.runs))),
            ("maintenance_failures_total", Some(total(&self.maintenance.failures))),
            ("rolled_up_rows_total", Some(total(&self.maintenance.rolled_up_rows))),
            ("deleted_rows_total", Some(total(&self.maintenance.deleted_rows))),
            ("merged_files_total", Some(total(&self.maintenance.merged_files))),
            ("deleted_files_total", Some(total(&self.maintenance.deleted_files))),
            ("postponed_steps_total", Some(total(&self.maintenance.postponed))),
            ("lake_files", self.maintenance.files()),
            ("lake_bytes", self.maintenance.bytes()),
        ];
        let longest = partitions.iter().map(|(_, lag)| lag.seconds).fold(0.0, f64::max);
        let own = Values {
            integers: integers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            floats: vec![("lag_seconds", longest), ("commit_seconds_total", self.commit_seconds_sum.get())],
        };
        let of_partition = |(partition, lag): (PartitionId, Lag)| {
            let integers = vec![("lag_messages", lag.messages)];
            (partition, Values { integers, floats: vec![("lag_seconds", lag.seconds)] })
        };
        (own, partitions.into_iter().map(of_partition).collect())
    }

    fn lags(&self) -> impl Iterator<Item = (PartitionId, Lag)> {
        self.uncommitted.seconds(now_ms()).into_iter().map(|(partition, seconds)| {
            let messages = self.lag_messages.get(&labels(partition)).map_or(0, |gauge| gauge.get());
            (partition, Lag { messages, seconds })
        })
    }
}

struct Lag {
    messages: i64,
    seconds: f64,
}

/// Fields of a row of the measurement `plimsoll`.
#[derive(Debug, Default)]
pub(crate) struct Values {
    pub(crate) integers: Vec<(&'static str, i64)>,
    pub(crate) floats: Vec<(&'static str, f64)>,
}

fn labels(partition: PartitionId) -> Labels {
    vec![("partition", partition.to_string())]
}
