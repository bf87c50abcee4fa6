//! Gathers decoded messages until a commit is due. No I/O.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_lake::{PendingMessage, writer::CommitSet};
use plimsoll_nats::{
    PartitionId, Position,
    reader::{Acker, ReaderEvent},
};
use tokio::time::Instant;

use crate::decoder::{DeadReason, Decoded, Original};

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
    pub set: CommitSet,
    /// The messages of [`CommitSet::messages`] as they came, in the same order.
    pub originals: Vec<Original>,
    /// Messages that could not be decoded.
    pub dead: Vec<(Original, DeadReason)>,
    /// What acknowledges each partition up to its position.
    pub ackers: BTreeMap<PartitionId, Acker>,
}

/// Gathers messages; see [`Limits`].
#[derive(Debug)]
pub struct Batcher {
    limits: Limits,
    gathered: Gathered,
    rows: usize,
    bytes: usize,
    due: Option<Instant>,
}

impl Batcher {
    /// An empty batcher.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, gathered: Gathered::default(), rows: 0, bytes: 0, due: None }
    }

    /// Rows gathered.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
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
        self.rows >= self.limits.rows || self.bytes >= self.limits.bytes
    }

    /// Whether the gathered part of the event's partition belongs to another life of the stream: nobody else will ever have it, so
    /// it has to be committed before the new life is gathered.
    #[must_use]
    pub fn must_commit_before(&self, event: &ReaderEvent) -> bool {
        let ReaderEvent::Started { partition, incarnation } = event else { return false };
        self.gathered.set.reached.get(partition).is_some_and(|reached| reached.incarnation != *incarnation)
    }

    /// Starts a partition anew: what is gathered of it comes again.
    pub fn start(&mut self, partition: PartitionId) {
        if self.gathered.set.reached.remove(&partition).is_none() {
            return;
        }
        let gathered = &mut self.gathered;
        gathered.set.messages.retain(|message| message.partition != partition);
        gathered.originals.retain(|original| original.partition != partition);
        gathered.dead.retain(|(original, _)| original.partition != partition);
        gathered.ackers.remove(&partition);
        self.rows = gathered.set.messages.iter().map(|message| message.batch.rows()).sum();
        let dead = gathered.dead.iter().map(|(original, _)| original);
        let originals = gathered.originals.iter().chain(dead).map(Original::weight);
        self.bytes = originals.chain(gathered.set.messages.iter().map(PendingMessage::weight)).sum();
    }

    /// Makes a commit due at once if something of the partition is gathered: whoever has it next need not read that again.
    pub fn stop(&mut self, partition: PartitionId) {
        if self.gathered.set.reached.contains_key(&partition) {
            self.due = Some(Instant::now());
        }
    }

    /// Adds the next message of its partition. Returns false, and drops it, where the same or a later one is gathered already: a
    /// commit would store its rows twice.
    #[must_use]
    pub fn push(&mut self, decoded: Decoded) -> bool {
        let Decoded { original, stored_ms, batch, acker } = decoded;
        let (partition, sequence) = (original.partition, original.sequence);
        let reached = Position { incarnation: original.incarnation, sequence };
        let before = self.gathered.set.reached.get(&partition);
        if before.is_some_and(|before| sequence <= before.within(reached.incarnation).sequence) {
            return false;
        }
        if self.is_empty() {
            self.due = Some(Instant::now() + self.limits.interval);
        }
        self.gathered.set.reached.insert(partition, reached);
        self.gathered.ackers.extend(acker.map(|acker| (partition, acker)));
        self.bytes += original.weight();
        match batch {
            Ok(batch) => {
                let message = PendingMessage { partition, sequence, stored_ms, batch };
                self.rows += message.batch.rows();
                self.bytes += message.weight();
                self.gathered.set.messages.push(message);
                self.gathered.originals.push(original);
            }
            Err(reason) => self.gathered.dead.push((original, reason)),
        }
        true
    }

    /// Takes what is gathered.
    pub fn take(&mut self) -> Gathered {
        self.rows = 0;
        self.bytes = 0;
        self.due = None;
        std::mem::take(&mut self.gathered)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, Sequence};

    use super::*;

    const LIFE: Incarnation = Incarnation(1);

    fn partition(number: u16) -> PartitionId {
        PartitionId::new(number).expect("exists")
    }

    fn message(number: u16, sequence: u64, rows: usize) -> Decoded {
        let batch = Batch {
            host: HostId::parse("h").expect("host"),
            measurement: Name::parse("m").expect("name"),
            epoch: "01HF7YAT00000000000000000A".parse().expect("a ULID"),
            seq: sequence,
            times: vec![0; rows],
            tags: BTreeMap::new(),
            fields: BTreeMap::from([(Name::parse("x").expect("name"), Column::Integer(vec![Some(1); rows]))]),
        };
        let original = Original {
            partition: partition(number),
            incarnation: LIFE,
            sequence: Sequence(sequence),
            subject: String::new(),
            headers: None,
            payload: Bytes::from_static(b"0123456789"),
        };
        Decoded { original, stored_ms: 0, batch: Ok(batch), acker: None }
    }

    fn push(batcher: &mut Batcher, message: Decoded) {
        assert!(batcher.push(message), "a repeated message");
    }

    fn batcher() -> Batcher {
        Batcher::new(Limits { interval: Duration::from_secs(60), rows: 10, bytes: 1_000_000 })
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_counted_from_the_oldest_message() {
        let mut batcher = batcher();
        assert!(batcher.due().is_none() && !batcher.is_due(Instant::now()));
        push(&mut batcher, message(0, 1, 1));
        tokio::time::advance(Duration::from_secs(59)).await;
        push(&mut batcher, message(0, 2, 1));
        assert!(!batcher.is_due(Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(batcher.is_due(Instant::now()) && !batcher.is_full());
        assert_eq!(batcher.take().set.messages.len(), 2);
        assert!(batcher.is_empty() && batcher.due().is_none());
    }

    #[tokio::test]
    async fn rows_and_bytes_are_bounded() {
        let mut rows = batcher();
        push(&mut rows, message(0, 1, 9));
        assert!(!rows.is_full());
        push(&mut rows, message(0, 2, 1));
        assert!(rows.is_full() && rows.is_due(Instant::now()));
        let dead = |sequence| Decoded { batch: Err(reason()), ..message(0, sequence, 1) };
        let mut bytes = Batcher::new(Limits { bytes: 100, ..rows.limits });
        (1..=9).for_each(|sequence| push(&mut bytes, dead(sequence)));
        assert!(!bytes.is_full());
        push(&mut bytes, dead(10));
        assert!(bytes.is_full(), "dead messages count by their bytes");
    }

    #[tokio::test]
    async fn memory_is_bounded_by_what_messages_take_decoded() {
        let texts = Column::Text(vec![Some("x".repeat(10_000))]);
        let mut large = message(0, 1, 1);
        large.batch.as_mut().expect("decoded").fields.insert(Name::parse("t").expect("name"), texts);
        large.original.payload = Bytes::from_static(b"compressed");
        let mut batcher = Batcher::new(Limits { bytes: 10_000, ..batcher().limits });
        push(&mut batcher, large);
        assert!(batcher.is_full());
        batcher.start(partition(0));
        assert_eq!(batcher.bytes, 0);
    }

    #[tokio::test]
    async fn a_repeated_message_is_refused() {
        let mut batcher = batcher();
        push(&mut batcher, message(0, 2, 1));
        assert!(!batcher.push(message(0, 2, 1)) && !batcher.push(message(0, 1, 1)));
        push(&mut batcher, message(1, 1, 1));
        push(&mut batcher, message(0, 3, 1));
        assert_eq!((batcher.rows(), batcher.take().set.messages.len()), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gathered_of_a_partition_that_goes_is_due_at_once() {
        let mut batcher = batcher();
        push(&mut batcher, message(0, 1, 1));
        batcher.stop(partition(1));
        assert!(!batcher.is_due(Instant::now()));
        batcher.stop(partition(0));
        assert!(batcher.is_due(Instant::now()));
    }

    #[tokio::test]
    async fn a_partition_that_starts_anew_is_gathered_anew() {
        let mut batcher = batcher();
        push(&mut batcher, message(0, 1, 2));
        push(&mut batcher, message(1, 2, 3));
        push(&mut batcher, Decoded { batch: Err(reason()), ..message(0, 3, 1) });
        batcher.start(partition(0));
        let left = &batcher.gathered.set.messages;
        assert_eq!((batcher.rows(), batcher.bytes), (3, 10 + left.iter().map(PendingMessage::weight).sum::<usize>()));
        push(&mut batcher, message(0, 1, 2));
        let taken = batcher.take();
        let read: Vec<(u16, u64)> =
            taken.set.messages.iter().map(|message| (message.partition.get(), message.sequence.0)).collect();
        assert_eq!(read, [(1, 2), (0, 1)]);
        assert_eq!(taken.originals.len(), 2);
        assert!(taken.dead.is_empty());
        assert_eq!(taken.set.reached[&partition(0)].sequence, Sequence(1));
    }

    #[tokio::test]
    async fn another_life_of_the_stream_waits_for_the_commit_of_the_former() {
        let mut batcher = batcher();
        let started = |life| ReaderEvent::Started { partition: partition(0), incarnation: life };
        assert!(!batcher.must_commit_before(&started(LIFE)));
        push(&mut batcher, message(0, 1, 1));
        assert!(!batcher.must_commit_before(&started(LIFE)));
        assert!(batcher.must_commit_before(&started(Incarnation(2))));
    }

    fn reason() -> DeadReason {
        DeadReason::new(&plimsoll_nats::subject::SubjectError::Shape)
    }
}
