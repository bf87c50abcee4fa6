//! What a backup holds.
//!
//! `manifest.json` is one JSON object: `version` (1), `created_ms` (Unix ms), `snapshot` (of the lake), `catalog` and `files`, each file
//! with `path` (from the backup's folder, with `/`), `bytes` and `sha256` (lower-case hexadecimal). Unknown keys are ignored.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use plimsoll_nats::now_ms;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{BackupError, CATALOG, lines};

const VERSION: u32 = 1;
const NAME: &str = "manifest.json";
/// A manifest that is about to replace the other.
const NEW: &str = "manifest.json.new";
/// The catalog that it belongs to, until it has replaced the other.
pub(super) const NEW_CATALOG: &str = "catalog.sqlite.new";
/// Shows that the folder is for backups, though none may be finished yet.
const MARK: &str = "README.txt";
const MARK_TEXT: &str = "\
A backup of a Plimsoll lake. It is whole where there is a `manifest.json`. Load it with `plimsoll restore <this folder>`,
or read it with DuckDB: ATTACH 'ducklake:sqlite:<this folder>/catalog.sqlite' AS lake (DATA_PATH '<this folder>/data',
OVERRIDE_DATA_PATH true, READ_ONLY).
";

/// Every file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// When the backup was finished, Unix ms.
    pub created_ms: i64,
    /// The snapshot of the lake.
    pub snapshot: u64,
    /// The catalog.
    pub catalog: Entry,
    /// The Parquet files.
    pub files: Vec<Entry>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The path from the backup's folder.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// The manifest of a catalog, wherever it waits, and of these files.
    pub(super) fn new(catalog: &Path, snapshot: u64, files: Vec<Entry>) -> Result<Self, BackupError> {
        let catalog = Entry::of(catalog, CATALOG, |_| Ok(()))?;
        Ok(Self { version: VERSION, created_ms: now_ms(), snapshot, catalog, files })
    }

    /// The manifest of a finished backup.
    pub fn load(folder: &Path) -> Result<Self, BackupError> {
        match read(folder, NAME)? {
            Some(manifest) => Ok(manifest),
            None => Err(BackupError::Unfinished { folder: folder.to_owned() }),
        }
    }

    /// Whether a backup was ever begun in the folder.
    pub(super) fn is_begun(folder: &Path) -> bool {
        [NAME, NEW].iter().any(|name| folder.join(name).exists())
            || fs::read_to_string(folder.join(MARK)).is_ok_and(|text| text == MARK_TEXT)
    }

    /// Shows from now on that the folder is for backups.
    pub(super) fn mark_begun(folder: &Path) -> Result<(), BackupError> {
        if Self::is_begun(folder) {
            return Ok(());
        }
        let path = folder.join(MARK);
        fs::write(&path, MARK_TEXT).map_err(|source| BackupError::File { action: "write", path, source })
    }

    /// Makes this and the catalog that waits the backup of the folder.
    pub(super) fn publish(&self, folder: &Path) -> Result<(), BackupError> {
        let path = folder.join(NEW);
        let text = serde_json::to_vec_pretty(self).expect("texts and numbers are JSON");
        let written = File::create(&path).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        written.map_err(|source| BackupError::File { action: "write", path, source })?;
        rename(folder, NEW_CATALOG, CATALOG)?;
        rename(folder, NEW, NAME)
    }

    /// Finishes what was cut off in [`Manifest::publish`], and clears away what a backup has left that was cut off before.
    pub(super) fn finish(folder: &Path) -> Result<(), BackupError> {
        if let Ok(Some(new)) = read(folder, NEW) {
            let present = Entry::of(&folder.join(CATALOG), CATALOG, |_| Ok(()));
            if present.is_ok_and(|present| present == new.catalog) {
                return rename(folder, NEW, NAME);
            }
        }
        for name in [NEW, NEW_CATALOG] {
            remove(&folder.join(name))?;
        }
        Ok(())
    }

    /// All files, the catalog first.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        std::iter::once(&self.catalog).chain(&self.files)
    }

    /// What is wrong with the entries themselves: a path must stay within the folder.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.version != VERSION {
            problems.push(format!(
                "version {} where {VERSION} was expected: it was made by a newer Plimsoll",
                self.version
            ));
        }
        let stays =
            |path: &str| !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
        problems.extend(
            self.entries().filter(|e| !stays(&e.path)).map(|e| format!("`{}` is not a path within it", e.path)),
        );
        problems
    }
}

