//! Makes a consistent copy of a lake while ingest and maintenance go on.
//!
//! Layout of a backup, which is an embedded lake of its own and which any DuckDB client can attach read-only:
//!
//! ```text
//! catalog.sqlite    the catalog as of one snapshot, also where the lake's own is in PostgreSQL
//! data/             the Parquet files that this catalog names, also where the lake's own are on S3
//! manifest.json     every file with its size and SHA-256, see `Manifest`; written last
//! lock              held by the backup or restore that is under way
//! ```
//!
//! The catalog is copied first, in one transaction, and rid of its history. Then come the files that it names. They never change, so
//! that those which an earlier backup into the same folder has left are taken as they are, and on the same file system a hard link
//! is enough. Maintenance deletes a file an hour after it was merged into another at the earliest; where the copying takes longer and
//! one has gone, it begins anew with the catalog of that time, and keeps the files that it has.
//!
//! Invariant: a folder without a manifest is no backup. Where there was one before, it stays whole until the new one is: the new
//! catalog and manifest are written beside the old ones, then the catalog is renamed, then the manifest. When that is cut off in
//! between, the manifest that matches the catalog counts, and the next backup or restore finishes it.

mod catalog;
mod files;
mod manifest;
mod restore;
mod store;

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use manifest::{Entry, Manifest};
pub use restore::{RestoreReport, restore};

use crate::{Access, Lake, LakeConfig, LakeError};
use files::{Placed, Placing};
use store::DataStore;

/// The catalog in a backup.
const CATALOG: &str = "catalog.sqlite";
/// The folder of the Parquet files in a backup.
const DATA: &str = "data";

/// Why there is no backup, or why it was not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The lake failed.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A file or folder could not be used.
    #[error("failed to {action} `{path}`")]
    File {
        /// What was being done.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process works on the folder.
    #[error("`{folder}` is in use by another backup or restore: wait for its end")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder holds something else.
    #[error("`{folder}` is neither empty nor a backup: name another folder")]
    Foreign {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder holds no whole backup.
    #[error(
        "`{folder}` holds no finished backup, since it has no `manifest.json`: make the backup again, or name another folder"
    )]
    Unfinished {
        /// The folder.
        folder: PathBuf,
    },
    /// The manifest can't be read.
    #[error("the manifest of `{folder}` is damaged: {problem}")]
    Manifest {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Files of the backup are missing or not what they were.
    #[error("the backup is damaged and was not restored:{}", lines(.problems))]
    Damaged {
        /// One line a file.
        problems: Vec<String>,
    },
    /// A file of the lake is not what its catalog says.
    #[error("`{path}` has {found} bytes where the catalog says {expected}: the lake itself is damaged")]
    Size {
        /// The file.
        path: String,
        /// Its size in bytes.
        found: u64,
        /// What the catalog says.
        expected: u64,
    },
    /// A file lies outside of the lake's data path.
    #[error("`{path}` was added to the lake from outside of its data path and can't be part of a backup")]
    Outside {
        /// The file.
        path: String,
    },
    /// Files vanished each time.
    #[error(
        "`{path}` was deleted while the lake was copied, {attempts} times in a row: pause maintenance, or use a faster disk"
    )]
    Vanished {
        /// The last such file.
        path: String,
        /// How often the copying began.
        attempts: u32,
    },
    /// The disk is too small.
    #[error("`{path}` has {free} bytes free where {needed} are needed: make room, or name another folder")]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// There is a lake already.
    #[error("there is a lake at `{place}` already: {advice}")]
    Exists {
        /// Where.
        place: String,
        /// What to do.
        advice: &'static str,
    },
    /// The one who watches wants no more.
    #[error("interrupted: {left}")]
    Interrupted {
        /// What that has left behind.
        left: &'static str,
    },
}

fn lines(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// How far a backup or restore is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// What is being done, such as `copying`.
    pub doing: &'static str,
    /// Files done.
    pub files: usize,
    /// Files in all; 0 until known.
    pub total_files: usize,
    /// Bytes done.
    pub bytes: u64,
    /// Bytes in all; 0 until known.
    pub total_bytes: u64,
}

