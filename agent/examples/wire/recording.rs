//! Samples of this host, kept as they were taken.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use plimsoll_agent::{
    AgentConfig,
    collectors::KINDS,
    context::Context,
    rows::Frame,
    schedule::{Schedule, Wheel},
};
use plimsoll_nats::{Name, now_ms};

use crate::cpu_time;

/// The rows of one tick.
pub struct Sample {
    pub tick_ms: i64,
    pub frame: Frame,
}

/// What a collector's readings cost.
#[derive(Default)]
pub struct Readings {
    pub count: u32,
    pub cpu: Duration,
}

/// The samples of a while.
pub struct Recording {
    pub seconds: u64,
    pub samples: BTreeMap<Name, Vec<Sample>>,
    /// By collector, in their own order.
    pub readings: Vec<(&'static str, Readings)>,
}

impl Recording {
    /// Samples with the settings that the agent has when none are given, or at another interval.
    pub fn take(time: Duration, interval: Option<Duration>) -> Self {
        let (context, config) = (Context::default(), AgentConfig::default());
        let intervals =
            KINDS.iter().map(|kind| interval.unwrap_or_else(|| config.interval_of(kind).expect("all are enabled")));
        let mut wheel = Wheel::new(intervals.map(Schedule::new).collect());
        let mut opened: Vec<_> = KINDS.iter().map(|kind| (kind.open(&context), kind.tables())).collect();
        for (collector, tables) in &mut opened {
            // Rates need a reading to start from. What fails here fails again below.
            let _ = collector.collect(tables);
        }
        let mut recording = Self {
            seconds: time.as_secs(),
            samples: BTreeMap::new(),
            readings: KINDS.iter().map(|kind| (kind.name, Readings::default())).collect(),
        };
        let (end, mut due) = (now_ms() + i64::try_from(time.as_millis()).expect("a short time"), Vec::new());
        while now_ms() < end {
            let pause = wheel.turn(now_ms(), &mut due);
            if due.is_empty() {
                sleep(pause);
            }
            for (place, tick_ms) in &due {
                let (collector, tables) = &mut opened[*place];
                tables.clear();
                let start = cpu_time();
                let result = collector.collect(tables);
                let readings = &mut recording.readings[*place].1;
                readings.cpu += cpu_time() - start;
                readings.count += 1;
                match result {
                    Ok(()) => tables.iter().for_each(|rows| {
                        let samples = recording.samples.entry(rows.measurement().clone()).or_default();
                        samples.push(Sample { tick_ms: *tick_ms, frame: rows.frame().clone() });
                    }),
                    Err(error) => println!("<!-- {}: {error} -->", KINDS[*place].name),
                }
            }
        }
        recording.samples.retain(|_, samples| samples.iter().any(|sample| sample.frame.rows() > 0));
        recording
    }

    /// The values that are not nil, of one measurement.
    pub fn points(samples: &[Sample]) -> usize {
        let columns = samples.iter().map(|sample| sample.frame.to_columns());
        columns
            .flat_map(|columns| columns.fields.into_values())
            .map(|column| (0..column.len()).filter(|row| !column.json(*row).is_null()).count())
            .sum()
    }
}
