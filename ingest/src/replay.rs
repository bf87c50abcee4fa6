//! Replay: reads a stretch of the stream again and gives the lake what it lacks of it.
//!
//! One task reads ([`reading`]): a consumer of its own, which nobody else notices, yields the messages of the selection in the order
//! of the stream; they are decoded and gathered. The other one stores: what a set changes, and how far the replay has come, is one
//! transaction of the lake ([`plimsoll_lake::replay`]). So an interrupted replay is run again and goes on. What can't be decoded or
//! stored is counted by reason, and not put aside: it is on `DEAD` since ingest has had it.

mod reading;
pub mod selection;

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use plimsoll_lake::{
    LakeConfig, LakeError, ReplayWriter,
    replay::{Begun, ReplayOutcome, ReplayReport, ReplayRequest, ReplaySet},
    writer::Rejection,
};
use plimsoll_nats::{Client, Sequence, dead::chain, streams::DeclareError};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::lake_thread::{LakeThread, Reopening, ThreadEnded};
use reading::{Reader, Stretch};
pub use selection::{Selection, SelectionError};

/// What a replay reads and where to.
#[derive(Debug, Clone)]
pub struct ReplayConfig {
    /// The lake.
    pub lake: LakeConfig,
    /// Whether that lake was named for this replay, and is not the one that ingest is configured to fill.
    pub is_named: bool,
    /// Which hosts and measurements.
    pub selection: Selection,
    /// Unix ms from which on the broker has stored what is read.
    pub since_ms: i64,
    /// Unix ms before which the broker has stored what is read; none for all that it has at the begin.
    pub until_ms: Option<i64>,
    /// Whether to begin anew though one of the same selection was interrupted.
    pub restarts: bool,
    /// Whether to read and count only.
    pub is_trial: bool,
    /// When a transaction is due.
    pub limits: ReplayLimits,
}

/// When a transaction is due: whichever is reached first. Twice that is held at most.
#[derive(Debug, Clone, Copy)]
pub struct ReplayLimits {
    /// Gathered rows; default 200,000.
    pub rows: usize,
    /// Memory of gathered messages in bytes, roughly; default 128 MiB.
    pub bytes: usize,
}

impl Default for ReplayLimits {
    fn default() -> Self {
        Self { rows: 200_000, bytes: 128 * 1024 * 1024 }
    }
}

/// How far a replay is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages to read, as the stream tells at the begin.
    pub total: u64,
    /// Messages read.
    pub messages: u64,
    /// Rows read.
    pub rows: u64,
    /// Values read, nils left out.
    pub points: u64,
    /// Rows stored.
    pub stored: u64,
    /// Rows left out, since the lake has them.
    pub present: u64,
    /// Messages beyond the lake's positions, which ingest will store.
    pub left: u64,
    /// Messages that can't be decoded or stored, by reason.
    pub refused: BTreeMap<String, u64>,
}

impl Progress {
    /// Counts a message that has no rows to store.
    fn refuse(&mut self, reason: &(dyn std::error::Error + 'static)) {
        const SHOWN: usize = 160;
        const REASONS: usize = 20;
        let mut reason: String = chain(reason).chars().filter(|c| !c.is_control()).take(SHOWN).collect();
        if self.refused.len() >= REASONS && !self.refused.contains_key(&reason) {
            reason = "other reasons".to_owned();
        }
        *self.refused.entry(reason).or_default() += 1;
    }
}

/// What a replay has done.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The counts.
    pub progress: Progress,
    /// Whether it came to its end; otherwise it was stopped, and goes on when it is run again.
    pub is_complete: bool,
    /// The sequence after which it went on, where one before it was interrupted.
    pub resumed_after: Option<Sequence>,
    /// Whether nobody ingests into the lake, so that its positions have moved along.
    pub rebuilt: bool,
    /// Unix ms of the oldest message that the stream holds, where more was asked for.
    pub held_since_ms: Option<i64>,
    /// How long it took.
    pub duration: Duration,
}

