//! The steps of a run: each tried again on a conflict, bounded in time, cut off when the run is told to end, and followed by
//! a pause.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use duckdb::{Connection, InterruptHandle};
use jiff::Timestamp;

use crate::{Lake, LakeError, connection::pause, error::Context, sql::literal};

/// Tries of one step that other writers' commits get in the way of.
const ATTEMPTS: u32 = 8;
/// Longest time that a step may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Shortest pause after a step that changed something: longer than a commit takes, since with a SQLite catalog each step makes the
/// commits under way begin anew.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// How often is looked whether the run is told to end.
const LOOK: Duration = Duration::from_millis(20);

/// Which try of a step it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt(u32);

impl Attempt {
    /// Whether other writers are at work, so that a smaller step has better chances.
    pub(super) fn is_contended(self) -> bool {
        self.0 > 1
    }
}

/// Takes steps.
pub(super) struct Steps<'a> {
    pub(super) connection: &'a Connection,
    lake: &'a Lake,
    cancelled: &'a AtomicBool,
    postponed: u64,
    /// How long the last step took.
    last: Duration,
}

impl<'a> Steps<'a> {
    pub(super) fn new(lake: &'a Lake, cancelled: &'a AtomicBool) -> Self {
        Self { connection: lake.connection(), lake, cancelled, postponed: 0, last: Duration::ZERO }
    }

    /// Steps that were given up.
    pub(super) fn postponed(&self) -> u64 {
        self.postponed
    }

    /// Whether the run is told to end.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Takes a step that writes no files, again when another writer was faster; see [`Steps::rest`]. None when it was given up or the run
    /// is told to end.
    pub(super) fn take<T>(
        &mut self,
        work: impl Fn(&Connection, Attempt) -> Result<T, LakeError>,
    ) -> Result<Option<T>, LakeError> {
        self.step(work, |lake| lake.connection().execute_batch("COMMIT").context("commit a step"))
    }

    /// Takes a step that writes files, as [`Steps::take`] does.
    pub(super) fn write<T>(
        &mut self,
        work: impl Fn(&Connection, Attempt) -> Result<T, LakeError>,
    ) -> Result<Option<T>, LakeError> {
        self.step(work, Lake::commit)
    }

    fn step<T>(
        &mut self,
        work: impl Fn(&Connection, Attempt) -> Result<T, LakeError>,
        commit: impl Fn(&Lake) -> Result<(), LakeError>,
    ) -> Result<Option<T>, LakeError> {
        for attempt in 1..=ATTEMPTS {
            if self.is_cancelled() {
                return Ok(None);
            }
            let started = Instant::now();
            let done = self.watched(|lake| transaction(lake, || work(lake.connection(), Attempt(attempt)), &commit));
            if done.is_err() {
                // Fails when no transaction was left open, which is as good.
                let _ = self.connection.execute_batch("ROLLBACK");
            }
            match done {
                Err(error) if error.is_conflict() => pause(attempt),
                Err(LakeError::Interrupted) => break,
                Err(error) => return Err(error),
                Ok(done) => {
                    self.last = started.elapsed();
                    return Ok(Some(done));
                }
            }
        }
        if !self.is_cancelled() {
            self.postponed += 1;
        }
        Ok(None)
    }

    /// Leaves the catalog to others for as long as the last step took.
    pub(super) fn rest(&self) {
        let end = Instant::now() + self.last.max(MIN_PAUSE);
        while !self.is_cancelled() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// Works, interrupted when that takes too long or the run is told to end.
    fn watched<T>(&self, work: impl Fn(&Lake) -> Result<T, LakeError>) -> Result<T, LakeError> {
        let (done, ended) = mpsc::channel::<()>();
        let interrupt = self.connection.interrupt_handle();
        let cancelled = self.cancelled;
        std::thread::scope(|scope| {
            scope.spawn(move || watch(&ended, &interrupt, cancelled));
            let outcome = work(self.lake);
            drop(done);
            outcome
        })
    }
}

/// Works in a transaction of its own. DuckLake's functions decide what to do when a statement is prepared and do it when it is
/// executed: with a transaction each, another one's merge in between would leave all merged rows twice.
fn transaction<T>(
    lake: &Lake,
    work: impl FnOnce() -> Result<T, LakeError>,
    commit: impl Fn(&Lake) -> Result<(), LakeError>,
) -> Result<T, LakeError> {
    lake.connection().execute_batch("BEGIN").context("begin a step")?;
    let done = work()?;
    commit(lake)?;
    Ok(done)
}

/// Interrupts a step that has to end until it does: DuckDB forgets an interrupt that comes between two statements.
fn watch(ended: &mpsc::Receiver<()>, interrupt: &Arc<InterruptHandle>, cancelled: &AtomicBool) {
    let deadline = Instant::now() + PATIENCE;
    while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        if cancelled.load(Ordering::Relaxed) || Instant::now() > deadline {
            interrupt.interrupt();
        }
    }
}

/// The time so long ago as SQL; none before 1970.
pub(super) fn ago(span: Duration) -> Option<String> {
    let span = jiff::SignedDuration::try_from(span).ok()?;
    let then = Timestamp::now().checked_sub(span).ok()?;
    (then >= Timestamp::UNIX_EPOCH).then(|| time(then))
}

/// A time as SQL.
pub(super) fn time(time: Timestamp) -> String {
    format!("TIMESTAMPTZ {}", literal(&time.to_string()))
}
