//! The configuration of ingest.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    time::Duration,
};

use plimsoll_lake::{LakeConfig, maintenance::MIN_SNAPSHOTS, rollup::Retention};
use plimsoll_nats::NatsConfig;
use plimsoll_service::config::Validate;
use serde::Deserialize;

use crate::batcher::Limits;

/// Pause before something that was away is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// What ingest is told. As a file: these keys, and the sections `[nats]` and `[lake]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestConfig {
    /// Address of `/healthz`, `/readyz` and `/metrics`; default `127.0.0.1:9301`.
    pub http: SocketAddr,
    /// Longest time between a sample's reading and its commit; default `60s`.
    #[serde(with = "humantime_serde")]
    pub commit_interval: Duration,
    /// Rows at which a commit is due before that; default 1,000,000.
    pub commit_rows: NonZeroUsize,
    /// Memory of gathered messages at which a commit is due before that, in bytes and roughly; default 256 MiB, at most 512 MiB.
    /// Twice that is held at most, for a batch is gathered while another one is committed, besides what waits for being gathered
    /// ([`NatsConfig::pull_bytes`] and a half for each partition, and [`plimsoll_nats::reader::YIELDED_BYTES`]) and what DuckDB takes
    /// ([`LakeConfig::memory_limit`]).
    pub commit_bytes: NonZeroUsize,
    /// Whether ingest publishes the measurement `plimsoll` about itself; default true.
    pub publish_metrics: bool,
    /// What keeps the lake quick to read.
    pub maintenance: MaintenanceConfig,
    /// How to reach the broker.
    pub nats: NatsConfig,
    /// Where the lake is. [`LakeConfig::threads`] is 1 here by default.
    pub lake: LakeConfig,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 9301)),
            commit_interval: Duration::from_secs(60),
            commit_rows: NonZeroUsize::new(1_000_000).expect("not zero"),
            commit_bytes: NonZeroUsize::new(256 * 1024 * 1024).expect("not zero"),
            publish_metrics: true,
            maintenance: MaintenanceConfig::default(),
            nats: NatsConfig::default(),
            lake: LakeConfig::default(),
        }
    }
}

/// The section `[maintenance]`: one member at a time makes rollups, deletes what is old, and merges small files.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaintenanceConfig {
    /// Whether this member takes part; default true.
    pub enabled: bool,
    /// Pause between two runs; default `60s`.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How long the lake's former states can be read; default `1h`.
    #[serde(with = "humantime_serde")]
    pub keep_snapshots: Duration,
    /// How long a file stays that is no longer part of the lake, for queries and backups that still read it; default `1h`.
    #[serde(with = "humantime_serde")]
    pub keep_unused_files: Duration,
    /// How old a file must be that the catalog does not name before it is deleted as left over; default `1day`. It is looked for once
    /// a day, since that lists all files.
    #[serde(with = "humantime_serde")]
    pub keep_orphans: Duration,
    /// How long rows are kept, by tier; see [`Retention`].
    pub retention: Retention,
    /// Most memory that DuckDB takes for maintenance, besides what it takes for commits; default `512MB`.
    pub memory_limit: String,
}

impl Default for MaintenanceConfig {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            enabled: true,
            interval: Duration::from_secs(60),
            keep_snapshots: HOUR,
            keep_unused_files: HOUR,
            keep_orphans: 24 * HOUR,
            retention: Retention::default(),
            memory_limit: "512MB".to_owned(),
        }
    }
}

impl MaintenanceConfig {
    fn problems(&self, lake: &LakeConfig) -> Vec<String> {
        let (second, minute, hour) = (Duration::from_secs(1), Duration::from_secs(60), Duration::from_secs(3600));
        let mut problems = Vec::new();
        let shortest = [
            ("interval", self.interval, second, "1s"),
            ("keep_snapshots", self.keep_snapshots, MIN_SNAPSHOTS, "10m"),
            ("keep_unused_files", self.keep_unused_files, minute, "1m"),
            ("keep_orphans", self.keep_orphans, hour, "1h"),
        ];
        for (key, value, least, text) in shortest {
            if value < least {
                problems.push(format!("`maintenance.{key}`: expected a duration of at least `{text}`"));
            }
        }
        problems.extend(self.retention.problems("maintenance.retention"));
        let lake = LakeConfig { memory_limit: self.memory_limit.clone(), ..lake.clone() };
        if lake.problems().iter().any(|problem| problem.contains("`lake.memory_limit`")) {
            problems
                .push("`maintenance.memory_limit`: expected a number and a unit, such as `512MB` or `1GiB`".to_owned());
        }
        problems
    }
}

impl IngestConfig {
    /// The lake as ingest uses it: with one thread of DuckDB's unless told otherwise. Its threads wait for each other by turning in
    /// circles, and ingest scales by members.
    pub(crate) fn own_lake(&self) -> LakeConfig {
        LakeConfig { threads: self.lake.threads.or(Some(1)), ..self.lake.clone() }
    }

    /// The lake as maintenance opens it: with its own bounds, and on one core.
    pub(crate) fn maintenance_lake(&self) -> LakeConfig {
        LakeConfig { memory_limit: self.maintenance.memory_limit.clone(), threads: Some(1), ..self.lake.clone() }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { interval: self.commit_interval, rows: self.commit_rows.get(), bytes: self.commit_bytes.get() }
    }
}

impl Validate for IngestConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = self.lake.problems();
        problems.extend(self.nats.problems());
        problems.extend(self.maintenance.problems(&self.lake));
        if self.commit_interval < Duration::from_millis(100) || self.commit_interval > Duration::from_secs(3600) {
            problems.push("`commit_interval`: expected a duration from `100ms` to `1h`".to_owned());
        }
        // What a column of texts can take, see `plimsoll_lake`, with much to spare.
        if self.commit_bytes.get() > 512 * 1024 * 1024 {
            problems.push("`commit_bytes`: expected at most 536870912 (512 MiB)".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked() {
        assert_eq!(IngestConfig::default().problems(), [""; 0]);
        let commit_bytes = NonZeroUsize::new(1024 * 1024 * 1024).expect("not zero");
        let nats = NatsConfig { pull_bytes: commit_bytes, ..NatsConfig::default() };
        let config = IngestConfig { commit_interval: Duration::ZERO, commit_bytes, nats, ..IngestConfig::default() };
        assert_eq!(config.problems().len(), 3);
    }

    #[test]
    fn what_would_take_files_from_queries_is_refused() {
        let short = Duration::from_millis(500);
        let maintenance = MaintenanceConfig {
            interval: short,
            keep_snapshots: Duration::from_secs(300),
            keep_unused_files: short,
            keep_orphans: Duration::from_secs(60),
            memory_limit: "much".to_owned(),
            ..MaintenanceConfig::default()
        };
        let problems = IngestConfig { maintenance, ..IngestConfig::default() }.problems();
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.starts_with("`maintenance.")), "{problems:?}");
    }
}
