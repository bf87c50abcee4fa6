//! What reads the host: one collector a measurement, or a few that come from one reading.
//!
//! Each separates reading from a pure `parse`, and keeps what rates need of the previous sample.

use std::{io, path::PathBuf, time::Duration};

use plimsoll_nats::catalog::{self, MeasurementSpec};

use crate::{context::Context, rows::Tables};

#[cfg(target_os = "linux")]
pub mod container;
#[cfg(target_os = "linux")]
pub mod cpu;
#[cfg(target_os = "linux")]
pub mod directory_size;
#[cfg(target_os = "linux")]
pub mod diskio;
#[cfg(target_os = "linux")]
pub mod fan;
#[cfg(target_os = "linux")]
pub mod filesystem;
#[cfg(target_os = "linux")]
pub mod gpu;
#[cfg(target_os = "linux")]
mod hwmon;
#[cfg(target_os = "linux")]
pub mod load;
#[cfg(target_os = "linux")]
pub mod memory;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(any(test, not(target_os = "linux")))]
pub mod portable;
#[cfg(target_os = "linux")]
pub mod power;
#[cfg(target_os = "linux")]
pub mod pressure;
#[cfg(target_os = "linux")]
mod proc_file;
#[cfg(target_os = "linux")]
pub mod process;
#[cfg(target_os = "linux")]
mod roster;
#[cfg(target_os = "linux")]
pub mod sockets;
#[cfg(target_os = "linux")]
mod sysfs;
#[cfg(target_os = "linux")]
pub mod temperature;
#[cfg(target_os = "linux")]
pub mod throttle;
#[cfg(target_os = "linux")]
pub mod wifi;

/// Reads some measurements of this host.
pub trait Collector: Send {
    /// Adds the rows of this moment; none where there is nothing to tell, as at the first reading of a rate.
    ///
    /// Fails when the source cannot be read or is not of the form that the kernel documents.
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError>;

    /// What this collector cannot tell on this host and why, one sentence each, as known after a reading: hardware that is not
    /// there, a permission that is missing. Empty where it tells everything.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Why a measurement could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The source could not be opened or read.
    #[error("failed to read `{path}`")]
    Read {
        /// The source.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The source holds something else than expected.
    #[error("failed to parse `{path}`")]
    Parse {
        /// The source.
        path: PathBuf,
        /// Where and what.
        source: ParseError,
    },
    /// A library or service could not be asked.
    #[error("failed to ask {what}")]
    Ask {
        /// What was asked, such as `NVML`.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A thread could not be started.
    #[error("failed to start a thread for `{path}`")]
    Thread {
        /// What the thread was to look at.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A text that is not of the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}")]
pub struct ParseError {
    /// The line, from 1; 0 speaks of the whole text.
    pub line: usize,
    /// What was expected there.
    pub expected: &'static str,
}

/// Whether a collector may wait for what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Reads what the kernel answers at once; shares a thread with others of its kind.
    Hot,
    /// May wait for a device, a library or a long walk; has a thread of its own while it reads.
    Slow,
}

/// A collector that this build has.
#[derive(Debug, Clone, Copy)]
pub struct CollectorKind {
    /// The collector's name, by which it is configured.
    pub name: &'static str,
    /// The measurements that it yields.
    pub measurements: &'static [&'static str],
    /// Whether it may wait.
    pub pace: Pace,
    /// Time between two samples unless the collector's own setting says otherwise; none takes the agent's `interval`.
    pub interval: Option<Duration>,
    pub(crate) open: fn(&Context) -> Box<dyn Collector>,
}

impl CollectorKind {
    /// A collector that has not read anything yet.
    #[must_use]
    pub fn open(&self, context: &Context) -> Box<dyn Collector> {
        (self.open)(context)
    }

    /// The catalog's descriptions of what this collector yields.
    ///
    /// # Panics
    /// Never: a test opens every collector's entries in the catalog.
    pub fn specs(&self) -> impl Iterator<Item = &'static MeasurementSpec> {
        let spec = |name: &&str| catalog::measurement(name).expect("collectors yield measurements of the catalog");
        self.measurements.iter().map(spec)
    }

    /// No rows of what this collector yields.
    #[must_use]
    pub fn tables(&self) -> Tables {
        Tables::new(self.specs())
    }
}

/// Every collector of this platform.
#[cfg(target_os = "linux")]
pub const KINDS: &[CollectorKind] = &[
    CollectorKind {
        name: "cpu",
        measurements: &["cpu"],
        pace: Pace::Hot,
        interval: None,
        open: |context| Box::new(cpu::Cpu::new(context)),
    },
    CollectorKind {
        name: "pressure",
        measurements: &["pressure"],
        pace: Pace::Hot,
        interval: None,
        open: |context| Box::new(pressure::Pressure::new(context)),
    },
    CollectorKind {
        name: "memory",
        measurements: &["memory"],
        pace: Pace::Hot,
        interval: None,
        open: |context| Box::new(memory::Memory::new(context)),
    },
    CollectorKind {
        name: "load",
        measurements: &["load"],
        pace: Pace::Hot,
        interval: None,
        open: |context| Box::new(load::Load::new(context)),
    },
    CollectorKind {
        name: "filesystem",
        measurements: &["filesystem"],
        pace: Pace::Slow,
        interval: None,
        open: |context| Box::new(filesystem::Filesystem::new(context)),
    },
    CollectorKind {
        name: "diskio",
        measurements: &["diskio"],
        pace: Pace::Hot,
        interval: None,
        open: |context| Box::new(diskio::DiskIo::new(context)),
    },
    CollectorKind {
        name: "directory_size",
        measurements: &["directory_size"],
        pace: Pace::Slow,
        interval: Some(Duration::from_secs(300)),
        open: |context| Box::new(directory_size::DirectorySize::new(context)),
    },
    CollectorKind {
        name: "network",
        measurements: &["network"],
        pace: Pace::Hot,
        interval: None,
        open: |context| Box::new(network::Network::new(context)),
    },
    CollectorKind {
        name: "wifi",
        measurements: &["wifi"],
        pace: Pace::Slow,
        interval: None,
        open: |context| Box::new(wifi::Wifi::new(context)),
    },
    CollectorKind {
        name: "sockets",
        measurements: &["sockets"],
        pace: Pace::Hot,
        interval: None,
        open: |context| Box::new(sockets::Sockets::new(context)),
    },
    CollectorKind {
        name: "temperature",
        measurements: &["temperature"],
        pace: Pace::Slow,
        interval: None,
        open: |context| Box::new(temperature::Temperature::new(context)),
    },
    CollectorKind {
        name: "fan",
        measurements: &["fan"],
        pace: Pace::Slow,
        interval: None,
        open: |context| Box::new(fan::Fan::new(context)),
    },
    CollectorKind {
        name: "power",
        measurements: &["power"],
        pace: Pace::Slow,
        interval: None,
        open: |context| Box::new(power::Power::new(context)),
    },
    CollectorKind {
        name: "throttle",
        measurements: &["throttle"],
        pace: Pace::Hot,
        interval: None,
        open: |context| Box::new(throttle::Throttle::new(context)),
    },
    CollectorKind {
        name: "gpu",
        measurements: &["gpu", "gpu_process"],
        pace: Pace::Slow,
        interval: None,
        open: |context| Box::new(gpu::Gpu::new(context)),
    },
    CollectorKind {
        name: "process",
        measurements: &["process", "processes"],
        pace: Pace::Slow,
        interval: Some(Duration::from_secs(5)),
        open: |context| Box::new(process::Processes::new(context)),
    },
    CollectorKind {
        name: "container",
        measurements: &["container"],
        pace: Pace::Slow,
        interval: Some(Duration::from_secs(5)),
        open: |context| Box::new(container::Containers::new(context)),
    },
];

#[cfg(not(target_os = "linux"))]
pub use self::portable::KINDS;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{thread::sleep, time::Duration};

