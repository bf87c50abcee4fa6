//! Turns rows into numbered messages that the broker takes.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use plimsoll_nats::{
    HostId, Name,
    batch::{BatchParts, MAX_DECODED_BYTES, MAX_ROWS},
};
use serde::Serialize;
use ulid::Ulid;

pub use self::packer::Packer;
use crate::{
    message::{Message, Topic},
    rows::Frame,
};

mod packer;

/// What a message's headers take of the broker's largest payload, at most.
const HEADER_BYTES: usize = 512;
/// The broker's largest payload, until it tells its own.
const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;
/// What a time takes in MessagePack, at most.
const TIME_BYTES: usize = 9;

/// The broker's largest payload in bytes, headers included. Clones share it.
#[derive(Debug, Clone)]
pub struct PayloadLimit(Arc<AtomicUsize>);

impl Default for PayloadLimit {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(DEFAULT_MAX_PAYLOAD)))
    }
}

impl PayloadLimit {
    /// Takes over what the broker says; 0 says nothing.
    pub fn set(&self, bytes: usize) {
        if bytes > 0 {
            self.0.store(bytes, Ordering::Relaxed);
        }
    }

    fn body_bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed).saturating_sub(HEADER_BYTES)
    }
}

/// Numbers and encodes the batches of one measurement, gathering rows first where it is told to.
#[derive(Debug)]
pub struct Encoder {
    host: HostId,
    measurement: Name,
    epoch: Ulid,
    last_seq: u64,
    limit: PayloadLimit,
    gathered: Gathered,
}

/// Rows of several ticks that wait to be sent together.
#[derive(Debug, Default)]
struct Gathered {
    frame: Frame,
    times: Vec<i64>,
    /// When the first of them came; none while there is no row.
    since: Option<Instant>,
}

/// The times of rows, in Unix ms.
#[derive(Debug, Clone, Copy)]
enum Times<'a> {
    All(i64),
    Each(&'a [i64]),
}

impl Encoder {
    /// Numbers from 1 under `epoch`, the id of this run of the agent.
    #[must_use]
    pub fn new(host: HostId, measurement: Name, epoch: Ulid, limit: PayloadLimit) -> Self {
        Self { host, measurement, epoch, last_seq: 0, limit, gathered: Gathered::default() }
    }

    /// Encodes the rows of one tick, as several messages where one would be larger than the broker takes.
    ///
    /// A row that is too large by itself is lost, with an error in the log: no retry could ever deliver it.
    pub fn encode(&mut self, packer: &mut Packer, tick_ms: i64, frame: &Frame, messages: &mut Vec<Message>) {
        self.split(packer, Times::All(tick_ms), frame, 0..frame.rows(), messages);
    }

    /// Keeps the rows of one tick until they are [flushed](Self::flush), which happens at once when they would grow too large for
    /// one message or have other columns.
    pub fn gather(&mut self, packer: &mut Packer, tick_ms: i64, frame: &Frame, messages: &mut Vec<Message>) {
        if frame.rows() == 0 {
            return;
        }
        if !self.gathered.takes(frame, self.limit.body_bytes()) {
            self.flush(packer, messages);
        }
        self.gathered.append(tick_ms, frame);
    }

    /// When the first of the gathered rows came; none when there are none.
    #[must_use]
    pub fn gathered_since(&self) -> Option<Instant> {
        self.gathered.since
    }

    /// Encodes what has been gathered.
    pub fn flush(&mut self, packer: &mut Packer, messages: &mut Vec<Message>) {
        let mut gathered = std::mem::take(&mut self.gathered);
        let rows = 0..gathered.frame.rows();
        self.split(packer, Times::Each(&gathered.times), &gathered.frame, rows, messages);
        gathered.clear();
        self.gathered = gathered;
    }

    fn split(
        &mut self,
        packer: &mut Packer,
        times: Times<'_>,
        frame: &Frame,
        rows: Range<usize>,
        messages: &mut Vec<Message>,
    ) {
        if rows.is_empty() {
            return;
        }
        if let Some(message) = self.fit(packer, times, frame, rows.clone()) {
            self.last_seq = message.seq;
            messages.push(message);
        } else if rows.len() == 1 {
            tracing::error!(
                measurement = %self.measurement,
                max_payload_bytes = self.limit.body_bytes(),
                "a row is larger than the broker takes and is lost"
            );
        } else {
            let middle = rows.start + rows.len() / 2;
            self.split(packer, times, frame, rows.start..middle, messages);
            self.split(packer, times, frame, middle..rows.end, messages);
        }
    }

