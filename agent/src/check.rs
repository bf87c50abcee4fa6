//! What the agent would do on this host: which collectors work and why others do not, and whether samples would arrive.

mod broker;
mod collector;
mod source;
mod state_dir;
mod text;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

pub use self::{
    broker::{BrokerReport, BrokerState},
    collector::{CollectorReport, CollectorState},
    source::SourceReport,
    state_dir::StateDirReport,
};
use crate::{AgentConfig, collectors::KINDS, context::Context, reading::LIMIT};

/// What was found; prints as text for people.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The agent's version.
    pub version: &'static str,
    /// The id that this host goes by; none when the configured one is not valid.
    pub host: Option<String>,
    /// The effective user that asks: what it may not read, a service of another user may, and the other way round.
    pub uid: u32,
    /// The configuration file; none where only defaults and variables count.
    pub config_file: Option<PathBuf>,
    /// Where the host's files are seen.
    pub host_root: PathBuf,
    /// Where the agent keeps what outlives it.
    pub state_dir: StateDirReport,
    /// Where samples go.
    pub broker: BrokerReport,
    /// The collectors, as they are listed everywhere.
    pub collectors: Vec<CollectorReport>,
    /// What is configured beside the collectors.
    pub sources: Vec<SourceReport>,
}

impl Report {
    /// Whether no collector that is switched on fails.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.collectors.iter().all(|collector| collector.state != CollectorState::Fails)
    }
}

/// Reads each collector twice, a second apart, looks at the state folder and asks the broker. Changes nothing anywhere.
///
/// `file` is where `config` was read from.
#[must_use]
pub fn run(config: &AgentConfig, file: Option<&Path>) -> Report {
    Report {
        version: env!("CARGO_PKG_VERSION"),
        host: config.host_id().ok().map(|host| host.to_string()),
        uid: rustix::process::geteuid().as_raw(),
        config_file: file.map(Path::to_owned),
        host_root: config.host_root.clone(),
        state_dir: state_dir::look(&state_dir::folder(config)),
        broker: broker::ask(&config.nats),
        collectors: collector::read_all(KINDS, config, &Context::of(config), LIMIT),
        sources: source::list(config),
    }
}

/// A duration as people write it.
fn shown(duration: Duration) -> String {
    humantime_serde::re::humantime::format_duration(duration).to_string()
}
