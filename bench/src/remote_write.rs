//! Batches as Prometheus remote write 1.0 (prometheus.io/docs/specs/prw/remote_write_spec): a protobuf message, compressed with Snappy.
//!
//! A field is the metric `<measurement>_<field>`, with the host and the tags as labels; all samples of a series within a batch
//! stand together. Of a text, see [`crate::lines`].

use plimsoll_nats::{Batch, Column};

/// Appends a batch's series to an uncompressed `WriteRequest`; returns the number of points.
pub fn append(batch: &Batch, out: &mut Vec<u8>) -> usize {
    let groups = rows_by_tags(batch);
    let mut points = 0;
    for (name, column) in &batch.fields {
        for (tags, rows) in &groups {
            match column {
                Column::Text(values) => {
                    // Another text is another series.
                    for &row in rows {
                        let Some(text) = &values[row] else { continue };
                        let mut labels = tags.clone();
                        labels.push((name, text));
                        let metric = format!("{}_{name}_info", batch.measurement);
                        series(&metric, labels, &[(1.0, batch.times[row])], out);
                        points += 1;
                    }
                }
                Column::Float(_) | Column::Integer(_) | Column::Bool(_) => {
                    let samples = rows.iter().filter_map(|&row| Some((column.number(row)?, batch.times[row])));
                    let samples: Vec<_> = samples.collect();
                    if !samples.is_empty() {
                        series(&format!("{}_{name}", batch.measurement), tags.clone(), &samples, out);
                    }
                    points += samples.len();
                }
            }
        }
    }
    points
}

/// Compresses a `WriteRequest`.
#[must_use]
pub fn compress(request: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(request).expect("a request is far below 4 GiB")
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

fn rows_by_tags(batch: &Batch) -> Vec<(Labels<'_>, Vec<usize>)> {
    let mut groups: Vec<(Labels<'_>, Vec<usize>)> = Vec::new();
    for row in 0..batch.rows() {
        let tags = batch.tags.iter().map(|(name, values)| (&**name, values[row].as_str()));
        let labels: Labels<'_> = std::iter::once(("host", &*batch.host)).chain(tags).collect();
        match groups.iter_mut().find(|(known, _)| *known == labels) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((labels, vec![row])),
        }
    }
    groups
}

/// `TimeSeries { repeated Label labels = 1; repeated Sample samples = 2 }`, as field 1 of the request.
fn series<'a>(metric: &'a str, mut labels: Labels<'a>, samples: &[(f64, i64)], out: &mut Vec<u8>) {
    labels.retain(|(_, value)| !value.is_empty());
    labels.push(("__name__", metric));
    labels.sort_unstable();
    let mut message = Vec::with_capacity(64 + samples.len() * 20);
    for (name, value) in labels {
        let mut label = Vec::with_capacity(name.len() + value.len() + 4);
        text(1, name, &mut label);
        text(2, value, &mut label);
        bytes(1, &label, &mut message);
    }
    for (value, time_ms) in samples {
        // A double under number 1, and a varint under 2.
        let mut sample = vec![1 << 3 | 1];
        sample.extend(value.to_le_bytes());
        sample.push(2 << 3);
        varint(time_ms.cast_unsigned(), &mut sample);
        bytes(2, &sample, &mut message);
    }
    bytes(1, &message, out);
}

fn text(number: u8, value: &str, out: &mut Vec<u8>) {
    bytes(number, value.as_bytes(), out);
}

fn bytes(number: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    varint(value.len() as u64, out);
    out.extend(value);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
