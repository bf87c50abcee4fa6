//! The ways to encode that are compared.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use plimsoll_agent::{
    encoder::{Encoder, Packer, PayloadLimit},
    message::Message,
    rows::{Columns, Frame},
};
use plimsoll_nats::{
    Batch, Column, HostId, Name,
    async_nats::HeaderMap,
    batch::{BatchParts, ENCODING_HEADER, ENCODING_ZSTD},
    subject,
};
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};
use ulid::Ulid;
use zstd::{bulk::Compressor, dict::EncoderDictionary};

use crate::{cpu_time, recording::Sample};

/// How often each message is encoded, so that the time of one can be told.
const REPEATS: u32 = 20;
/// Length of the subject on which the client awaits the answer: `_INBOX`, and two ids of 22 characters.
const REPLY_BYTES: usize = 52;

/// A way to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// What the agent does.
    AsSent,
    /// MessagePack alone.
    Plain,
    /// Compressed at a level, from so many bytes on.
    Zstd(i32, usize),
    /// The same, with an earlier message of the measurement as the dictionary.
    ZstdDictionary(i32),
    /// MessagePack in which a float is as short as it can be without loss: an integer, or 32 bits.
    Short,
    /// The same, compressed at a level.
    ShortZstd(i32),
}

/// What messages take.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub messages: usize,
    pub payload_bytes: usize,
    /// Payload, headers, subjects and the protocol's own words.
    pub wire_bytes: usize,
    pub cpu: Duration,
    /// What a reader needs to decode them; none where readers of today cannot.
    pub reading_cpu: Option<Duration>,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.payload_bytes += other.payload_bytes;
        self.wire_bytes += other.wire_bytes;
        self.cpu += other.cpu;
        self.reading_cpu = self.reading_cpu.zip(other.reading_cpu).map(|(one, other)| one + other);
    }
}

/// The batches of one measurement, `window` at a time.
struct Batches<'a> {
    host: HostId,
    measurement: &'a Name,
    epoch: Ulid,
    gathered: Vec<(Frame, Vec<i64>)>,
}

/// A message as it would be published.
pub struct Encoded {
    pub measurement: Name,
    pub compressed: bool,
    pub payload: Vec<u8>,
}

/// The messages of a measurement, with the samples of `window` in each, and what they take.
pub fn encode(measurement: &Name, samples: &[Sample], window: Duration, encoding: Encoding) -> (Vec<Encoded>, Cost) {
    let batches = Batches::new(measurement, samples, window);
    let (messages, cpu) = match encoding {
        Encoding::AsSent => batches.as_sent(),
        Encoding::Plain => batches.measure(|index, out| batches.pack(index, out), |_| None),
        Encoding::Zstd(level, from) => {
            let mut compressor = Compressor::new(level).expect("a level of zstd");
            batches.measure(|index, out| batches.pack(index, out), compress(&mut compressor, from))
        }
        Encoding::ZstdDictionary(level) => {
            let dictionary = EncoderDictionary::copy(&batches.packed(0), level);
            let mut compressor = Compressor::with_prepared_dictionary(&dictionary).expect("any bytes do");
            batches.measure(|index, out| batches.pack(index, out), compress(&mut compressor, 0))
        }
        Encoding::Short => batches.short(|_| None),
        Encoding::ShortZstd(level) => {
            let mut compressor = Compressor::new(level).expect("a level of zstd");
            batches.short(compress(&mut compressor, 0))
        }
    };
    let mut cost = Cost { cpu, reading_cpu: batches.reading_cpu(&messages, encoding), ..Cost::default() };
    for message in &messages {
        cost.messages += 1;
        cost.payload_bytes += message.payload.len();
        cost.wire_bytes += message.payload.len() + batches.overhead(message);
    }
    (messages, cost)
}

/// Compresses what is at least `from` bytes.
fn compress<'a>(compressor: &'a mut Compressor<'_>, from: usize) -> impl FnMut(&[u8]) -> Option<Vec<u8>> + 'a {
    let mut out = Vec::new();
    move |bytes| {
        if bytes.len() < from {
            return None;
        }
        out.clear();
        out.reserve(zstd::zstd_safe::compress_bound(bytes.len()));
        compressor.compress_to_buffer(bytes, &mut out).expect("there is room");
        Some(out.clone())
    }
}

