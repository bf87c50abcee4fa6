//! Batches as lines of InfluxDB's protocol (docs.influxdata.com, "Line protocol"), times in ms.
//!
//! A row is one line, the host and the tags its tags. Stores of numbers know no text: a text field becomes a line of its own, with
//! the text as one more tag and the field `<name>_info=1`, so that every store is given the same number of points.

use std::io::Write;

use plimsoll_nats::{Batch, Column, Name};

/// Appends a batch's rows; returns the number of points in the lines.
pub fn append(batch: &Batch, out: &mut Vec<u8>) -> usize {
    let mut points = 0;
    for (row, time) in batch.times.iter().enumerate() {
        let start = out.len();
        series(batch, row, out);
        out.push(b' ');
        let values = batch.fields.iter().filter(|(_, column)| !matches!(column, Column::Text(_)));
        let written = values.filter(|(name, column)| field(name, column, row, out)).count();
        if written == 0 {
            out.truncate(start);
        } else {
            end(out, *time);
        }
        points += written;
        for (name, column) in &batch.fields {
            let Column::Text(values) = column else { continue };
            let Some(text) = &values[row] else { continue };
            series(batch, row, out);
            tag(name, text, out);
            write!(out, " {name}_info=1i,").expect("a Vec takes all bytes");
            end(out, *time);
            points += 1;
        }
    }
    points
}

fn series(batch: &Batch, row: usize, out: &mut Vec<u8>) {
    out.extend(batch.measurement.as_bytes());
    write!(out, ",host={}", batch.host).expect("a Vec takes all bytes");
    for (name, values) in &batch.tags {
        tag(name, &values[row], out);
    }
}

/// An empty tag is no tag.
fn tag(name: &Name, value: &str, out: &mut Vec<u8>) {
    if value.is_empty() {
        return;
    }
    write!(out, ",{name}=").expect("a Vec takes all bytes");
    for byte in value.bytes() {
        if matches!(byte, b',' | b'=' | b' ') {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

/// Appends a field and a comma; returns whether there is a value.
fn field(name: &Name, column: &Column, row: usize, out: &mut Vec<u8>) -> bool {
    let written = match column {
        Column::Float(values) => values[row].map(|value| write!(out, "{name}={value},")),
        Column::Integer(values) => values[row].map(|value| write!(out, "{name}={value}i,")),
        Column::Bool(values) => values[row].map(|value| write!(out, "{name}={value},")),
        Column::Text(_) => None,
    };
    written.map(|written| written.expect("a Vec takes all bytes")).is_some()
}

/// Puts the time in place of the last comma.
fn end(out: &mut Vec<u8>, time_ms: i64) {
    out.pop();
    writeln!(out, " {time_ms}").expect("a Vec takes all bytes");
}