    fn fit(&self, packer: &mut Packer, times: Times<'_>, frame: &Frame, rows: Range<usize>) -> Option<Message> {
        if rows.len() > MAX_ROWS {
            return None;
        }
        let seq = self.last_seq + 1;
        let packed = packer.pack(self.limit.body_bytes(), |out| {
            let (host, measurement, epoch) = (&self.host, &self.measurement, self.epoch);
            let (tags, fields, times) = (frame.tags(rows.clone()), frame.fields(rows.clone()), times.of(rows));
            BatchParts { host, measurement, epoch, seq, times, tags, fields }.encode_into(out);
        })?;
        Some(Message {
            host: self.host.clone(),
            topic: Topic::Metrics(self.measurement.clone()),
            epoch: self.epoch,
            seq,
            compressed: packed.compressed,
            payload: packed.payload,
        })
    }
}

impl Gathered {
    /// Whether the rows fit to those that wait: in their columns, and into one message even if that is not compressed.
    fn takes(&self, frame: &Frame, limit: usize) -> bool {
        let rows = self.times.len() + frame.rows();
        let bytes = self.frame.encoded_bytes() + frame.encoded_bytes() + rows * TIME_BYTES;
        self.since.is_none() || (self.frame.is_like(frame) && rows <= MAX_ROWS && bytes <= limit.min(MAX_DECODED_BYTES))
    }

    fn append(&mut self, tick_ms: i64, frame: &Frame) {
        if self.since.is_none() && !self.frame.is_like(frame) {
            self.frame = frame.clone();
        } else {
            self.frame.append(frame);
        }
        self.times.resize(self.frame.rows(), tick_ms);
        self.since.get_or_insert_with(Instant::now);
    }

    fn clear(&mut self) {
        self.frame.clear();
        self.times.clear();
        self.since = None;
    }
}

impl Times<'_> {
    fn of(self, rows: Range<usize>) -> impl Serialize {
        TimesOf(self, rows)
    }
}

/// The times of some rows, as a sequence.
struct TimesOf<'a>(Times<'a>, Range<usize>);

