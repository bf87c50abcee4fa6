//! Gathers messages' rows until a commit is due. No I/O.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_lake::RowSet;
use plimsoll_nats::{
    PartitionId, Position,
    batch::BatchView,
    reader::{Acker, ReaderEvent},
};
use tokio::time::Instant;

use crate::{
    decoder::{Arrived, DeadReason},
    originals::{Original, Originals},
};

/// When a commit is due: whichever is reached first.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time since the oldest gathered message.
    pub interval: Duration,
    /// Gathered rows.
    pub rows: usize,
    /// Memory of gathered messages in bytes, roughly.
    pub bytes: usize,
}

/// What is handed over to be committed.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Rows and positions.
    pub set: RowSet,
    /// The messages of the rows as they came, in the same order.
    pub originals: Originals,
    /// Messages that could not be decoded.
    pub dead: Dead,
    /// What acknowledges each partition up to its position.
    pub ackers: BTreeMap<PartitionId, Acker>,
}

/// Messages that could not be decoded, and why.
#[derive(Debug, Default)]
pub struct Dead {
    /// As they came.
    pub originals: Originals,
    /// The reason of each; none where it is not to be put aside any more.
    pub reasons: Vec<Option<DeadReason>>,
}

impl Dead {
    /// The messages that are to be put aside.
    pub fn messages(&self) -> impl Iterator<Item = (Original<'_>, &DeadReason)> {
        let reasons = self.reasons.iter().enumerate();
        reasons.filter_map(|(index, reason)| Some((self.originals.get(index), reason.as_ref()?)))
    }
}

impl Gathered {
    /// Memory that this takes, in bytes and roughly.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.set.weight() + self.originals.weight() + self.dead.originals.weight()
    }

    /// Forgets everything, and keeps at most about `keep` bytes of memory for what comes next.
    pub fn clear(&mut self, keep: usize) {
        self.set.clear(keep);
        self.originals.clear(keep);
        self.dead.originals.clear(0);
        self.dead.reasons.clear();
        self.ackers.clear();
    }

    fn forget(&mut self, partition: PartitionId) {
        self.set.remove_partition(partition);
        for (index, reason) in self.dead.reasons.iter_mut().enumerate() {
            if self.dead.originals.get(index).partition == partition {
                *reason = None;
            }
        }
        self.ackers.remove(&partition);
    }
}

/// Gathers messages; see [`Limits`].
#[derive(Debug)]
pub struct Batcher {
    limits: Limits,
    gathered: Gathered,
    due: Option<Instant>,
}

