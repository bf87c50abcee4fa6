use std::collections::BTreeMap;

use plimsoll_nats::Sequence;
use proptest::prelude::*;
use tempfile::TempDir;
use ulid::Ulid;

use super::*;
use crate::buffer::tests::{LIFE, message, position};

const MAX_BYTES: u64 = 1024 * 1024;

fn spooled(folder: &TempDir, limit: usize) -> SharedBuffer {
    SharedBuffer::spooled(limit, Spool::open(folder.path(), MAX_BYTES, &mut |_| {}).unwrap())
}

/// One that lets new messages flow beside a backlog that is not quite short.
fn impatient(folder: &TempDir) -> SharedBuffer {
    let buffer = spooled(folder, 1024 * 1024);
    buffer.state().short_backlog = 3;
    buffer
}

fn segments(folder: &TempDir) -> usize {
    let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    files.filter(|name| name.to_string_lossy().ends_with(".seg")).count()
}

fn push(buffer: &SharedBuffer, seqs: impl IntoIterator<Item = u64>) {
    buffer.push(seqs.into_iter().map(|seq| message("cpu", seq, 100)));
}

fn send_all(buffer: &SharedBuffer, side: Side) -> Vec<(Lane, u64, u64)> {
    std::iter::from_fn(|| buffer.send(side, position(0)))
        .map(|outgoing| (outgoing.lane, outgoing.id, outgoing.message.seq))
        .collect()
}

/// Sends and acknowledges everything on a side, and returns the numbers.
fn deliver(buffer: &SharedBuffer, side: Side) -> Vec<u64> {
    let mut delivered = Vec::new();
    loop {
        if side == Side::Backlog && buffer.wants_backlog() {
            assert!(!buffer.load(position(0)).unwrap());
        }
        let sent = send_all(buffer, side);
        if sent.is_empty() {
            return delivered;
        }
        for (lane, id, seq) in sent {
            buffer.acknowledge(side, &lane, id);
            delivered.push(seq);
        }
    }
}

#[test]
fn without_a_spool_the_oldest_goes_first_and_is_counted() {
    let buffer = SharedBuffer::new(1000);
    push(&buffer, 1..=3);
    assert_eq!(buffer.take_dropped(), 0);
    push(&buffer, 4..=5);
    assert_eq!((buffer.take_dropped(), buffer.take_dropped(), buffer.stats().dropped), (2, 0, 2));
    buffer.retreat();
    assert_eq!(buffer.mode(), Mode::Flowing);
    assert_eq!(deliver(&buffer, Side::Live), [3, 4, 5]);
    assert_eq!((buffer.stats().published, buffer.stats().published_bytes), (3, 300));
}

#[test]
fn what_flows_is_never_on_disk() {
    let folder = TempDir::new().unwrap();
    let buffer = spooled(&folder, 1024 * 1024);
    buffer.settle();
    assert_eq!(buffer.mode(), Mode::Flowing);
    push(&buffer, 1..=100);
    assert_eq!(segments(&folder), 0);
    assert_eq!(deliver(&buffer, Side::Live).len(), 100);
    assert!(buffer.is_delivered(Side::Live) && buffer.is_safe());
}

#[test]
fn in_trouble_everything_is_on_disk_and_memory_is_free() {
    let folder = TempDir::new().unwrap();
    let buffer = spooled(&folder, 1024 * 1024);
    buffer.settle();
    push(&buffer, 1..=10);
    let sent = send_all(&buffer, Side::Live).len() as u64;
    buffer.retreat();
    push(&buffer, 11..=20);
    let stats = buffer.stats();
    assert_eq!((stats.spool.batches, stats.batches), (20, sent), "what was sent is in memory as well");
    assert!(buffer.is_safe());
    drop(buffer);
    let buffer = spooled(&folder, 1024 * 1024);
    assert_eq!(buffer.stats().spool.batches, 20);
    buffer.settle();
    assert!(buffer.load(position(0)).unwrap(), "what was sent is in doubt");
    let doubts = buffer.doubts(Side::Backlog, LIFE);
    assert_eq!(doubts[0].messages.len() as u64, sent);
}

#[test]
fn a_short_backlog_goes_first_and_a_long_one_does_not() {
    let folder = TempDir::new().unwrap();
    let buffer = spooled(&folder, 1024 * 1024);
    push(&buffer, 1..=10);
    buffer.settle();
    push(&buffer, [11]);
    assert!(matches!(buffer.mode(), Mode::Settling { .. }));
    assert_eq!(deliver(&buffer, Side::Live), [0; 0]);
    assert!(deliver(&buffer, Side::Backlog).into_iter().eq(1..=11));
    buffer.settle();
    assert_eq!(buffer.mode(), Mode::Flowing);
    buffer.retreat();
    push(&buffer, 12..=12 + SHORT_BACKLOG);
    buffer.settle();
    push(&buffer, [9999]);
    assert_eq!(deliver(&buffer, Side::Live), [9999]);
    assert!(deliver(&buffer, Side::Backlog).into_iter().eq(12..=12 + SHORT_BACKLOG));
    assert_eq!((segments(&folder), buffer.stats().dropped), (0, 0));
}

