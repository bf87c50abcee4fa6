//! Commits what was gathered, one batch after the other, each until it is done.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use plimsoll_lake::{CommitOutcome, CommitReport, LakeError, LakeWriter, RowSet, writer::Rejection};
use plimsoll_nats::{
    Client, Incarnation, PartitionId,
    dead::{chain, header_text},
    reader::Acker,
    streams::{self, DeclareError},
};
use plimsoll_service::ops::Readiness;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    batcher::Gathered,
    dead,
    lake_thread::{LakeThread, Reopening, ThreadEnded},
    metrics::Metrics,
    originals::Original,
    turn::Turn,
};

/// Longest pause between two tries of the same commit.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How long a try may take before ingest says that it is held up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tries that a commit has left once ingest is told to stop; the stream keeps what is not committed then.
const LAST_TRIES: u32 = 3;

/// Takes batches over, each once the one before is done: so that memory holds two, of which one is committed while the other one is
/// gathered.
#[derive(Debug)]
pub struct Committer {
    batches: mpsc::Sender<HandedOver>,
    /// Has a permit while no batch is under way.
    free: Arc<Semaphore>,
    spare: Spare,
    task: JoinHandle<Result<(), ThreadEnded>>,
}

/// What was committed last, emptied: its memory serves again.
type Spare = Arc<Mutex<Gathered>>;

/// A batch, and what lets the next one come when that is done.
type HandedOver = (Gathered, OwnedSemaphorePermit);

/// A committer that is free for the next batch.
#[derive(Debug)]
pub struct Slot<'a> {
    place: mpsc::Permit<'a, HandedOver>,
    free: OwnedSemaphorePermit,
}

impl Slot<'_> {
    /// Hands a batch over.
    pub fn send(self, gathered: Gathered) {
        self.place.send((gathered, self.free));
    }
}

impl Committer {
    /// Starts the task that commits. It ends when the committer is dropped and the last batch is done.
    #[must_use]
    pub fn start(
        lake: LakeThread<LakeWriter>,
        client: Client,
        metrics: Metrics,
        readiness: Readiness,
        turn: Turn,
        shutdown: CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let (batches, receiver) = mpsc::channel(1);
        let (free, spare) = (Arc::new(Semaphore::new(1)), Spare::default());
        let task = CommitTask { lake, client, metrics, readiness, shutdown, spare: Arc::clone(&spare) };
        Self { batches, free, spare, task: tasks.spawn(task.run(receiver, turn)) }
    }

    /// Something empty to gather into, with the memory of what was committed last.
    #[must_use]
    pub fn spare(&self) -> Gathered {
        std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the last batch is done and another one can be handed over; none when the committer has ended.
    pub async fn reserve(&self) -> Option<Slot<'_>> {
        let free = Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed");
        let place = self.batches.reserve().await.ok()?;
        Some(Slot { place, free })
    }

    /// Waits until a batch can be handed over, and does so.
    pub async fn hand_over(&self, gathered: Gathered) {
        if let Some(slot) = self.reserve().await {
            slot.send(gathered);
        }
    }

    /// Waits until the committer takes no more batches.
    pub async fn ended(&self) {
        self.batches.closed().await;
    }

    /// Waits until the last batch is done. Fails when the thread that writes to the lake has ended.
    pub async fn finish(self) -> Result<(), ThreadEnded> {
        drop(self.batches);
        self.task.await.expect("committing does not panic")
    }
}

struct CommitTask {
    lake: LakeThread<LakeWriter>,
    client: Client,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: CancellationToken,
    spare: Spare,
}

impl CommitTask {
    async fn run(self, mut batches: mpsc::Receiver<HandedOver>, mut turn: Turn) -> Result<(), ThreadEnded> {
        while let Some((mut gathered, free)) = batches.recv().await {
            let keep = gathered.weight();
            if !self.commit(&mut gathered, &mut turn).await? {
                tracing::warn!("stopped before the last batch was committed, the stream keeps it");
                break;
            }
            gathered.clear(keep);
            *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = gathered;
            // Whoever hands the next batch over goes on with this one's memory.
            drop(free);
        }
        Ok(())
    }

