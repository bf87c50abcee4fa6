//! The settings of how samples reach the broker.

use std::time::Duration;

use serde::Deserialize;

/// Defaults for a kind of host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A sample each second, sent at once.
    #[default]
    Standard,
    /// For constrained hosts: a sample each 10 s, sent each minute.
    Light,
}

impl Profile {
    /// Time between two samples.
    #[must_use]
    pub fn interval(self) -> Duration {
        match self {
            Self::Standard => Duration::from_secs(1),
            Self::Light => Duration::from_secs(10),
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
    /// How long the samples of a measurement are gathered into one message, `0s` to `5m`; default the profile's: each sample
    /// is sent at once.
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
