//! The agent's configuration.

mod collectors;
mod custom;
mod delivery;
mod update;

use std::{path::PathBuf, time::Duration};

use plimsoll_nats::{HostId, NameError, NatsConfig};
use plimsoll_service::config::Validate;
use serde::Deserialize;

pub use self::{
    collectors::{
        CollectorConfig, CollectorsConfig, CommandDetail, ContainerConfig, DirectorySizeConfig, FilesystemConfig,
        ProcessConfig,
    },
    custom::{ExecConfig, ExecFormat, ListenConfig, ScrapeConfig},
    delivery::{BatchConfig, Profile, SpoolConfig},
    update::UpdateConfig,
};
use crate::{collectors::CollectorKind, context::HostPaths};

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
    /// Defaults for the kind of host; default `standard`.
    pub profile: Profile,
    /// Time between two samples of a collector that sets none of its own; default the profile's, 1 s or 10 s.
    #[serde(with = "humantime_serde")]
    pub interval: Option<Duration>,
    /// Folder in which the host's root file system is seen, with its `/proc` and `/sys`; default `/`.
    pub host_root: PathBuf,
    /// Folder for what outlives the agent: the spool and its notes; default `$STATE_DIRECTORY`, else
    /// `/var/lib/plimsoll-agent` where that can be written, else `~/.local/state/plimsoll-agent`.
    pub state_dir: Option<PathBuf>,
    /// Bytes of encoded batches kept in memory while the broker is away; default 64 MiB. The oldest go first.
    pub buffer_bytes: usize,
    /// How samples are put together for the broker.
    pub batch: BatchConfig,
    /// Where samples wait on disk while the broker is away.
    pub spool: SpoolConfig,
    /// What to read, and how often.
    pub collectors: CollectorsConfig,
    /// Commands whose output is sampled.
    pub exec: Vec<ExecConfig>,
    /// Prometheus exporters that are sampled.
    pub scrape: Vec<ScrapeConfig>,
    /// Where programs of this host hand over samples of their own.
    pub listen: ListenConfig,
    /// How the agent replaces itself.
    pub update: UpdateConfig,
    /// How to reach the broker.
    pub nats: NatsConfig,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            host: None,
            profile: Profile::default(),
            interval: None,
            host_root: "/".into(),
            state_dir: None,
            buffer_bytes: 64 * 1024 * 1024,
            batch: BatchConfig::default(),
            spool: SpoolConfig::default(),
            collectors: CollectorsConfig::default(),
            exec: Vec::new(),
            scrape: Vec::new(),
            listen: ListenConfig::default(),
            update: UpdateConfig::default(),
            nats: NatsConfig::default(),
        }
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

    /// Where the host's files are seen.
    #[must_use]
    pub fn paths(&self) -> HostPaths {
        HostPaths::new(&self.host_root)
    }

    /// The time between two samples of a collector; none when it is switched off.
    #[must_use]
    pub fn interval_of(&self, kind: &CollectorKind) -> Option<Duration> {
        let (_, config) = self.collectors.all().into_iter().find(|(name, _)| *name == kind.name)?;
        let default = || self.interval.unwrap_or_else(|| self.profile.interval());
        config.enabled.then(|| config.interval.unwrap_or_else(|| self.profile.least_interval_of(kind).max(default())))
    }

    /// How long the samples of a measurement are gathered into one message; zero sends each at once.
    #[must_use]
    pub fn batch_interval(&self) -> Duration {
        self.batch.interval.unwrap_or_else(|| self.profile.batch_interval())
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
        for (key, interval) in self.interval.map(|interval| ("interval".to_owned(), interval)).into_iter().chain(own) {
            problems.extend(interval_problem(&key, interval));
        }
        if !self.host_root.is_absolute() {
            problems.push("`host_root`: expected an absolute path".to_owned());
        }
        problems.extend(self.batch.problems());
        problems.extend(self.spool.problems());
        problems.extend(self.collectors.problems());
        problems.extend(custom::problems(&self.exec, &self.scrape, &self.listen));
        problems.extend(self.update.problems());
        if self.buffer_bytes < MIN_BUFFER_BYTES {
            problems.push(format!("`buffer_bytes`: expected at least {MIN_BUFFER_BYTES}"));
        }
        problems.extend(self.nats.problems());
        problems
    }
}

/// What is wrong with an interval between samples.
fn interval_problem(key: &str, interval: Duration) -> Option<String> {
    if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
        Some(format!("`{key}`: expected 100ms to 1h"))
    } else if !interval.subsec_nanos().is_multiple_of(1_000_000) {
        Some(format!("`{key}`: expected whole milliseconds"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use plimsoll_service::config::{ConfigError, load};

    use super::*;
    use crate::collectors::KINDS;

    fn interval_of(config: &AgentConfig, name: &str) -> Option<Duration> {
        config.interval_of(KINDS.iter().find(|kind| kind.name == name).unwrap())
    }

    fn load_text(text: &str) -> Result<AgentConfig, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        load("agent", &["nats"], Some(file.path()))
    }

    #[test]
    fn defaults_are_valid_and_sample_everything_each_second() {
        let config = load_text("").unwrap();
        assert_eq!(config.problems(), [""; 0]);
        for kind in KINDS {
            let expected = kind.interval.unwrap_or(Duration::from_secs(1));
            assert_eq!(config.interval_of(kind), Some(expected), "{}", kind.name);
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
        assert_eq!(interval_of(&config, "cpu"), Some(Duration::from_millis(500)));
        assert_eq!(interval_of(&config, "memory"), Some(Duration::from_secs(5)));
        assert_eq!(interval_of(&config, "load"), None);
        assert_eq!(config.nats.url, "nats://broker:4222");
    }

    #[test]
    fn a_constrained_host_is_sampled_and_told_less_often() {
        let config = load_text("").unwrap();
        assert_eq!(config.batch_interval(), Duration::ZERO);
        let config = load_text("profile = 'light'").unwrap();
        assert_eq!(config.problems(), [""; 0]);
        assert_eq!(config.batch_interval(), Duration::from_secs(60));
        let seconds = |name: &str| interval_of(&config, name).unwrap().as_secs();
        assert_eq!(["cpu", "filesystem", "process", "gpu", "directory_size"].map(seconds), [10, 10, 60, 60, 3_000]);

        let config = load_text(
            "profile = 'light'\ninterval = '2s'\n[batch]\ninterval = '5s'\n[collectors.process]\ninterval = '3s'",
        )
        .unwrap();
        assert_eq!(config.batch_interval(), Duration::from_secs(5));
        let seconds = |name: &str| interval_of(&config, name).unwrap().as_secs();
        assert_eq!(["cpu", "process", "gpu"].map(seconds), [2, 3, 60]);
        assert!(load_text("[batch]\ninterval = '6m'").unwrap_err().to_string().contains("`batch.interval`"));
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