    /// Commits a batch, however often it takes. Returns false when ingest was told to stop and the last tries failed.
    async fn commit(&self, gathered: &mut Gathered, turn: &mut Turn) -> Result<bool, ThreadEnded> {
        let mut pause = Duration::from_millis(100);
        let mut tries_left = LAST_TRIES;
        loop {
            self.metrics.commit_wait_seconds.inc_by(turn.take().await.as_secs_f64());
            match turn.during(self.told_when_late(self.try_commit(gathered))).await {
                Ok(report) => {
                    self.committed(&report);
                    acknowledge(&gathered.ackers).await;
                    return Ok(true);
                }
                Err(CommitError::Ended(ended)) => return Err(ended),
                Err(error) => {
                    self.metrics.commit_failures.inc();
                    // The catalog may quote a statement with all its rows.
                    let error = header_text(&chain(&error));
                    self.readiness.fail("commit", error.as_str());
                    tracing::warn!(error, "a commit failed and is tried again, nothing is lost");
                }
            }
            if self.shutdown.is_cancelled() {
                tries_left -= 1;
                if tries_left == 0 {
                    return Ok(false);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled(), if !self.shutdown.is_cancelled() => {}
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Waits for a try however long it takes, and says so when that is long: a store that hangs fails only after minutes.
    async fn told_when_late<T>(&self, attempt: impl Future<Output = T>) -> T {
        let mut attempt = std::pin::pin!(attempt);
        match tokio::time::timeout(PATIENCE, attempt.as_mut()).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let reason = format!("not done within {} s: catalog or store is slow or away", PATIENCE.as_secs());
                self.readiness.fail("commit", reason);
                attempt.await
            }
        }
    }

    fn committed(&self, report: &CommitReport) {
        self.readiness.clear("commit");
        self.metrics.committed(report);
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
    }

    async fn try_commit(&self, gathered: &mut Gathered) -> Result<CommitReport, CommitError> {
        // Asked for anew with each try: the stream may have been wiped since.
        gathered.set.current = None;
        self.put_dead_aside(gathered).await?;
        loop {
            match self.write(&mut gathered.set).await? {
                CommitOutcome::Committed(report) => return Ok(report),
                CommitOutcome::Rejected(rejections) => self.reject(gathered, &rejections).await?,
                CommitOutcome::Superseded => gathered.set.current = Some(self.present_life().await?),
            }
        }
    }

    async fn write(&self, set: &mut RowSet) -> Result<CommitOutcome, CommitError> {
        let taken = std::mem::take(set);
        let job = |lake: &mut Reopening<LakeWriter>| {
            let outcome = lake.with(|writer| writer.commit_rows(&taken));
            (taken, outcome)
        };
        let (back, outcome) = self.lake.run(job).await?;
        *set = back;
        Ok(outcome?)
    }

    async fn present_life(&self) -> Result<Incarnation, CommitError> {
        let (_, life) = streams::metrics(&self.client).await?;
        tracing::warn!(
            incarnation = life.0,
            "the lake knows a stream that was made later than what is read: asked which one counts"
        );
        Ok(life)
    }

    /// Puts messages aside that could not be decoded, before the position moves past them: a crash in between repeats it, and never
    /// loses one.
    async fn put_dead_aside(&self, gathered: &mut Gathered) -> Result<(), CommitError> {
        let dead = &mut gathered.dead;
        if dead.reasons.iter().flatten().next().is_none() {
            return Ok(());
        }
        // What the lake's position has passed was put aside by whoever moved it, maybe longer ago than `DEAD` knows message ids.
        let positions = self.lake.run(|lake| lake.with(LakeWriter::positions)).await??;
        let aside: Vec<_> = dead
            .messages()
            .filter(|(original, _)| original.sequence > positions.of(original.partition, original.incarnation).sequence)
            .collect();
        dead::put_aside(&self.client, aside.iter().copied()).await?;
        self.told_dead(aside.into_iter());
        dead.reasons.clear();
        dead.originals.clear(0);
        Ok(())
    }

    async fn reject(&self, gathered: &mut Gathered, rejections: &[Rejection]) -> Result<(), CommitError> {
        let originals = &gathered.originals;
        let aside = || rejections.iter().map(|r| (originals.get(r.index), &r.reason));
        dead::put_aside(&self.client, aside()).await?;
        self.told_dead(aside());
        gathered.set.remove(&rejections.iter().map(|rejection| rejection.index).collect());
        Ok(())
    }

    fn told_dead<'a, R: Error + 'static>(&self, messages: impl Iterator<Item = (Original<'a>, &'a R)>) {
        const SHOWN: usize = 5;
        for (index, (original, reason)) in messages.enumerate() {
            self.metrics.dead.inc();
            if index < SHOWN {
                let (subject, reason) = (excerpt(original.subject), excerpt(&chain(reason)));
                tracing::warn!(subject, stream.seq = %original.sequence, reason, "message put aside on DEAD");
            }
        }
    }
}

/// The start of a text that a hostile message may have made long, on one line.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 300;
    header_text(text).chars().take(SHOWN).collect()
}

#[derive(Debug, thiserror::Error)]
enum CommitError {
    #[error("failed to put dead messages aside")]
    Dead(#[from] plimsoll_nats::async_nats::jetstream::context::PublishError),
    #[error("failed to commit to the lake")]
    Lake(#[from] LakeError),
    #[error("failed to ask for the stream's present life")]
    Stream(#[from] DeclareError),
    #[error(transparent)]
    Ended(#[from] ThreadEnded),
}

async fn acknowledge(ackers: &BTreeMap<PartitionId, Acker>) {
    for (partition, acker) in ackers {
        // Only tidies up: the position in the lake is what counts.
        if let Err(error) = acker.ack().await {
            tracing::debug!(partition.id = %partition, %error, "failed to acknowledge");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use futures_util::FutureExt as _;
    use plimsoll_lake::LakeConfig;
    use plimsoll_nats::{Position, Sequence, client::MemberId, subject::SubjectError, testing::TestServer};
    use plimsoll_service::ops::Ops;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        batcher::Dead,
        decoder::{Arrived, DeadReason},
    };

    const LIFE: Incarnation = Incarnation(1);

    fn partition() -> PartitionId {
        PartitionId::new(0).expect("exists")
    }

    fn reached(sequence: u64) -> RowSet {
        let mut set = RowSet::default();
        set.reached.insert(partition(), Position { incarnation: LIFE, sequence: Sequence(sequence) });
        set
    }

    fn dead(sequences: RangeInclusive<u64>) -> Dead {
        let mut dead = Dead::default();
        for sequence in sequences {
            dead.originals.push(&Arrived {
                partition: partition(),
                incarnation: LIFE,
                sequence: Sequence(sequence),
                stored_ms: 0,
                subject: "",
                headers: None,
                payload: b"garbage",
            });
            dead.reasons.push(Some(DeadReason::new(&SubjectError::Shape)));
        }
        dead
    }

    fn start(lake: LakeThread<LakeWriter>, client: &Client) -> Committer {
        let (readiness, shutdown, tasks) = (Readiness::default(), CancellationToken::new(), TaskTracker::new());
        let turn = Turn::new(client, "test", &MemberId::unique(), shutdown.clone());
        Committer::start(lake, client.clone(), Metrics::register(&Ops::default()), readiness, turn, shutdown, &tasks)
    }

    #[tokio::test]
    async fn what_the_position_has_passed_is_not_put_aside_again() {
        let (server, dir) = (TestServer::start().await, TempDir::new().expect("a folder"));
        let (client, config) = (server.client().await, LakeConfig::embedded(dir.path()));
        LakeWriter::open(&config).expect("opens").commit_rows(&reached(2)).expect("commits");
        let committer = start(LakeThread::start(move || LakeWriter::open(&config), &TaskTracker::new()), &client);
        committer.hand_over(Gathered { set: reached(3), dead: dead(1..=3), ..Gathered::default() }).await;
        committer.finish().await.expect("commits");
        let aside = client.jetstream.get_stream(streams::DEAD).await.expect("there").cached_info().state.messages;
        assert_eq!(aside, 1);
    }

    #[tokio::test]
    async fn no_batch_is_taken_while_one_is_under_way() {
        let (server, dir) = (TestServer::start().await, TempDir::new().expect("a folder"));
        let config = LakeConfig::embedded(dir.path());
        let ((begin, begun), (open, opened)) = (tokio::sync::oneshot::channel(), std::sync::mpsc::channel::<()>());
        let begin = Mutex::new(Some(begin));
        let held_up = move || {
            if let Some(begin) = begin.lock().expect("no panic").take() {
                begin.send(()).expect("is waited for");
                opened.recv().expect("is let go on");
            }
            LakeWriter::open(&config)
        };
        let committer = start(LakeThread::start(held_up, &TaskTracker::new()), &server.client().await);
        committer.hand_over(Gathered { set: reached(1), ..Gathered::default() }).await;
        begun.await.expect("the first commit begins");
        assert!(committer.reserve().now_or_never().is_none(), "a third batch would be gathered");
        open.send(()).expect("waits");
        committer.reserve().await.expect("is free again");
        committer.hand_over(Gathered { set: reached(2), ..Gathered::default() }).await;
        committer.finish().await.expect("commits");
        let stored = LakeWriter::open(&LakeConfig::embedded(dir.path())).and_then(|lake| lake.positions());
        assert_eq!(stored.expect("reads").of(partition(), LIFE).sequence, Sequence(2));
    }

    #[tokio::test]
    async fn a_thread_that_has_panicked_ends_the_committer() {
        let server = TestServer::start().await;
        let lake = LakeThread::start(|| panic!("a bug"), &TaskTracker::new());
        let committer = start(lake, &server.client().await);
        committer.hand_over(Gathered::default()).await;
        committer.ended().await;
        assert!(committer.finish().await.is_err());
    }
}
