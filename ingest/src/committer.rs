//! Commits what was gathered, one batch after the other, each until it is done.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_lake::{
    CommitOutcome, CommitReport, LakeError, LakeWriter,
    writer::{CommitSet, Rejection},
};
use plimsoll_nats::{Client, PartitionId, dead::chain, reader::Acker};
use plimsoll_service::ops::Readiness;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{batcher::Gathered, dead, decoder::Original, metrics::Metrics};

/// Longest pause between two tries of the same commit.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Tries that a commit has left once ingest is told to stop; the stream keeps what is not committed then.
const LAST_TRIES: u32 = 3;

/// Takes batches over. One may be under way and none waits: the next one is still being gathered.
#[derive(Debug)]
pub struct Committer {
    batches: mpsc::Sender<Gathered>,
}

/// A committer that is free for the next batch.
#[derive(Debug)]
pub struct Slot<'a>(mpsc::Permit<'a, Gathered>);

impl Slot<'_> {
    /// Hands a batch over.
    pub fn send(self, gathered: Gathered) {
        self.0.send(gathered);
    }
}

impl Committer {
    /// Starts the task and the thread that commit. They end when the committer is dropped and the last batch is done.
    #[must_use]
    pub fn start(
        writer: LakeWriter,
        client: Client,
        metrics: Metrics,
        readiness: Readiness,
        shutdown: CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let (batches, receiver) = mpsc::channel(1);
        let task = CommitTask { writer: WriterThread::start(writer, tasks), client, metrics, readiness, shutdown };
        tasks.spawn(task.run(receiver));
        Self { batches }
    }

    /// Waits until a batch can be handed over; none when the committer has ended.
    pub async fn reserve(&self) -> Option<Slot<'_>> {
        self.batches.reserve().await.ok().map(Slot)
    }

    /// Waits until a batch can be handed over, and does so.
    pub async fn hand_over(&self, gathered: Gathered) {
        if let Some(slot) = self.reserve().await {
            slot.send(gathered);
        }
    }
}

struct CommitTask {
    writer: WriterThread,
    client: Client,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: CancellationToken,
}

impl CommitTask {
    async fn run(self, mut batches: mpsc::Receiver<Gathered>) {
        while let Some(gathered) = batches.recv().await {
            if !self.commit(gathered).await {
                tracing::warn!("stopped before the last batch was committed, the stream keeps it");
                return;
            }
        }
    }

    /// Commits a batch, however often it takes. Returns false when ingest was told to stop and the last tries failed.
    async fn commit(&self, mut gathered: Gathered) -> bool {
        let mut pause = Duration::from_millis(100);
        let mut tries_left = LAST_TRIES;
        loop {
            match self.try_commit(&mut gathered).await {
                Ok(report) => {
                    self.readiness.clear("commit");
                    self.metrics.committed(&report);
                    tracing::debug!(
                        batch.rows = report.rows,
                        batch.messages = report.messages,
                        duration_ms = report.duration.as_millis(),
                        "committed"
                    );
                    if report.superseded > 0 {
                        tracing::error!(
                            batch.messages = report.superseded,
                            "dropped messages of a stream that was wiped: the lake contains a later one"
                        );
                    }
                    acknowledge(&gathered.ackers).await;
                    return true;
                }
                Err(error) => {
                    self.metrics.commit_failures.inc();
                    self.readiness.fail("commit", chain(&error));
                    tracing::warn!(error = %chain(&error), "a commit failed and is tried again, nothing is lost");
                }
            }
            if self.shutdown.is_cancelled() {
                tries_left -= 1;
                if tries_left == 0 {
                    return false;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled(), if !self.shutdown.is_cancelled() => {}
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn try_commit(&self, gathered: &mut Gathered) -> Result<CommitReport, CommitError> {
        // Put aside before the position moves past them: a crash in between repeats it, and never loses one.
        if !gathered.dead.is_empty() {
            dead::put_aside(&self.client, gathered.dead.iter().map(|(original, reason)| (original, reason))).await?;
            self.told_dead(gathered.dead.iter().map(|(original, reason)| (original, chain(reason))));
            gathered.dead.clear();
        }
        loop {
            match self.writer.commit(&mut gathered.set).await? {
                CommitOutcome::Committed(report) => return Ok(report),
                CommitOutcome::Rejected(rejections) => self.reject(gathered, &rejections).await?,
            }
        }
    }

    async fn reject(&self, gathered: &mut Gathered, rejections: &[Rejection]) -> Result<(), CommitError> {
        let originals = &gathered.originals;
        dead::put_aside(&self.client, rejections.iter().map(|r| (&originals[r.index], &r.reason))).await?;
        self.told_dead(rejections.iter().map(|r| (&originals[r.index], chain(&r.reason))));
        for rejection in rejections.iter().rev() {
            gathered.set.messages.remove(rejection.index);
            gathered.originals.remove(rejection.index);
        }
        Ok(())
    }

    fn told_dead<'a>(&self, messages: impl Iterator<Item = (&'a Original, String)>) {
        const SHOWN: usize = 5;
        for (index, (original, reason)) in messages.enumerate() {
            self.metrics.dead.inc();
            if index < SHOWN {
                tracing::warn!(subject = %original.subject, stream.seq = %original.sequence, reason, "message put aside on DEAD");
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CommitError {
    #[error("failed to put dead messages aside")]
    Dead(#[from] plimsoll_nats::async_nats::jetstream::context::PublishError),
    #[error("failed to commit to the lake")]
    Lake(#[from] LakeError),
    #[error("the thread that writes to the lake has ended")]
    Ended,
}

async fn acknowledge(ackers: &BTreeMap<PartitionId, Acker>) {
    for (partition, acker) in ackers {
        // Only tidies up: the position in the lake is what counts.
        if let Err(error) = acker.ack().await {
            tracing::debug!(partition.id = %partition, %error, "failed to acknowledge");
        }
    }
}

type WriterReply = oneshot::Sender<(CommitSet, Result<CommitOutcome, LakeError>)>;

/// The thread that may block on DuckDB.
struct WriterThread {
    jobs: mpsc::Sender<(CommitSet, WriterReply)>,
}

impl WriterThread {
    fn start(writer: LakeWriter, tasks: &TaskTracker) -> Self {
        let (jobs, mut receiver) = mpsc::channel::<(CommitSet, WriterReply)>(1);
        tasks.spawn_blocking(move || {
            while let Some((set, reply)) = receiver.blocking_recv() {
                let outcome = writer.commit(&set);
                // Fails when nobody waits any more.
                let _ = reply.send((set, outcome));
            }
        });
        Self { jobs }
    }

    async fn commit(&self, set: &mut CommitSet) -> Result<CommitOutcome, CommitError> {
        let (reply, outcome) = oneshot::channel();
        self.jobs.send((std::mem::take(set), reply)).await.map_err(|_| CommitError::Ended)?;
        let (back, outcome) = outcome.await.map_err(|_| CommitError::Ended)?;
        *set = back;
        Ok(outcome?)
    }
}