/// Told of each step; may stop the work.
pub type Observer<'a> = &'a mut dyn FnMut(&Step) -> ControlFlow<()>;

/// What a backup holds, and what was new in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupReport {
    /// The snapshot of the lake.
    pub snapshot: u64,
    /// Files in it, besides the catalog.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that an earlier backup had left.
    pub kept: usize,
    /// Files that are hard links to the lake's own.
    pub linked: usize,
    /// Files that an earlier backup had and this one has not.
    pub removed: usize,
    /// How often the copying began, because files had gone.
    pub attempts: u32,
    /// How long it took.
    pub duration: Duration,
}

/// Copies the lake into `folder`, which is created where it is missing and brought up to date where it holds a backup.
///
/// Blocks. Fails when the lake or the folder can't be used, when the disk is too small, and when the observer breaks it off; an
/// earlier backup in the folder then stays as it was.
pub fn backup(config: &LakeConfig, folder: &Path, observe: Observer<'_>) -> Result<BackupReport, BackupError> {
    const ATTEMPTS: u32 = 5;
    let started = Instant::now();
    let lake = Lake::open(config, Access::Read)?;
    let folder = &absolute(folder)?;
    let _lock = prepare(folder)?;
    let before = Manifest::load(folder).ok();
    let source = DataStore::of(config, &lake);
    let mut attempts = 1;
    loop {
        let copied = catalog::copy_out(&lake, config, folder)?;
        let mut placing = Placing::new(&source, folder, before.as_ref(), &mut *observe);
        match placing.all(&copied.files)? {
            Placed::Vanished { path } if attempts >= ATTEMPTS => {
                return Err(BackupError::Vanished { path, attempts });
            }
            Placed::Vanished { .. } => attempts += 1,
            Placed::All { entries, kept, linked } => {
                let (files, bytes) = (entries.len(), entries.iter().map(|entry| entry.bytes).sum());
                Manifest::new(&folder.join(manifest::NEW_CATALOG), copied.snapshot, entries)?.publish(folder)?;
                let removed = remove_others(folder)?;
                let (snapshot, duration) = (copied.snapshot, started.elapsed());
                return Ok(BackupReport { snapshot, files, bytes, kept, linked, removed, attempts, duration });
            }
        }
    }
}

/// Makes the folder ready for a backup, and locks it until the file is dropped.
fn prepare(folder: &Path) -> Result<File, BackupError> {
    let is_foreign = !Manifest::is_begun(folder)
        && fs::read_dir(folder)
            .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|e| e.file_name() != "lock")));
    if is_foreign {
        return Err(BackupError::Foreign { folder: folder.to_owned() });
    }
    create(folder)?;
    let lock = lock(folder)?;
    Manifest::mark_begun(folder)?;
    create(&folder.join(DATA))?;
    Manifest::finish(folder)?;
    Ok(lock)
}

/// Locks a folder that holds a backup. The lock goes with the process, however it ends.
fn lock(folder: &Path) -> Result<File, BackupError> {
    let path = folder.join("lock");
    let failed = |source| BackupError::File { action: "lock", path: path.clone(), source };
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BackupError::InUse { folder: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Removes the files that the manifest does not name.
fn remove_others(folder: &Path) -> Result<usize, BackupError> {
    let named: BTreeSet<PathBuf> = Manifest::load(folder)?.files.iter().map(|entry| folder.join(&entry.path)).collect();
    let mut removed = 0;
    let mut folders = vec![folder.join(DATA)];
    while let Some(next) = folders.pop() {
        let failed = |source| BackupError::File { action: "list", path: next.clone(), source };
        for entry in fs::read_dir(&next).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if !named.contains(&path) {
                fs::remove_file(&path).map_err(|source| BackupError::File { action: "remove", path, source })?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

fn create(folder: &Path) -> Result<(), BackupError> {
    fs::create_dir_all(folder).map_err(|source| BackupError::File { action: "create", path: folder.to_owned(), source })
}

fn absolute(path: &Path) -> Result<PathBuf, BackupError> {
    std::path::absolute(path).map_err(|source| BackupError::File { action: "find", path: path.to_owned(), source })
}