#[test]
fn beside_a_long_backlog_what_flows_is_on_disk_too() {
    let folder = TempDir::new().unwrap();
    let buffer = spooled(&folder, 1024 * 1024);
    push(&buffer, 1..=SHORT_BACKLOG + 1);
    buffer.settle();
    push(&buffer, [5000]);
    assert!(buffer.is_safe());
    assert_eq!(send_all(&buffer, Side::Live).len(), 1);
    drop(buffer);
    let buffer = spooled(&folder, 1024 * 1024);
    assert_eq!(buffer.stats().spool.batches, SHORT_BACKLOG + 2);
}

#[test]
fn memory_over_its_limit_goes_to_disk() {
    let folder = TempDir::new().unwrap();
    let buffer = spooled(&folder, 3000);
    buffer.settle();
    push(&buffer, 1..=100);
    assert!(buffer.stats().bytes <= 3000);
    buffer.settle();
    assert!(deliver(&buffer, Side::Backlog).into_iter().eq(1..=100));
    assert_eq!(buffer.stats().dropped, 0);
}

/// Backlog in memory is bounded, however much there is.
#[test]
fn a_backlog_is_loaded_piece_by_piece() {
    let folder = TempDir::new().unwrap();
    let buffer = spooled(&folder, 1024 * 1024);
    push(&buffer, 1..=4000);
    buffer.settle();
    let mut most = 0;
    while !buffer.is_delivered(Side::Backlog) {
        while buffer.wants_backlog() {
            buffer.load(position(0)).unwrap();
        }
        most = most.max(buffer.stats().batches);
        for (lane, id, _) in send_all(&buffer, Side::Backlog) {
            buffer.acknowledge(Side::Backlog, &lane, id);
        }
    }
    assert!((500..2000).contains(&most), "{most}");
}

#[test]
fn what_is_too_large_for_the_spool_is_lost_and_blocks_nothing() {
    let folder = TempDir::new().unwrap();
    let buffer = spooled(&folder, usize::MAX);
    let large = usize::try_from(MAX_BYTES).unwrap();
    buffer.push([message("cpu", 1, 10), message("cpu", 2, large), message("cpu", 3, 10)]);
    assert_eq!((buffer.stats().spool.batches, buffer.take_dropped(), buffer.lock().len()), (2, 1, 0));
}

/// A stream of the broker: what it stored, and after how many others.
#[derive(Debug, Default)]
struct Stored(BTreeMap<(Lane, Number), u64>);

impl Stored {
    fn reached(&self) -> Position {
        position(self.0.len() as u64)
    }

    /// False when it is there already, as no window protects from doubles.
    fn store(&mut self, lane: Lane, number: Number) -> bool {
        let sequence = self.0.len() as u64 + 1;
        self.0.insert((lane, number), sequence).is_none()
    }

