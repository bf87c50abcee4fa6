//! The tail: rows that are in the stream and not yet in the lake, held in memory by readers.
//!
//! A reader that knows a snapshot's positions asks the tail for what comes after them, so that each sample counts once. The
//! tail forgets a message when the lake contains it, or when it would grow past its bound; it remembers up to where it has
//! forgotten, and says so when a snapshot is older than that.

mod packed;
mod selection;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock},
};

use plimsoll_nats::{Batch, HostId, Incarnation, Name, PartitionId, Position, Sequence};

pub use self::selection::TailSelection;
pub(crate) use self::selection::{Run, record_batch};
use self::{
    packed::{Names, Packed},
    selection::TailSeries,
};
use crate::Positions;

/// Rows newer than the lake's positions. Shared between the task that fills it and the queries that read it.
#[derive(Debug)]
pub struct Tail {
    max_bytes: usize,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    partitions: BTreeMap<PartitionId, PartitionTail>,
    names: Names,
    /// The sum of the partitions'.
    bytes: usize,
    dropped: u64,
}

type SeriesKey = (HostId, Name);

#[derive(Debug)]
struct PartitionTail {
    incarnation: Incarnation,
    /// Holds all messages after this one, up to `reached`.
    forgotten: Sequence,
    /// Messages after this one may have been dropped for want of memory, not because the lake contains them.
    dropped: Sequence,
    reached: Sequence,
    series: HashMap<SeriesKey, VecDeque<TailMessage>>,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct TailMessage {
    sequence: Sequence,
    /// Of its own, and of what it has in common with those before it, unless one after it has that too.
    bytes: usize,
    rows: Arc<Packed>,
}

/// The snapshot is older than what the tail still holds: take a new snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaleSnapshot;

impl Tail {
    /// An empty tail that holds at most about `max_bytes` of rows.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, state: RwLock::default() }
    }

    /// Starts a partition anew right after a position: what was held of it is forgotten.
    pub fn reset(&self, partition: PartitionId, position: Position) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = state.partitions.remove(&partition) {
            state.bytes -= old.bytes;
        }
        let tail = PartitionTail {
            incarnation: position.incarnation,
            forgotten: position.sequence,
            dropped: Sequence(0),
            reached: position.sequence,
            series: HashMap::new(),
            bytes: 0,
        };
        state.partitions.insert(partition, tail);
    }

    /// Adds the next message of a partition. `None` stands for a message without rows to show.
    ///
    /// Messages at or before the partition's start are ignored, and so is a partition that was never started.
    pub fn push(&self, partition: PartitionId, sequence: Sequence, batch: Option<Arc<Batch>>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let State { partitions, names, bytes, .. } = &mut *state;
        let Some(tail) = partitions.get_mut(&partition) else { return };
        if sequence <= tail.reached {
            return;
        }
        tail.reached = sequence;
        let Some(batch) = batch else { return };
        *bytes += tail.push(sequence, &batch, names);
        if state.bytes > self.max_bytes {
            state.shrink(self.max_bytes);
        }
    }

    /// Forgets what the lake contains.
    pub fn forget(&self, positions: &Positions) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut freed = 0;
        for (partition, tail) in &mut state.partitions {
            let contained = positions.of(*partition, tail.incarnation).sequence;
            freed += tail.forget(contained);
        }
        state.bytes -= freed;
    }

    /// What the tail adds to a snapshot with these positions, of one host and measurement, or of all where not given.
    ///
    /// Fails when the tail has already forgotten messages that the snapshot does not contain but a newer one does.
    pub fn select(
        &self,
        positions: &Positions,
        host: Option<&HostId>,
        measurement: Option<&Name>,
    ) -> Result<TailSelection, StaleSnapshot> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let (mut found, mut complete) = (Vec::new(), true);
        for (partition, tail) in &state.partitions {
            let contained = positions.of(*partition, tail.incarnation).sequence;
            if contained < tail.dropped {
                complete = false;
            } else if contained < tail.forgotten {
                return Err(StaleSnapshot);
            }
            let mut take = |(host, measurement): &SeriesKey, messages| {
                let after = after(messages, contained).map(|message| (message.sequence, Arc::clone(&message.rows)));
                let (host, measurement, messages) = (host.clone(), measurement.clone(), after.collect());
                found.push(TailSeries { host, measurement, messages });
            };
            match (host, measurement) {
                (Some(host), Some(measurement)) => {
                    if let Some((key, messages)) = tail.series.get_key_value(&(host.clone(), measurement.clone())) {
                        take(key, messages);
                    }
                }
                _ => tail
                    .series
                    .iter()
                    .filter(|(key, _)| host.is_none_or(|host| key.0 == *host))
                    .filter(|(key, _)| measurement.is_none_or(|measurement| key.1 == *measurement))
                    .for_each(|(key, messages)| take(key, messages)),
            }
        }
        found.retain(|series| !series.messages.is_empty());
        Ok(TailSelection::new(found, complete))
    }

    /// Bytes held, roughly, and messages dropped for want of memory so far.
    #[must_use]
    pub fn usage(&self) -> (usize, u64) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        (state.bytes, state.dropped)
    }
}

impl State {
    /// Drops the older half of what the largest partition holds, until the rest fits.
    fn shrink(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes {
            let largest = self.partitions.values_mut().max_by_key(|tail| tail.bytes);
            let Some(tail) = largest else { return };
            let mut sequences: Vec<Sequence> = tail.series.values().flatten().map(|message| message.sequence).collect();
            if sequences.is_empty() {
                return;
            }
            let middle = sequences.len() / 2;
            let (_, median, _) = sequences.select_nth_unstable(middle);
            let upto = *median;
            tail.dropped = upto;
            self.dropped += middle as u64 + 1;
            self.bytes -= tail.forget(upto);
        }
    }
}