/// Why a replay has failed. What it has stored until then stays, and it goes on when it is run again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The stream can't be looked up.
    #[error("failed to look up the stream: does the broker hold samples of Plimsoll?")]
    Stream(#[from] DeclareError),
    /// The stream holds nothing of that time any more.
    #[error("the stream holds nothing of that time any more: its oldest sample was stored at {}", rfc3339(.held_since_ms))]
    Gone {
        /// Unix ms of the oldest message.
        held_since_ms: i64,
    },
    /// The stream is empty.
    #[error("the stream holds no samples")]
    Empty,
    /// Nothing is selected.
    #[error("the stream holds no message of {selection} in that time: check --hosts and --measurements")]
    NoMatch {
        /// What was selected.
        selection: String,
    },
    /// Reading has failed again and again.
    #[error("failed to read the stream: run the same command again to go on")]
    Reading(#[source] reading::SessionError),
    /// The lake does not take a replay.
    #[error(transparent)]
    Refused(LakeError),
    /// The lake has failed again and again.
    #[error("failed to store: run the same command again to go on")]
    Lake(#[from] LakeError),
    /// The lake's thread has panicked.
    #[error(transparent)]
    Thread(#[from] ThreadEnded),
}

fn rfc3339(unix_ms: &i64) -> String {
    jiff::Timestamp::from_millisecond(*unix_ms).map_or_else(|_| format!("{unix_ms} ms"), |time| time.to_string())
}

/// What the reader hands over.
type Sets = mpsc::Receiver<Result<ReplaySet, ReplayError>>;

/// Replays a stretch of the stream until its end or until `stop`, which finishes the transaction that is under way.
///
/// Fails when stream or lake can't be used for about half a minute, and when there is nothing to read.
pub async fn run(
    config: ReplayConfig,
    client: Client,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
) -> Result<Summary, ReplayError> {
    let started = Instant::now();
    let stretch = Stretch::find(&client, &config).await?;
    let request = ReplayRequest {
        selection: config.selection.to_string(),
        is_partial: !config.selection.is_everything(),
        since_ms: config.since_ms,
        incarnation: stretch.incarnation,
        is_named: config.is_named,
        restarts: config.restarts,
    };
    let tasks = TaskTracker::new();
    let lake_config = config.lake.clone();
    let lake = LakeThread::start(move || ReplayWriter::open(&lake_config), &tasks);
    let storing = Storing { lake, request, progress, is_trial: config.is_trial, stop: stop.clone() };
    let begun = storing.begin().await?;
    let held_since_ms = stretch.held_since_ms;
    let reader = Reader::open(client, config, stretch, begun.after).await?;
    storing.progress.send_modify(|progress| progress.total = reader.total());
    let (sender, sets) = mpsc::channel(1);
    let reading = tasks.spawn(reader.run(sender, storing.progress.clone(), stop));
    let stored = storing.all(sets).await;
    // A reader that waits for room finds that nobody takes its sets any more.
    reading.await.expect("reading does not panic");
    let progress = storing.progress.borrow().clone();
    drop(storing);
    tasks.close();
    tasks.wait().await;
    Ok(Summary {
        progress,
        is_complete: stored?,
        resumed_after: (begun.after > Sequence(0)).then_some(begun.after),
        rebuilt: begun.rebuilds,
        held_since_ms,
        duration: started.elapsed(),
    })
}

/// The task that stores.
struct Storing {
    lake: LakeThread<ReplayWriter>,
    request: ReplayRequest,
    progress: watch::Sender<Progress>,
    is_trial: bool,
    stop: CancellationToken,
}

/// Tries of a transaction that fails for other reasons than that another writer is faster.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_secs(2);

impl Storing {
    async fn begin(&self) -> Result<Begun, ReplayError> {
        if self.is_trial {
            return Ok(Begun { after: Sequence(0), rebuilds: false });
        }
        let request = self.request.clone();
        let job = move |lake: &mut Reopening<ReplayWriter>| lake.with(|writer| writer.begin(&request));
        self.lake.run(job).await?.map_err(|error| match error {
            LakeError::NotIngested => ReplayError::Refused(error),
            error => error.into(),
        })
    }

    /// Stores what the reader yields. Returns whether that was all there is.
    async fn all(&self, mut sets: Sets) -> Result<bool, ReplayError> {
        while let Some(set) = sets.recv().await {
            let set = set?;
            let is_last = set.is_last;
            if !self.is_trial {
                self.store(set).await?;
            }
            if is_last {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn store(&self, mut set: ReplaySet) -> Result<(), ReplayError> {
        let mut tries = 0;
        loop {
            let request = self.request.clone();
            let job = move |lake: &mut Reopening<ReplayWriter>| {
                let outcome = lake.with(|writer| writer.store(&request, &set));
                (set, outcome)
            };
            let outcome;
            (set, outcome) = self.lake.run(job).await?;
            match outcome {
                Ok(ReplayOutcome::Stored(report)) => {
                    self.count(&report);
                    return Ok(());
                }
                Ok(ReplayOutcome::Rejected(rejections)) => self.leave_out(&mut set, &rejections),
                Err(error) => {
                    tries += 1;
                    if tries >= TRIES || self.stop.is_cancelled() {
                        return Err(error.into());
                    }
                    tracing::warn!(error = %chain(&error), tries, "storing failed, trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn count(&self, report: &ReplayReport) {
        self.progress.send_modify(|progress| {
            progress.stored += report.rows as u64;
            progress.present += report.present as u64;
            progress.left += report.left as u64;
        });
    }

    fn leave_out(&self, set: &mut ReplaySet, rejections: &[Rejection]) {
        self.progress.send_modify(|progress| rejections.iter().for_each(|r| progress.refuse(&r.reason)));
        let rejected: HashSet<usize> = rejections.iter().map(|rejection| rejection.index).collect();
        let mut index = 0..;
        set.messages.retain(|_| index.next().is_some_and(|index| !rejected.contains(&index)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_bounded() {
        let mut progress = Progress::default();
        let refuse = |progress: &mut Progress, n: u32| {
            progress.refuse(&std::io::Error::other(format!("reason {n}\n{}", "x".repeat(1000))));
        };
        (0..30).for_each(|n| refuse(&mut progress, n));
        refuse(&mut progress, 0);
        assert_eq!(progress.refused.len(), 21);
        assert_eq!(progress.refused["other reasons"], 10);
        assert_eq!(progress.refused.values().sum::<u64>(), 31);
        assert!(progress.refused.iter().any(|(reason, count)| reason.starts_with("reason 0x") && *count == 2));
        assert!(progress.refused.keys().all(|reason| reason.len() <= 160));
    }
}
