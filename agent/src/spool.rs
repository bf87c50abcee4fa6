//! Messages that wait on disk while the broker is away.
//!
//! # Layout
//!
//! A spool is a folder of one stream. `<number, 20 digits>.seg` are its segments, `cursor` says how far they are drained.
//! Numbers are little endian.
//!
//! A segment has a header of 16 bytes: `PLIMSPOL`, the version of the format as u32 (1), and the CRC-32 of these 12 bytes as
//! u32. Records follow without gaps, each with a head of 16 bytes and a body:
//!
//! ```text
//! head   0  `PLrc`
//!        4  u32 length of the body
//!        8  u32 CRC-32 of the body
//!       12  u32 CRC-32 of the 12 bytes before
//! body   0  epoch, the 16 bytes of the ULID
//!       16  u64 seq
//!       24  i64 incarnation and
//!       32  u64 sequence of a position that the stream had reached when it did not hold the message
//!       40  u8 flags: 1 the payload is zstd, 2 it may have been sent before it was written or at once after, 4 it is an event
//!       41  u8 length of the host id, host id
//!           u8 length of the topic, topic: a measurement, or the kind of event
//!           payload, to the end of the body
//! ```
//!
//! `cursor` is text: `plimsoll-spool-cursor 1 <CRC-32 of the rest, 8 hex digits>`, and on the second line a JSON object with
//! `next` (segments from this number on were made later), `reached` (a position of the stream) and, by the number of each segment
//! that is left, `gone` (bytes that are done with) and `windows` (bytes that may have been sent, and after which position they are
//! stored if they are). It is replaced as a whole, by renaming.
//!
//! # Invariants
//!
//! - A segment is only appended to, by the run that made it, and is deleted when all of it is done with.
//! - Records are in the order in which messages were numbered, so that a lane's are in order of epoch and seq.
//! - Before a record is sent for the first time, the disk says that it may have been: by its own flag, or by a window of a cursor
//!   that is synced. So what is neither flagged nor in a window is not in the stream, and needs no question.
//! - Numbers of segments are never used twice, so that no cursor speaks of another segment than the one it was written for.
//!
//! # After a crash
//!
//! *The agent is killed*: what was written is in the kernel's page cache and is kept. A record cut short is the last of its
//! segment; it is cut off, for its message was never handed to the publisher. The cursor is at most a second old, so that some of
//! what is done with is in doubt, and the stream is asked about it.
//!
//! *The power is cut*: segments are synced each second while they grow, so that a second of samples can be missing, or damaged at
//! the segment's end. Deleted segments that come back are in the windows of the last synced cursor, or are not listed there and are
//! deleted again.
//!
//! *Damage*: a record whose checksums do not hold is lost, counted and logged; the next one is found by its `PLrc` and its head's
//! checksum, also when the segment's header is lost. What is left of a damaged segment is deleted with it: nobody could make more of
//! it. Without a cursor, or with a damaged one, the stream is asked about every record, from the position that the record has.
//! Segments of a later version stay where they are, within the spool's bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use plimsoll_nats::{Incarnation, Position};

use self::{
    cursor::{Cursor, Progress, Window},
    ranges::Ranges,
    record::Record,
    segment::{HEADER_BYTES, Header, Piece, SegmentReader, SegmentWriter},
};
use crate::message::Message;

pub mod cursor;
mod ranges;
pub mod record;
pub mod segment;

/// Size at which a segment is full, unless a small spool has smaller ones.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
/// Segments that a full spool has at least: a dropped one must not be half of what there is.
const MIN_SEGMENTS: u64 = 16;
/// Payload bytes that are loaded at a time.
const LOAD_BYTES: usize = 512 * 1024;
/// Records that are loaded at a time.
const LOAD_RECORDS: usize = 1024;
/// Room kept for encoding records; what a larger one took is given back.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file or folder cannot be read or written.
    #[error("failed to {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A message alone is larger than the spool may be.
    #[error("a message of {bytes} bytes is larger than the spool may be")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { action, path, source }
}

