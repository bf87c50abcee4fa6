//! What a collector is opened with.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{AgentConfig, CollectorsConfig},
    events::EventSink,
};

/// Where the host is looked at, its settings, and who takes its events.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Where the host's files are seen.
    pub paths: HostPaths,
    /// The settings of all collectors.
    pub config: Arc<CollectorsConfig>,
    /// Takes what a collector notices happening.
    pub events: EventSink,
}

impl Context {
    /// What a configuration says, with events that nobody takes.
    #[must_use]
    pub fn of(config: &AgentConfig) -> Self {
        Self { paths: config.paths(), config: Arc::new(config.collectors.clone()), events: EventSink::default() }
    }
}

/// Where the host's files are seen: below `/`, or below a folder when the agent runs in a container.
///
/// The folder must show the host's root file system with its `/proc` and `/sys`, as `-v /:/host:ro` and `--pid=host` do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPaths {
    root: PathBuf,
}

impl Default for HostPaths {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl HostPaths {
    /// The host's root is seen at `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Whether the agent sees the host through a folder, as in a container.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.root != Path::new("/")
    }

    /// Where an absolute path of the host is seen.
    #[must_use]
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A file of the host's `/proc`, such as `stat`.
    #[must_use]
    pub fn proc(&self, file: &str) -> PathBuf {
        self.at("/proc").join(file)
    }

    /// A file of the host's `/sys`, such as `class/net`.
    #[must_use]
    pub fn sys(&self, file: &str) -> PathBuf {
        self.at("/sys").join(file)
    }

    /// A file of the `/proc/<pid>` whose mounts and network are the host's: the agent's own, or process 1's where the host is
    /// seen through a folder.
    #[must_use]
    pub fn own(&self, file: &str) -> PathBuf {
        let pid = if self.is_elsewhere() { "1" } else { "self" };
        self.proc(pid).join(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_elsewhere_moves_every_path() {
        let host = HostPaths::default();
        assert_eq!(host.proc("stat"), Path::new("/proc/stat"));
        assert_eq!(host.own("mountinfo"), Path::new("/proc/self/mountinfo"));
        let host = HostPaths::new("/host");
        assert_eq!(host.at("/var/lib"), Path::new("/host/var/lib"));
        assert_eq!(host.sys("class/net"), Path::new("/host/sys/class/net"));
        assert_eq!(host.own("mountinfo"), Path::new("/host/proc/1/mountinfo"));
    }
}
