//! Made-up fleets that look like real ones: the built-in measurements, values that walk, counters that grow and begin anew at
//! reboots, and fields that never change.
//!
//! The same configuration yields the same rows, on any machine and for ever. Values have the resolution of what the agent sends:
//! processor time is counted in ticks, memory in KiB, disks in sectors, averages have two decimals.

mod hardware;
mod host;
mod load;
mod network;
mod process;
mod random;
mod rows;
mod storage;
mod system;
mod walk;

use std::time::Duration;

use plimsoll_nats::{Batch, HostId, batch::MAX_ROWS};

use self::host::Host;

/// What a made-up host sends. Left out of the catalog: what most servers lack (`wifi`, `fan`, `throttle`), what has to be
/// configured, and the agent's own.
pub const MEASUREMENTS: [&str; 14] = [
    "cpu",
    "pressure",
    "memory",
    "load",
    "filesystem",
    "diskio",
    "network",
    "sockets",
    "temperature",
    "power",
    "gpu",
    "process",
    "processes",
    "container",
];

/// Most rows that one sample of a measurement has here: processes.
const MOST_ROWS_A_SAMPLE: usize = 64;

/// What a fleet looks like.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// Number of hosts.
    pub hosts: usize,
    /// Start of each host's id; five digits follow.
    pub prefix: String,
    /// Which fleet of that size: another seed yields other hosts and other values.
    pub seed: u64,
    /// Unix ms of the first sample.
    pub start_ms: i64,
    /// Time between two samples; `process`, `processes` and `container` are sampled every 5 s at most.
    pub interval: Duration,
    /// Samples that are gathered into one batch.
    pub samples_a_batch: usize,
    /// Some of [`MEASUREMENTS`].
    pub measurements: Vec<&'static str>,
    /// Whether `cpu` has all cores together and none alone.
    pub only_total_cpu: bool,
    /// How often a host reboots, on average.
    pub reboots_a_day: f64,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            hosts: 10,
            prefix: "host-".to_owned(),
            seed: 1,
            start_ms: 0,
            interval: Duration::from_secs(1),
            samples_a_batch: 1,
            measurements: MEASUREMENTS.to_vec(),
            only_total_cpu: false,
            reboots_a_day: 1.0 / 30.0,
        }
    }
}

/// A fleet that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The hosts' ids would not be valid.
    #[error("`{prefix}` does not begin a host id: expected up to 59 of the characters A-Z a-z 0-9 _ -")]
    Prefix {
        /// The prefix.
        prefix: String,
    },
    /// Too many hosts for their numbers.
    #[error("{hosts} hosts are too many or too few: expected 1 to 99999")]
    Hosts {
        /// How many.
        hosts: usize,
    },
    /// The interval is no time.
    #[error("the interval is too short: expected at least 1 ms")]
    Interval,
    /// There would be no sample.
    #[error("the time makes no sample: expected at least the interval")]
    Time,
    /// A batch would have no row, or more than one may have.
    #[error("{samples} samples do not make a batch: expected 1 to {}", MAX_ROWS / MOST_ROWS_A_SAMPLE)]
    Samples {
        /// How many.
        samples: usize,
    },
    /// Nothing like that is made up.
    #[error("`{measurement}` is not among {}", MEASUREMENTS.join(", "))]
    Measurement {
        /// What was asked for.
        measurement: String,
    },
}

/// Hosts that are sampled together. Yields batches in the order of time, and within the same time by host.
pub struct Fleet {
    config: FleetConfig,
    hosts: Vec<Host>,
    /// The next sample's.
    tick: u64,
}

impl Fleet {
    /// A fleet before its first sample. Fails when the configuration makes no sense.
    pub fn new(config: FleetConfig) -> Result<Self, FleetError> {
        let FleetConfig { hosts, samples_a_batch: samples, .. } = config;
        if HostId::parse(&format!("{}00000", config.prefix)).is_err() {
            return Err(FleetError::Prefix { prefix: config.prefix });
        }
        if !(1..=99_999).contains(&hosts) {
            return Err(FleetError::Hosts { hosts });
        }
        if config.interval < Duration::from_millis(1) {
            return Err(FleetError::Interval);
        }
        if !(1..=MAX_ROWS / MOST_ROWS_A_SAMPLE).contains(&samples) {
            return Err(FleetError::Samples { samples });
        }
        for measurement in &config.measurements {
            if !MEASUREMENTS.contains(measurement) {
                return Err(FleetError::Measurement { measurement: (*measurement).to_owned() });
            }
        }
        let hosts = (0..hosts).map(|index| Host::new(&config, index)).collect();
        Ok(Self { config, hosts, tick: 0 })
    }

    /// Unix ms of the next sample.
    #[must_use]
    pub fn time_ms(&self) -> i64 {
        let interval = i64::try_from(self.config.interval.as_millis()).unwrap_or(i64::MAX);
        let tick = i64::try_from(self.tick).unwrap_or(i64::MAX);
        self.config.start_ms.saturating_add(interval.saturating_mul(tick))
    }

    /// The next samples, of which every host gathers [`FleetConfig::samples_a_batch`] but at most `ticks`; appended to `batches`.
    ///
    /// Each host's batches stand together. Returns how many samples every host has taken.
    pub fn sample(&mut self, ticks: u64, batches: &mut Vec<Batch>) -> u64 {
        let ticks = ticks.min(self.config.samples_a_batch as u64);
        let interval = i64::try_from(self.config.interval.as_millis()).unwrap_or(i64::MAX);
        let (first, start) = (self.tick, self.time_ms());
        for host in &mut self.hosts {
            for (tick, time_ms) in (first..first + ticks).zip((0..).map(|index| start + index * interval)) {
                host.tick(&self.config, tick, time_ms, batches);
            }
            host.flush(batches);
        }
        self.tick += ticks;
        ticks
    }

    /// All batches of the next `ticks` samples, in rounds of [`FleetConfig::samples_a_batch`].
    pub fn rounds(mut self, ticks: u64) -> impl Iterator<Item = Vec<Batch>> {
        let mut left = ticks;
        std::iter::from_fn(move || {
            let mut batches = Vec::new();
            while left > 0 && batches.is_empty() {
                left -= self.sample(left, &mut batches);
            }
            (!batches.is_empty()).then_some(batches)
        })
    }
}

/// The known measurement of that name. Fails on another.
pub fn measurement(name: &str) -> Result<&'static str, FleetError> {
    let known = MEASUREMENTS.into_iter().find(|known| *known == name);
    known.ok_or_else(|| FleetError::Measurement { measurement: name.to_owned() })
}
