//! The configuration of the alert worker.

use std::net::{Ipv4Addr, SocketAddr};

use plimsoll_nats::NatsConfig;
use plimsoll_service::config::Validate;
use serde::Deserialize;

/// The service's name in variables: `PLIMSOLL_ALERT_WORKER__HTTP`.
pub const SERVICE: &str = "alert_worker";
/// The sections that it shares with other services.
pub const SECTIONS: &[&str] = &["nats"];

/// What an alert worker needs to know; everything has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertWorkerConfig {
    /// Where `/healthz`, `/readyz` and `/metrics` are served; default `127.0.0.1:9302`.
    pub http: SocketAddr,
    /// Whether the worker publishes the measurement `plimsoll` about itself; default true.
    pub publish_metrics: bool,
    /// How to reach the broker.
    pub nats: NatsConfig,
}

impl Default for AlertWorkerConfig {
    fn default() -> Self {
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 9302));
        Self { http, publish_metrics: true, nats: NatsConfig::default() }
    }
}

impl Validate for AlertWorkerConfig {
    fn problems(&self) -> Vec<String> {
        self.nats.problems()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named() {
        assert!(AlertWorkerConfig::default().problems().is_empty());
        let nats = NatsConfig { url: String::new(), replicas: 0, user: Some("me".to_owned()), ..NatsConfig::default() };
        let problems = AlertWorkerConfig { nats, ..AlertWorkerConfig::default() }.problems();
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
