//! The service's configuration.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    time::Duration,
};

use plimsoll_lake::LakeConfig;
use plimsoll_nats::NatsConfig;
use plimsoll_service::config::Validate;
use serde::Deserialize;

/// How queries are answered. Variables are `PLIMSOLL_QUERY_API__…`, `PLIMSOLL_NATS__…` and `PLIMSOLL_LAKE__…`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueryApiConfig {
    /// Address of the HTTP endpoints; default `127.0.0.1:8080`. Whoever reaches it may read everything and change rules.
    pub http: SocketAddr,
    /// Most bytes of samples that are held in memory until the lake contains them, roughly; default 256 MiB.
    pub tail_max_bytes: usize,
    /// Longest time that a query may take; default `30s`.
    #[serde(with = "humantime_serde")]
    pub query_timeout: Duration,
    /// Queries that run at the same time; default 4.
    pub connections: NonZeroUsize,
    /// The broker.
    pub nats: NatsConfig,
    /// The lake.
    pub lake: LakeConfig,
}

impl Default for QueryApiConfig {
    fn default() -> Self {
        Self {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            tail_max_bytes: 256 * 1024 * 1024,
            query_timeout: Duration::from_secs(30),
            connections: NonZeroUsize::new(4).expect("4 is not 0"),
            nats: NatsConfig::default(),
            lake: LakeConfig::default(),
        }
    }
}

impl Validate for QueryApiConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = self.lake.problems();
        if self.tail_max_bytes < 1024 * 1024 {
            problems.push("`tail_max_bytes`: expected at least 1048576, which is 1 MiB".to_owned());
        }
        if self.query_timeout.is_zero() || self.query_timeout > Duration::from_secs(3600) {
            problems.push("`query_timeout`: expected a duration above 0 and up to 1h, such as `30s`".to_owned());
        }
        problems
    }
}
