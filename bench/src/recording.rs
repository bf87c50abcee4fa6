//! Recordings of what hosts have published.
//!
//! Layout: one zstd frame of the line [`MAGIC`], then records: `time i64 | subject u32, text | headers u32, text | payload u32, bytes`,
//! where numbers are little-endian, a text or the payload follows its length in bytes, the time is Unix ms, and headers are lines
//! `Name: value` that end with `\n`. Subjects are the public ones.
//!
//! A recording whose writer was killed ends anywhere: what is whole is read, and then the error says how many records that were.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use plimsoll_nats::async_nats::HeaderMap;

/// The first line, which names format and version.
const MAGIC: &[u8] = b"plimsoll recording 1\n";
const COMPRESSION_LEVEL: i32 = 3;
/// Longest subject, headers or payload that is believed.
const MAX_PART_BYTES: u32 = 64 * 1024 * 1024;

/// A message as it was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When it was stored or received, Unix ms.
    pub time_ms: i64,
    /// The public subject.
    pub subject: String,
    /// Headers by name.
    pub headers: Vec<(String, String)>,
    /// The payload.
    pub payload: Bytes,
}

impl Record {
    /// The headers as the broker's client has them.
    #[must_use]
    pub fn header_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            map.append(name.as_str(), value.as_str());
        }
        map
    }

    /// Headers as they are recorded; values with a line break, which no agent sends, are left out.
    #[must_use]
    pub fn headers_of(map: Option<&HeaderMap>) -> Vec<(String, String)> {
        let all = map.into_iter().flat_map(HeaderMap::iter);
        let pairs =
            all.flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.to_string())));
        pairs.filter(|(_, value)| !value.contains('\n')).collect()
    }
}

/// A recording that can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file can't be used.
    #[error("failed to use `{path}`")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("`{path}` is no recording of version 1: make one with `plimsoll-bench record`")]
    Foreign {
        /// The path.
        path: PathBuf,
    },
    /// The file ends within a record, or something in it is broken.
    #[error("`{path}` is cut off or damaged after {records} whole records")]
    Damaged {
        /// The path.
        path: PathBuf,
        /// How many records were read.
        records: u64,
        /// What was found.
        source: io::Error,
    },
}

/// Writes a recording.
pub struct RecordingWriter {
    path: PathBuf,
    encoder: zstd::Encoder<'static, BufWriter<File>>,
}

impl RecordingWriter {
    /// Creates the file; fails when there is one already.
    pub fn create(path: &Path) -> Result<Self, RecordingError> {
        let failed = |source| RecordingError::File { path: path.to_owned(), source };
        let file = File::create_new(path).map_err(failed)?;
        let mut encoder = zstd::Encoder::new(BufWriter::new(file), COMPRESSION_LEVEL).map_err(failed)?;
        encoder.write_all(MAGIC).map_err(failed)?;
        Ok(Self { path: path.to_owned(), encoder })
    }

    /// Appends a record. Fails when the disk is full or the like.
    pub fn write(&mut self, record: &Record) -> Result<(), RecordingError> {
        let headers: String = record.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        let mut bytes = Vec::with_capacity(20 + record.subject.len() + headers.len() + record.payload.len());
        bytes.extend(record.time_ms.to_le_bytes());
        for part in [record.subject.as_bytes(), headers.as_bytes(), &record.payload] {
            bytes.extend(u32::try_from(part.len()).expect("a message is far below 4 GiB").to_le_bytes());
            bytes.extend(part);
        }
        self.encoder.write_all(&bytes).map_err(|source| self.failed(source))
    }

    /// Ends the recording; returns its size in bytes.
    pub fn finish(self) -> Result<u64, RecordingError> {
        let failed = |source| RecordingError::File { path: self.path.clone(), source };
        let file = self.encoder.finish().map_err(failed)?.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().and_then(|()| file.metadata()).map(|data| data.len()).map_err(failed)
    }

    fn failed(&self, source: io::Error) -> RecordingError {
        RecordingError::File { path: self.path.clone(), source }
    }
}

/// Reads a recording, record by record.
pub struct RecordingReader {
    path: PathBuf,
    decoder: zstd::Decoder<'static, BufReader<File>>,
    records: u64,
    /// Whether nothing more can be read.
    ended: bool,
}

impl RecordingReader {
    /// Opens a recording; fails when the file can't be read or is none.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let file = File::open(path).map_err(|source| RecordingError::File { path: path.to_owned(), source })?;
        let foreign = |_| RecordingError::Foreign { path: path.to_owned() };
        let mut decoder = zstd::Decoder::new(file).map_err(foreign)?;
        let mut magic = [0; MAGIC.len()];
        decoder.read_exact(&mut magic).map_err(foreign)?;
        if magic != MAGIC {
            return Err(RecordingError::Foreign { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), decoder, records: 0, ended: false })
    }

    fn read(&mut self) -> io::Result<Option<Record>> {
        let mut time = [0; 8];
        // A recording may end here and nowhere else.
        if self.decoder.read(&mut time[..1])? == 0 {
            return Ok(None);
        }
        self.decoder.read_exact(&mut time[1..])?;
        let (subject, headers) = (self.text()?, self.text()?);
        let payload = self.part()?.into();
        let headers = headers.lines().filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Some(Record { time_ms: i64::from_le_bytes(time), subject, headers, payload }))
    }

    fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.part()?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn part(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.decoder.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > MAX_PART_BYTES {
            let text = format!("a part of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut part = vec![0; length as usize];
        self.decoder.read_exact(&mut part)?;
        Ok(part)
    }
}

impl Iterator for RecordingReader {
    type Item = Result<Record, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read();
        self.ended = !matches!(read, Ok(Some(_)));
        match read {
            Ok(None) => None,
            Ok(Some(record)) => {
                self.records += 1;
                Some(Ok(record))
            }
            Err(source) => {
                Some(Err(RecordingError::Damaged { path: self.path.clone(), records: self.records, source }))
            }
        }
    }
}
