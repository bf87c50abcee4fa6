//! What ingest tells of maintenance.

use std::{
    collections::BTreeMap,
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use plimsoll_lake::{
    MaintenanceReport, Tier,
    rollup::{RetentionReport, RollupReport},
    status::TierUsage,
};
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
    pub(super) runs: Counter,
    pub(super) failures: Counter,
    seconds: Histogram,
    pub(super) rolled_up_rows: Counter,
    pub(super) deleted_rows: Counter,
    pub(super) merged_files: Counter,
    created_files: Counter,
    pub(super) deleted_files: Counter,
    expired_snapshots: Counter,
    pub(super) postponed: Counter,
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
    pub(crate) fn done(&self, duration: Duration, tiers: &BTreeMap<Tier, TierUsage>) {
        self.runs.inc();
        self.seconds.observe(duration.as_secs_f64());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.set(now.as_secs_f64());
        for (tier, TierUsage { tables, usage }) in tiers {
            let labels = vec![("tier", tier.label().to_owned())];
            let set = |family: &Family<Labels, Gauge>, value: u64| {
                family.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&self.tables, *tables);
            set(&self.files, usage.files);
            set(&self.small_files, usage.small_files);
            set(&self.rows, usage.rows);
            set(&self.bytes, usage.bytes);
        }
    }

    /// Files of all tiers after the last run; none where another member maintains the lake.
    pub(super) fn files(&self) -> Option<i64> {
        self.sum(&self.files)
    }

    /// Their size in bytes.
    pub(super) fn bytes(&self) -> Option<i64> {
        self.sum(&self.bytes)
    }

    fn sum(&self, family: &Family<Labels, Gauge>) -> Option<i64> {
        if self.lease.get() == 0 {
            return None;
        }
        let labels = |tier: Tier| vec![("tier", tier.label().to_owned())];
        Tier::ALL.into_iter().map(|tier| family.get(&labels(tier)).map(|gauge| gauge.get())).sum()
    }
}