    fn resolve(&self, buffer: &SharedBuffer, side: Side) {
        for doubt in buffer.doubts(side, LIFE) {
            let is_stored = |number: &Number| {
                self.0.get(&(doubt.lane.clone(), *number)).is_some_and(|sequence| *sequence > doubt.after)
            };
            let stored = doubt.messages.keys().copied().filter(is_stored).collect();
            buffer.resolve(side, &doubt, &stored);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Stored and acknowledged.
    Fine,
    /// Stored, but the answer is lost.
    Unanswered,
    /// Never arrives.
    Lost,
}

#[derive(Debug, Clone)]
enum Step {
    Push(bool),
    Send(bool, Fate),
    Retreat,
    Settle,
    Load,
    Keep,
    Kill,
}

fn any_step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![6 => Just(Fate::Fine), 1 => Just(Fate::Unanswered), 1 => Just(Fate::Lost)];
    prop_oneof![
        8 => any::<bool>().prop_map(Step::Push),
        10 => (any::<bool>(), fate).prop_map(|(live, fate)| Step::Send(live, fate)),
        2 => Just(Step::Retreat),
        4 => Just(Step::Settle),
        3 => Just(Step::Load),
        1 => Just(Step::Keep),
        1 => Just(Step::Kill),
    ]
}

/// What the publisher of a side does: while an answer is missing, it asks the stream before it sends on.
fn send(buffer: &SharedBuffer, stored: &mut Stored, side: Side, fate: Fate, in_doubt: &mut bool) -> Result<(), String> {
    if std::mem::take(in_doubt) {
        stored.resolve(buffer, side);
    }
    let Some(Outgoing { lane, id, message }) = buffer.send(side, stored.reached()) else { return Ok(()) };
    if !matches!(fate, Fate::Lost) && !stored.store(lane.clone(), message.number()) {
        return Err(format!("{message:?} is stored twice"));
    }
    if matches!(fate, Fate::Fine) {
        buffer.acknowledge(side, &lane, id);
    } else {
        *in_doubt = true;
        if side == Side::Live {
            buffer.retreat();
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever happens to publishes, the connection and the process, the stream has everything once that was on disk when the
    /// agent was killed, and everything that a living agent had; and the broker has no window that would hide a double.
    #[test]
    fn each_message_is_stored_once(steps in proptest::collection::vec(any_step(), 1..250)) {
        let folder = TempDir::new().unwrap();
        let mut buffer = impatient(&folder);
        let mut stored = Stored::default();
        let mut expected: BTreeSet<(Lane, Number)> = BTreeSet::new();
        let (mut live_doubt, mut backlog_doubt) = (false, false);
        let (mut epoch, mut seqs) = (Ulid::from_parts(1, 0), [0_u64; 2]);
        // At the end the agent lives on, and everything goes well.
        let calm = [Step::Settle, Step::Load, Step::Send(true, Fate::Fine), Step::Send(false, Fate::Fine)];
        let end = std::iter::repeat_n(calm, 600).flatten();
        let begin_of_end = steps.len();
        for (at, step) in steps.into_iter().chain(end).enumerate() {
            if at > begin_of_end && buffer.is_delivered(Side::Live) && buffer.is_delivered(Side::Backlog) {
                break;
            }
            match step {
                Step::Push(cpu) => {
                    let seq = &mut seqs[usize::from(cpu)];
                    *seq += 1;
                    let mut message = message(if cpu { "cpu" } else { "load" }, *seq, 100);
                    message.epoch = epoch;
                    expected.insert((message.lane(), message.number()));
                    buffer.push([message]);
                }
                Step::Send(true, fate) if buffer.mode() != Mode::Away => {
                    send(&buffer, &mut stored, Side::Live, fate, &mut live_doubt).unwrap();
                }
                Step::Send(false, fate) if buffer.mode() != Mode::Away => {
                    send(&buffer, &mut stored, Side::Backlog, fate, &mut backlog_doubt).unwrap();
                }
                Step::Send(..) => {}
                Step::Retreat => {
                    buffer.retreat();
                    live_doubt = true;
                }
                Step::Settle => {
                    if std::mem::take(&mut live_doubt) {
                        stored.resolve(&buffer, Side::Live);
                    }
                    buffer.settle();
                }
                Step::Load => {
                    if buffer.wants_backlog() {
                        backlog_doubt |= buffer.load(stored.reached()).unwrap();
                    }
                }
                Step::Keep => buffer.keep(),
                Step::Kill => {
                    let in_memory: BTreeSet<_> = {
                        let mut live = buffer.lock();
                        let mut unplaced = BTreeSet::new();
                        while let Some(entry) = live.pop_oldest() {
                            if entry.place.is_none() {
                                unplaced.insert((entry.message.lane(), entry.message.number()));
                            }
                        }
                        unplaced
                    };
                    expected.retain(|message| !in_memory.contains(message) || stored.0.contains_key(message));
                    drop(buffer);
                    buffer = impatient(&folder);
                    (live_doubt, backlog_doubt) = (false, false);
                    epoch = Ulid::from_parts(epoch.timestamp_ms() + 1, 0);
                    seqs = [0; 2];
                }
            }
        }
        prop_assert!(buffer.is_delivered(Side::Live) && buffer.is_delivered(Side::Backlog));
        let found: BTreeSet<(Lane, Number)> = stored.0.into_keys().collect();
        prop_assert_eq!(found, expected);
        let stats = buffer.stats();
        prop_assert_eq!((stats.dropped, stats.spool.batches, stats.batches, segments(&folder)), (0, 0, 0, 0));
    }
}

#[test]
fn a_life_of_the_stream_that_ended_is_not_believed() {
    let folder = TempDir::new().unwrap();
    let buffer = spooled(&folder, 1024 * 1024);
    push(&buffer, 1..=3);
    buffer.settle();
    buffer.load(position(77)).unwrap();
    drop(buffer);
    let buffer = spooled(&folder, 1024 * 1024);
    buffer.settle();
    assert!(buffer.load(Position::start(Incarnation(9))).unwrap());
    assert_eq!(buffer.doubts(Side::Backlog, LIFE)[0].after, 77);
    assert_eq!(buffer.doubts(Side::Backlog, Incarnation(9))[0].after, 0);
    assert_eq!(position(77).sequence, Sequence(77));
}
