//! Readings for people to look at: each collector on a thread of its own, so that one that hangs holds up nobody.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use plimsoll_nats::{Column, Name, now_ms};

use crate::{
    collectors::{CollectError, Collector, CollectorKind},
    context::Context,
    rows::{Columns, Tables},
};

/// How long a collector may take before it counts as hanging.
pub const LIMIT: Duration = Duration::from_secs(10);

/// What a collector said once.
#[derive(Debug)]
pub struct Reading {
    /// How long it took.
    pub took: Duration,
    /// Each of its measurements.
    pub measured: Vec<Measured>,
    /// What the collector cannot tell.
    pub notes: Vec<String>,
}

/// The rows of one measurement.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Of what.
    pub measurement: Name,
    /// Unix ms at which the reading began.
    pub time_ms: i64,
    /// How many there are.
    pub rows: usize,
    /// These.
    pub columns: Columns,
}

impl Reading {
    /// Fills rows and values that are not told from an earlier reading: some are told only now and then, as of a scan that has
    /// just ended.
    pub fn fill_from(&mut self, earlier: &Self) {
        for (measured, earlier) in self.measured.iter_mut().zip(&earlier.measured) {
            measured.fill_from(earlier);
        }
    }
}

impl Measured {
    fn fill_from(&mut self, earlier: &Self) {
        if self.rows == 0 {
            *self = earlier.clone();
            return;
        }
        for row in 0..self.rows {
            let same = |other: &usize| self.tags_of(row).eq(earlier.tags_of(*other));
            if let Some(other) = (0..earlier.rows).find(same) {
                self.columns.fill_row(row, &earlier.columns, other);
            }
        }
    }

    fn tags_of(&self, row: usize) -> impl Iterator<Item = &str> {
        self.columns.tags.values().map(move |values| values[row].as_str())
    }
}

