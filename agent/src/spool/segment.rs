//! Segment files: how their records are written and read. The layout is told in [`crate::spool`].

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use super::record::{Found, MAGIC, Record, decode};

/// The version of the format that this code writes.
pub const VERSION: u32 = 1;
/// Length of a segment's header.
pub const HEADER_BYTES: usize = 16;
/// The first bytes of a segment.
const SEGMENT_MAGIC: [u8; 8] = *b"PLIMSPOL";
/// How much is read of a file at a time.
const BLOCK_BYTES: usize = 64 * 1024;

/// The file of a segment.
#[must_use]
pub fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:020}.seg"))
}

/// The number of the segment that a file name stands for; none when it is another file's.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() == 20 { digits.parse().ok() } else { None }
}

fn header(version: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// What the header of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Written in this version.
    Known,
    /// Written by a later version of the agent, in the named version of the format.
    Newer(u32),
    /// The file ends within the header.
    Short,
    /// The header is damaged, or it is no segment.
    Damaged,
}

/// Reads a segment's header.
pub fn read_header(file: &mut File) -> io::Result<Header> {
    let mut found = [0; HEADER_BYTES];
    match file.read_exact(&mut found) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Header::Short),
        Err(error) => return Err(error),
    }
    let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
    Ok(match version {
        _ if found != header(version) => Header::Damaged,
        VERSION => Header::Known,
        _ => Header::Newer(version),
    })
}

/// Appends records to a new segment.
#[derive(Debug)]
pub struct SegmentWriter {
    file: File,
    end: u64,
}

impl SegmentWriter {
    /// Creates the segment; fails where the file is there already.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = File::create_new(path)?;
        if let Err(error) = file.write_all(&header(VERSION)) {
            // A file without a whole header would only be thrown away at the next start.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(Self { file, end: HEADER_BYTES as u64 })
    }

    /// Appends an encoded record and returns where it begins.
    ///
    /// When it fails nothing is left of the record, unless the file cannot even be cut: then nothing may follow in this segment.
    pub fn append(&mut self, record: &[u8]) -> Result<u64, AppendError> {
        let at = self.end;
        if let Err(source) = self.file.write_all(record) {
            let cut = self.file.set_len(at).and_then(|()| self.file.seek(SeekFrom::Start(at)));
            return Err(AppendError { source, is_whole: cut.is_ok() });
        }
        self.end += record.len() as u64;
        Ok(at)
    }

    /// Where the next record begins.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// A handle of the file by which it can be synced while records are appended.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The file, which nothing is appended to any more.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

/// A record could not be appended.
#[derive(Debug)]
pub struct AppendError {
    /// Why.
    pub source: io::Error,
    /// Whether the segment ends with a whole record.
    pub is_whole: bool,
}

/// What a reader comes upon.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// A record in the bytes `[from, to)` of the file.
    Record {
        /// Where it begins.
        from: u64,
        /// Where it ends.
        to: u64,
        /// The record.
        record: Box<Record>,
    },
    /// The bytes `[from, to)` hold no record.
    Damage {
        /// Where the damage begins.
        from: u64,
        /// Where the next record begins, or the end.
        to: u64,
    },
    /// The file ends within a record that begins there.
    Torn {
        /// Where the record begins.
        from: u64,
    },
}

/// Reads a stretch of a segment piece by piece, keeping no more than a record and a block in memory.
#[derive(Debug)]
pub struct SegmentReader {
    file: File,
    bytes: Vec<u8>,
    /// Where in `bytes` the next piece begins.
    start: usize,
    /// Where in the file that is.
    at: u64,
    end: u64,
}