/// Where a record is: in the bytes `[from, to)` of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    segment: u64,
    from: u64,
    to: u64,
}

/// A message that was loaded to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where it is.
    pub place: Place,
    /// The message.
    pub message: Message,
    /// Where it may have been sent: the stream holds it after this position, or not at all.
    pub doubt: Option<Position>,
}

/// A stretch of a segment that is to be loaded.
#[derive(Debug)]
pub struct Load {
    segment: u64,
    path: PathBuf,
    from: u64,
    to: u64,
    /// What [`Spool::unread`] was when it was planned.
    unread: (u64, u64),
}

impl Load {
    /// Reads records until there are enough for a while. Blocks, and needs the spool not.
    pub fn read(&self) -> io::Result<Vec<Piece>> {
        let mut reader = SegmentReader::new(File::open(&self.path)?, self.from, self.to)?;
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        while bytes < LOAD_BYTES && pieces.len() < LOAD_RECORDS {
            let Some(piece) = reader.next_piece()? else { break };
            if let Piece::Record { record, .. } = &piece {
                bytes += record.message.payload.len();
            }
            pieces.push(piece);
        }
        Ok(pieces)
    }
}

#[derive(Debug)]
struct Segment {
    /// Where the last record ends.
    end: u64,
    /// The bytes that are done with.
    gone: Ranges,
    /// Records that are not done with.
    left: u64,
    windows: Vec<Window>,
    /// Whether nothing is known of what was sent of it.
    is_in_doubt: bool,
    /// Whether only a later version can read it.
    is_newer: bool,
}

impl Segment {
    fn is_done(&self) -> bool {
        !self.is_newer && self.gone.covers(HEADER_BYTES as u64, self.end)
    }

    /// After which position a record is stored, if it may have been sent at all.
    fn doubt(&self, from: u64, record: &Record) -> Option<Position> {
        let own = (record.maybe_sent || self.is_in_doubt).then_some(record.mark);
        let windows = self.windows.iter().filter(|window| (window.from..window.to).contains(&from));
        windows.map(|window| window.after).chain(own).min()
    }

    fn progress(&mut self) -> Progress {
        let gone = &self.gone;
        self.windows.retain(|window| !gone.covers(window.from, window.to));
        Progress { gone: gone.iter().collect(), windows: self.windows.clone() }
    }
}

/// Figures of a spool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpoolStats {
    /// Records that are not done with.
    pub batches: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Damaged places found since the start.
    pub corrupt: u64,
}

/// The messages on disk, up to a limit in bytes.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    max_bytes: u64,
    segment_bytes: u64,
    segments: BTreeMap<u64, Segment>,
    writer: Option<(u64, SegmentWriter)>,
    next: u64,
    /// From where on nothing was loaded yet.
    unread: (u64, u64),
    /// Records that are in memory as well and are not to be loaded.
    held: BTreeSet<Place>,
    /// Records that are not done with.
    left: u64,
    bytes: u64,
    reached: Position,
    corrupt: u64,
    dropped: u64,
    /// Full segments that are not synced yet.
    unsynced: Vec<File>,
    has_grown: bool,
    has_new_segment: bool,
    has_progressed: bool,
    scratch: Vec<u8>,
}

impl Spool {
    /// Opens or creates the spool in a folder of its own, reading through what an earlier run left; `visit` is shown each message
    /// that is not done with. Blocks.
    ///
    /// Fails when the folder cannot be read and written.
    pub fn open(folder: &Path, max_bytes: u64, visit: &mut dyn FnMut(&Message)) -> Result<Self, SpoolError> {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        let cursor = cursor::read(folder).map_err(failed("read the cursor in", folder))?;
        let reached = cursor.as_ref().map_or_else(|| Position::start(Incarnation(0)), |cursor| cursor.reached);
        let mut spool = Self {
            folder: folder.to_owned(),
            max_bytes,
            segment_bytes: (max_bytes / MIN_SEGMENTS).min(SEGMENT_BYTES),
            segments: BTreeMap::new(),
            writer: None,
            next: cursor.as_ref().map_or(1, |cursor| cursor.next),
            unread: (0, 0),
            held: BTreeSet::new(),
            left: 0,
            bytes: 0,
            reached,
            corrupt: 0,
            dropped: 0,
            unsynced: Vec::new(),
            has_grown: false,
            has_new_segment: false,
            has_progressed: false,
            scratch: Vec::new(),
        };
        for number in spool.numbers()? {
            spool.recover(number, cursor.as_ref(), visit);
        }
        let snapshot = spool.snapshot();
        cursor::write(folder, &snapshot).map_err(failed("write the cursor in", folder))?;
        Ok(spool)
    }