impl Columns {
    fn fill_row(&mut self, row: usize, earlier: &Self, other: usize) {
        for (column, earlier) in self.fields.values_mut().zip(earlier.fields.values()) {
            match (column, earlier) {
                (Column::Float(values), Column::Float(earlier)) => values[row] = values[row].or(earlier[other]),
                (Column::Integer(values), Column::Integer(earlier)) => values[row] = values[row].or(earlier[other]),
                (Column::Bool(values), Column::Bool(earlier)) => values[row] = values[row].or(earlier[other]),
                (Column::Text(values), Column::Text(earlier)) if values[row].is_none() => {
                    values[row].clone_from(&earlier[other]);
                }
                _ => {}
            }
        }
    }
}

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum ReadingError {
    /// The collector failed.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The collector does not answer.
    #[error("no answer within {} s: what it reads hangs", limit.as_secs_f64())]
    Hangs {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The collector panicked.
    #[error("the collector broke off, which is a fault of the agent: its log says where")]
    BrokeOff,
    /// There is no thread for it.
    #[error("failed to start a thread")]
    Thread(#[source] std::io::Error),
}

/// A collector on its thread, which is left to itself when it hangs.
#[derive(Debug)]
pub struct Reader {
    /// What is read.
    pub kind: CollectorKind,
    requests: SyncSender<()>,
    answers: Receiver<Result<Reading, CollectError>>,
    lost: Option<Lost>,
}

/// Why a reader is not asked again.
#[derive(Debug, Clone, Copy)]
enum Lost {
    Hangs { limit: Duration },
    BrokeOff,
}

impl Lost {
    fn error(self) -> ReadingError {
        match self {
            Self::Hangs { limit } => ReadingError::Hangs { limit },
            Self::BrokeOff => ReadingError::BrokeOff,
        }
    }
}

impl Reader {
    /// Opens a collector on a thread of its own; fails when there is none.
    pub fn open(kind: CollectorKind, context: &Context) -> Result<Self, ReadingError> {
        let (requests, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let context = context.clone();
        let work = move || {
            let (mut collector, mut tables) = (kind.open(&context), kind.tables());
            while asked.recv().is_ok() {
                if answer.send(read(collector.as_mut(), &mut tables)).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name(kind.name.to_owned()).spawn(work).map_err(ReadingError::Thread)?;
        Ok(Self { kind, requests, answers, lost: None })
    }

    /// Reads once, waiting for at most `limit`. One that has hung or panicked is not asked again.
    pub fn read(&mut self, limit: Duration) -> Result<Reading, ReadingError> {
        if let Some(lost) = self.lost {
            return Err(lost.error());
        }
        // A thread that has ended does not take the request, and is told from one that hangs below.
        let _ = self.requests.try_send(());
        let lost = match self.answers.recv_timeout(limit) {
            Ok(answer) => return Ok(answer?),
            Err(RecvTimeoutError::Timeout) => Lost::Hangs { limit },
            Err(RecvTimeoutError::Disconnected) => Lost::BrokeOff,
        };
        self.lost = Some(lost);
        Err(lost.error())
    }
}

fn read(collector: &mut dyn Collector, tables: &mut Tables) -> Result<Reading, CollectError> {
    let (time_ms, started) = (now_ms(), Instant::now());
    let result = collector.collect(tables);
    let took = started.elapsed();
    let measured = tables.iter_mut().map(|rows| Measured {
        measurement: rows.measurement().clone(),
        time_ms,
        rows: rows.len(),
        columns: rows.take(),
    });
    let measured = measured.collect();
    result.map(|()| Reading { took, measured, notes: collector.notes() })
}

#[cfg(test)]
pub(crate) mod testing {
    //! Collectors that behave badly.

    use std::{io, thread::park};

    use super::*;
    use crate::collectors::Pace;

    struct Hangs;
    struct Panics;
    struct Fails;
    struct Silent;
    struct ValueOnce(bool);
    struct RowsOnce(bool);

    impl Collector for Hangs {
        fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
            loop {
                park();
            }
        }
    }

    impl Collector for Panics {
        fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
            panic!("the collector panics")
        }
    }

    impl Collector for Fails {
        fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
            Err(CollectError::Read { path: "/sys/absent".into(), source: io::Error::other("it is not there") })
        }
    }

    impl Collector for Silent {
        fn collect(&mut self, _tables: &mut Tables) -> Result<(), CollectError> {
            Ok(())
        }

        fn notes(&self) -> Vec<String> {
            vec!["There is no wireless interface.".to_owned()]
        }
    }

    impl Collector for ValueOnce {
        fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
            let rows = tables.only();
            let first = !std::mem::replace(&mut self.0, true);
            let mut push = |sensor, celsius: Option<f64>, critical: Option<f64>| {
                let fields = [("temperature_celsius", celsius.into()), ("critical_celsius", critical.into())];
                rows.push(&[("sensor", sensor)], &fields);
            };
            if first {
                push("other", Some(1.0), Some(2.0));
            }
            push("a", Some(if first { 40.0 } else { 50.0 }), first.then_some(90.0));
            Ok(())
        }
    }

    impl Collector for RowsOnce {
        fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
            if std::mem::replace(&mut self.0, true) { Ok(()) } else { ValueOnce(false).collect(tables) }
        }
    }

    const fn kind(
        name: &'static str,
        measurements: &'static [&'static str],
        open: fn(&Context) -> Box<dyn Collector>,
    ) -> CollectorKind {
        CollectorKind { name, measurements, pace: Pace::Hot, interval: None, open }
    }

    /// Never answers.
    pub const HANGS: CollectorKind = kind("cpu", &["cpu"], |_| Box::new(Hangs));
    /// Panics at each reading.
    pub const PANICS: CollectorKind = kind("memory", &["memory"], |_| Box::new(Panics));
    /// Fails at each reading.
    pub const FAILS: CollectorKind = kind("load", &["load"], |_| Box::new(Fails));
    /// Has a value at its first reading only.
    pub const VALUE_ONCE: CollectorKind = kind("temperature", &["temperature"], |_| Box::new(ValueOnce(false)));
    /// Has rows at its first reading only.
    pub const ROWS_ONCE: CollectorKind = kind("temperature", &["temperature"], |_| Box::new(RowsOnce(false)));
    /// Has nothing to tell, and says why.
    pub const SILENT: CollectorKind = kind("wifi", &["wifi"], |_| Box::new(Silent));
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    fn error(kind: CollectorKind, limit: Duration) -> ReadingError {
        let mut reader = Reader::open(kind, &Context::default()).unwrap();
        let _ = reader.read(limit);
        reader.read(limit).unwrap_err()
    }

    #[test]
    fn what_hangs_panics_or_fails_is_told_apart() {
        let short = Duration::from_millis(20);
        assert!(matches!(error(HANGS, short), ReadingError::Hangs { limit } if limit == short));
        assert!(matches!(error(PANICS, LIMIT), ReadingError::BrokeOff));
        assert!(matches!(error(FAILS, LIMIT), ReadingError::Collect(CollectError::Read { .. })));
    }

    #[test]
    fn a_reading_has_rows_by_measurement_and_notes() {
        let mut reader = Reader::open(SILENT, &Context::default()).unwrap();
        let reading = reader.read(LIMIT).unwrap();
        let rows: Vec<(&str, usize)> = reading.measured.iter().map(|of| (&*of.measurement, of.rows)).collect();
        assert_eq!(rows, [("wifi", 0)]);
        assert_eq!(reading.notes, ["There is no wireless interface."]);
    }
}
