//! One message as the spool stores it. The layout is told in [`crate::spool`].

use bytes::Bytes;
use plimsoll_nats::{HostId, Incarnation, Name, Position, Sequence, event::EventKind};
use ulid::Ulid;

use crate::message::{Message, Topic};

/// The first bytes of a record.
pub const MAGIC: [u8; 4] = *b"PLrc";
/// Length of a record's head.
pub const HEAD_BYTES: usize = 16;
/// Longest body that is believed: no broker takes messages of a quarter of it.
const MAX_BODY_BYTES: usize = 256 * 1024 * 1024;
/// Length of a body before the host.
const FIXED_BYTES: usize = 41;

const COMPRESSED: u8 = 1;
const MAYBE_SENT: u8 = 2;
const EVENT: u8 = 4;

/// A message and what was known of the stream when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The message.
    pub message: Message,
    /// A position that the stream had reached when the message was not in it yet.
    pub mark: Position,
    /// Whether it may have been sent before it was written or at once after.
    pub maybe_sent: bool,
}

/// What stands at a place.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole record of that many bytes.
    Record(Box<Record>, usize),
    /// The start of what may be a record, once there are at least that many bytes.
    Incomplete(usize),
    /// No record.
    Damage {
        /// How many bytes are known to be of no use; more may be.
        bytes: usize,
    },
}

impl Record {
    /// Appends the record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        let message = &self.message;
        let (topic, of_event): (&str, u8) = match &message.topic {
            Topic::Metrics(measurement) => (measurement, 0),
            Topic::Event(kind) => (kind.as_str(), EVENT),
        };
        let compressed = if message.compressed { COMPRESSED } else { 0 };
        let maybe_sent = if self.maybe_sent { MAYBE_SENT } else { 0 };
        out.extend_from_slice(&message.epoch.to_bytes());
        out.extend_from_slice(&message.seq.to_le_bytes());
        out.extend_from_slice(&self.mark.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.mark.sequence.0.to_le_bytes());
        out.push(compressed | maybe_sent | of_event);
        for text in [&*message.host, topic] {
            out.push(u8::try_from(text.len()).expect("names have at most 64 bytes"));
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(&message.payload);
        let body = &out[start + HEAD_BYTES..];
        let length = u32::try_from(body.len()).expect("no payload comes near 4 GiB");
        let head = head(length, crc32fast::hash(body));
        out[start..start + HEAD_BYTES].copy_from_slice(&head);
    }
}

fn head(length: u32, body_crc: u32) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&length.to_le_bytes());
    head[8..12].copy_from_slice(&body_crc.to_le_bytes());
    let crc = crc32fast::hash(&head[..12]);
    head[12..].copy_from_slice(&crc.to_le_bytes());
    head
}

/// Reads the record that `bytes` start with.
#[must_use]
pub fn decode(bytes: &[u8]) -> Found {
    let Some(found) = bytes.first_chunk::<HEAD_BYTES>() else {
        let is_start = MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]);
        return if is_start { Found::Incomplete(HEAD_BYTES) } else { Found::Damage { bytes: 1 } };
    };
    let length = u32_at(found, 4);
    let body_crc = u32_at(found, 8);
    let body_bytes = usize::try_from(length).unwrap_or(usize::MAX);
    if *found != head(length, body_crc) || body_bytes > MAX_BODY_BYTES {
        return Found::Damage { bytes: 1 };
    }
    let total = HEAD_BYTES + body_bytes;
    let Some(body) = bytes.get(HEAD_BYTES..total) else {
        return Found::Incomplete(total);
    };
    // The head is whole, so that the next record is known to come right after this body.
    let record = if crc32fast::hash(body) == body_crc { parse_body(body) } else { None };
    record.map_or(Found::Damage { bytes: total }, |record| Found::Record(Box::new(record), total))
}

