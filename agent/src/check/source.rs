//! What is configured beside the collectors.

use serde::Serialize;

use super::shown;
use crate::AgentConfig;

/// A configured source of samples that is no collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    /// The section of the configuration: `exec`, `scrape` or `listen`.
    pub section: &'static str,
    /// Its name there.
    pub name: String,
    /// What it reads and when.
    pub what: String,
}

/// Every source that is configured, in the order of the configuration. None is run: a command may change something.
pub(super) fn list(config: &AgentConfig) -> Vec<SourceReport> {
    let exec = config.exec.iter().map(|exec| SourceReport {
        section: "exec",
        name: exec.name.clone(),
        what: format!("{} every {}", exec.command.join(" "), shown(exec.interval)),
    });
    let scrape = config.scrape.iter().map(|scrape| SourceReport {
        section: "scrape",
        name: scrape.name.clone(),
        what: format!("every {}", shown(scrape.interval)),
    });
    let listen = &config.listen;
    let address = |address: Option<std::net::SocketAddr>| address.map(|address| format!("udp {address}"));
    let socket = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| format!("socket {}", path.display()));
    let listeners = [
        ("statsd_udp", address(listen.statsd_udp)),
        ("statsd_socket", socket(&listen.statsd_socket)),
        ("influx_udp", address(listen.influx_udp)),
        ("influx_socket", socket(&listen.influx_socket)),
    ];
    let listen = listeners
        .into_iter()
        .filter_map(|(name, what)| Some(SourceReport { section: "listen", name: name.to_owned(), what: what? }));
    exec.chain(scrape).chain(listen).collect()
}
