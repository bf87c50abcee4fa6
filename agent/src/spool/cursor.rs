//! The file `cursor`: how far the spool is drained. The layout is told in [`crate::spool`].

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use plimsoll_nats::Position;
use serde::{Deserialize, Serialize};

const FILE: &str = "cursor";
const TEMPORARY: &str = "cursor.new";
/// The first word of the file; the version follows, then the checksum of the lines after this one.
const TITLE: &str = "plimsoll-spool-cursor 1";

/// Bytes of a segment whose records may have been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Where the first record begins.
    pub from: u64,
    /// Where the last record ends.
    pub to: u64,
    /// What is stored of them is so after this position.
    pub after: Position,
}

/// What is known of one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The bytes that are done with, as `[from, to)`.
    pub gone: Vec<(u64, u64)>,
    /// What was sent when the spool was drained.
    pub windows: Vec<Window>,
}

/// How far the spool is drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Segments from this number on are not known yet. Those before it that are not listed are done with.
    pub next: u64,
    /// A position that the stream had reached.
    pub reached: Position,
    /// What is known, by segment.
    pub segments: BTreeMap<u64, Progress>,
}

/// Reads the cursor; none when there is none or it is damaged.
pub fn read(folder: &Path) -> io::Result<Option<Cursor>> {
    let text = match fs::read(folder.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let cursor = parse(&text);
    if cursor.is_none() {
        tracing::error!(folder = %folder.display(), "the spool's cursor is damaged, the stream is asked about everything in the spool");
    }
    Ok(cursor)
}

fn parse(text: &[u8]) -> Option<Cursor> {
    let text = std::str::from_utf8(text).ok()?;
    let (title, body) = text.split_once('\n')?;
    if title != title_of(body) {
        return None;
    }
    serde_json::from_str(body).ok()
}

fn title_of(body: &str) -> String {
    format!("{TITLE} {:08x}", crc32fast::hash(body.as_bytes()))
}

/// Replaces the cursor. Once this returns it outlasts a power cut; where it fails the one before may still stand.
pub fn write(folder: &Path, cursor: &Cursor) -> io::Result<()> {
    let body = serde_json::to_string(cursor).map_err(io::Error::other)?;
    let temporary = folder.join(TEMPORARY);
    let mut file = File::create(&temporary)?;
    file.write_all(format!("{}\n{body}", title_of(&body)).as_bytes())?;
    file.sync_data()?;
    fs::rename(&temporary, folder.join(FILE))?;
    sync_folder(folder)
}

/// Removes the cursor, which puts everything in the spool in doubt. Needs no room on the disk.
pub fn remove(folder: &Path) -> io::Result<()> {
    // What was half written takes room that may be missed.
    let _ = fs::remove_file(folder.join(TEMPORARY));
    match fs::remove_file(folder.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(folder),
    }
}

/// Makes names in a folder outlast a power cut.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{Incarnation, Sequence};

    use super::*;

    fn cursor() -> Cursor {
        let after = Position { incarnation: Incarnation(-1), sequence: Sequence(7) };
        let progress = Progress { gone: vec![(16, 90)], windows: vec![Window { from: 90, to: 200, after }] };
        Cursor { next: 4, reached: after, segments: BTreeMap::from([(3, progress)]) }
    }

    /// The layout of version 1: it must never change.
    #[test]
    fn the_layout_is_the_documented_one() {
        let folder = tempfile::TempDir::new().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        write(folder.path(), &cursor()).unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(cursor()));
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let body = r#"{"next":4,"reached":{"incarnation":-1,"sequence":7},"segments":{"3":{"gone":[[16,90]],"windows":[{"from":90,"to":200,"after":{"incarnation":-1,"sequence":7}}]}}}"#;
        assert_eq!(text, format!("plimsoll-spool-cursor 1 {:08x}\n{body}", crc32fast::hash(body.as_bytes())));
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
    }

    #[test]
    fn a_damaged_cursor_is_none() {
        let folder = tempfile::TempDir::new().unwrap();
        write(folder.path(), &cursor()).unwrap();
        let whole = fs::read(folder.path().join(FILE)).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(parse(&damaged), None, "{at}");
            assert_eq!(parse(&whole[..at]), None, "{at}");
        }
    }
}