fn u32_at(head: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

/// None also for what only a later version can write, such as an event of an unknown kind.
fn parse_body(body: &[u8]) -> Option<Record> {
    let (fixed, rest) = body.split_first_chunk::<FIXED_BYTES>()?;
    let eight = |at: usize| fixed[at..at + 8].try_into().ok();
    let epoch = Ulid::from_bytes(fixed[..16].try_into().ok()?);
    let seq = u64::from_le_bytes(eight(16)?);
    let incarnation = Incarnation(i64::from_le_bytes(eight(24)?));
    let sequence = Sequence(u64::from_le_bytes(eight(32)?));
    let flags = fixed[40];
    let (host, rest) = split_text(rest)?;
    let (topic, payload) = split_text(rest)?;
    let topic = if flags & EVENT == 0 {
        Topic::Metrics(Name::parse(topic).ok()?)
    } else {
        Topic::Event(EventKind::parse(topic)?)
    };
    let message = Message {
        host: HostId::parse(host).ok()?,
        topic,
        epoch,
        seq,
        compressed: flags & COMPRESSED != 0,
        payload: Bytes::copy_from_slice(payload),
    };
    Some(Record { message, mark: Position { incarnation, sequence }, maybe_sent: flags & MAYBE_SENT != 0 })
}

/// A text after its length in one byte, and what follows.
fn split_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record of the host `h`, whose payload tells its number.
    pub fn record(measurement: &str, seq: u64, payload_bytes: usize) -> Record {
        let mut payload = seq.to_le_bytes().to_vec();
        payload.resize(payload_bytes.max(8), 7);
        let message = Message {
            host: HostId::parse("h").unwrap(),
            topic: Topic::Metrics(Name::parse(measurement).unwrap()),
            epoch: Ulid::nil(),
            seq,
            compressed: false,
            payload: payload.into(),
        };
        let mark = Position { incarnation: Incarnation(-5), sequence: Sequence(u64::MAX) };
        Record { message, mark, maybe_sent: false }
    }

    fn encoded(record: &Record) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        bytes
    }

    /// The layout of version 1, byte by byte: it must never change.
    #[test]
    fn the_layout_is_the_documented_one() {
        let mut record = record("cpu", 3, 8);
        record.maybe_sent = true;
        let bytes = encoded(&record);
        let body = [
            [0; 16].as_slice(),
            &3_u64.to_le_bytes(),
            &(-5_i64).to_le_bytes(),
            &u64::MAX.to_le_bytes(),
            &[2, 1, b'h', 3, b'c', b'p', b'u'],
            &3_u64.to_le_bytes(),
        ]
        .concat();
        assert_eq!(bytes[..8], [b'P', b'L', b'r', b'c', u8::try_from(body.len()).unwrap(), 0, 0, 0]);
        assert_eq!(bytes[8..12], crc32fast::hash(&body).to_le_bytes());
        assert_eq!(bytes[12..16], crc32fast::hash(&bytes[..12]).to_le_bytes());
        assert_eq!(bytes[16..], body);
    }

    #[test]
    fn what_only_a_later_version_knows_is_no_record() {
        let mut record = record("cpu", 3, 8);
        record.message.topic = Topic::Event(EventKind::OomKill);
        let mut bytes = encoded(&record);
        let total = bytes.len();
        assert_eq!(decode(&bytes), Found::Record(Box::new(record), total));
        let at = bytes.windows(8).position(|window| window == b"oom_kill").unwrap();
        bytes[at] = b'x';
        let crc = crc32fast::hash(&bytes[HEAD_BYTES..]);
        let head = head(u32::try_from(total - HEAD_BYTES).unwrap(), crc);
        bytes[..HEAD_BYTES].copy_from_slice(&head);
        assert_eq!(decode(&bytes), Found::Damage { bytes: total });
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            seq in any::<u64>(), epoch in any::<u128>(), flags in any::<(bool, bool, bool)>(),
            mark in any::<(i64, u64)>(), payload in proptest::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>(),
        ) {
            let (compressed, maybe_sent, event) = flags;
            let name = || Name::parse("gpu_process").unwrap();
            let topic = if event { Topic::Event(EventKind::GpuXid) } else { Topic::Metrics(name()) };
            let host = HostId::parse("web-1").unwrap();
            let message = Message { host, topic, epoch: Ulid::from_bytes(epoch.to_be_bytes()), seq, compressed, payload: payload.into() };
            let mark = Position { incarnation: Incarnation(mark.0), sequence: Sequence(mark.1) };
            let record = Record { message, mark, maybe_sent };
            let mut bytes = encoded(&record);
            let total = bytes.len();
            let cut = cut.index(total);
            prop_assert!(matches!(decode(&bytes[..cut]), Found::Incomplete(needed) if needed > cut && needed <= total));
            bytes.extend_from_slice(b"what follows");
            prop_assert_eq!(decode(&bytes), Found::Record(Box::new(record), total));
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut bytes = encoded(&record("cpu", 3, 40));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let expected = if at < HEAD_BYTES { 1 } else { bytes.len() };
            prop_assert_eq!(decode(&bytes), Found::Damage { bytes: expected });
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
        }
    }
}
