//! Writes a fleet's history straight into a lake, as fast as that goes: no broker, the same commits as ingest makes.

use std::{
    collections::BTreeMap,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use plimsoll_lake::{CommitOutcome, LakeConfig, LakeError, LakeWriter, PendingMessage, writer::CommitSet};
use plimsoll_nats::{Batch, Incarnation, PartitionId, Position, Sequence, subject};

use crate::{Fleet, FleetConfig, FleetError};

/// The life of the stream that these rows count in: one before any real one, so that the lake can go on with a broker later.
pub const INCARNATION: Incarnation = Incarnation(1);

/// Why a lake was not filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// There is no such fleet.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The lake failed.
    #[error("failed to write to the lake")]
    Lake(#[from] LakeError),
    /// The lake follows a real stream.
    #[error("the lake holds samples of a broker already: name another folder")]
    InUse,
    /// The lake refuses a batch, which a made-up one never is.
    #[error("the lake refused a batch: {reason}")]
    Refused {
        /// What the lake says.
        reason: String,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// Rows.
    pub rows: usize,
    /// Values that are not nil.
    pub points: usize,
    /// Commits.
    pub commits: usize,
    /// Time that the commits took.
    pub committing: Duration,
}

/// Writes `ticks` samples of a fleet, in commits of about `commit_rows` rows, and calls `progress` with the samples written so
/// far after each commit. Blocks.
///
/// What fills one lake twice appends: give the second fleet another start or other hosts.
/// Fails when the lake can't be reached, and when it holds samples of a broker.
pub fn fill(
    lake: &LakeConfig,
    fleet: FleetConfig,
    ticks: u64,
    commit_rows: usize,
    progress: impl FnMut(u64),
) -> Result<Filled, FillError> {
    let fleet = Fleet::new(fleet)?;
    let writer = LakeWriter::open(lake)?;
    let stored = writer.positions()?;
    let mut reached = BTreeMap::new();
    for partition in PartitionId::all() {
        match stored.stored(partition) {
            Some(position) if position.incarnation > INCARNATION => return Err(FillError::InUse),
            Some(position) => reached.insert(partition, position.within(INCARNATION)),
            None => None,
        };
    }
    // One commit is made up while the one before is written.
    let (sender, sets) = sync_channel(1);
    thread::scope(|scope| {
        scope.spawn(move || make_up(fleet, ticks, commit_rows, reached, &sender));
        write(&writer, &sets, progress)
    })
}

/// A commit, and how many samples of the whole fleet are written with it.
struct Due {
    set: CommitSet,
    ticks: u64,
}

fn make_up(
    mut fleet: Fleet,
    ticks: u64,
    commit_rows: usize,
    mut reached: BTreeMap<PartitionId, Position>,
    sender: &SyncSender<Due>,
) {
    let (mut done, mut batches, mut rows) = (0, Vec::new(), 0);
    while done < ticks {
        let known = batches.len();
        done += fleet.sample(ticks - done, &mut batches);
        rows += batches[known..].iter().map(Batch::rows).sum::<usize>();
        if rows >= commit_rows || done >= ticks {
            let set = commit_set(std::mem::take(&mut batches), &mut reached);
            rows = 0;
            // Fails when the writer has failed, which it tells itself.
            if sender.send(Due { set, ticks: done }).is_err() {
                return;
            }
        }
    }
}

/// Numbers the batches as a stream would.
fn commit_set(batches: Vec<Batch>, reached: &mut BTreeMap<PartitionId, Position>) -> CommitSet {
    let messages = batches.into_iter().map(|batch| {
        let partition = subject::partition_of(&batch.host);
        let position = reached.entry(partition).or_insert(Position::start(INCARNATION));
        position.sequence = position.sequence.next();
        let (sequence, stored_ms): (Sequence, _) = (position.sequence, batch.times.iter().copied().max().unwrap_or(0));
        PendingMessage { partition, sequence, stored_ms, batch }
    });
    let messages = messages.collect();
    CommitSet { messages, reached: reached.clone(), current: None }
}

fn write(writer: &LakeWriter, sets: &Receiver<Due>, mut progress: impl FnMut(u64)) -> Result<Filled, FillError> {
    let mut filled = Filled::default();
    for Due { set, ticks } in sets {
        match writer.commit(&set)? {
            CommitOutcome::Committed(report) => {
                filled.rows += report.rows;
                filled.points += report.points;
                filled.commits += 1;
                filled.committing += report.duration;
            }
            CommitOutcome::Rejected(rejections) => {
                let reason = rejections.first().map(|rejection| rejection.reason.to_string()).unwrap_or_default();
                return Err(FillError::Refused { reason });
            }
            CommitOutcome::Superseded => return Err(FillError::InUse),
        }
        progress(ticks);
    }
    Ok(filled)
}