impl Serialize for TimesOf<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Times::All(time) => serializer.collect_seq(std::iter::repeat_n(time, self.1.len())),
            Times::Each(times) => times[self.1.clone()].serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use plimsoll_nats::{
        Batch, Column,
        async_nats::HeaderMap,
        batch::{ENCODING_HEADER, ENCODING_ZSTD},
        catalog,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::rows::{Columns, Rows};

    fn encoder(limit: usize) -> Encoder {
        let payload_limit = PayloadLimit::default();
        payload_limit.set(limit);
        let name = Name::parse("temperature").unwrap();
        Encoder::new(HostId::parse("h").unwrap(), name, Ulid::generate(), payload_limit)
    }

    fn sensors(count: usize) -> Frame {
        let mut rows = Rows::new(catalog::measurement("temperature").unwrap());
        for number in 0..count {
            // Names that zstd cannot make small.
            let name = Ulid::generate().to_string();
            rows.push(
                &[("sensor", &name)],
                &[("temperature_celsius", (number as f64).into()), ("critical_celsius", 90.0.into())],
            );
        }
        rows.frame().clone()
    }

    fn encode(encoder: &mut Encoder, tick_ms: i64, frame: &Frame) -> Vec<Message> {
        let mut messages = Vec::new();
        encoder.encode(&mut Packer::default(), tick_ms, frame, &mut messages);
        messages
    }

    fn decode(encoder: &Encoder, message: &Message) -> Batch {
        let mut headers = HeaderMap::new();
        if message.compressed {
            headers.insert(ENCODING_HEADER, ENCODING_ZSTD);
        }
        Batch::decode(&encoder.host, &encoder.measurement, Some(&headers), &message.payload).unwrap()
    }

    #[test]
    fn each_tick_is_a_message_with_the_next_number() {
        let mut encoder = encoder(0);
        for seq in 1..=3 {
            let messages = encode(&mut encoder, 1_000, &sensors(2));
            assert_eq!(messages.len(), 1);
            let batch = decode(&encoder, &messages[0]);
            assert_eq!((batch.seq, batch.times.as_slice()), (seq, [1_000, 1_000].as_slice()));
            assert!(!messages[0].compressed);
        }
        assert!(encode(&mut encoder, 1_000, &sensors(0)).is_empty());
    }

    #[test]
    fn a_batch_that_the_broker_would_refuse_is_split_in_order() {
        let mut encoder = encoder(6_000);
        let messages = encode(&mut encoder, 1_000, &sensors(500));
        assert!(messages.len() > 1);
        let batches: Vec<Batch> = messages.iter().map(|message| decode(&encoder, message)).collect();
        assert!(messages.iter().all(|message| message.payload.len() <= 6_000 - HEADER_BYTES));
        assert!(batches.iter().map(|batch| batch.seq).eq(1..=batches.len() as u64));
        let celsius = batches
            .iter()
            .flat_map(|batch| (0..batch.rows()).map(|row| batch.fields["temperature_celsius"].number(row).unwrap()));
        assert!(celsius.eq((0..500).map(f64::from)));
    }

    #[test]
    fn a_row_too_large_is_lost_and_takes_no_number() {
        let mut encoder = encoder(HEADER_BYTES + 10);
        assert!(encode(&mut encoder, 1_000, &sensors(2)).is_empty());
        encoder.limit.set(DEFAULT_MAX_PAYLOAD);
        assert_eq!(encode(&mut encoder, 2_000, &sensors(1))[0].seq, 1);
    }

    #[test]
    fn large_batches_are_compressed() {
        let mut encoder = encoder(0);
        let messages = encode(&mut encoder, 1_000, &sensors(500));
        assert!(messages[0].compressed);
        assert_eq!(decode(&encoder, &messages[0]).rows(), 500);
    }

    fn gather(encoder: &mut Encoder, tick_ms: i64, frame: &Frame) -> Vec<Message> {
        let mut messages = Vec::new();
        encoder.gather(&mut Packer::default(), tick_ms, frame, &mut messages);
        messages
    }

    fn flush(encoder: &mut Encoder) -> Vec<Message> {
        let mut messages = Vec::new();
        encoder.flush(&mut Packer::default(), &mut messages);
        messages
    }

    #[test]
    fn gathered_ticks_are_one_message_whose_rows_keep_their_times() {
        let mut encoder = encoder(0);
        for seq in 1..=2 {
            for (tick_ms, rows) in [(1_000, 2), (2_000, 0), (3_000, 3)] {
                assert!(gather(&mut encoder, tick_ms, &sensors(rows)).is_empty());
                assert!(encoder.gathered_since().is_some());
            }
            let messages = flush(&mut encoder);
            assert!(encoder.gathered_since().is_none() && messages.len() == 1);
            let batch = decode(&encoder, &messages[0]);
            assert_eq!((batch.seq, batch.times.as_slice()), (seq, [1_000, 1_000, 3_000, 3_000, 3_000].as_slice()));
            assert_eq!(batch.fields["temperature_celsius"], celsius(&[0.0, 1.0, 0.0, 1.0, 2.0]));
            assert!(flush(&mut encoder).is_empty());
        }
    }

    #[test]
    fn what_does_not_fit_to_the_gathered_rows_sends_them_first() {
        let mut encoder = encoder(HEADER_BYTES + 1_000);
        let mut messages = Vec::new();
        for tick_ms in 0..100 {
            messages.extend(gather(&mut encoder, tick_ms, &sensors(5)));
        }
        messages.extend(flush(&mut encoder));
        let batches: Vec<Batch> = messages.iter().map(|message| decode(&encoder, message)).collect();
        // Five rows take up to 290 bytes beside the names, so that three ticks fit.
        assert_eq!(batches.iter().map(Batch::rows).max(), Some(15));
        assert!(batches.iter().flat_map(|batch| &batch.times).copied().eq((0..100).flat_map(|tick| [tick; 5])));

        gather(&mut encoder, 1_000, &sensors(1));
        let other = Columns {
            tags: BTreeMap::new(),
            fields: BTreeMap::from([(Name::parse("temperature_celsius").unwrap(), celsius(&[1.5]))]),
        };
        let sent = gather(&mut encoder, 2_000, &Frame::new(1, other));
        assert_eq!(decode(&encoder, &sent[0]).times, [1_000]);
        let rest = flush(&mut encoder);
        assert_eq!(decode(&encoder, &rest[0]).times, [2_000]);
    }

    fn celsius(values: &[f64]) -> Column {
        Column::Float(values.iter().copied().map(Some).collect())
    }

    fn column(rows: usize) -> impl Strategy<Value = Column> {
        let float = prop::option::of(prop_oneof![prop::num::f64::NORMAL | prop::num::f64::ZERO, Just(3.0)]);
        prop_oneof![
            prop::collection::vec(float, rows).prop_map(Column::Float),
            prop::collection::vec(prop::option::of(any::<i64>()), rows).prop_map(Column::Integer),
            prop::collection::vec(prop::option::of(any::<bool>()), rows).prop_map(Column::Bool),
            prop::collection::vec(prop::option::of(".{0,8}"), rows).prop_map(Column::Text),
        ]
    }

    /// Columns of several ticks: the same ones, so that they can be gathered.
    fn ticks() -> impl Strategy<Value = Vec<(usize, Columns)>> {
        let name = |name: &str| Name::parse(name).unwrap();
        let tick = (0_usize..12).prop_flat_map(move |rows| {
            let tags = prop::collection::vec(".{0,8}", rows);
            (tags, prop::collection::vec(column(rows), 1..4)).prop_map(move |(tags, fields)| {
                let fields = fields.into_iter().map(|column| (name(&format!("f_{}", column.field_type())), column));
                let columns = Columns { tags: BTreeMap::from([(name("tag"), tags)]), fields: fields.collect() };
                (rows, columns)
            })
        });
        prop::collection::vec(tick, 1..6)
    }

    proptest! {
        /// Whatever is split or gathered, each row arrives once, in order and as it was.
        #[test]
        fn readers_get_what_was_sampled(ticks in ticks(), limit in 400_usize..1_000, gathers in any::<bool>()) {
            let mut encoder = encoder(HEADER_BYTES + limit);
            let (mut messages, mut expected) = (Vec::new(), Vec::new());
            for (tick, (rows, columns)) in ticks.iter().enumerate() {
                let tick_ms = i64::try_from(tick).unwrap();
                for row in 0..*rows {
                    let fields = columns.fields.iter().map(|(name, column)| (name.clone(), column.json(row)));
                    let fields = fields.filter(|(_, value)| !value.is_null()).collect::<BTreeMap<_, _>>();
                    expected.push((tick_ms, columns.tags["tag"][row].clone(), fields));
                }
                let frame = Frame::new(*rows, columns.clone());
                prop_assert_eq!(&frame.to_columns(), columns);
                let send = if gathers { gather } else { encode };
                messages.extend(send(&mut encoder, tick_ms, &frame));
            }
            messages.extend(flush(&mut encoder));
            let mut found = Vec::new();
            for message in &messages {
                // A reader refuses a batch without any value.
                let mut headers = HeaderMap::new();
                if message.compressed {
                    headers.insert(ENCODING_HEADER, ENCODING_ZSTD);
                }
                prop_assert!(message.payload.len() <= limit);
                let batch = Batch::decode(&encoder.host, &encoder.measurement, Some(&headers), &message.payload);
                let Ok(batch) = batch else { continue };
                for row in 0..batch.rows() {
                    let fields = batch.fields.iter().map(|(name, column)| (name.clone(), column.json(row)));
                    let fields = fields.filter(|(_, value)| !value.is_null()).collect::<BTreeMap<_, _>>();
                    found.push((batch.times[row], batch.tags["tag"][row].clone(), fields));
                }
            }
            expected.retain(|(_, _, fields)| !fields.is_empty());
            found.retain(|(_, _, fields)| !fields.is_empty());
            prop_assert_eq!(found, expected);
        }
    }
}