impl Default for Cost {
    fn default() -> Self {
        let (cpu, reading_cpu) = (Duration::ZERO, Some(Duration::ZERO));
        Self { messages: 0, payload_bytes: 0, wire_bytes: 0, cpu, reading_cpu }
    }
}

impl<'a> Batches<'a> {
    fn new(measurement: &'a Name, samples: &[Sample], window: Duration) -> Self {
        let window_ms = i64::try_from(window.as_millis()).expect("a short time");
        let mut windows: BTreeMap<i64, (Frame, Vec<i64>)> = BTreeMap::new();
        for sample in samples.iter().filter(|sample| sample.frame.rows() > 0) {
            let (frame, times) = windows.entry(sample.tick_ms.div_euclid(window_ms)).or_default();
            if times.is_empty() {
                *frame = sample.frame.clone();
            } else {
                frame.append(&sample.frame);
            }
            times.resize(frame.rows(), sample.tick_ms);
        }
        let host = HostId::parse("web-01-example-org").expect("a host id");
        Self { host, measurement, epoch: Ulid::generate(), gathered: windows.into_values().collect() }
    }

    fn as_sent(&self) -> (Vec<Encoded>, Duration) {
        let (mut packer, mut messages, mut cpu) = (Packer::default(), Vec::new(), Duration::ZERO);
        for (frame, times) in &self.gathered {
            let slices = slices(frame, times);
            let mut sent = Vec::new();
            let mut encoder = self.encoder();
            let start = cpu_time();
            for _ in 0..REPEATS {
                sent.clear();
                if let [(time, slice)] = slices.as_slice() {
                    encoder.encode(&mut packer, *time, slice, &mut sent);
                } else {
                    slices.iter().for_each(|(time, slice)| encoder.gather(&mut packer, *time, slice, &mut sent));
                    encoder.flush(&mut packer, &mut sent);
                }
            }
            cpu += (cpu_time() - start) / REPEATS;
            messages.extend(sent.into_iter().map(|message: Message| Encoded {
                measurement: self.measurement.clone(),
                compressed: message.compressed,
                payload: message.payload.to_vec(),
            }));
        }
        (messages, cpu)
    }

    fn encoder(&self) -> Encoder {
        Encoder::new(self.host.clone(), self.measurement.clone(), self.epoch, PayloadLimit::default())
    }

    fn packed(&self, index: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.pack(index, &mut out);
        out
    }

    fn pack(&self, index: usize, out: &mut Vec<u8>) {
        let (frame, times) = &self.gathered[index];
        let (tags, fields) = (frame.tags(0..frame.rows()), frame.fields(0..frame.rows()));
        let seq = index as u64 + 1_000;
        let (host, measurement, epoch) = (&self.host, self.measurement, self.epoch);
        BatchParts { host, measurement, epoch, seq, times, tags, fields }.encode_into(out);
    }

