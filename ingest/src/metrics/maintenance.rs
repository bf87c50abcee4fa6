//! What ingest tells of maintenance.

use std::{
    collections::BTreeMap,
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use plimsoll_lake::{
    MaintenanceReport, Tier,
    rollup::{RetentionReport, RollupReport},
    status::TierSize,
};
use plimsoll_nats::report::integer;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::Labels;

/// Counters and gauges of maintenance; those of the lake are told by the member that maintains it.
#[derive(Debug, Clone)]
pub struct MaintenanceMetrics {
    runs: Counter,
    failures: Counter,
    seconds: Histogram,
    rolled_up_rows: Counter,
    deleted_rows: Counter,
    merged_files: Counter,
    created_files: Counter,
    deleted_files: Counter,
    expired_snapshots: Counter,
    postponed: Counter,
    last_success: Gauge<f64, AtomicU64>,
    lease: Gauge,
    tables: Family<Labels, Gauge>,
    files: Family<Labels, Gauge>,
    small_files: Family<Labels, Gauge>,
    rows: Family<Labels, Gauge>,
    bytes: Family<Labels, Gauge>,
}

impl MaintenanceMetrics {
    pub(super) fn new() -> Self {
        Self {
            runs: Counter::default(),
            failures: Counter::default(),
            seconds: Histogram::new(exponential_buckets(0.01, 3.0, 11)),
            rolled_up_rows: Counter::default(),
            deleted_rows: Counter::default(),
            merged_files: Counter::default(),
            created_files: Counter::default(),
            deleted_files: Counter::default(),
            expired_snapshots: Counter::default(),
            postponed: Counter::default(),
            last_success: Gauge::default(),
            lease: Gauge::default(),
            tables: Family::default(),
            files: Family::default(),
            small_files: Family::default(),
            rows: Family::default(),
            bytes: Family::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let m = self.clone();
        registry.register("maintenance_runs", "Runs of maintenance that ended well", m.runs);
        registry.register("maintenance_failures", "Runs of maintenance that failed", m.failures);
        registry.register("maintenance_seconds", "Time that a run of maintenance took", m.seconds);
        registry.register("maintenance_rolled_up_rows", "Rows that rollups have taken in", m.rolled_up_rows);
        registry.register("maintenance_deleted_rows", "Rows deleted because of their age", m.deleted_rows);
        registry.register("maintenance_merged_files", "Small files that were merged", m.merged_files);
        registry.register("maintenance_created_files", "Files that took their place", m.created_files);
        registry.register("maintenance_deleted_files", "Files that were deleted", m.deleted_files);
        registry.register("maintenance_expired_snapshots", "Snapshots that were expired", m.expired_snapshots);
        registry.register("maintenance_postponed_steps", "Steps left to a later run", m.postponed);
        registry.register(
            "maintenance_last_success_timestamp_seconds",
            "When a run of maintenance last ended well, Unix time",
            m.last_success,
        );
        registry.register("maintenance_lease", "Whether this member maintains the lake", m.lease);
        registry.register("lake_tables", "Tables of the lake after maintenance", m.tables);
        registry.register("lake_files", "Files of the lake after maintenance", m.files);
        registry.register("lake_small_files", "Those below 1 MiB", m.small_files);
        registry.register("lake_rows", "Rows in the lake after maintenance", m.rows);
        registry.register("lake_bytes", "Size of the lake's files after maintenance", m.bytes);
    }

    pub(crate) fn holds_lease(&self, held: bool) {
        self.lease.set(i64::from(held));
    }

    pub(crate) fn failed(&self) {
        self.failures.inc();
    }

    pub(crate) fn rolled_up(&self, report: &RollupReport) {
        self.rolled_up_rows.inc_by(report.source_rows);
    }

    pub(crate) fn swept(&self, report: &RetentionReport) {
        self.deleted_rows.inc_by(report.rows());
    }

    pub(crate) fn maintained(&self, report: &MaintenanceReport) {
        self.merged_files.inc_by(report.merged_files);
        self.created_files.inc_by(report.created_files);
        self.deleted_files.inc_by(report.deleted_files);
        self.expired_snapshots.inc_by(report.expired_snapshots);
        self.postponed.inc_by(report.postponed);
    }

    /// A run ended well after so long, and the tiers are as told.
    pub(crate) fn done(&self, duration: Duration, tiers: &BTreeMap<Tier, TierSize>) {
        self.runs.inc();
        self.seconds.observe(duration.as_secs_f64());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.set(now.as_secs_f64());
        for (tier, TierSize { tables, size }) in tiers {
            let labels = vec![("tier", tier.label().to_owned())];
            let set = |family: &Family<Labels, Gauge>, value: u64| {
                family.get_or_create(&labels).set(integer(value));
            };
            set(&self.tables, *tables);
            set(&self.files, size.files);
            set(&self.small_files, size.small_files);
            set(&self.rows, size.rows);
            set(&self.bytes, size.bytes);
        }
    }

    /// The fields of the measurement `plimsoll`: what was done, and where this member maintains the lake, what it holds.
    pub(super) fn values(&self) -> Vec<(&'static str, i64)> {
        let done = [
            ("maintenance_runs_total", &self.runs),
            ("maintenance_failures_total", &self.failures),
            ("rolled_up_rows_total", &self.rolled_up_rows),
            ("deleted_rows_total", &self.deleted_rows),
            ("merged_files_total", &self.merged_files),
            ("deleted_files_total", &self.deleted_files),
            ("postponed_steps_total", &self.postponed),
        ];
        let done = done.into_iter().map(|(name, counter)| (name, integer(counter.get())));
        let held = [
            ("lake_files", &self.files, &Tier::ALL[..]),
            ("lake_small_files", &self.small_files, &Tier::ALL),
            ("lake_bytes", &self.bytes, &Tier::ALL),
            ("lake_raw_files", &self.files, &[Tier::Raw]),
            ("lake_raw_rows", &self.rows, &[Tier::Raw]),
            ("lake_raw_bytes", &self.bytes, &[Tier::Raw]),
            ("lake_1m_files", &self.files, &[Tier::Minute]),
            ("lake_1m_rows", &self.rows, &[Tier::Minute]),
            ("lake_1m_bytes", &self.bytes, &[Tier::Minute]),
            ("lake_1h_files", &self.files, &[Tier::Hour]),
            ("lake_1h_rows", &self.rows, &[Tier::Hour]),
            ("lake_1h_bytes", &self.bytes, &[Tier::Hour]),
        ];
        let held = held.into_iter().filter(|_| self.lease.get() != 0);
        done.chain(held.filter_map(|(name, family, tiers)| Some((name, sum(family, tiers)?)))).collect()
    }
}

/// The sum over tiers; none before the first run.
fn sum(family: &Family<Labels, Gauge>, tiers: &[Tier]) -> Option<i64> {
    let of = |tier: &Tier| family.get(&vec![("tier", tier.label().to_owned())]).map(|gauge| gauge.get());
    tiers.iter().map(of).sum()
}