    fn numbers(&self) -> Result<BTreeSet<u64>, SpoolError> {
        let entries = fs::read_dir(&self.folder).map_err(failed("list", &self.folder))?;
        Ok(entries.flatten().filter_map(|entry| segment::number(&entry.file_name().to_string_lossy())).collect())
    }

    /// Takes over a segment of an earlier run.
    fn recover(&mut self, number: u64, cursor: Option<&Cursor>, visit: &mut dyn FnMut(&Message)) {
        let path = segment::path(&self.folder, number);
        let known = cursor.and_then(|cursor| cursor.segments.get(&number));
        let is_done = known.is_none() && cursor.is_some_and(|cursor| number < cursor.next);
        self.next = self.next.max(number + 1);
        let progress = known.cloned().unwrap_or_default();
        let recovered = if is_done { Ok(None) } else { self.scan(&path, progress, cursor.is_none(), visit) };
        match recovered {
            Ok(Some(segment)) => {
                self.bytes += segment.end;
                self.left += segment.left;
                let is_done = segment.is_done();
                self.segments.insert(number, segment);
                if is_done {
                    self.delete(number);
                }
            }
            Ok(None) => remove_file(&path),
            Err(error) => {
                self.corrupt += 1;
                tracing::error!(path = %path.display(), %error, "a segment of the spool cannot be read and is left out");
            }
        }
    }

    /// Reads a segment through; none when it holds nothing.
    fn scan(
        &mut self,
        path: &Path,
        progress: Progress,
        is_in_doubt: bool,
        visit: &mut dyn FnMut(&Message),
    ) -> io::Result<Option<Segment>> {
        let mut file = File::options().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        let header = segment::read_header(&mut file)?;
        let mut segment = Segment {
            end: length,
            gone: progress.gone.into_iter().collect(),
            left: 0,
            windows: progress.windows,
            is_in_doubt,
            is_newer: false,
        };
        match header {
            Header::Known => {}
            Header::Short => return Ok(None),
            Header::Newer(version) => {
                tracing::error!(path = %path.display(), version, "a segment of the spool was written by a later version of the agent and waits for that");
                segment.is_newer = true;
                return Ok(Some(segment));
            }
            Header::Damaged => self.report_damage(path, 0, HEADER_BYTES as u64),
        }
        let mut reader = SegmentReader::new(file.try_clone()?, HEADER_BYTES as u64, length)?;
        while let Some(piece) = reader.next_piece()? {
            match piece {
                Piece::Record { from, to, .. } if segment.gone.covers(from, to) => {}
                Piece::Record { record, .. } => {
                    segment.left += 1;
                    visit(&record.message);
                }
                Piece::Damage { from, to } if segment.gone.covers(from, to) => {}
                Piece::Damage { from, to } => {
                    segment.gone.insert(from, to);
                    self.report_damage(path, from, to);
                }
                Piece::Torn { from } => {
                    tracing::info!(path = %path.display(), at = from, "the last record of a segment is cut short and is cut off");
                    segment.end = from;
                    if let Err(error) = file.set_len(from) {
                        tracing::warn!(path = %path.display(), %error, "failed to cut it off");
                    }
                }
            }
        }
        Ok(Some(segment))
    }

