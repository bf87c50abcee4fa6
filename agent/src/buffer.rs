//! The messages that the broker has not acknowledged, as they are in memory.
//!
//! Invariants: within a lane, messages are in the order of their numbers; a message leaves when it is known to be stored, when
//! it can never be stored, or when whoever holds the buffer takes it out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use plimsoll_nats::{Incarnation, Position};

use crate::{
    message::{Lane, Message, Number},
    spool::Place,
};

mod shared;

pub use self::shared::{BufferStats, Mode, SharedBuffer, Side};

/// What an entry takes beside its payload, roughly.
const ENTRY_BYTES: usize = 192;
/// Messages of one lane in flight while it catches up.
const CATCH_UP_WINDOW: usize = 32;
/// From this backlog on a lane catches up. Below it one message is in flight at a time, which keeps the stored order even when
/// a broker loses one publish and takes the next, as while its leader changes.
const CATCH_UP_FROM: usize = 8;

/// A message that waits for the broker's acknowledgement.
#[derive(Debug)]
pub struct Entry {
    /// The message.
    pub message: Message,
    /// Where it is on disk as well.
    pub place: Option<Place>,
    /// Counts the messages of all lanes, so that the oldest can be told.
    id: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Never sent, or known not to be stored. `after` is kept from an earlier attempt.
    Waiting { after: Option<Position> },
    /// Sent, with no answer yet. If it is stored, then after this position of the stream.
    Sent { after: Position },
}

/// A message that is to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Its lane.
    pub lane: Lane,
    /// What the buffer knows it by.
    pub id: u64,
    /// The message.
    pub message: Message,
}

/// Messages of one lane that were sent and may be stored or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// The lane.
    pub lane: Lane,
    /// The messages, with what the buffer knows them by.
    pub messages: BTreeMap<Number, u64>,
    /// Those that are stored are so after this sequence of the stream.
    pub after: u64,
}

/// Unacknowledged messages.
#[derive(Debug, Default)]
pub struct Buffer {
    queues: BTreeMap<Lane, VecDeque<Entry>>,
    bytes: usize,
    len: usize,
    last_id: u64,
    unplaced: usize,
}

impl Buffer {
    /// Number of messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the messages take in memory, in bytes and roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many messages are in memory alone.
    #[must_use]
    pub fn unplaced(&self) -> usize {
        self.unplaced
    }

    /// The numbers of a lane's messages, in order.
    #[must_use]
    pub fn numbers(&self, lane: &Lane) -> Vec<Number> {
        self.queues.get(lane).into_iter().flatten().map(|entry| entry.message.number()).collect()
    }

    /// Adds a message that was never sent.
    pub fn push(&mut self, message: Message, place: Option<Place>) {
        self.insert(message, place, State::Waiting { after: None });
    }

    /// Adds a message that was sent, and is stored after that position if it is.
    pub fn push_sent(&mut self, message: Message, place: Option<Place>, after: Position) {
        self.insert(message, place, State::Sent { after });
    }

    fn insert(&mut self, message: Message, place: Option<Place>, state: State) {
        self.last_id += 1;
        self.bytes += size(&message);
        self.len += 1;
        self.unplaced += usize::from(place.is_none());
        let entry = Entry { id: self.last_id, state, place, message };
        self.queues.entry(entry.message.lane()).or_default().push_back(entry);
    }

    fn taken(&mut self, entry: Entry) -> Entry {
        self.bytes -= size(&entry.message);
        self.len -= 1;
        self.unplaced -= usize::from(entry.place.is_none());
        entry
    }

    /// Takes out the oldest message.
    pub fn pop_oldest(&mut self) -> Option<Entry> {
        let oldest = self.queues.values_mut().min_by_key(|queue| queue.front().map_or(u64::MAX, |entry| entry.id));
        let entry = oldest.and_then(VecDeque::pop_front)?;
        Some(self.taken(entry))
    }

