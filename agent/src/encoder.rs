//! Turns rows into numbered messages that the broker takes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use plimsoll_nats::{
    Batch, Column, HostId, Name,
    batch::{MAX_DECODED_BYTES, MAX_ROWS},
};
use ulid::Ulid;

use crate::{message::Message, rows::Columns};

/// From this size on a batch is compressed: below it, zstd saves less than its header and time cost.
const COMPRESS_FROM_BYTES: usize = 4 * 1024;
/// The level of compression.
const COMPRESSION_LEVEL: i32 = 3;
/// What a message's headers take of the broker's largest payload, at most.
const HEADER_BYTES: usize = 512;
/// The broker's largest payload, until it tells its own.
const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;

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

/// Encodes and numbers the batches of one measurement.
#[derive(Debug)]
pub struct Encoder {
    host: HostId,
    measurement: Name,
    epoch: Ulid,
    last_seq: u64,
    limit: PayloadLimit,
}

impl Encoder {
    /// Numbers from 1 under `epoch`, the id of this run of the agent.
    #[must_use]
    pub fn new(host: HostId, measurement: Name, epoch: Ulid, limit: PayloadLimit) -> Self {
        Self { host, measurement, epoch, last_seq: 0, limit }
    }

    /// Encodes the rows of one tick, as several messages where one would be larger than the broker takes.
    ///
    /// A row that is too large by itself is lost, with an error in the log: no retry could ever deliver it.
    pub fn encode(&mut self, tick_ms: i64, rows: usize, columns: Columns) -> Vec<Message> {
        let mut messages = Vec::with_capacity(1);
        if rows > 0 {
            self.split(tick_ms, rows, columns, &mut messages);
        }
        messages
    }

    fn split(&mut self, tick_ms: i64, rows: usize, columns: Columns, messages: &mut Vec<Message>) {
        let batch = Batch {
            host: self.host.clone(),
            measurement: self.measurement.clone(),
            epoch: self.epoch,
            seq: self.last_seq + 1,
            times: vec![tick_ms; rows],
            tags: columns.tags,
            fields: columns.fields,
        };
        if let Some(message) = self.fit(&batch) {
            self.last_seq = message.seq;
            messages.push(message);
        } else if rows == 1 {
            tracing::error!(
                measurement = %self.measurement,
                max_payload_bytes = self.limit.body_bytes(),
                "a row is larger than the broker takes and is lost"
            );
        } else {
            let mut first = Columns { tags: batch.tags, fields: batch.fields };
            let second = split_off(&mut first, rows / 2);
            self.split(tick_ms, rows / 2, first, messages);
            self.split(tick_ms, rows - rows / 2, second, messages);
        }
    }

    fn fit(&self, batch: &Batch) -> Option<Message> {
        if batch.rows() > MAX_ROWS {
            return None;
        }
        let encoded = batch.encode();
        if encoded.len() > MAX_DECODED_BYTES {
            return None;
        }
        let packed = if encoded.len() >= COMPRESS_FROM_BYTES {
            zstd::bulk::compress(&encoded, COMPRESSION_LEVEL).ok()
        } else {
            None
        };
        let compressed = packed.is_some();
        let payload = Bytes::from(packed.unwrap_or(encoded));
        let message =
            Message { measurement: batch.measurement.clone(), epoch: batch.epoch, seq: batch.seq, compressed, payload };
        (message.payload.len() <= self.limit.body_bytes()).then_some(message)
    }
}

/// Leaves the first `at` rows and returns the others.
fn split_off(columns: &mut Columns, at: usize) -> Columns {
    let tags = columns.tags.iter_mut().map(|(name, values)| (name.clone(), values.split_off(at))).collect();
    let fields = columns.fields.iter_mut().map(|(name, column)| {
        let rest = match column {
            Column::Float(values) => Column::Float(values.split_off(at)),
            Column::Integer(values) => Column::Integer(values.split_off(at)),
            Column::Bool(values) => Column::Bool(values.split_off(at)),
            Column::Text(values) => Column::Text(values.split_off(at)),
        };
        (name.clone(), rest)
    });
    Columns { fields: fields.collect(), tags }
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{
        async_nats::HeaderMap,
        batch::{ENCODING_HEADER, ENCODING_ZSTD},
        catalog,
    };

    use super::*;
    use crate::rows::Rows;

    fn encoder(limit: usize) -> Encoder {
        let payload_limit = PayloadLimit::default();
        payload_limit.set(limit);
        let name = Name::parse("temperature").unwrap();
        Encoder::new(HostId::parse("h").unwrap(), name, Ulid::generate(), payload_limit)
    }

    fn sensors(count: usize) -> Rows {
        let mut rows = Rows::new(catalog::measurement("temperature").unwrap());
        for number in 0..count {
            // Names that zstd cannot make small.
            let name = Ulid::generate().to_string();
            rows.push(
                &[("sensor", &name)],
                &[("temperature_celsius", (number as f64).into()), ("critical_celsius", 90.0.into())],
            );
        }
        rows
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
            let messages = encoder.encode(1_000, 2, sensors(2).take());
            assert_eq!(messages.len(), 1);
            let batch = decode(&encoder, &messages[0]);
            assert_eq!((batch.seq, batch.times.as_slice()), (seq, [1_000, 1_000].as_slice()));
            assert!(!messages[0].compressed);
        }
        assert!(encoder.encode(1_000, 0, sensors(0).take()).is_empty());
    }

    #[test]
    fn a_batch_that_the_broker_would_refuse_is_split_in_order() {
        let mut encoder = encoder(6_000);
        let messages = encoder.encode(1_000, 500, sensors(500).take());
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
        assert!(encoder.encode(1_000, 2, sensors(2).take()).is_empty());
        encoder.limit.set(DEFAULT_MAX_PAYLOAD);
        assert_eq!(encoder.encode(2_000, 1, sensors(1).take())[0].seq, 1);
    }

    #[test]
    fn large_batches_are_compressed() {
        let mut encoder = encoder(0);
        let messages = encoder.encode(1_000, 500, sensors(500).take());
        assert!(messages[0].compressed);
        assert_eq!(decode(&encoder, &messages[0]).rows(), 500);
    }
}
