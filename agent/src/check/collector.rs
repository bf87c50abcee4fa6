//! Whether collectors work.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_nats::dead::chain;
use serde::Serialize;

use crate::{
    AgentConfig,
    collectors::CollectorKind,
    context::Context,
    once::readings,
    reading::{Reading, ReadingError},
};

/// How a collector fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectorState {
    /// It yields rows.
    Works,
    /// It does well, and this host has nothing for it to tell.
    NothingHere,
    /// It fails or hangs.
    Fails,
    /// The configuration switches it off.
    Off,
}

impl CollectorState {
    /// The state for people.
    #[must_use]
    pub const fn shown(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::NothingHere => "nothing here",
            Self::Fails => "fails",
            Self::Off => "off",
        }
    }
}

/// What was found of a collector.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CollectorReport {
    /// Its name.
    pub collector: &'static str,
    /// How it fares.
    pub state: CollectorState,
    /// The seconds between two samples; none where it is off.
    pub interval_seconds: Option<f64>,
    /// How many rows each of its measurements has.
    pub rows: BTreeMap<String, usize>,
    /// How long a reading takes, in µs: the second one, after the first has opened what it needs.
    pub microseconds: Option<u64>,
    /// What it cannot tell and why.
    pub notes: Vec<String>,
    /// Why it fails, with its causes.
    pub error: Option<String>,
}

/// Reads each collector that is switched on, waiting for each at most `limit`.
pub(super) fn read_all(
    kinds: &[CollectorKind],
    config: &AgentConfig,
    context: &Context,
    limit: Duration,
) -> Vec<CollectorReport> {
    let on: Vec<CollectorKind> = kinds.iter().filter(|kind| config.interval_of(kind).is_some()).copied().collect();
    let mut readings = readings(&on, context, limit).into_iter().peekable();
    let report = |kind: &CollectorKind| {
        let interval = config.interval_of(kind);
        match readings.next_if(|(read, _)| read.name == kind.name) {
            Some((_, reading)) => CollectorReport {
                interval_seconds: interval.map(|interval| interval.as_secs_f64()),
                ..of_reading(kind.name, reading)
            },
            None => nothing_of(kind.name, CollectorState::Off),
        }
    };
    kinds.iter().map(report).collect()
}

fn of_reading(collector: &'static str, reading: Result<Reading, ReadingError>) -> CollectorReport {
    let reading = match reading {
        Ok(reading) => reading,
        Err(error) => {
            let failed = nothing_of(collector, CollectorState::Fails);
            return CollectorReport { error: Some(chain(&error)), ..failed };
        }
    };
    let found = reading.measured.iter().any(|measured| measured.rows > 0);
    CollectorReport {
        rows: reading.measured.iter().map(|measured| (measured.measurement.to_string(), measured.rows)).collect(),
        microseconds: u64::try_from(reading.took.as_micros()).ok(),
        notes: reading.notes,
        ..nothing_of(collector, if found { CollectorState::Works } else { CollectorState::NothingHere })
    }
}

fn nothing_of(collector: &'static str, state: CollectorState) -> CollectorReport {
    CollectorReport {
        collector,
        state,
        interval_seconds: None,
        rows: BTreeMap::new(),
        microseconds: None,
        notes: Vec::new(),
        error: None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::reading::testing::{FAILS, HANGS, PANICS, SILENT};

    /// Reports of collectors that behave badly, one of them switched off.
    pub fn bad_ones() -> Vec<CollectorReport> {
        let mut config = AgentConfig::default();
        config.collectors.memory.enabled = false;
        read_all(&[HANGS, PANICS, FAILS, SILENT], &config, &Context::default(), Duration::from_millis(50))
    }

    #[test]
    fn each_collector_is_told_with_its_state() {
        let reports = bad_ones();
        let states: Vec<(&str, CollectorState)> =
            reports.iter().map(|report| (report.collector, report.state)).collect();
        let expected = [
            ("cpu", CollectorState::Fails),
            ("memory", CollectorState::Off),
            ("load", CollectorState::Fails),
            ("wifi", CollectorState::NothingHere),
        ];
        assert_eq!(states, expected);
        assert_eq!(reports[0].error.as_deref(), Some("no answer within 0.05 s: what it reads hangs"));
        assert_eq!(reports[1].interval_seconds, None);
        assert_eq!(reports[2].error.as_deref(), Some("failed to read `/sys/absent`: it is not there"));
        assert_eq!((reports[3].interval_seconds, reports[3].rows["wifi"]), (Some(1.0), 0));
        assert_eq!(reports[3].notes, ["There is no wireless interface."]);
    }

    #[test]
    fn a_collector_that_panics_fails() {
        let reports = read_all(&[PANICS], &AgentConfig::default(), &Context::default(), crate::reading::LIMIT);
        assert_eq!(reports[0].state, CollectorState::Fails);
    }
}
