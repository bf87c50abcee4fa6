//! What ingest tells about itself on `/metrics`, and as the measurement `plimsoll`.

mod lag;
mod maintenance;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use plimsoll_lake::CommitReport;
use plimsoll_nats::{
    PartitionId, now_ms,
    reader::StoredMessage,
    report::{Lag, Reported, Values, integer},
};
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
    last_commit: Arc<Mutex<LastCommit>>,
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
            last_commit: Arc::default(),
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
        let last = LastCommit { rows: report.rows as u64, bytes, seconds: report.duration.as_secs_f64() };
        *self.last_commit.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    fn lags(&self) -> impl Iterator<Item = (PartitionId, Lag)> {
        self.uncommitted.seconds(now_ms()).into_iter().map(|(partition, seconds)| {
            let messages = self.lag_messages.get(&labels(partition)).map_or(0, |gauge| gauge.get());
            (partition, Lag { messages, seconds })
        })
    }
}

/// What the last commit was.
#[derive(Debug, Clone, Copy, Default)]
struct LastCommit {
    rows: u64,
    bytes: u64,
    seconds: f64,
}

/// Of a member as a whole, and of each partition that it reads.
impl Reported for Metrics {
    fn values(&self) -> (Values, Vec<(PartitionId, Values)>) {
        let partitions: Vec<(PartitionId, Lag)> = self.lags().collect();
        let mut own = Lag::of_all(partitions.iter().map(|(_, lag)| *lag)).values();
        let last = *self.last_commit.lock().unwrap_or_else(PoisonError::into_inner);
        own.integers.extend([
            ("partitions", self.partitions.get()),
            ("pending_rows", self.pending_rows.get()),
            ("pending_bytes", integer(self.uncommitted.pending_bytes())),
            ("queued_messages", self.queued_messages.get()),
            ("commit_rows", integer(last.rows)),
            ("commit_bytes", integer(last.bytes)),
            ("messages_total", integer(self.messages.get())),
            ("committed_rows_total", integer(self.committed_rows.get())),
            ("committed_points_total", integer(self.committed_points.get())),
            ("committed_bytes_total", integer(self.committed_bytes.get())),
            ("commits_total", integer(self.commits.get())),
            ("commit_conflicts_total", integer(self.commit_conflicts.get())),
            ("commit_failures_total", integer(self.commit_failures.get())),
            ("dead_messages_total", integer(self.dead.get())),
            ("superseded_messages_total", integer(self.superseded_messages.get())),
            ("dropped_reports_total", integer(self.dropped_reports.get())),
        ]);
        own.integers.extend(self.maintenance.values());
        own.floats.extend([("commit_seconds", last.seconds), ("commit_seconds_total", self.commit_seconds_sum.get())]);
        (own, partitions.into_iter().map(|(partition, lag)| (partition, lag.values())).collect())
    }

    fn dropped(&self) {
        self.dropped_reports.inc();
    }
}

fn labels(partition: PartitionId) -> Labels {
    vec![("partition", partition.to_string())]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plimsoll_lake::{Tier, status::TierSize};
    use plimsoll_nats::{
        report::{Reporter, differences},
        testing::TestServer,
    };

    use super::*;

    #[tokio::test]
    async fn a_batch_says_what_the_catalog_describes() {
        let server = TestServer::start().await;
        let metrics = Metrics::register(&Ops::default());
        metrics.partition_started(PartitionId::new(3).expect("exists"));
        let mut reporter = Reporter::new(&server.client().await, crate::GROUP, 9301, metrics.clone());
        let missing = differences(&reporter.batch(), crate::GROUP);
        assert!(
            missing.iter().all(|text| text.starts_with("`lake_")),
            "what the lake holds is not known yet: {missing:?}"
        );
        metrics.maintenance.holds_lease(true);
        let tiers = Tier::ALL.into_iter().map(|tier| (tier, TierSize::default())).collect();
        metrics.maintenance.done(Duration::ZERO, &tiers);
        let batch = reporter.batch();
        assert_eq!(differences(&batch, crate::GROUP), Vec::<String>::new());
        let partitions = batch.tags.iter().find(|(name, _)| &***name == "partition").expect("a tag").1;
        assert_eq!(partitions, &["total", "3"]);
        let subject = plimsoll_nats::subject::metrics(&batch.host, &batch.measurement);
        assert_eq!(&*subject, format!("plimsoll.metrics.{}.plimsoll", batch.host).as_str());
    }
}
