//! The settings of the collectors.

use std::{path::PathBuf, time::Duration};

use globset::{Glob, GlobSet};
use serde::Deserialize;

/// Most processes of each kind that are told as the largest.
const MAX_TOP: usize = 500;
/// Longest name that the kernel keeps of a program (`TASK_COMM_LEN` less the end).
const NAME_BYTES: usize = 15;

/// The settings of each collector.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectorsConfig {
    /// Processor time.
    pub cpu: CollectorConfig,
    /// Pressure stall information.
    pub pressure: CollectorConfig,
    /// Main memory and swap.
    pub memory: CollectorConfig,
    /// Load averages.
    pub load: CollectorConfig,
    /// Space and inodes.
    pub filesystem: FilesystemConfig,
    /// Block devices.
    pub diskio: CollectorConfig,
    /// Size of folders.
    pub directory_size: DirectorySizeConfig,
    /// Network interfaces.
    pub network: CollectorConfig,
    /// Wireless links.
    pub wifi: CollectorConfig,
    /// Sockets and TCP.
    pub sockets: CollectorConfig,
    /// Temperature sensors.
    pub temperature: CollectorConfig,
    /// Fans.
    pub fan: CollectorConfig,
    /// Power consumption and supplies.
    pub power: CollectorConfig,
    /// Processor throttling.
    pub throttle: CollectorConfig,
    /// NVIDIA graphics processors.
    pub gpu: CollectorConfig,
    /// Processes.
    pub process: ProcessConfig,
    /// Containers.
    pub container: ContainerConfig,
}

/// What every collector can be told.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectorConfig {
    /// Whether it runs; default true.
    pub enabled: bool,
    /// Time between two samples; default the collector's own, else the agent's `interval`.
    #[serde(with = "humantime_serde")]
    pub interval: Option<Duration>,
}

impl Default for CollectorConfig {
    fn default() -> Self {
        Self { enabled: true, interval: None }
    }
}

/// A collector's settings with some of its own beside those that all have.
macro_rules! config {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// Whether it runs; default true.
            pub enabled: bool,
            /// Time between two samples; default the collector's own, else the agent's `interval`.
            #[serde(with = "humantime_serde")]
            pub interval: Option<Duration>,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { enabled: true, interval: None, $($field: $default,)* }
            }
        }

        impl $name {
            fn common(&self) -> CollectorConfig {
                CollectorConfig { enabled: self.enabled, interval: self.interval }
            }
        }
    };
}

config! {
    /// Which file systems are told.
    FilesystemConfig {
        /// Globs of mount points that are left out; default none.
        exclude: Vec<String> = Vec::new(),
    }
}

config! {
    /// Which folders are measured.
    DirectorySizeConfig {
        /// Absolute paths; default `/var/lib/docker`, where it is present.
        paths: Vec<PathBuf> = vec!["/var/lib/docker".into()],
    }
}

config! {
    /// Which processes are told one by one.
    ProcessConfig {
        /// How many of the largest by CPU, by memory and by I/O; default 10.
        top: usize = 10,
        /// Globs of names whose processes are always told; default none. The kernel keeps 15 bytes of a name, so a longer one
        /// without wildcards is cut to these.
        watch: Vec<String> = Vec::new(),
        /// What is told of command lines; default `name`, since arguments may hold secrets that history would keep.
        command: CommandDetail = CommandDetail::Name,
    }
}

/// What is told of a process's command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandDetail {
    /// The program without its arguments.
    #[default]
    Name,
    /// The program and its arguments.
    Full,
}

config! {
    /// How containers are told.
    ContainerConfig {
        /// Sockets of Docker or Podman that are asked for names and images; default those that are usual.
        sockets: Vec<PathBuf> = vec!["/run/docker.sock".into(), "/run/podman/podman.sock".into()],
    }
}

impl CollectorsConfig {
    /// Each collector's name and what every collector can be told.
    #[must_use]
    pub fn all(&self) -> [(&'static str, CollectorConfig); 17] {
        [
            ("cpu", self.cpu.clone()),
            ("pressure", self.pressure.clone()),
            ("memory", self.memory.clone()),
            ("load", self.load.clone()),
            ("filesystem", self.filesystem.common()),
            ("diskio", self.diskio.clone()),
            ("directory_size", self.directory_size.common()),
            ("network", self.network.clone()),
            ("wifi", self.wifi.clone()),
            ("sockets", self.sockets.clone()),
            ("temperature", self.temperature.clone()),
            ("fan", self.fan.clone()),
            ("power", self.power.clone()),
            ("throttle", self.throttle.clone()),
            ("gpu", self.gpu.clone()),
            ("process", self.process.common()),
            ("container", self.container.common()),
        ]
    }

    /// What is wrong beyond the intervals.
    pub(super) fn problems(&self) -> Vec<String> {
        [
            self.process.problems(),
            relative_paths("collectors.container.sockets", &self.container.sockets),
            relative_paths("collectors.directory_size.paths", &self.directory_size.paths),
        ]
        .concat()
    }
}

impl ProcessConfig {
    /// Matches the names of the processes that are always told. Fails on the first glob that is none.
    pub fn watched(&self) -> Result<GlobSet, globset::Error> {
        GlobSet::new(
            self.watch.iter().map(|pattern| Glob::new(kept_by_kernel(pattern))).collect::<Result<Vec<_>, _>>()?,
        )
    }

    fn problems(&self) -> Vec<String> {
        let globs = self.watch.iter().filter_map(|pattern| Glob::new(pattern).err());
        let mut problems: Vec<String> = globs.map(|error| format!("`collectors.process.watch`: {error}")).collect();
        if self.top > MAX_TOP {
            problems.push(format!("`collectors.process.top`: expected at most {MAX_TOP}"));
        }
        problems
    }
}

/// What the kernel keeps of a name; a glob with wildcards as it is.
fn kept_by_kernel(pattern: &str) -> &str {
    let literal = !pattern.contains(['*', '?', '[', '{', '\\']);
    if literal { pattern.get(..NAME_BYTES).unwrap_or(pattern) } else { pattern }
}

/// What is wrong with paths that are to be absolute.
fn relative_paths(key: &str, paths: &[PathBuf]) -> Vec<String> {
    let relative = paths.iter().filter(|path| !path.is_absolute());
    relative.map(|path| format!("`{key}`: expected an absolute path instead of `{}`", path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_globs_paths_and_numbers_are_told_with_their_key() {
        let config = CollectorsConfig {
            process: ProcessConfig { top: 501, watch: vec!["ok*".into(), "a[".into()], ..ProcessConfig::default() },
            container: ContainerConfig { sockets: vec!["docker.sock".into()], ..ContainerConfig::default() },
            directory_size: DirectorySizeConfig {
                paths: vec!["/a".into(), "b".into()],
                ..DirectorySizeConfig::default()
            },
            ..CollectorsConfig::default()
        };
        let problems = config.problems();
        for (problem, text) in problems.iter().zip(["'a['", "process.top", "docker.sock", "`b`"]) {
            assert!(problem.contains(text), "{problem}");
        }
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert_eq!(CollectorsConfig::default().problems(), [""; 0]);
    }

    #[test]
    fn a_name_longer_than_the_kernel_keeps_is_found_all_the_same() {
        let config =
            ProcessConfig { watch: vec!["systemd-journald".into(), "kworker*".into()], ..ProcessConfig::default() };
        let watched = config.watched().unwrap();
        assert!(watched.is_match("systemd-journal") && watched.is_match("kworker/0:1"));
        assert!(!watched.is_match("systemd"));
    }
}