    fn short(&self, finish: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> (Vec<Encoded>, Duration) {
        let decode = |index| Batch::decode(&self.host, self.measurement, None, &self.packed(index));
        let batches: Vec<Option<Batch>> = (0..self.gathered.len()).map(|index| decode(index).ok()).collect();
        let pack = |index: usize, out: &mut Vec<u8>| {
            // A batch of nothing but nil is not decoded.
            let Some(batch) = &batches[index] else { return };
            let Batch { host, measurement, epoch, seq, times, tags, fields } = batch;
            let (epoch, seq) = (*epoch, *seq);
            BatchParts { host, measurement, epoch, seq, times, tags, fields: Shortened(fields) }.encode_into(out);
        };
        self.measure(pack, finish)
    }

    fn measure(
        &self,
        pack: impl Fn(usize, &mut Vec<u8>),
        mut finish: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) -> (Vec<Encoded>, Duration) {
        let (mut messages, mut cpu, mut out) = (Vec::new(), Duration::ZERO, Vec::new());
        for index in 0..self.gathered.len() {
            let mut finished = None;
            let start = cpu_time();
            for _ in 0..REPEATS {
                out.clear();
                pack(index, &mut out);
                finished = finish(&out);
            }
            cpu += (cpu_time() - start) / REPEATS;
            let compressed = finished.is_some();
            let payload = finished.unwrap_or_else(|| out.clone());
            messages.push(Encoded { measurement: self.measurement.clone(), compressed, payload });
        }
        (messages, cpu)
    }

    fn reading_cpu(&self, messages: &[Encoded], encoding: Encoding) -> Option<Duration> {
        let start = cpu_time();
        for message in messages {
            let headers = message.compressed.then(|| {
                let mut headers = HeaderMap::new();
                headers.insert(ENCODING_HEADER, ENCODING_ZSTD);
                headers
            });
            for _ in 0..REPEATS {
                // A batch of nothing but nil is refused, and so are dictionaries, which readers do not have.
                let _ = Batch::decode(&self.host, self.measurement, headers.as_ref(), &message.payload);
            }
        }
        (!matches!(encoding, Encoding::ZstdDictionary(_))).then(|| (cpu_time() - start) / REPEATS)
    }

    /// What NATS adds to a payload: `HPUB <subject> <reply> <header bytes> <bytes>`, and the headers.
    fn overhead(&self, message: &Encoded) -> usize {
        let id = format!("{}/{}/{}/1000", self.host, self.measurement, self.epoch);
        let mut headers = format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\n");
        if message.compressed {
            headers += &format!("{ENCODING_HEADER}: {ENCODING_ZSTD}\r\n");
        }
        headers += "\r\n";
        let subject = subject::metrics(&self.host, self.measurement);
        let (header, total) = (headers.len(), headers.len() + message.payload.len());
        let line = format!("HPUB {subject} {} {header} {total}\r\n\r\n", "x".repeat(REPLY_BYTES));
        line.len() + header
    }
}

/// The rows of each time by themselves.
fn slices(frame: &Frame, times: &[i64]) -> Vec<(i64, Frame)> {
    let columns = frame.to_columns();
    let mut starts: Vec<usize> = (0..times.len()).filter(|row| *row == 0 || times[*row] != times[row - 1]).collect();
    starts.push(times.len());
    starts.windows(2).map(|pair| (times[pair[0]], slice(&columns, pair[0]..pair[1]))).collect()
}

fn slice(columns: &Columns, rows: Range<usize>) -> Frame {
    let tags = columns.tags.iter().map(|(name, values)| (name.clone(), values[rows.clone()].to_vec()));
    let fields = columns.fields.iter().map(|(name, column)| {
        let part = match column {
            Column::Float(values) => Column::Float(values[rows.clone()].to_vec()),
            Column::Integer(values) => Column::Integer(values[rows.clone()].to_vec()),
            Column::Bool(values) => Column::Bool(values[rows.clone()].to_vec()),
            Column::Text(values) => Column::Text(values[rows.clone()].to_vec()),
        };
        (name.clone(), part)
    });
    let columns = Columns { tags: tags.collect(), fields: fields.collect() };
    Frame::new(rows.len(), columns)
}

/// Columns whose floats are as short as they can be without loss.
struct Shortened<'a>(&'a BTreeMap<Name, Column>);

impl Serialize for Shortened<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, column) in self.0 {
            match column {
                Column::Float(values) => map.serialize_entry(name, &Floats(values))?,
                other => map.serialize_entry(name, other)?,
            }
        }
        map.end()
    }
}

struct Floats<'a>(&'a [Option<f64>]);

impl Serialize for Floats<'_> {
    #[expect(clippy::cast_possible_truncation, reason = "checked to be without loss")]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_whole =
            |value: f64| value.fract() == 0.0 && value.abs() < 9e15 && (value != 0.0 || value.is_sign_positive());
        // A reader takes a column without any float for one of integers.
        let mut has_float = self.0.iter().flatten().any(|value| !is_whole(*value));
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for value in self.0 {
            match *value {
                None => seq.serialize_element(&())?,
                Some(value) if has_float && is_whole(value) => seq.serialize_element(&(value as i64))?,
                Some(value) => {
                    has_float = true;
                    let short = value as f32;
                    if f64::from(short) == value {
                        seq.serialize_element(&short)?
                    } else {
                        seq.serialize_element(&value)?
                    }
                }
            }
        }
        seq.end()
    }
}
