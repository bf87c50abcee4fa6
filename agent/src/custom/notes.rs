//! What is known of each custom source: how often it worked and failed, and what of it was refused.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use plimsoll_nats::now_ms;
use tokio::time::Instant;

/// Time between two reports of the same kind of refusal of a source.
const REPORT_EVERY: Duration = Duration::from_secs(3600);

/// Why a value of a source is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// What holds it can't be read.
    Malformed,
    /// Its measurement may not be sent by others.
    Measurement,
    /// The source has as many measurements as it may.
    Measurements,
    /// Its measurement has as many tags and fields as it may.
    Columns,
    /// Its tag was a field before, or the other way round.
    Role,
    /// Its field had another type before.
    Type,
    /// Its time is too far from the present.
    Time,
    /// The source hands over more at once than it may.
    Size,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "some of it can't be read",
            Self::Measurement => "a measurement may not have that name",
            Self::Measurements => "it has too many measurements",
            Self::Columns => "a measurement has too many tags and fields",
            Self::Role => "a tag was a field before, or the other way round",
            Self::Type => "a field had another type before",
            Self::Time => "a time is too far from the present",
            Self::Size => "it hands over too much at once",
        })
    }
}

/// What a source has done in this run of the agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SourceState {
    /// How often something was read from it.
    pub successes: u64,
    /// How often that failed.
    pub failures: u64,
    /// Values that were sent.
    pub values: u64,
    /// Values that were refused, or lines of them that can't be read, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    /// Why the last attempt failed; none when it did not.
    pub last_error: Option<String>,
    /// Unix time in ms at which something was last read from it.
    pub last_success_ms: Option<i64>,
}

/// Keeps and reports the state of one source.
#[derive(Debug)]
pub struct SourceNotes {
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: SourceState,
    reported: BTreeMap<Refusal, Report>,
}

#[derive(Debug)]
struct Report {
    at: Instant,
    /// Refused since then.
    untold: u64,
}

impl SourceNotes {
    /// Of the source that logs call `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), inner: Mutex::default() }
    }

    /// What logs call the source, such as ``scrape `postgres` ``.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state at this moment.
    #[must_use]
    pub fn state(&self) -> SourceState {
        self.lock().state.clone()
    }

    /// How much was refused so far.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.lock().state.refused.values().sum()
    }

    /// Notes that the source was read. Logs when it had failed before.
    pub fn succeeded(&self) {
        let mut inner = self.lock();
        inner.state.successes += 1;
        inner.state.last_success_ms = Some(now_ms());
        if inner.state.last_error.take().is_some() {
            tracing::info!(source = self.name, "custom source works again");
        }
    }

    /// Notes that the source could not be read. Logs when it had not failed before.
    pub fn failed(&self, error: String) {
        let mut inner = self.lock();
        inner.state.failures += 1;
        if inner.state.last_error.is_none() {
            tracing::warn!(source = self.name, error, "custom source fails, others go on");
        }
        inner.state.last_error = Some(error);
    }

    /// Notes that values were sent.
    pub fn sent(&self, values: u64) {
        self.lock().state.values += values;
    }

    /// Notes that `count` values or lines are refused. Logs the first of each kind with its `detail`, and each hour the next one.
    pub fn refuse(&self, refusal: Refusal, count: u64, detail: impl FnOnce() -> String) {
        let mut inner = self.lock();
        *inner.state.refused.entry(refusal).or_default() += count;
        let report = inner.reported.get_mut(&refusal);
        let refused = match report {
            Some(report) if report.at.elapsed() < REPORT_EVERY => {
                report.untold += count;
                return;
            }
            Some(report) => report.untold + count,
            None => count,
        };
        inner.reported.insert(refusal, Report { at: Instant::now(), untold: 0 });
        drop(inner);
        let detail = detail();
        tracing::warn!(source = self.name, refused, detail, "custom source: {refusal}, the rest is sent");
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The notes of every custom source of the agent. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Sources(Arc<Mutex<Vec<Arc<SourceNotes>>>>);

impl Sources {
    /// Adds a source of that name, and returns its notes.
    #[must_use]
    pub fn add(&self, name: impl Into<String>) -> Arc<SourceNotes> {
        let notes = Arc::new(SourceNotes::new(name));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&notes));
        notes
    }

    /// The name and state of each source, in the order of the configuration.
    #[must_use]
    pub fn states(&self) -> Vec<(String, SourceState)> {
        let sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().map(|notes| (notes.name.clone(), notes.state())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_refusal_of_a_kind_is_reported_and_the_next_an_hour_later() {
        let notes = SourceNotes::new("a");
        let mut told = Vec::new();
        for (refusal, pause_s) in
            [(Refusal::Type, 0), (Refusal::Type, 10), (Refusal::Time, 0), (Refusal::Type, 3600), (Refusal::Type, 0)]
        {
            tokio::time::advance(Duration::from_secs(pause_s)).await;
            let mut reported = false;
            notes.refuse(refusal, 2, || {
                reported = true;
                String::new()
            });
            told.push(reported);
        }
        assert_eq!(told, [true, false, true, true, false]);
        assert_eq!(notes.state().refused, BTreeMap::from([(Refusal::Type, 8), (Refusal::Time, 2)]));
        assert_eq!(notes.refused_total(), 10);
    }

    #[test]
    fn a_source_recovers() {
        let sources = Sources::default();
        let notes = sources.add("a");
        notes.failed("gone".to_owned());
        assert_eq!(notes.state().last_error.as_deref(), Some("gone"));
        notes.succeeded();
        let (name, state) = sources.states().remove(0);
        assert_eq!((name.as_str(), state.failures, state.successes, state.last_error), ("a", 1, 1, None));
        assert!(state.last_success_ms.is_some());
    }
}
