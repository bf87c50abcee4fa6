//! The tables.

use std::{fmt::Write as _, time::Duration};

use crate::{
    encodings::{Cost, Encoding, encode},
    recording::Recording,
};

const ENCODINGS: [(&str, Encoding); 13] = [
    ("as the agent sends it", Encoding::AsSent),
    ("MessagePack", Encoding::Plain),
    ("zstd 1", Encoding::Zstd(1, 0)),
    ("zstd 1 from 512 bytes", Encoding::Zstd(1, 512)),
    ("zstd 1 from 1024 bytes", Encoding::Zstd(1, 1024)),
    ("zstd 1 from 2048 bytes", Encoding::Zstd(1, 2048)),
    ("zstd 3", Encoding::Zstd(3, 0)),
    ("zstd 3 from 1024 bytes", Encoding::Zstd(3, 1024)),
    ("zstd 1, dictionary", Encoding::ZstdDictionary(1)),
    ("zstd 3, dictionary", Encoding::ZstdDictionary(3)),
    ("short floats", Encoding::Short),
    ("short floats, zstd 1", Encoding::ShortZstd(1)),
    ("short floats, zstd 3", Encoding::ShortZstd(3)),
];
const WINDOWS: [u64; 3] = [1, 10, 60];

/// CPU time of each collector's readings.
pub fn collectors(recording: &Recording) -> String {
    let mut out =
        "| collector | readings | CPU µs a reading | CPU µs a second |\n| --- | ---: | ---: | ---: |\n".to_owned();
    let mut total = 0.0;
    for (name, readings) in recording.readings.iter().filter(|(_, readings)| readings.count > 0) {
        let micros = readings.cpu.as_secs_f64() * 1e6;
        total += micros / recording.seconds as f64;
        let (each, second) = (micros / f64::from(readings.count), micros / recording.seconds as f64);
        let _ = writeln!(out, "| {name} | {} | {each:.0} | {second:.0} |", readings.count);
    }
    let _ = writeln!(out, "| all | | | {total:.0} |");
    out
}

/// All measurements together, by encoding.
pub fn encodings(recording: &Recording) -> String {
    let points: usize = recording.samples.values().map(|samples| Recording::points(samples)).sum();
    let mut out = format!(
        "{points} points in {} s.\n\n\
         | gathered for | encoding | payload bytes a point | bytes a point on the wire | bytes a second | CPU µs a second | to read |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
        recording.seconds
    );
    for window in WINDOWS {
        for (name, encoding) in ENCODINGS {
            let mut all = Cost::default();
            for (measurement, samples) in &recording.samples {
                all += encode(measurement, samples, Duration::from_secs(window), encoding).1;
            }
            let micros = |cpu: Duration| format!("{:.0}", cpu.as_secs_f64() * 1e6 / recording.seconds as f64);
            let each = |bytes: usize| bytes as f64 / points as f64;
            let _ = writeln!(
                out,
                "| {window} s | {name} | {:.2} | {:.2} | {:.0} | {} | {} |",
                each(all.payload_bytes),
                each(all.wire_bytes),
                all.wire_bytes as f64 / recording.seconds as f64,
                micros(all.cpu),
                all.reading_cpu.map_or("n/a".to_owned(), micros),
            );
        }
    }
    out
}

/// Each measurement as the agent sends it and without compression.
pub fn measurements(recording: &Recording) -> String {
    let mut out = "| measurement | points a sample | plain bytes a message at 1 s | bytes a point on the wire at 1 s | at 10 s | at 60 s |\n\
                   | --- | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for (measurement, samples) in &recording.samples {
        let points = Recording::points(samples);
        let of = |window: u64, encoding| encode(measurement, samples, Duration::from_secs(window), encoding).1;
        let plain = of(1, Encoding::Plain);
        let [one, ten, sixty] = WINDOWS.map(|window| of(window, Encoding::AsSent).wire_bytes as f64 / points as f64);
        let _ = writeln!(
            out,
            "| {measurement} | {:.1} | {:.0} | {one:.1} | {ten:.1} | {sixty:.1} |",
            points as f64 / samples.len() as f64,
            plain.payload_bytes as f64 / plain.messages as f64,
        );
    }
    out
}