    /// The oldest message that may be sent now, which from here on counts as sent.
    ///
    /// `reached` is a position that the stream is known to have reached.
    pub fn send(&mut self, reached: Position) -> Option<Outgoing> {
        let (lane, entry) = self
            .queues
            .iter_mut()
            .filter_map(|(lane, queue)| Some((lane, next_to_send(queue)?)))
            .min_by_key(|(_, entry)| entry.id)?;
        let after = entry.doubt().unwrap_or(reached);
        entry.state = State::Sent { after };
        Some(Outgoing { lane: lane.clone(), id: entry.id, message: entry.message.clone() })
    }

    /// Takes out a message that is stored or can never be.
    pub fn remove(&mut self, lane: &Lane, id: u64) -> Option<Entry> {
        let queue = self.queues.get_mut(lane)?;
        let at = queue.binary_search_by_key(&id, |entry| entry.id).ok()?;
        let entry = queue.remove(at)?;
        Some(self.taken(entry))
    }

    /// What was sent and has not been answered, by lane, while the stream is in that life.
    #[must_use]
    pub fn doubts(&self, incarnation: Incarnation) -> Vec<Doubt> {
        let doubt = |(lane, queue): (&Lane, &VecDeque<Entry>)| {
            let sent = || queue.iter().filter(|entry| matches!(entry.state, State::Sent { .. }));
            let after = sent().filter_map(Entry::doubt).map(|after| after.within(incarnation).sequence.0).min()?;
            let messages = sent().map(|entry| (entry.message.number(), entry.id)).collect();
            Some(Doubt { lane: lane.clone(), messages, after })
        };
        self.queues.iter().filter_map(doubt).collect()
    }

    /// Resolves a doubt: what is stored leaves and is returned, the rest waits to be sent again.
    pub fn settle(&mut self, doubt: &Doubt, stored: &BTreeSet<Number>) -> Vec<Entry> {
        let ids = || doubt.messages.iter().filter(|(number, _)| stored.contains(number)).map(|(_, id)| *id);
        let removed = ids().filter_map(|id| self.remove(&doubt.lane, id)).collect();
        for entry in self.queues.get_mut(&doubt.lane).into_iter().flatten() {
            if doubt.messages.get(&entry.message.number()) == Some(&entry.id) {
                entry.state = State::Waiting { after: entry.doubt() };
            }
        }
        removed
    }

    /// The oldest message that is in memory alone.
    pub fn oldest_unplaced(&mut self) -> Option<&mut Entry> {
        if self.unplaced == 0 {
            return None;
        }
        // What has a place is older than what has none, or on its way out: few are looked at.
        let unplaced = |queue: &VecDeque<Entry>| queue.iter().find(|entry| entry.place.is_none()).map(|entry| entry.id);
        let (lane, id) =
            self.queues.iter().filter_map(|(lane, queue)| Some((lane, unplaced(queue)?))).min_by_key(|(_, id)| *id)?;
        let queue = self.queues.get_mut(&lane.clone())?;
        let at = queue.binary_search_by_key(&id, |entry| entry.id).ok()?;
        queue.get_mut(at)
    }

    /// Says that the oldest message that was in memory alone is on disk as well.
    pub fn place_oldest(&mut self, place: Place) {
        if let Some(entry) = self.oldest_unplaced() {
            entry.place = Some(place);
            self.unplaced -= 1;
        }
    }

    /// Takes out the messages that are on disk and were never sent.
    pub fn take_placed(&mut self) -> Vec<Place> {
        let (mut places, mut bytes) = (Vec::new(), 0);
        for queue in self.queues.values_mut() {
            queue.retain(|entry| {
                let place = entry.place.filter(|_| entry.doubt().is_none());
                if let Some(place) = place {
                    places.push(place);
                    bytes += size(&entry.message);
                }
                place.is_none()
            });
        }
        self.bytes -= bytes;
        self.len -= places.len();
        places
    }
}

