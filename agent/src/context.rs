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

    /// Whether the agent's own network is the host's. What is asked through a socket is answered for the agent's own.
    #[must_use]
    pub fn shares_network(&self) -> bool {
        let network = |path: PathBuf| std::fs::read_link(path).ok();
        !self.is_elsewhere()
            || network(self.own("ns/net")).is_some_and(|host| network("/proc/self/ns/net".into()) == Some(host))
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
    #[cfg(target_os = "linux")]
    fn a_network_is_shared_when_the_kernel_gives_it_one_name() {
        assert!(HostPaths::default().shares_network());
        let root = tempfile::tempdir().unwrap();
        let host = HostPaths::new(root.path());
        assert!(!host.shares_network());
        std::fs::create_dir_all(host.own("ns")).unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        std::os::unix::fs::symlink(own, host.own("ns/net")).unwrap();
        assert!(host.shares_network());
        std::fs::remove_file(host.own("ns/net")).unwrap();
        std::os::unix::fs::symlink("net:[1]", host.own("ns/net")).unwrap();
        assert!(!host.shares_network());
    }

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