impl Entry {
    /// Reads a file; `progress` is told of each part read, in bytes.
    pub(super) fn of(
        file: &Path,
        path: &str,
        mut progress: impl FnMut(u64) -> Result<(), BackupError>,
    ) -> Result<Self, BackupError> {
        let failed = |source| BackupError::File { action: "read", path: file.to_owned(), source };
        let mut reader = File::open(file).map_err(failed)?;
        let (mut digest, mut bytes, mut part) = (Sha256::new(), 0, vec![0; 1024 * 1024]);
        loop {
            let read = reader.read(&mut part).map_err(failed)?;
            if read == 0 {
                break;
            }
            digest.update(&part[..read]);
            bytes += read as u64;
            progress(read as u64)?;
        }
        let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { path: path.to_owned(), bytes, sha256 })
    }
}

fn read(folder: &Path, name: &str) -> Result<Option<Manifest>, BackupError> {
    let path = folder.join(name);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(BackupError::File { action: "read", path, source }),
    };
    let damaged = |problem| BackupError::Manifest { folder: folder.to_owned(), problem };
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    let problems = manifest.problems();
    if problems.is_empty() { Ok(Some(manifest)) } else { Err(damaged(lines(&problems))) }
}

/// Renames within the folder, for good.
fn rename(folder: &Path, from: &str, to: &str) -> Result<(), BackupError> {
    let path = folder.join(to);
    fs::rename(folder.join(from), &path)
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(|source| BackupError::File { action: "write", path, source })
}

fn remove(path: &PathBuf) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(BackupError::File { action: "remove", path: path.clone(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn folder_with(catalog: &[u8]) -> (TempDir, Manifest) {
        let dir = TempDir::new().expect("a folder");
        let path = dir.path().join(NEW_CATALOG);
        fs::write(&path, catalog).expect("written");
        let manifest = Manifest::new(&path, 7, Vec::new()).expect("reads");
        (dir, manifest)
    }

    #[test]
    fn a_manifest_tells_sizes_and_sums_of_its_files() {
        let (dir, manifest) = folder_with(b"abc");
        manifest.publish(dir.path()).expect("writes");
        assert_eq!(Manifest::load(dir.path()).expect("reads"), manifest);
        // The test vector of FIPS 180-2.
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((manifest.catalog.bytes, manifest.catalog.sha256.as_str()), (3, sum));
    }

    #[test]
    fn what_was_cut_off_between_the_two_renames_is_finished_and_what_was_cut_off_before_is_not() {
        let (dir, old) = folder_with(b"old");
        old.publish(dir.path()).expect("writes");
        let write_new = |catalog: &str| {
            let catalog = dir.path().join(catalog);
            fs::write(&catalog, b"new").expect("written");
            let new = Manifest::new(&catalog, 8, Vec::new()).expect("reads");
            fs::write(dir.path().join(NEW), serde_json::to_vec(&new).expect("JSON")).expect("written");
        };
        write_new(NEW_CATALOG);
        Manifest::finish(dir.path()).expect("clears");
        assert_eq!(Manifest::load(dir.path()).expect("reads"), old);
        assert!(!dir.path().join(NEW_CATALOG).exists());
        write_new(CATALOG);
        Manifest::finish(dir.path()).expect("finishes");
        assert_eq!(Manifest::load(dir.path()).expect("reads").snapshot, 8);
    }

    #[test]
    fn a_manifest_that_leads_elsewhere_or_is_cut_off_is_refused() {
        let (dir, manifest) = folder_with(b"abc");
        for path in ["../x", "/etc/passwd", "data/../../x", ""] {
            let entry = Entry { path: path.to_owned(), bytes: 0, sha256: String::new() };
            let bad = Manifest { files: vec![entry], ..manifest.clone() };
            fs::write(dir.path().join(NAME), serde_json::to_vec(&bad).expect("JSON")).expect("written");
            let error = Manifest::load(dir.path()).expect_err(path).to_string();
            assert!(error.contains("not a path within it"), "{error}");
        }
        let whole = serde_json::to_vec(&manifest).expect("JSON");
        fs::write(dir.path().join(NAME), &whole[..whole.len() / 2]).expect("written");
        assert!(matches!(Manifest::load(dir.path()), Err(BackupError::Manifest { .. })));
        let newer = Manifest { version: 2, ..manifest };
        fs::write(dir.path().join(NAME), serde_json::to_vec(&newer).expect("JSON")).expect("written");
        assert!(Manifest::load(dir.path()).expect_err("newer").to_string().contains("newer Plimsoll"));
    }
}