impl PartitionTail {
    /// Adds a message; returns the bytes that it takes.
    fn push(&mut self, sequence: Sequence, batch: &Batch, names: &mut Names) -> usize {
        let key = (batch.host.clone(), names.shared(&batch.measurement));
        let messages = self.series.entry(key).or_default();
        let before = messages.back_mut();
        let rows = Packed::new(batch, before.as_ref().map(|before| &*before.rows), names);
        let (own, shape) = (rows.weight(), rows.shape_weight());
        let mut added = own + shape;
        if let Some(before) = before.filter(|before| before.rows.shares_with(&rows)) {
            // What they share goes with the last one that has it.
            before.bytes -= shape;
            added -= shape;
        }
        messages.push_back(TailMessage { sequence, bytes: own + shape, rows: Arc::new(rows) });
        self.bytes += added;
        added
    }

    /// Forgets messages up to a sequence, inclusive; returns the bytes freed.
    fn forget(&mut self, upto: Sequence) -> usize {
        self.forgotten = self.forgotten.max(upto);
        self.reached = self.reached.max(upto);
        let mut freed = 0;
        self.series.retain(|_, messages| {
            let gone = messages.partition_point(|message| message.sequence <= upto);
            freed += messages.drain(..gone).map(|message| message.bytes).sum::<usize>();
            !messages.is_empty()
        });
        self.bytes -= freed;
        freed
    }
}

/// The messages of a series after a sequence.
fn after(messages: &VecDeque<TailMessage>, sequence: Sequence) -> impl Iterator<Item = &TailMessage> {
    messages.range(messages.partition_point(|message| message.sequence <= sequence)..)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use plimsoll_nats::Column;

    use super::*;

    const LIFE: Incarnation = Incarnation(7);

    fn partition() -> PartitionId {
        PartitionId::new(3).expect("exists")
    }

    fn batch(value: i64) -> Arc<Batch> {
        let fields = BTreeMap::from([(Name::parse("v").expect("name"), Column::Integer(vec![Some(value)]))]);
        Arc::new(Batch {
            host: HostId::parse("h").expect("host"),
            measurement: Name::parse("m").expect("name"),
            epoch: ulid::Ulid::nil(),
            seq: 1,
            times: vec![value],
            tags: BTreeMap::new(),
            fields,
        })
    }

    fn positions(sequence: u64) -> Positions {
        Positions::for_test(
            PartitionId::all().map(|p| (p, Position { incarnation: LIFE, sequence: Sequence(sequence) })),
        )
    }

    fn filled(max_bytes: usize, messages: u64) -> Tail {
        let tail = Tail::new(max_bytes);
        tail.reset(partition(), Position::start(LIFE));
        for sequence in 1..=messages {
            tail.push(partition(), Sequence(sequence), Some(batch(sequence.cast_signed())));
        }
        tail
    }

    fn times(selection: &TailSelection) -> Vec<i64> {
        selection.batches().iter().flat_map(|batch| batch.times.clone()).collect()
    }

    #[test]
    fn a_snapshot_gets_what_it_does_not_contain() {
        let tail = filled(usize::MAX, 5);
        let selection = tail.select(&positions(3), None, None).expect("held");
        assert_eq!(times(&selection), [4, 5]);
        assert!(selection.complete);
        tail.push(partition(), Sequence(5), Some(batch(99)));
        assert_eq!(
            times(&tail.select(&positions(3), None, None).expect("held")),
            [4, 5],
            "a repeated message is ignored"
        );
    }

    #[test]
    fn an_older_snapshot_than_what_is_held_must_be_taken_anew() {
        let tail = filled(usize::MAX, 5);
        tail.forget(&positions(4));
        assert_eq!(tail.select(&positions(3), None, None).err(), Some(StaleSnapshot));
        assert_eq!(times(&tail.select(&positions(4), None, None).expect("held")), [5]);
    }

    /// Bytes of one message, and of each after it.
    fn weights() -> (usize, usize) {
        let (one, two) = (filled(usize::MAX, 1).usage().0, filled(usize::MAX, 2).usage().0);
        (one, two - one)
    }

    #[test]
    fn what_messages_have_in_common_counts_once_until_the_last_has_gone() {
        let (first, next) = weights();
        assert!(next < first, "{next} of {first}");
        let tail = filled(usize::MAX, 10);
        assert_eq!(tail.usage().0, first + 9 * next);
        tail.forget(&positions(9));
        assert_eq!(tail.usage().0, first, "the last one has it");
        tail.forget(&positions(10));
        assert_eq!(tail.usage().0, 0);
    }

    #[test]
    fn a_full_tail_drops_the_oldest_and_says_so() {
        let (first, next) = weights();
        let tail = filled(first + 9 * next, 100);
        let (bytes, dropped) = tail.usage();
        assert!(bytes <= first + 9 * next && dropped >= 90, "{bytes} {dropped}");
        let selection = tail.select(&positions(0), None, None).expect("answers all the same");
        assert!(!selection.complete);
        assert_eq!(times(&selection).last(), Some(&100));
        tail.forget(&positions(100));
        assert!(tail.select(&positions(100), None, None).expect("held").complete, "complete again once committed");
    }

    #[test]
    fn a_new_life_of_the_stream_starts_anew() {
        let tail = filled(usize::MAX, 5);
        tail.reset(partition(), Position::start(Incarnation(8)));
        tail.push(partition(), Sequence(1), Some(batch(1)));
        assert_eq!(times(&tail.select(&positions(5), None, None).expect("held")), [1]);
        assert_eq!(tail.usage().0, weights().0);
    }
}