impl SegmentReader {
    /// Reads `[from, end)`, where `from` is the beginning of a record.
    pub fn new(mut file: File, from: u64, end: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(from))?;
        Ok(Self { file, bytes: Vec::new(), start: 0, at: from, end })
    }

    /// The next piece; none at the end.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if self.at >= self.end {
                return Ok(None);
            }
            match decode(&self.bytes[self.start..]) {
                Found::Incomplete(needed) => {
                    if !self.fill(needed)? {
                        let from = self.at;
                        self.at = self.end;
                        return Ok(Some(Piece::Torn { from }));
                    }
                }
                Found::Record(record, length) => {
                    let from = self.at;
                    self.skip(length);
                    return Ok(Some(Piece::Record { from, to: self.at, record }));
                }
                Found::Damage { bytes } => {
                    let from = self.at;
                    self.skip(bytes);
                    self.find_record()?;
                    return Ok(Some(Piece::Damage { from, to: self.at }));
                }
            }
        }
    }

    /// Goes on to where the next record begins or may begin; to the end when there is none.
    fn find_record(&mut self) -> io::Result<()> {
        while self.at < self.end {
            match decode(&self.bytes[self.start..]) {
                Found::Incomplete(needed) => {
                    // A tail that only looks like the start of a record is part of the damage.
                    if !self.fill(needed)? {
                        self.at = self.end;
                    }
                }
                Found::Record(..) => return Ok(()),
                Found::Damage { bytes } => {
                    let rest = &self.bytes[self.start + bytes.min(self.bytes.len() - self.start)..];
                    let skipped = rest.iter().position(|byte| *byte == MAGIC[0]).unwrap_or(rest.len());
                    self.skip(bytes + skipped);
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, bytes: usize) {
        self.start += bytes;
        self.at += bytes as u64;
    }

    /// Makes sure that `needed` bytes are there from the next piece on; false when the stretch ends before.
    fn fill(&mut self, needed: usize) -> io::Result<bool> {
        if self.end - self.at < needed as u64 {
            return Ok(false);
        }
        self.bytes.drain(..self.start);
        self.start = 0;
        let behind = self.at + self.bytes.len() as u64;
        let wanted = (needed.max(BLOCK_BYTES) - self.bytes.len()) as u64;
        (&self.file).take(wanted.min(self.end - behind)).read_to_end(&mut self.bytes)?;
        Ok(self.bytes.len() >= needed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spool::record::tests::record;

    /// A segment of records with these payload lengths, and where each begins and ends.
    fn segment(folder: &Path, payloads: &[usize]) -> (PathBuf, Vec<(u64, u64)>) {
        let path = path(folder, 1);
        let mut writer = SegmentWriter::create(&path).unwrap();
        let mut places = Vec::new();
        for (seq, payload) in payloads.iter().enumerate() {
            let mut bytes = Vec::new();
            record("cpu", seq as u64, *payload).encode(&mut bytes);
            let from = writer.append(&bytes).unwrap();
            places.push((from, writer.end()));
        }
        (path, places)
    }

    fn pieces(path: &Path) -> Vec<Piece> {
        let mut file = File::open(path).unwrap();
        read_header(&mut file).unwrap();
        let end = file.metadata().unwrap().len();
        let mut reader = SegmentReader::new(file, HEADER_BYTES as u64, end).unwrap();
        std::iter::from_fn(|| reader.next_piece().unwrap()).collect()
    }

    fn seqs(pieces: &[Piece]) -> Vec<u64> {
        let seq = |piece: &Piece| match piece {
            Piece::Record { record, .. } => Some(record.message.seq),
            _ => None,
        };
        pieces.iter().filter_map(seq).collect()
    }

    #[test]
    fn a_header_tells_versions_and_damage() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("x");
        let told = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_header(&mut File::open(&path).unwrap()).unwrap()
        };
        assert_eq!(told(&header(VERSION)), Header::Known);
        assert_eq!(told(&header(2)), Header::Newer(2));
        assert_eq!(told(&header(VERSION)[..15]), Header::Short);
        assert_eq!(told(b""), Header::Short);
        assert_eq!(told(b"something else than a segment"), Header::Damaged);
        assert_eq!(header(1)[..12], *b"PLIMSPOL\x01\0\0\0");
    }

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let name = |number: u64| path(Path::new(""), number).to_string_lossy().into_owned();
        assert!(name(9) < name(10));
        assert_eq!(number(&name(u64::MAX)), Some(u64::MAX));
        for other in ["1.seg", "cursor", "0000000000000000001x.seg", ".seg"] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn a_record_larger_than_a_block_is_read() {
        let folder = tempfile::TempDir::new().unwrap();
        let (path, _) = segment(folder.path(), &[10, 3 * BLOCK_BYTES, 10]);
        assert_eq!(seqs(&pieces(&path)), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn a_segment_cut_anywhere_holds_the_records_before_the_cut(
            payloads in proptest::collection::vec(8_usize..300, 1..20),
            cut in any::<prop::sample::Index>(),
        ) {
            let folder = tempfile::TempDir::new().unwrap();
            let (path, places) = segment(folder.path(), &payloads);
            let end = places.last().unwrap().1;
            let cut = HEADER_BYTES as u64 + cut.index(usize::try_from(end).unwrap() - HEADER_BYTES) as u64;
            File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            let found = pieces(&path);
            let whole = places.iter().filter(|(_, to)| *to <= cut).count();
            prop_assert_eq!(seqs(&found), (0..whole as u64).collect::<Vec<_>>());
            let torn_at = places.iter().find(|(from, to)| *from < cut && cut < *to).map(|(from, _)| *from);
            let torn = found.iter().find_map(|piece| if let Piece::Torn { from } = piece { Some(*from) } else { None });
            prop_assert_eq!(torn, torn_at);
            prop_assert_eq!(found.len(), whole + usize::from(torn.is_some()));
        }

        #[test]
        fn damage_costs_the_records_that_it_hits_and_no_more(
            payloads in proptest::collection::vec(8_usize..300, 1..20),
            at in any::<prop::sample::Index>(),
            noise in proptest::collection::vec(any::<u8>(), 1..400),
        ) {
            let folder = tempfile::TempDir::new().unwrap();
            let (path, places) = segment(folder.path(), &payloads);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES);
            let to = bytes.len().min(at + noise.len());
            let changed = bytes[at..to] != noise[..to - at];
            bytes[at..to].copy_from_slice(&noise[..to - at]);
            let original = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes).unwrap();
            let whole = |(from, to): &(u64, u64)| {
                let range = usize::try_from(*from).unwrap()..usize::try_from(*to).unwrap();
                bytes[range.clone()] == original[range]
            };
            let expected: Vec<u64> =
                places.iter().enumerate().filter(|(_, place)| whole(place)).map(|(seq, _)| seq as u64).collect();
            let found = pieces(&path);
            prop_assert_eq!(seqs(&found), expected);
            let damage = found.iter().filter(|piece| !matches!(piece, Piece::Record { .. })).count();
            prop_assert_eq!(damage, usize::from(changed));
        }
    }
}
