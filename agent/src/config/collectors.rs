//! The settings of the collectors.

use std::{path::PathBuf, time::Duration};

use globset::{Glob, GlobBuilder, GlobSet};
use serde::Deserialize;

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
    pub network: NetworkConfig,
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
    pub gpu: GpuConfig,
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
        /// Globs of mount points that are left out, and never asked; default none. `*` stops at a `/`, `**` does not.
        exclude: Vec<String> = Vec::new(),
    }
}

config! {
    /// Which network interfaces are told.
    NetworkConfig {
        /// Globs of names that are left out, such as `veth*`; default none.
        exclude: Vec<String> = Vec::new(),
        /// Whether loopback is told as well; default false.
        loopback: bool = false,
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
    /// How NVIDIA's graphics processors are asked.
    GpuConfig {
        /// Name or path of NVIDIA's management library; default `libnvidia-ml.so.1`, where the system's loader finds it.
        library: PathBuf = "libnvidia-ml.so.1".into(),
    }
}

config! {
    /// Which processes are told one by one.
    ProcessConfig {
        /// How many of the largest by CPU, by memory and by I/O; default 10.
        top: usize = 10,
        /// Globs of names whose processes are always told; default none.
        watch: Vec<String> = Vec::new(),
    }
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
            ("network", self.network.common()),
            ("wifi", self.wifi.clone()),
            ("sockets", self.sockets.clone()),
            ("temperature", self.temperature.clone()),
            ("fan", self.fan.clone()),
            ("power", self.power.clone()),
            ("throttle", self.throttle.clone()),
            ("gpu", self.gpu.common()),
            ("process", self.process.common()),
            ("container", self.container.common()),
        ]
    }

    /// What is wrong beyond the intervals.
    pub(super) fn problems(&self) -> Vec<String> {
        let globs = [("filesystem.exclude", &self.filesystem.exclude), ("network.exclude", &self.network.exclude)];
        let problem = |key, pattern: &String| Some(format!("`collectors.{key}`: {}", path_glob(pattern).err()?));
        globs
            .into_iter()
            .flat_map(|(key, patterns)| patterns.iter().filter_map(move |pattern| problem(key, pattern)))
            .collect()
    }
}

/// What matches any of the patterns, each as [`path_glob`]. Invalid ones, which validation refuses, match nothing.
pub(crate) fn path_globs(patterns: &[String]) -> GlobSet {
    GlobSet::new(patterns.iter().filter_map(|pattern| path_glob(pattern).ok())).unwrap_or_default()
}

/// A glob whose `*` and `?` match no `/`.
fn path_glob(pattern: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(pattern).literal_separator(true).build()
}
