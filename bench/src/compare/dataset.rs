//! The points that all are given, encoded before anything is measured.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use plimsoll_nats::Batch;

use super::CompareError;
use crate::{
    Fleet, FleetConfig, lines, points,
    recording::{Record, RecordingWriter},
    remote_write,
    wire::Packer,
};

/// Points of a request to another store: large enough that requests themselves cost next to nothing.
const POINTS_A_REQUEST: usize = 50_000;

/// A fleet and how many samples its hosts take.
#[derive(Debug, Clone)]
pub(super) struct Dataset {
    pub(super) fleet: FleetConfig,
    pub(super) ticks: u64,
}

/// How points are laid out for a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Messages as agents publish them.
    Messages,
    /// Lines of InfluxDB's protocol.
    Lines,
    /// Prometheus remote write.
    RemoteWrite,
}

/// What was encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Encoded {
    pub(super) messages: u64,
    pub(super) rows: u64,
    pub(super) points: u64,
    pub(super) bytes: u64,
}

impl Dataset {
    /// Writes the points into a new file.
    pub(super) fn encode(&self, layout: Layout, file: &Path) -> Result<Encoded, CompareError> {
        let fleet = Fleet::new(self.fleet.clone())?;
        let batches = fleet.rounds(self.ticks).flatten();
        match layout {
            Layout::Messages => encode_messages(batches, file),
            Layout::Lines => encode_requests(batches, file, lines::append, <[u8]>::to_vec),
            Layout::RemoteWrite => encode_requests(batches, file, remote_write::append, remote_write::compress),
        }
    }

    /// Unix ms of the first sample.
    pub(super) fn start_ms(&self) -> i64 {
        self.fleet.start_ms
    }

    /// Unix ms at which the next sample would be taken.
    pub(super) fn end_ms(&self) -> i64 {
        let interval = i64::try_from(self.fleet.interval.as_millis()).unwrap_or(i64::MAX);
        self.fleet.start_ms + interval * i64::try_from(self.ticks).unwrap_or(i64::MAX)
    }
}

fn encode_messages(batches: impl Iterator<Item = Batch>, file: &Path) -> Result<Encoded, CompareError> {
    let mut writer = RecordingWriter::create(file)?;
    let (mut packer, mut encoded) = (Packer::default(), Encoded::default());
    for batch in batches {
        let message = packer.pack(&batch);
        let headers = Record::headers_of(Some(&message.headers()));
        encoded.messages += 1;
        encoded.rows += batch.rows() as u64;
        encoded.points += points(&batch) as u64;
        encoded.bytes += message.payload.len() as u64;
        let time_ms = batch.times.iter().copied().max().unwrap_or(0);
        writer.write(&Record { time_ms, subject: message.subject, headers, payload: message.payload })?;
    }
    writer.finish()?;
    Ok(encoded)
}

fn encode_requests(
    batches: impl Iterator<Item = Batch>,
    file: &Path,
    append: impl Fn(&Batch, &mut Vec<u8>) -> usize,
    finish: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<Encoded, CompareError> {
    let failed = |source| CompareError::File { path: file.to_owned(), source };
    let mut out = BufWriter::new(File::create_new(file).map_err(failed)?);
    let (mut request, mut in_request, mut encoded) = (Vec::new(), 0, Encoded::default());
    let mut write = |request: &mut Vec<u8>, encoded: &mut Encoded| -> io::Result<()> {
        let body = finish(request);
        request.clear();
        encoded.messages += 1;
        encoded.bytes += body.len() as u64;
        out.write_all(&u32::try_from(body.len()).expect("a request has a few MiB").to_le_bytes())?;
        out.write_all(&body)
    };
    for batch in batches {
        let points = append(&batch, &mut request);
        encoded.rows += batch.rows() as u64;
        encoded.points += points as u64;
        in_request += points;
        if in_request >= POINTS_A_REQUEST {
            in_request = 0;
            write(&mut request, &mut encoded).map_err(failed)?;
        }
    }
    if !request.is_empty() {
        write(&mut request, &mut encoded).map_err(failed)?;
    }
    out.flush().map_err(failed)?;
    Ok(encoded)
}

/// Reads the requests that were encoded into a file, one after the other.
pub(super) struct Requests {
    path: PathBuf,
    file: BufReader<File>,
}

impl Requests {
    pub(super) fn open(path: &Path) -> Result<Self, CompareError> {
        let file = File::open(path).map_err(|source| CompareError::File { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: BufReader::new(file) })
    }

    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; 4];
        if self.file.read(&mut length[..1])? == 0 {
            return Ok(None);
        }
        self.file.read_exact(&mut length[1..])?;
        let mut request = vec![0; u32::from_le_bytes(length) as usize];
        self.file.read_exact(&mut request)?;
        Ok(Some(request))
    }
}

impl Iterator for Requests {
    type Item = Result<Vec<u8>, CompareError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().map_err(|source| CompareError::File { path: self.path.clone(), source }).transpose()
    }
}
