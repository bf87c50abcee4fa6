//! The batches that the broker has not acknowledged, in memory and bounded.
//!
//! Invariants: within a measurement, batches are in the order of their numbers; a batch leaves when it is known to be
//! stored, when it can never be stored, or as the oldest when the buffer is full.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use plimsoll_nats::Name;
use tokio::sync::Notify;

use crate::message::Message;

/// What an entry takes beside its payload, roughly.
const ENTRY_BYTES: usize = 96;
/// Batches of one measurement in flight while it catches up.
const CATCH_UP_WINDOW: usize = 32;
/// From this backlog on a measurement catches up. Below it one batch is in flight at a time, which keeps the stored order
/// even when a broker loses one publish and takes the next, as while its leader changes.
const CATCH_UP_FROM: usize = 8;

/// A batch that waits for the broker's acknowledgement.
#[derive(Debug)]
struct Entry {
    message: Message,
    /// Counts batches of all measurements, so that the oldest can be told.
    age: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Never sent, or known not to be stored. `after` is kept from an earlier attempt.
    Waiting { after: Option<u64> },
    /// Sent, with no answer yet. If it is stored, then after this sequence of the stream.
    Sent { after: u64 },
}

/// Batches of one measurement that were sent and may be stored or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The measurement.
    pub measurement: Name,
    /// The numbers of the batches.
    pub seqs: BTreeSet<u64>,
    /// Those that are stored are so after this sequence of the stream.
    pub after: u64,
}

/// Unacknowledged batches up to a limit in bytes.
#[derive(Debug)]
pub struct Buffer {
    queues: BTreeMap<Name, VecDeque<Entry>>,
    limit: usize,
    bytes: usize,
    len: usize,
    ages: u64,
}

impl Buffer {
    /// Holds up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { queues: BTreeMap::new(), limit, bytes: 0, len: 0, ages: 0 }
    }

    /// Number of batches.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether every batch has been acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a batch and returns how many of the oldest had to go for it.
    pub fn push(&mut self, message: Message) -> usize {
        self.ages += 1;
        self.bytes += size(&message);
        self.len += 1;
        let entry = Entry { age: self.ages, state: State::Waiting { after: None }, message };
        self.queues.entry(entry.message.measurement.clone()).or_default().push_back(entry);
        let mut dropped = 0;
        while self.bytes > self.limit && self.len > 1 {
            self.drop_oldest();
            dropped += 1;
        }
        dropped
    }

    fn drop_oldest(&mut self) {
        let oldest = self.queues.values_mut().min_by_key(|queue| queue.front().map_or(u64::MAX, |entry| entry.age));
        if let Some(entry) = oldest.and_then(VecDeque::pop_front) {
            self.bytes -= size(&entry.message);
            self.len -= 1;
        }
    }

    /// The oldest batch that may be sent now, which from here on counts as sent.
    ///
    /// `stream_seq` is a sequence that the stream is known to have reached.
    pub fn send(&mut self, stream_seq: u64) -> Option<Message> {
        let entry = self.queues.values_mut().filter_map(next_to_send).min_by_key(|entry| entry.age)?;
        let after = match entry.state {
            State::Waiting { after } => after.unwrap_or(stream_seq),
            State::Sent { after } => after,
        };
        entry.state = State::Sent { after };
        Some(entry.message.clone())
    }

    /// Takes out a batch that is stored or can never be. Returns whether it was there.
    pub fn remove(&mut self, measurement: &Name, seq: u64) -> bool {
        let Some(queue) = self.queues.get_mut(measurement) else {
            return false;
        };
        let entry = queue.binary_search_by_key(&seq, |entry| entry.message.seq).ok().and_then(|at| queue.remove(at));
        if let Some(entry) = &entry {
            self.bytes -= size(&entry.message);
            self.len -= 1;
        }
        entry.is_some()
    }

    /// What was sent and has not been answered, by measurement.
    #[must_use]
    pub fn doubts(&self) -> Vec<Doubt> {
        let doubt = |(measurement, queue): (&Name, &VecDeque<Entry>)| {
            let sent = || queue.iter().filter_map(|entry| Some((entry.message.seq, entry.sent_after()?)));
            let after = sent().map(|(_, after)| after).min()?;
            Some(Doubt { measurement: measurement.clone(), seqs: sent().map(|(seq, _)| seq).collect(), after })
        };
        self.queues.iter().filter_map(doubt).collect()
    }

    /// Resolves a doubt: what is stored leaves, the rest waits to be sent again.
    pub fn settle(&mut self, doubt: &Doubt, stored: &BTreeSet<u64>) {
        for seq in stored {
            self.remove(&doubt.measurement, *seq);
        }
        for entry in self.queues.get_mut(&doubt.measurement).into_iter().flatten() {
            if let Some(after) = entry.sent_after().filter(|_| doubt.seqs.contains(&entry.message.seq)) {
                entry.state = State::Waiting { after: Some(after) };
            }
        }
    }

    /// Says that the stream counts anew from 1, so that nothing known of its sequences holds any more.
    pub fn forget_sequences(&mut self) {
        for entry in self.queues.values_mut().flatten() {
            entry.state = match entry.state {
                State::Waiting { after } => State::Waiting { after: after.map(|_| 0) },
                State::Sent { .. } => State::Sent { after: 0 },
            };
        }
    }
}

