//! What reads the host: one collector a measurement.
//!
//! Each separates reading from a pure `parse`, and keeps what rates need of the previous sample.

use std::{io, path::PathBuf};

use plimsoll_nats::catalog::{self, MeasurementSpec};

use crate::rows::Rows;

#[cfg(target_os = "linux")]
pub mod cpu;
#[cfg(target_os = "linux")]
pub mod diskio;
#[cfg(target_os = "linux")]
pub mod filesystem;
#[cfg(target_os = "linux")]
pub mod load;
#[cfg(target_os = "linux")]
pub mod memory;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(target_os = "linux")]
mod proc_file;
#[cfg(target_os = "linux")]
pub mod temperature;

/// Reads one measurement of this host.
pub trait Collector: Send {
    /// Adds the rows of this moment; none where there is nothing to tell, as at the first reading of a rate.
    ///
    /// Fails when the source cannot be read or is not of the form that the kernel documents. May block for as long as a
    /// slow device takes to answer.
    fn collect(&mut self, rows: &mut Rows) -> Result<(), CollectError>;
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

/// A collector that this build has.
#[derive(Debug, Clone, Copy)]
pub struct CollectorKind {
    /// The collector's name, which is also its measurement's.
    pub name: &'static str,
    pub(crate) open: fn() -> Box<dyn Collector>,
}

impl CollectorKind {
    /// A collector that has not read anything yet.
    #[must_use]
    pub fn open(&self) -> Box<dyn Collector> {
        (self.open)()
    }

    /// The catalog's description of what this collector yields.
    ///
    /// # Panics
    /// Never: a test opens every collector's entry in the catalog.
    #[must_use]
    pub fn spec(&self) -> &'static MeasurementSpec {
        catalog::measurement(self.name).expect("every collector is named for a measurement of the catalog")
    }
}

/// Every collector of this platform, by name.
#[cfg(target_os = "linux")]
pub const KINDS: &[CollectorKind] = &[
    CollectorKind { name: "cpu", open: || Box::new(cpu::Cpu::default()) },
    CollectorKind { name: "memory", open: || Box::new(memory::Memory::default()) },
    CollectorKind { name: "load", open: || Box::new(load::Load::default()) },
    CollectorKind { name: "filesystem", open: || Box::new(filesystem::Filesystem::default()) },
    CollectorKind { name: "diskio", open: || Box::new(diskio::DiskIo::default()) },
    CollectorKind { name: "network", open: || Box::new(network::Network::default()) },
    CollectorKind { name: "temperature", open: || Box::new(temperature::Temperature::default()) },
];

/// Every collector of this platform: none, as all of them read what only Linux has.
#[cfg(not(target_os = "linux"))]
pub const KINDS: &[CollectorKind] = &[];

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{thread::sleep, time::Duration};

    use super::*;

    #[test]
    fn every_collector_reads_this_host_and_yields_what_the_catalog_says() {
        for kind in KINDS {
            let mut rows = Rows::new(kind.spec());
            let mut collector = kind.open();
            collector.collect(&mut rows).unwrap();
            rows.take();
            // Long enough for the kernel's counters to move by some of their 10 ms ticks.
            sleep(Duration::from_millis(60));
            collector.collect(&mut rows).unwrap();
            // Sensors, and in a sandbox also disks and interfaces, may be absent.
            let certain = matches!(kind.name, "cpu" | "memory" | "load" | "filesystem");
            assert!(!rows.is_empty() || !certain, "{}", kind.name);
            let columns = rows.take();
            let tags: Vec<&str> = columns.tags.keys().map(|name| &**name).collect();
            let mut expected: Vec<&str> = kind.spec().tags.iter().map(|tag| tag.name).collect();
            expected.sort_unstable();
            assert_eq!(tags, expected, "tags of {}", kind.name);
            assert_eq!(columns.fields.len(), kind.spec().fields.len(), "fields of {}", kind.name);
            for field in kind.spec().fields {
                let column = &columns.fields[field.name];
                assert_eq!(column.field_type(), field.field_type, "{}.{}", kind.name, field.name);
            }
        }
    }

    #[test]
    fn the_catalog_has_nothing_that_no_collector_reads() {
        let mut kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let mut measurements: Vec<&str> = catalog::MEASUREMENTS.iter().map(|spec| spec.name).collect();
        kinds.sort_unstable();
        measurements.sort_unstable();
        assert_eq!(kinds, measurements);
    }
}