    fn report_damage(&mut self, path: &Path, from: u64, to: u64) {
        self.corrupt += 1;
        tracing::error!(path = %path.display(), from, to, "a segment of the spool is damaged, what was there is lost");
    }

    /// Writes a message. `sent_after` says that it was sent or will be at once, and is stored after this position if it is.
    ///
    /// Where the spool is full the oldest segment goes, see [`Spool::take_dropped`]. Fails when the disk does not take it; then
    /// nothing of it is there.
    pub fn append(&mut self, message: &Message, sent_after: Option<Position>) -> Result<Place, SpoolError> {
        let mark = sent_after.unwrap_or(self.reached);
        let record = Record { message: message.clone(), mark, maybe_sent: sent_after.is_some() };
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        record.encode(&mut bytes);
        let place = self.append_bytes(&bytes);
        bytes.shrink_to(SCRATCH_BYTES);
        self.scratch = bytes;
        place
    }

    fn append_bytes(&mut self, bytes: &[u8]) -> Result<Place, SpoolError> {
        let needed = bytes.len() as u64 + HEADER_BYTES as u64;
        if needed > self.max_bytes {
            return Err(SpoolError::TooLarge { bytes: needed });
        }
        while self.bytes + needed > self.max_bytes && !self.segments.is_empty() {
            self.drop_oldest();
        }
        let (number, mut writer) = self.writer_for(bytes.len() as u64)?;
        match writer.append(bytes) {
            Ok(from) => {
                let place = Place { segment: number, from, to: writer.end() };
                if let Some(segment) = self.segments.get_mut(&number) {
                    segment.end = place.to;
                    segment.left += 1;
                }
                self.left += 1;
                self.bytes += bytes.len() as u64;
                self.has_grown = true;
                self.writer = Some((number, writer));
                Ok(place)
            }
            Err(error) => {
                // What may follow a record that could not be cut off would be taken for damage.
                if error.is_whole {
                    self.writer = Some((number, writer));
                }
                let path = segment::path(&self.folder, number);
                Err(SpoolError::Io { action: "write", path, source: error.source })
            }
        }
    }

    /// Takes the open segment, or a new one when there is none or it is full.
    fn writer_for(&mut self, bytes: u64) -> Result<(u64, SegmentWriter), SpoolError> {
        let is_full =
            |writer: &SegmentWriter| writer.end() > HEADER_BYTES as u64 && writer.end() + bytes > self.segment_bytes;
        if self.writer.as_ref().is_some_and(|(_, writer)| is_full(writer)) {
            self.close_segment();
        }
        if let Some(open) = self.writer.take() {
            return Ok(open);
        }
        let number = self.next;
        let path = segment::path(&self.folder, number);
        // Counted also when it fails: a file that cannot be removed again would be in the way for ever.
        self.next += 1;
        let writer = SegmentWriter::create(&path).map_err(failed("create", &path))?;
        let end = writer.end();
        let segment =
            Segment { end, gone: Ranges::default(), left: 0, windows: Vec::new(), is_in_doubt: false, is_newer: false };
        self.segments.insert(number, segment);
        self.bytes += end;
        self.has_new_segment = true;
        Ok((number, writer))
    }