impl Entry {
    /// After which position it is stored, if it was ever sent and is.
    #[must_use]
    pub fn doubt(&self) -> Option<Position> {
        match self.state {
            State::Sent { after } => Some(after),
            State::Waiting { after } => after,
        }
    }
}

/// The first message of a lane that waits, when the lane may have one more in flight.
fn next_to_send(queue: &mut VecDeque<Entry>) -> Option<&mut Entry> {
    let window = if queue.len() >= CATCH_UP_FROM { CATCH_UP_WINDOW } else { 1 };
    queue.iter_mut().take(window).find(|entry| matches!(entry.state, State::Waiting { .. }))
}

fn size(message: &Message) -> usize {
    message.payload.len() + ENTRY_BYTES
}

#[cfg(test)]
pub mod tests {
    use bytes::Bytes;
    use plimsoll_nats::{HostId, Name, Sequence};
    use proptest::prelude::*;
    use ulid::Ulid;

    use super::*;
    use crate::message::Topic;

    pub fn message(measurement: &str, seq: u64, bytes: usize) -> Message {
        Message {
            host: HostId::parse("h").unwrap(),
            topic: Topic::Metrics(Name::parse(measurement).unwrap()),
            epoch: Ulid::nil(),
            seq,
            compressed: false,
            payload: Bytes::from(vec![0; bytes]),
        }
    }

    pub const LIFE: Incarnation = Incarnation(1);

    pub fn position(sequence: u64) -> Position {
        Position { incarnation: LIFE, sequence: Sequence(sequence) }
    }

    fn sent(buffer: &mut Buffer) -> Vec<(String, u64)> {
        std::iter::from_fn(|| buffer.send(position(0)))
            .map(|outgoing| (outgoing.lane.to_string(), outgoing.message.seq))
            .collect()
    }

    fn number(seq: u64) -> Number {
        Number { epoch: Ulid::nil(), seq }
    }

    #[test]
    fn the_oldest_of_all_lanes_is_taken_first() {
        let mut buffer = Buffer::default();
        for (measurement, seq) in [("cpu", 1), ("load", 1), ("cpu", 2)] {
            buffer.push(message(measurement, seq, 100), None);
        }
        assert_eq!(buffer.bytes(), 3 * (100 + ENTRY_BYTES));
        let mut oldest = || buffer.pop_oldest().map(|entry| (entry.message.lane().to_string(), entry.message.seq));
        assert_eq!(oldest(), Some(("h/cpu".to_owned(), 1)));
        assert_eq!(oldest(), Some(("h/load".to_owned(), 1)));
        assert_eq!(oldest(), Some(("h/cpu".to_owned(), 2)));
        assert_eq!(oldest(), None);
        assert_eq!((buffer.len(), buffer.bytes(), buffer.unplaced()), (0, 0, 0));
    }

    #[test]
    fn a_lane_has_one_in_flight_until_it_must_catch_up() {
        let mut buffer = Buffer::default();
        for seq in 1..=3 {
            buffer.push(message("cpu", seq, 1), None);
            buffer.push(message("load", seq, 1), None);
        }
        assert_eq!(sent(&mut buffer), [("h/cpu".to_owned(), 1), ("h/load".to_owned(), 1)]);
        assert!(buffer.remove(&message("cpu", 1, 1).lane(), 1).is_some());
        assert_eq!(sent(&mut buffer), [("h/cpu".to_owned(), 2)]);
        for seq in 4..=100 {
            buffer.push(message("cpu", seq, 1), None);
        }
        assert_eq!(sent(&mut buffer).len(), CATCH_UP_WINDOW - 1);
    }

