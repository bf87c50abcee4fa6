//! The settings of samples that are not built in.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

/// A command whose output is sampled. Commands come from this host's configuration file only.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// Names the command in logs.
    pub name: String,
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// Time between two runs; default 60 s.
    #[serde(default = "minute", with = "humantime_serde")]
    pub interval: Duration,
    /// Longest run; default 10 s.
    #[serde(default = "ten_seconds", with = "humantime_serde")]
    pub timeout: Duration,
    /// What the command prints; default `influx`.
    #[serde(default)]
    pub format: ExecFormat,
}

/// What a command prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecFormat {
    /// Influx line protocol.
    #[default]
    Influx,
    /// JSON.
    Json,
}

/// A Prometheus exporter that is sampled.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrapeConfig {
    /// Names the exporter in logs and in the tag `job`.
    pub name: String,
    /// Where it serves its metrics, such as `http://127.0.0.1:9187/metrics`.
    pub url: String,
    /// Time between two scrapes; default 15 s.
    #[serde(default = "fifteen_seconds", with = "humantime_serde")]
    pub interval: Duration,
    /// Longest scrape; default 10 s.
    #[serde(default = "ten_seconds", with = "humantime_serde")]
    pub timeout: Duration,
}

/// Where programs of this host hand over samples of their own; nothing listens unless it is named.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// UDP address for StatsD, such as `127.0.0.1:8125`.
    pub statsd_udp: Option<SocketAddr>,
    /// Unix datagram socket for StatsD.
    pub statsd_socket: Option<PathBuf>,
    /// UDP address for Influx line protocol, such as `127.0.0.1:8089`.
    pub influx_udp: Option<SocketAddr>,
    /// Unix datagram socket for Influx line protocol.
    pub influx_socket: Option<PathBuf>,
}

fn minute() -> Duration {
    Duration::from_secs(60)
}

fn fifteen_seconds() -> Duration {
    Duration::from_secs(15)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

/// What is wrong with the custom sources.
pub(super) fn problems(_exec: &[ExecConfig], _scrape: &[ScrapeConfig], _listen: &ListenConfig) -> Vec<String> {
    Vec::new()
}