    /// Nothing is appended to the open segment any more.
    fn close_segment(&mut self) {
        let Some((number, writer)) = self.writer.take() else { return };
        if self.segments.get(&number).is_none_or(Segment::is_done) {
            self.delete(number);
        } else {
            self.unsynced.push(writer.into_file());
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(number) = self.segments.keys().next().copied() {
            self.drop_segment(number);
        }
    }

    fn drop_segment(&mut self, number: u64) {
        if self.writer.as_ref().is_some_and(|(open, _)| *open == number) {
            self.writer = None;
        }
        let left = self.segments.get(&number).map_or(0, |segment| segment.left);
        let in_memory = self.held.iter().filter(|place| place.segment == number).count() as u64;
        self.dropped += left - in_memory;
        self.delete(number);
    }

    fn delete(&mut self, number: u64) {
        if let Some(segment) = self.segments.remove(&number) {
            self.bytes -= segment.end;
            self.left -= segment.left;
            self.has_progressed = true;
            self.held.retain(|place| place.segment != number);
        }
        remove_file(&segment::path(&self.folder, number));
    }

    /// The message is done with.
    pub fn finish(&mut self, place: Place) {
        self.held.remove(&place);
        let Some(segment) = self.segments.get_mut(&place.segment) else { return };
        if segment.gone.covers(place.from, place.to) {
            return;
        }
        segment.gone.insert(place.from, place.to);
        segment.left -= 1;
        self.left -= 1;
        self.has_progressed = true;
        let is_open = self.writer.as_ref().is_some_and(|(open, _)| *open == place.segment);
        if segment.is_done() && !is_open {
            self.delete(place.segment);
        }
        if self.left == 0 {
            self.close_segment();
        }
    }

    /// The message is in memory, and is not to be loaded.
    pub fn hold(&mut self, place: Place) {
        if self.contains(place) {
            self.held.insert(place);
        }
    }

    /// The message is not in memory any more. Returns whether it is on disk.
    pub fn release(&mut self, place: Place) -> bool {
        self.held.remove(&place);
        self.unread = self.unread.min((place.segment, place.from));
        self.contains(place)
    }

    fn contains(&self, place: Place) -> bool {
        self.segments.get(&place.segment).is_some_and(|segment| !segment.gone.covers(place.from, place.to))
    }

    /// How many messages are on disk alone.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.left - self.held.len() as u64
    }

    /// What to load next: the oldest messages that are on disk alone; none when there are none.
    #[must_use]
    pub fn next_load(&self) -> Option<Load> {
        if self.backlog() == 0 {
            return None;
        }
        let (first, offset) = self.unread;
        self.segments.range(first..).filter(|(_, segment)| !segment.is_newer).find_map(|(number, segment)| {
            let from = if *number == first { offset } else { 0 };
            let from = segment.gone.first_gap(from.max(HEADER_BYTES as u64));
            let path = segment::path(&self.folder, *number);
            let load = Load { segment: *number, path, from, to: segment.end, unread: self.unread };
            (from < segment.end).then_some(load)
        })
    }

    /// Takes what was read, and holds it. `reached` is a position of the stream. May yield nothing while there is more to load.
    ///
    /// Messages may be sent only once the [`Spool::snapshot`] that follows is written: it tells that they may have been.
    /// Fails when the reading did, unless that will never succeed: then what was there is lost and counted.
    pub fn take(
        &mut self,
        load: Load,
        read: io::Result<Vec<Piece>>,
        reached: Position,
    ) -> Result<Vec<Loaded>, SpoolError> {
        match read {
            Ok(pieces) => Ok(self.take_pieces(&load, pieces, reached)),
            Err(error) if is_final(&error) => {
                let path = &load.path;
                tracing::error!(path = %path.display(), %error, "a segment of the spool cannot be read and is lost");
                self.corrupt += 1;
                self.drop_segment(load.segment);
                Ok(Vec::new())
            }
            Err(source) => Err(SpoolError::Io { action: "read", path: load.path, source }),
        }
    }

    fn take_pieces(&mut self, load: &Load, pieces: Vec<Piece>, reached: Position) -> Vec<Loaded> {
        let mut loaded = Vec::new();
        let mut to = load.to;
        let mut is_damaged = false;
        for piece in pieces {
            let (from, end, record) = match piece {
                Piece::Record { from, to, record } => (from, to, Some(record)),
                Piece::Damage { from, to } => (from, to, None),
                Piece::Torn { from } => (from, load.to, None),
            };
            to = end;
            let place = Place { segment: load.segment, from, to };
            if !self.contains(place) || self.held.contains(&place) {
                continue;
            }
            let Some(segment) = self.segments.get_mut(&load.segment) else { break };
            if let Some(record) = record {
                loaded.push(Loaded { place, doubt: segment.doubt(from, &record), message: record.message });
                self.held.insert(place);
            } else {
                segment.gone.insert(from, to);
                self.report_damage(&load.path, from, to);
                is_damaged = true;
            }
        }
        // Something before it may have been released since.
        if self.unread == load.unread {
            self.unread = (load.segment, to);
        }
        if let Some(segment) = self.segments.get_mut(&load.segment).filter(|_| !loaded.is_empty()) {
            segment.windows.push(Window { from: load.from, to, after: reached });
        }
        if is_damaged {
            self.recount(load.segment);
        }
        loaded
    }

