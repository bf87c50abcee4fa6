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
    /// Names that requests may ask for in the header `Host`, beside IP addresses and `localhost`; default none. Without ports.
    /// A variable separates them by commas.
    #[serde(deserialize_with = "plimsoll_service::config::list")]
    pub allowed_hosts: Vec<String>,
    /// Most bytes of samples that are held in memory until the lake contains them, roughly; default 256 MiB.
    pub tail_max_bytes: usize,
    /// Longest time that a query may take; default `30s`.
    #[serde(with = "humantime_serde")]
    pub query_timeout: Duration,
    /// Queries that run at the same time; default 4.
    pub connections: NonZeroUsize,
    /// Whether the service publishes the measurement `plimsoll` about itself; default true.
    pub publish_metrics: bool,
    /// The broker.
    pub nats: NatsConfig,
    /// The lake.
    pub lake: LakeConfig,
}

impl Default for QueryApiConfig {
    fn default() -> Self {
        Self {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            allowed_hosts: Vec::new(),
            tail_max_bytes: 256 * 1024 * 1024,
            query_timeout: Duration::from_secs(30),
            connections: NonZeroUsize::new(4).expect("4 is not 0"),
            publish_metrics: true,
            nats: NatsConfig::default(),
            lake: LakeConfig::default(),
        }
    }
}

impl Validate for QueryApiConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = self.nats.problems();
        problems.extend(self.lake.problems());
        if !self.allowed_hosts.iter().all(|name| is_host_name(name)) {
            let expected = "host names without scheme and port, such as `[\"plimsoll.example.org\"]`";
            problems.push(format!("`allowed_hosts`: expected {expected}"));
        }
        if self.tail_max_bytes < 1024 * 1024 {
            problems.push("`tail_max_bytes`: expected at least 1048576, which is 1 MiB".to_owned());
        }
        if self.query_timeout.is_zero() || self.query_timeout > Duration::from_secs(3600) {
            problems.push("`query_timeout`: expected a duration above 0 and up to 1h, such as `30s`".to_owned());
        }
        problems
    }
}

fn is_host_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_broker_and_lake_are_checked_too() {
        let mut config = QueryApiConfig::default();
        config.nats.url.clear();
        config.lake.catalog.clear();
        let problems = config.problems();
        assert!(problems.iter().any(|problem| problem.starts_with("`nats.url`")), "{problems:?}");
        assert!(problems.iter().any(|problem| problem.starts_with("`lake.catalog`")), "{problems:?}");
    }

    #[test]
    fn allowed_hosts_are_a_list_or_a_text_with_commas() {
        for text in [r#"{"allowed_hosts": ["a.example", "b"]}"#, r#"{"allowed_hosts": "a.example, b"}"#] {
            let config: QueryApiConfig = serde_json::from_str(text).expect("valid");
            assert_eq!(config.allowed_hosts, ["a.example", "b"]);
        }
    }

    #[test]
    fn allowed_hosts_are_names_only() {
        let problems = |name: &str| {
            let config = QueryApiConfig { allowed_hosts: vec![name.to_owned()], ..QueryApiConfig::default() };
            config.problems()
        };
        assert!(problems("plimsoll.example.org").is_empty());
        for name in ["", "http://plimsoll.example.org", "plimsoll:8080", "*"] {
            assert_eq!(problems(name).len(), 1, "{name}");
        }
    }
}