    #[test]
    fn a_doubt_keeps_the_place_from_which_to_look() {
        let mut buffer = Buffer::default();
        buffer.push(message("cpu", 1, 1), None);
        assert_eq!(buffer.send(position(40)).unwrap().message.seq, 1);
        let doubt = buffer.doubts(LIFE).remove(0);
        assert_eq!((doubt.after, doubt.messages.len()), (40, 1));
        assert!(buffer.settle(&doubt, &BTreeSet::new()).is_empty());
        assert!(buffer.doubts(LIFE).is_empty());
        // The first attempt may still come in, so that the place stays.
        assert_eq!(buffer.send(position(90)).unwrap().message.seq, 1);
        assert_eq!(buffer.doubts(LIFE)[0].after, 40);
        // A stream that was made anew counts from 1.
        let doubt = buffer.doubts(Incarnation(2)).remove(0);
        assert_eq!(doubt.after, 0);
        assert_eq!(buffer.settle(&doubt, &BTreeSet::from([number(1)])).len(), 1);
        assert!(buffer.is_empty());
        assert_eq!(buffer.bytes(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(bool),
        Send,
        Remove(bool, u64),
        Pop,
        Settle(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(Step::Push),
            4 => Just(Step::Send),
            2 => (any::<bool>(), 0_u64..40).prop_map(|(cpu, id)| Step::Remove(cpu, id)),
            1 => Just(Step::Pop),
            1 => (0_u64..40).prop_map(Step::Settle),
        ]
    }

    proptest! {
        /// Against a model that keeps the numbers present, in order, and no more.
        #[test]
        fn sums_and_order_hold_whatever_happens(steps in proptest::collection::vec(any_step(), 1..200)) {
            let name = |cpu: bool| if cpu { "cpu" } else { "load" };
            let lane = |cpu: bool| message(name(cpu), 0, 0).lane();
            let mut buffer = Buffer::default();
            // Lane, number, id.
            let mut model: Vec<(Lane, u64, u64)> = Vec::new();
            let (mut seqs, mut ids) = ([0_u64; 2], 0);
            for step in steps {
                match step {
                    Step::Push(cpu) => {
                        let seq = &mut seqs[usize::from(cpu)];
                        (*seq, ids) = (*seq + 1, ids + 1);
                        model.push((lane(cpu), *seq, ids));
                        buffer.push(message(name(cpu), *seq, 1), None);
                    }
                    Step::Send => {
                        let in_flight = buffer.doubts(LIFE);
                        if let Some(Outgoing { lane, id, message }) = buffer.send(position(0)) {
                            prop_assert!(model.contains(&(lane.clone(), message.seq, id)));
                            let doubted = in_flight.iter().find(|doubt| doubt.lane == lane);
                            prop_assert!(doubted.is_none_or(|doubt| !doubt.messages.contains_key(&message.number())));
                        }
                    }
                    Step::Remove(cpu, id) => {
                        let there = model.iter().any(|(in_lane, _, of)| (in_lane, of) == (&lane(cpu), &id));
                        prop_assert_eq!(buffer.remove(&lane(cpu), id).is_some(), there);
                        model.retain(|(in_lane, _, of)| (in_lane, of) != (&lane(cpu), &id));
                    }
                    Step::Pop => {
                        let oldest = (!model.is_empty()).then(|| model.remove(0).1);
                        prop_assert_eq!(buffer.pop_oldest().map(|entry| entry.message.seq), oldest);
                    }
                    Step::Settle(last) => {
                        for doubt in buffer.doubts(LIFE) {
                            let stored = doubt.messages.keys().copied().filter(|number| number.seq <= last).collect();
                            buffer.settle(&doubt, &stored);
                            model.retain(|(lane, seq, _)| *lane != doubt.lane || !stored.contains(&number(*seq)));
                        }
                        prop_assert!(buffer.doubts(LIFE).is_empty());
                    }
                }
                prop_assert_eq!(buffer.len(), model.len());
                prop_assert_eq!(buffer.unplaced(), model.len());
                prop_assert_eq!(buffer.bytes(), model.len() * (1 + ENTRY_BYTES));
            }
        }
    }
}