    use super::*;

    #[test]
    fn every_collector_reads_this_host_and_yields_what_the_catalog_says() {
        for kind in KINDS {
            let mut tables = kind.tables();
            let mut collector = kind.open(&Context::default());
            collector.collect(&mut tables).unwrap();
            tables.iter_mut().for_each(|rows| drop(rows.take()));
            // Long enough for the kernel's counters to move by some of their 10 ms ticks.
            sleep(Duration::from_millis(60));
            collector.collect(&mut tables).unwrap();
            // Sensors, and in a sandbox also disks and interfaces, may be absent.
            let certain = matches!(kind.name, "cpu" | "memory" | "load" | "filesystem");
            for spec in kind.specs() {
                let rows = tables.of(spec.name);
                assert!(!rows.is_empty() || !certain, "{}", spec.name);
                let columns = rows.take();
                let tags: Vec<&str> = columns.tags.keys().map(|name| &**name).collect();
                let mut expected: Vec<&str> = spec.tags.iter().map(|tag| tag.name).collect();
                expected.sort_unstable();
                assert_eq!(tags, expected, "tags of {}", spec.name);
                assert_eq!(columns.fields.len(), spec.fields.len(), "fields of {}", spec.name);
                for field in spec.fields {
                    let column = &columns.fields[field.name];
                    assert_eq!(column.field_type(), field.field_type, "{}.{}", spec.name, field.name);
                }
            }
        }
    }

    #[test]
    fn every_measurement_of_the_catalog_is_read_by_one_collector() {
        let mut read: Vec<&str> = KINDS.iter().flat_map(|kind| kind.measurements).copied().collect();
        // The agent tells it of itself and of its custom sources, and ingest of itself.
        read.extend(["agent", "exec", "scrape", "plimsoll"]);
        let mut measurements: Vec<&str> = catalog::MEASUREMENTS.iter().map(|spec| spec.name).collect();
        read.sort_unstable();
        measurements.sort_unstable();
        assert_eq!(read, measurements);
    }
}