impl Batcher {
    /// An empty batcher.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, gathered: Gathered::default(), due: None }
    }

    /// Rows gathered.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.gathered.set.rows()
    }

    /// Whether nothing is gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gathered.set.reached.is_empty()
    }

    /// When what is gathered has to be committed at the latest; none when nothing is gathered.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        if self.is_empty() { None } else { self.due }
    }

    /// Whether a commit is due.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.is_full() || self.due().is_some_and(|due| due <= now)
    }

    /// Whether no more may be gathered.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.rows() >= self.limits.rows || self.gathered.weight() >= self.limits.bytes
    }

    /// Whether the gathered part of the event's partition belongs to another life of the stream: nobody else will ever have it, so
    /// it has to be committed before the new life is gathered.
    #[must_use]
    pub fn must_commit_before(&self, event: &ReaderEvent) -> bool {
        let ReaderEvent::Started { partition, incarnation } = event else { return false };
        self.gathered.set.reached.get(partition).is_some_and(|reached| reached.incarnation != *incarnation)
    }

    /// Starts a partition anew: what is gathered of it comes again. Its memory is free again with the next commit.
    pub fn start(&mut self, partition: PartitionId) {
        if !self.gathered.set.reached.contains_key(&partition) {
            return;
        }
        self.gathered.forget(partition);
        if self.is_empty() {
            self.gathered.clear(self.limits.bytes);
        }
    }

    /// Makes a commit due at once if something of the partition is gathered: whoever has it next need not read that again.
    pub fn stop(&mut self, partition: PartitionId) {
        if self.gathered.set.reached.contains_key(&partition) {
            self.due = Some(Instant::now());
        }
    }

    /// Adds the next message of its partition with its rows, or why it has none. Returns false, and drops it, where the same or a
    /// later one is gathered already: a commit would store its rows twice.
    #[must_use]
    pub fn push(&mut self, message: &Arrived<'_>, rows: Result<BatchView<'_>, DeadReason>) -> bool {
        let Arrived { partition, incarnation, sequence, stored_ms, .. } = *message;
        let before = self.gathered.set.reached.get(&partition);
        if before.is_some_and(|before| sequence <= before.within(incarnation).sequence) {
            return false;
        }
        if self.is_empty() {
            self.due = Some(Instant::now() + self.limits.interval);
        }
        let Gathered { set, originals, dead, .. } = &mut self.gathered;
        set.reached.insert(partition, Position { incarnation, sequence });
        match rows {
            Ok(rows) => {
                set.push(partition, sequence, stored_ms, &rows);
                originals.push(message);
            }
            Err(reason) => {
                dead.originals.push(message);
                dead.reasons.push(Some(reason));
            }
        }
        true
    }

    /// Keeps what acknowledges a partition up to the message that was added last.
    pub fn acknowledge_with(&mut self, partition: PartitionId, acker: Acker) {
        self.gathered.ackers.insert(partition, acker);
    }

    /// Takes what is gathered, and goes on with the memory of what was committed before.
    pub fn take(&mut self, spare: Gathered) -> Gathered {
        self.due = None;
        std::mem::replace(&mut self.gathered, spare)
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, Sequence, batch::BatchDecoder};

    use super::*;

    const LIFE: Incarnation = Incarnation(1);

    fn partition(number: u16) -> PartitionId {
        PartitionId::new(number).expect("exists")
    }

    /// A message of a partition, and its payload.
    struct Message {
        partition: PartitionId,
        sequence: Sequence,
        payload: Vec<u8>,
    }

    fn message(number: u16, sequence: u64, column: Column) -> Message {
        let batch = Batch {
            host: HostId::parse("h").expect("host"),
            measurement: Name::parse("m").expect("name"),
            epoch: "01HF7YAT00000000000000000A".parse().expect("a ULID"),
            seq: sequence,
            times: vec![0; column.len()],
            tags: BTreeMap::new(),
            fields: BTreeMap::from([(Name::parse("x").expect("name"), column)]),
        };
        Message { partition: partition(number), sequence: Sequence(sequence), payload: batch.encode() }
    }

    fn rows(number: u16, sequence: u64, rows: usize) -> Message {
        message(number, sequence, Column::Integer(vec![Some(1); rows]))
    }

    fn dead(number: u16, sequence: u64) -> Message {
        Message { partition: partition(number), sequence: Sequence(sequence), payload: vec![0xc1; 100] }
    }

    fn offer(batcher: &mut Batcher, message: &Message) -> bool {
        let arrived = Arrived {
            partition: message.partition,
            incarnation: LIFE,
            sequence: message.sequence,
            stored_ms: 0,
            subject: "plimsoll.p.0.h.m",
            headers: None,
            payload: &message.payload,
        };
        batcher.push(&arrived, arrived.decode(&mut BatchDecoder::default()))
    }

    fn push(batcher: &mut Batcher, message: Message) {
        assert!(offer(batcher, &message), "a repeated message");
    }

    fn batcher() -> Batcher {
        Batcher::new(Limits { interval: Duration::from_secs(60), rows: 10, bytes: 1_000_000 })
    }

    fn take(batcher: &mut Batcher) -> Gathered {
        batcher.take(Gathered::default())
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_counted_from_the_oldest_message() {
        let mut batcher = batcher();
        assert!(batcher.due().is_none() && !batcher.is_due(Instant::now()));
        push(&mut batcher, rows(0, 1, 1));
        tokio::time::advance(Duration::from_secs(59)).await;
        push(&mut batcher, rows(0, 2, 1));
        assert!(!batcher.is_due(Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(batcher.is_due(Instant::now()) && !batcher.is_full());
        assert_eq!(take(&mut batcher).set.messages(), 2);
        assert!(batcher.is_empty() && batcher.due().is_none());
    }

    #[tokio::test]
    async fn rows_and_bytes_are_bounded() {
        let mut by_rows = batcher();
        push(&mut by_rows, rows(0, 1, 9));
        assert!(!by_rows.is_full());
        push(&mut by_rows, rows(0, 2, 1));
        assert!(by_rows.is_full() && by_rows.is_due(Instant::now()));
        let mut bytes = Batcher::new(Limits { bytes: 1500, ..by_rows.limits });
        (1..=5).for_each(|sequence| push(&mut bytes, dead(0, sequence)));
        assert!(!bytes.is_full());
        (6..=15).for_each(|sequence| push(&mut bytes, dead(0, sequence)));
        assert!(bytes.is_full(), "dead messages count by their bytes");
    }

    #[tokio::test]
    async fn memory_is_bounded_by_what_messages_take_decoded() {
        let mut batcher = Batcher::new(Limits { bytes: 20_000, ..batcher().limits });
        push(&mut batcher, message(0, 1, Column::Text(vec![Some("x".repeat(10_000))])));
        assert!(batcher.is_full(), "the text counts as it came and as it was decoded");
        batcher.start(partition(0));
        assert_eq!(batcher.gathered.weight(), 0);
    }

    #[tokio::test]
    async fn a_repeated_message_is_refused() {
        let mut batcher = batcher();
        push(&mut batcher, rows(0, 2, 1));
        assert!(!offer(&mut batcher, &rows(0, 2, 1)) && !offer(&mut batcher, &rows(0, 1, 1)));
        push(&mut batcher, rows(1, 1, 1));
        push(&mut batcher, rows(0, 3, 1));
        assert_eq!((batcher.rows(), take(&mut batcher).set.messages()), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gathered_of_a_partition_that_goes_is_due_at_once() {
        let mut batcher = batcher();
        push(&mut batcher, rows(0, 1, 1));
        batcher.stop(partition(1));
        assert!(!batcher.is_due(Instant::now()));
        batcher.stop(partition(0));
        assert!(batcher.is_due(Instant::now()));
    }

    #[tokio::test]
    async fn a_partition_that_starts_anew_is_gathered_anew() {
        let mut batcher = batcher();
        push(&mut batcher, rows(0, 1, 2));
        push(&mut batcher, rows(1, 2, 3));
        push(&mut batcher, dead(0, 3));
        push(&mut batcher, dead(1, 4));
        let before = batcher.gathered.weight();
        batcher.start(partition(0));
        assert_eq!(
            (batcher.rows(), batcher.gathered.weight()),
            (3, before),
            "what it takes is free with the next commit"
        );
        push(&mut batcher, rows(0, 1, 2));
        assert_eq!(batcher.rows(), 5);
        let taken = take(&mut batcher);
        assert_eq!(taken.originals.len(), 3);
        let left = |index: &usize| taken.dead.reasons[*index].is_some();
        let left: Vec<u64> = (0..2).filter(left).map(|index| taken.dead.originals.get(index).sequence.0).collect();
        assert_eq!(left, [4]);
        assert_eq!(taken.set.reached[&partition(0)].sequence, Sequence(1));
    }

    #[tokio::test]
    async fn another_life_of_the_stream_waits_for_the_commit_of_the_former() {
        let mut batcher = batcher();
        let started = |life| ReaderEvent::Started { partition: partition(0), incarnation: life };
        assert!(!batcher.must_commit_before(&started(LIFE)));
        push(&mut batcher, rows(0, 1, 1));
        assert!(!batcher.must_commit_before(&started(LIFE)));
        assert!(batcher.must_commit_before(&started(Incarnation(2))));
    }

    #[tokio::test]
    async fn memory_of_what_was_committed_is_used_again() {
        let mut batcher = batcher();
        (1..=5).for_each(|sequence| push(&mut batcher, rows(0, sequence, 1)));
        let mut spare = take(&mut batcher);
        spare.clear(1_000_000);
        push(&mut batcher, rows(0, 6, 1));
        assert_eq!(batcher.take(spare).set.messages(), 1);
        assert!(batcher.is_empty() && batcher.gathered.weight() == 0 && batcher.rows() == 0);
        push(&mut batcher, rows(0, 7, 2));
        let taken = take(&mut batcher);
        assert_eq!((taken.set.messages(), taken.set.rows(), taken.originals.get(0).sequence), (1, 2, Sequence(7)));
    }
}