    /// Counts anew what is left of a segment that has been damaged since it was written.
    fn recount(&mut self, number: u64) {
        let path = segment::path(&self.folder, number);
        let Some(segment) = self.segments.get_mut(&number) else { return };
        let count = || {
            let mut reader = SegmentReader::new(File::open(&path)?, HEADER_BYTES as u64, segment.end)?;
            let mut count = 0;
            while let Some(piece) = reader.next_piece()? {
                let is_left = |from, to| !segment.gone.covers(from, to);
                count += u64::from(matches!(piece, Piece::Record { from, to, .. } if is_left(from, to)));
            }
            io::Result::Ok(count)
        };
        let left = count().unwrap_or(0);
        // What is in memory is sent from there, even if the disk has lost it.
        self.held.retain(|place| place.segment != number || !segment.gone.covers(place.from, place.to));
        self.left = self.left - segment.left + left;
        segment.left = left;
        self.has_progressed = true;
    }

    /// A position that the stream is known to have reached.
    #[must_use]
    pub fn reached(&self) -> Position {
        self.reached
    }

    /// Takes note of a position of the stream.
    pub fn reach(&mut self, position: Position) {
        self.reached = self.reached.max(position);
    }

    /// How many messages had to go for newer ones since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Figures of now.
    #[must_use]
    pub fn stats(&self) -> SpoolStats {
        let segments = self.segments.len() as u64;
        SpoolStats { batches: self.left, bytes: self.bytes, segments, corrupt: self.corrupt }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How far the spool is drained, to be written as its cursor.
    pub fn snapshot(&mut self) -> Cursor {
        self.has_progressed = false;
        let segments = self.segments.iter_mut().map(|(number, segment)| (*number, segment.progress())).collect();
        Cursor { next: self.next, reached: self.reached, segments }
    }

    /// Says that the last snapshot could not be written.
    pub fn snapshot_failed(&mut self) {
        self.has_progressed = true;
    }

    /// Whether the cursor on disk tells less than is known.
    #[must_use]
    pub fn has_progressed(&self) -> bool {
        self.has_progressed
    }

    /// Whether something is to be synced or the cursor to be written.
    #[must_use]
    pub fn needs_keeping(&self) -> bool {
        self.has_progressed || self.has_grown || self.has_new_segment || !self.unsynced.is_empty()
    }

    /// What was written since the last call and may not outlast a power cut.
    pub fn take_unsynced(&mut self) -> Unsynced {
        let mut files = std::mem::take(&mut self.unsynced);
        if std::mem::take(&mut self.has_grown) {
            files.extend(self.writer.as_ref().and_then(|(_, writer)| writer.handle().ok()));
        }
        let folder = std::mem::take(&mut self.has_new_segment).then(|| self.folder.clone());
        Unsynced { files, folder }
    }
}

/// What may not outlast a power cut.
#[derive(Debug)]
pub struct Unsynced {
    files: Vec<File>,
    folder: Option<PathBuf>,
}

impl Unsynced {
    /// Makes it outlast a power cut. Blocks. Fails when the disk does; whether it is there then is not known.
    pub fn sync(self) -> io::Result<()> {
        for file in self.files {
            file.sync_data()?;
        }
        self.folder.map_or(Ok(()), |folder| cursor::sync_folder(&folder))
    }
}

/// Whether reading will fail for ever: the file is gone, or the disk cannot read it.
fn is_final(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "failed to delete a segment of the spool");
    }
}

#[cfg(test)]
mod tests;
