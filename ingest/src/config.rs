//! The configuration of ingest.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    time::Duration,
};

use plimsoll_lake::LakeConfig;
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
    /// Twice that is held at most, besides what waits for being gathered ([`NatsConfig::pull_bytes`] and a half for each partition,
    /// and [`plimsoll_nats::reader::YIELDED_BYTES`]) and what DuckDB takes ([`LakeConfig::memory_limit`]).
    pub commit_bytes: NonZeroUsize,
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
            nats: NatsConfig::default(),
            lake: LakeConfig::default(),
        }
    }
}

impl IngestConfig {
    /// The lake as ingest uses it: with one thread of DuckDB's unless told otherwise. Its threads wait for each other by turning in
    /// circles, and ingest scales by members.
    pub(crate) fn own_lake(&self) -> LakeConfig {
        LakeConfig { threads: self.lake.threads.or(Some(1)), ..self.lake.clone() }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { interval: self.commit_interval, rows: self.commit_rows.get(), bytes: self.commit_bytes.get() }
    }
}

impl Validate for IngestConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = self.lake.problems();
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
        let config = IngestConfig { commit_interval: Duration::ZERO, commit_bytes, ..IngestConfig::default() };
        assert_eq!(config.problems().len(), 2);
    }
}
