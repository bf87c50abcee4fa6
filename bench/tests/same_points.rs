//! Every store is given the same points: lines and remote write say what the batches say.

use std::collections::BTreeMap;

use plimsoll_bench::{Fleet, FleetConfig, lines, points, remote_write};
use plimsoll_nats::{Batch, Column};

/// Points by metric, labels in order, and time.
type Points = BTreeMap<(String, Vec<(String, String)>, i64), f64>;

fn batches() -> Vec<Batch> {
    let fleet = FleetConfig { hosts: 30, start_ms: 1_790_000_000_000, samples_a_batch: 3, ..FleetConfig::default() };
    Fleet::new(fleet).expect("a fleet").rounds(12).flatten().collect()
}

fn insert(points: &mut Points, metric: String, mut labels: Vec<(String, String)>, time: i64, value: f64) {
    labels.sort();
    let key = (metric, labels, time);
    assert!(points.insert(key.clone(), value).is_none(), "{key:?} is there twice");
}

fn of_batches(batches: &[Batch]) -> Points {
    let mut all = Points::new();
    for batch in batches {
        for (name, column) in &batch.fields {
            for (row, time) in batch.times.iter().enumerate() {
                let mut labels = vec![("host".to_owned(), batch.host.to_string())];
                labels.extend(batch.tags.iter().map(|(name, values)| (name.to_string(), values[row].clone())));
                let metric = format!("{}_{name}", batch.measurement);
                match column {
                    Column::Text(values) => {
                        let Some(text) = &values[row] else { continue };
                        labels.push((name.to_string(), text.clone()));
                        insert(&mut all, format!("{metric}_info"), labels, *time, 1.0);
                    }
                    column => {
                        let Some(value) = column.number(row) else { continue };
                        insert(&mut all, metric, labels, *time, value);
                    }
                }
            }
        }
    }
    all
}

/// Splits at a separator that no backslash stands before, and takes the backslashes out.
fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut escaped) = (vec![String::new()], false);
    for c in text.chars() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            c if c == separator && !escaped => parts.push(String::new()),
            c => {
                // Kept for the next separator, unless it was this one's.
                if escaped && c != separator {
                    parts.last_mut().expect("one at least").push('\\');
                }
                parts.last_mut().expect("one at least").push(c);
            }
        }
        escaped = false;
    }
    parts
}

fn of_lines(text: &str) -> Points {
    let mut all = Points::new();
    for line in text.lines() {
        let [series, fields, time] = <[String; 3]>::try_from(split(line, ' ')).expect("series, fields, time");
        let mut tags = split(&series, ',').into_iter();
        let measurement = tags.next().expect("a measurement");
        let pair = |text: String| {
            let [name, value] = <[String; 2]>::try_from(split(&text, '=')).expect("name and value");
            (name, value)
        };
        let labels: Vec<_> = tags.map(pair).collect();
        for field in fields.split(',') {
            let (name, value) = field.split_once('=').expect("name and value");
            let value = match value {
                "true" => 1.0,
                "false" => 0.0,
                number => number.trim_end_matches('i').parse().expect("a number"),
            };
            let time = time.parse().expect("a time");
            insert(&mut all, format!("{measurement}_{name}"), labels.clone(), time, value);
        }
    }
    all
}

/// A reader of protobuf that knows no more than it must.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = self.0.split_first().expect("a varint ends");
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }
}

enum Field<'a> {
    Bytes(&'a [u8]),
    Double(f64),
    Varint(u64),
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let key = self.varint();
        let field = match key & 7 {
            0 => Field::Varint(self.varint()),
            1 => Field::Double(f64::from_le_bytes(self.bytes(8).try_into().expect("eight bytes"))),
            2 => {
                let length = usize::try_from(self.varint()).expect("a length");
                Field::Bytes(self.bytes(length))
            }
            other => panic!("wire type {other}"),
        };
        Some((key >> 3, field))
    }
}

fn of_remote_write(request: &[u8]) -> Points {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let mut all = Points::new();
    for (number, series) in Fields(request) {
        let (1, Field::Bytes(series)) = (number, series) else { panic!("a series") };
        let (mut labels, mut samples) = (Vec::new(), Vec::new());
        for part in Fields(series) {
            match part {
                (1, Field::Bytes(label)) => {
                    let parts: Vec<_> = Fields(label).collect();
                    let [(1, Field::Bytes(name)), (2, Field::Bytes(value))] = parts[..] else { panic!("a label") };
                    labels.push((text(name), text(value)));
                }
                (2, Field::Bytes(sample)) => {
                    let parts: Vec<_> = Fields(sample).collect();
                    let [(1, Field::Double(value)), (2, Field::Varint(time))] = parts[..] else { panic!("a sample") };
                    samples.push((value, time.cast_signed()));
                }
                (other, _) => panic!("field {other} of a series"),
            }
        }
        assert!(labels.is_sorted(), "labels are in order: {labels:?}");
        assert!(samples.is_sorted_by_key(|(_, time)| *time), "samples are in order");
        let at = labels.iter().position(|(name, _)| name == "__name__").expect("a name");
        let (_, metric) = labels.remove(at);
        for (value, time) in samples {
            insert(&mut all, metric.clone(), labels.clone(), time, value);
        }
    }
    all
}

#[test]
fn lines_and_remote_write_hold_exactly_the_points_of_the_batches() {
    let batches = batches();
    let expected = of_batches(&batches);
    let total: usize = batches.iter().map(points).sum();
    assert_eq!(expected.len(), total);
    assert!(expected.keys().any(|(metric, ..)| metric == "process_state_info"), "texts are among them");

    let mut text = Vec::new();
    assert_eq!(batches.iter().map(|batch| lines::append(batch, &mut text)).sum::<usize>(), total);
    assert!(of_lines(&String::from_utf8(text).expect("text")) == expected);

    let mut request = Vec::new();
    assert_eq!(batches.iter().map(|batch| remote_write::append(batch, &mut request)).sum::<usize>(), total);
    let compressed = remote_write::compress(&request);
    let unpacked = snap::raw::Decoder::new().decompress_vec(&compressed).expect("Snappy");
    assert!(unpacked == request);
    assert!(of_remote_write(&unpacked) == expected);
}
