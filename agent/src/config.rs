//! The agent's configuration.

use std::time::Duration;

use plimsoll_nats::{HostId, NameError, NatsConfig};
use plimsoll_service::config::Validate;
use serde::Deserialize;

/// Shortest interval between two samples.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Longest interval between two samples.
pub const MAX_INTERVAL: Duration = Duration::from_secs(3600);
/// Smallest buffer in bytes.
pub const MIN_BUFFER_BYTES: usize = 1024 * 1024;

/// How the agent samples and where it sends.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Id of this host; default the host name with other characters replaced by `-`.
    pub host: Option<String>,
    /// Time between two samples of a collector that sets none of its own; default 1 s.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Bytes of encoded batches kept in memory while the broker is away; default 64 MiB. The oldest go first.
    pub buffer_bytes: usize,
    /// What to read, and how often.
    pub collectors: CollectorsConfig,
    /// How to reach the broker.
    pub nats: NatsConfig,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            host: None,
            interval: Duration::from_secs(1),
            buffer_bytes: 64 * 1024 * 1024,
            collectors: CollectorsConfig::default(),
            nats: NatsConfig::default(),
        }
    }
}

/// The settings of each collector.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectorsConfig {
    /// Processor time.
    pub cpu: CollectorConfig,
    /// Main memory and swap.
    pub memory: CollectorConfig,
    /// Load averages.
    pub load: CollectorConfig,
    /// Space and inodes.
    pub filesystem: CollectorConfig,
    /// Block devices.
    pub diskio: CollectorConfig,
    /// Network interfaces.
    pub network: CollectorConfig,
    /// Temperature sensors.
    pub temperature: CollectorConfig,
}

/// The settings of one collector.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectorConfig {
    /// Whether it runs; default true.
    pub enabled: bool,
    /// Time between two samples; default the agent's `interval`.
    #[serde(with = "humantime_serde")]
    pub interval: Option<Duration>,
}

impl Default for CollectorConfig {
    fn default() -> Self {
        Self { enabled: true, interval: None }
    }
}

impl CollectorsConfig {
    /// Each collector's name and settings.
    #[must_use]
    pub fn all(&self) -> [(&'static str, &CollectorConfig); 7] {
        [
            ("cpu", &self.cpu),
            ("memory", &self.memory),
            ("load", &self.load),
            ("filesystem", &self.filesystem),
            ("diskio", &self.diskio),
            ("network", &self.network),
            ("temperature", &self.temperature),
        ]
    }
}

impl AgentConfig {
    /// The id that this host goes by; fails when the configured one is not valid.
    pub fn host_id(&self) -> Result<HostId, NameError> {
        match &self.host {
            Some(host) => HostId::parse(host),
            None => Ok(crate::default_host_id()),
        }
    }

    /// The time between two samples of the collector of that name; none when it is switched off.
    #[must_use]
    pub fn interval_of(&self, collector: &str) -> Option<Duration> {
        let (_, config) = self.collectors.all().into_iter().find(|(name, _)| *name == collector)?;
        config.enabled.then(|| config.interval.unwrap_or(self.interval))
    }
}

impl Validate for AgentConfig {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(error) = self.host_id() {
            problems.push(format!("`host`: {error}"));
        }
        let own = self
            .collectors
            .all()
            .into_iter()
            .filter_map(|(name, collector)| Some((format!("collectors.{name}.interval"), collector.interval?)));
        for (key, interval) in std::iter::once(("interval".to_owned(), self.interval)).chain(own) {
            if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
                problems.push(format!("`{key}`: expected 100ms to 1h"));
            } else if !interval.subsec_nanos().is_multiple_of(1_000_000) {
                problems.push(format!("`{key}`: expected whole milliseconds"));
            }
        }
        if self.buffer_bytes < MIN_BUFFER_BYTES {
            problems.push(format!("`buffer_bytes`: expected at least {MIN_BUFFER_BYTES}"));
        }
        problems.extend(self.nats.problems());
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use plimsoll_service::config::{ConfigError, load};

    use super::*;
    use crate::collectors;

    fn load_text(text: &str) -> Result<AgentConfig, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load("agent", &["nats"], Some(file.path()))
    }

    #[test]
    fn defaults_are_valid_and_sample_everything_each_second() {
        let config = load_text("").unwrap();
        assert_eq!(config.problems(), [""; 0]);
        for kind in collectors::KINDS {
            assert_eq!(config.interval_of(kind.name), Some(Duration::from_secs(1)), "{}", kind.name);
        }
        assert!(!config.host_id().unwrap().is_empty());
    }

    #[test]
    fn collectors_have_intervals_of_their_own() {
        let config = load_text(
            "host = 'web-1'\ninterval = '5s'\n[collectors.cpu]\ninterval = '500ms'\n[collectors.load]\nenabled = false\n\
             [nats]\nurl = 'nats://broker:4222'",
        )
        .unwrap();
        assert_eq!(&*config.host_id().unwrap(), "web-1");
        assert_eq!(config.interval_of("cpu"), Some(Duration::from_millis(500)));
        assert_eq!(config.interval_of("memory"), Some(Duration::from_secs(5)));
        assert_eq!(config.interval_of("load"), None);
        assert_eq!(config.nats.url, "nats://broker:4222");
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let text = "host = 'a b'\ninterval = '2h'\nbuffer_bytes = 5\n[collectors.cpu]\ninterval = '1ms'\n\
                    [collectors.memory]\ninterval = '1s 5us'\n[nats]\nuser = 'u'";
        let error = load_text(text).unwrap_err().to_string();
        for key in [
            "`host`",
            "`interval`",
            "`buffer_bytes`",
            "`collectors.cpu.interval`",
            "`collectors.memory.interval`",
            "`nats.password`",
        ] {
            assert!(error.contains(key), "{key} is missing in {error}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        for text in ["intervall = '1s'", "[collectors.cpus]\nenabled = true", "[collectors.cpu]\nevery = '1s'"] {
            assert!(load_text(text).is_err(), "{text}");
        }
    }
}