impl Entry {
    fn sent_after(&self) -> Option<u64> {
        match self.state {
            State::Sent { after } => Some(after),
            State::Waiting { .. } => None,
        }
    }
}

/// The first batch of a measurement that waits, when the measurement may have one more in flight.
fn next_to_send(queue: &mut VecDeque<Entry>) -> Option<&mut Entry> {
    let window = if queue.len() >= CATCH_UP_FROM { CATCH_UP_WINDOW } else { 1 };
    queue.iter_mut().take(window).find(|entry| matches!(entry.state, State::Waiting { .. }))
}

fn size(message: &Message) -> usize {
    message.payload.len() + ENTRY_BYTES
}

/// The buffer as the sampler and the publisher share it.
#[derive(Debug)]
pub struct SharedBuffer {
    buffer: Mutex<Buffer>,
    filled: Notify,
    dropped: Mutex<u64>,
}

impl SharedBuffer {
    /// Holds up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { buffer: Mutex::new(Buffer::new(limit)), filled: Notify::new(), dropped: Mutex::new(0) }
    }

    /// Adds batches and wakes the publisher. What has to go for them is counted.
    pub fn push(&self, messages: Vec<Message>) {
        let dropped: usize = {
            let mut buffer = self.lock();
            messages.into_iter().map(|message| buffer.push(message)).sum()
        };
        if dropped > 0 {
            *self.dropped.lock().unwrap_or_else(PoisonError::into_inner) += dropped as u64;
        }
        self.filled.notify_one();
    }

    /// Completes once batches have come since the last call.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The buffer, for as long as the guard lives; never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many batches had to go since the last call.
    pub fn take_dropped(&self) -> u64 {
        std::mem::take(&mut *self.dropped.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use ulid::Ulid;

    use super::*;

    fn message(measurement: &str, seq: u64, bytes: usize) -> Message {
        Message {
            measurement: Name::parse(measurement).unwrap(),
            epoch: Ulid::nil(),
            seq,
            compressed: false,
            payload: Bytes::from(vec![0; bytes]),
        }
    }

    fn sent(buffer: &mut Buffer) -> Vec<(String, u64)> {
        std::iter::from_fn(|| buffer.send(0)).map(|message| (message.measurement.to_string(), message.seq)).collect()
    }

    #[test]
    fn the_oldest_of_all_measurements_goes_first_and_is_counted() {
        let shared = SharedBuffer::new(3 * (100 + ENTRY_BYTES));
        shared.push(vec![message("cpu", 1, 100), message("load", 1, 100), message("cpu", 2, 100)]);
        assert_eq!(shared.take_dropped(), 0);
        shared.push(vec![message("load", 2, 100), message("load", 3, 100)]);
        assert_eq!((shared.take_dropped(), shared.take_dropped()), (2, 0));
        let mut buffer = shared.lock();
        assert_eq!(buffer.len(), 3);
        assert_eq!(sent(&mut buffer), [("cpu".to_owned(), 2), ("load".to_owned(), 2)]);
    }

    #[test]
    fn a_measurement_has_one_in_flight_until_it_must_catch_up() {
        let mut buffer = Buffer::new(usize::MAX);
        for seq in 1..=3 {
            buffer.push(message("cpu", seq, 1));
            buffer.push(message("load", seq, 1));
        }
        assert_eq!(sent(&mut buffer), [("cpu".to_owned(), 1), ("load".to_owned(), 1)]);
        assert!(buffer.remove(&Name::parse("cpu").unwrap(), 1));
        assert_eq!(sent(&mut buffer), [("cpu".to_owned(), 2)]);
        for seq in 4..=100 {
            buffer.push(message("cpu", seq, 1));
        }
        assert_eq!(sent(&mut buffer).len(), CATCH_UP_WINDOW - 1);
    }

    #[test]
    fn a_doubt_keeps_the_place_from_which_to_look() {
        let mut buffer = Buffer::new(usize::MAX);
        buffer.push(message("cpu", 1, 1));
        assert_eq!(buffer.send(40).unwrap().seq, 1);
        let doubt = buffer.doubts().remove(0);
        assert_eq!((doubt.after, doubt.seqs.len()), (40, 1));
        buffer.settle(&doubt, &BTreeSet::new());
        assert!(buffer.doubts().is_empty());
        // The first attempt may still come in, so that the place stays.
        assert_eq!(buffer.send(90).unwrap().seq, 1);
        assert_eq!(buffer.doubts()[0].after, 40);
        buffer.forget_sequences();
        assert_eq!(buffer.doubts()[0].after, 0);
        let doubt = buffer.doubts().remove(0);
        buffer.settle(&doubt, &BTreeSet::from([1]));
        assert!(buffer.is_empty());
        assert_eq!(buffer.bytes, 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(bool),
        Send,
        Remove(bool, u64),
        Settle(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(Step::Push),
            4 => Just(Step::Send),
            2 => (any::<bool>(), 0_u64..40).prop_map(|(cpu, seq)| Step::Remove(cpu, seq)),
            1 => (0_u64..40).prop_map(Step::Settle),
        ]
    }

    proptest! {
        /// Against a model that keeps the numbers present and no more.
        #[test]
        fn sums_and_order_hold_whatever_happens(steps in proptest::collection::vec(any_step(), 1..200)) {
            let name = |cpu: bool| if cpu { "cpu" } else { "load" };
            let mut buffer = Buffer::new(20 * (1 + ENTRY_BYTES));
            let mut model: Vec<(&str, u64)> = Vec::new();
            let mut seqs = [0_u64; 2];
            for step in steps {
                match step {
                    Step::Push(cpu) => {
                        let seq = &mut seqs[usize::from(cpu)];
                        *seq += 1;
                        model.push((name(cpu), *seq));
                        let dropped = buffer.push(message(name(cpu), *seq, 1));
                        model.drain(..dropped);
                        prop_assert!(model.len() <= 20);
                    }
                    Step::Send => {
                        let in_flight: Vec<Doubt> = buffer.doubts();
                        if let Some(message) = buffer.send(0) {
                            prop_assert!(model.contains(&(&*message.measurement, message.seq)));
                            let doubted = in_flight.iter().find(|doubt| doubt.measurement == message.measurement);
                            prop_assert!(doubted.is_none_or(|doubt| !doubt.seqs.contains(&message.seq)));
                        }
                    }
                    Step::Remove(cpu, seq) => {
                        let there = model.contains(&(name(cpu), seq));
                        prop_assert_eq!(buffer.remove(&Name::parse(name(cpu)).unwrap(), seq), there);
                        model.retain(|entry| *entry != (name(cpu), seq));
                    }
                    Step::Settle(last) => {
                        for doubt in buffer.doubts() {
                            let stored = doubt.seqs.range(..=last).copied().collect();
                            buffer.settle(&doubt, &stored);
                            model.retain(|(name, seq)| *name != &*doubt.measurement || !stored.contains(seq));
                        }
                        prop_assert!(buffer.doubts().is_empty());
                    }
                }
                prop_assert_eq!(buffer.len(), model.len());
                prop_assert_eq!(buffer.bytes, model.len() * (1 + ENTRY_BYTES));
            }
        }
    }
}
