//! The settings of how samples reach the broker.

use std::time::Duration;

use serde::Deserialize;

use super::MAX_INTERVAL;
use crate::collectors::CollectorKind;

/// Defaults for a kind of host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A sample each second, sent at once.
    #[default]
    Standard,
    /// For constrained hosts: a sample each 10 s, sent each minute, and what costs most each minute.
    Light,
}

/// What costs most to read: each process, container or graphics processor is asked by itself.
const COSTLY: [&str; 4] = ["process", "container", "gpu", "directory_size"];

impl Profile {
    /// Time between two samples.
    #[must_use]
    pub fn interval(self) -> Duration {
        match self {
            Self::Standard => Duration::from_secs(1),
            Self::Light => Duration::from_secs(10),
        }
    }

    /// Shortest time between two samples of a collector whose own interval is not set.
    pub(super) fn least_interval_of(self, kind: &CollectorKind) -> Duration {
        let own = kind.interval.unwrap_or(Duration::ZERO);
        match self {
            Self::Standard => own,
            Self::Light if COSTLY.contains(&kind.name) => (own * 10).clamp(Duration::from_secs(60), MAX_INTERVAL),
            Self::Light => own,
        }
    }

    /// Time that samples are gathered before they are sent.
    #[must_use]
    pub fn batch_interval(self) -> Duration {
        match self {
            Self::Standard => Duration::ZERO,
            Self::Light => Duration::from_secs(60),
        }
    }
}

/// How samples are put together for the broker.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// How long the samples of a measurement are gathered into one message, `0s` to `5m`; default the profile's: 0 s, each sample
    /// is sent at once, or 60 s. What has been gathered is sent at shutdown, and lost when the agent is killed.
    #[serde(with = "humantime_serde")]
    pub interval: Option<Duration>,
}

impl BatchConfig {
    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<String> {
        let too_long = self.interval.is_some_and(|interval| interval > Duration::from_secs(300));
        if too_long { vec!["`batch.interval`: expected 0s to 5m".to_owned()] } else { Vec::new() }
    }
}

/// Where samples wait on disk while the broker is away.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// Whether samples are kept on disk; default true.
    pub enabled: bool,
    /// Most bytes on disk, at least 1 MiB; default 256 MiB. The oldest go first.
    pub max_bytes: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self { enabled: true, max_bytes: 256 * 1024 * 1024 }
    }
}

impl SpoolConfig {
    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<String> {
        if self.max_bytes < 1024 * 1024 {
            vec!["`spool.max_bytes`: expected at least 1048576".to_owned()]
        } else {
            Vec::new()
        }
    }
}
