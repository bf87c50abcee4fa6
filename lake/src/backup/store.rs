//! Where a lake's Parquet files are: in a folder, or in an S3 store that DuckDB reaches.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{BackupError, absolute, create};
use crate::{Lake, LakeConfig, error::Context, sql::literal};

/// The files of a lake.
pub(super) struct DataStore<'a> {
    lake: &'a Lake,
    root: String,
}

/// How a file came to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Linked,
    Copied,
}

impl<'a> DataStore<'a> {
    /// The files of the lake of this configuration, whose credentials `lake` has.
    pub(super) fn of(config: &LakeConfig, lake: &'a Lake) -> Self {
        Self { lake, root: config.data_path.clone() }
    }

    /// The folder; none in an S3 store.
    pub(super) fn folder(&self) -> Option<&Path> {
        (!self.root.contains("://")).then(|| Path::new(&self.root))
    }

    /// Where the files are, as a catalog names it.
    pub(super) fn absolute_root(config: &LakeConfig) -> Result<String, BackupError> {
        if config.data_path.contains("://") {
            return Ok(config.data_path.clone());
        }
        Ok(absolute(Path::new(&config.data_path))?.display().to_string())
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.root.trim_end_matches('/'))
    }

    /// Brings a file of the store to a place in a local folder, which then has it as a whole or not at all. Returns none when the
    /// store does not have it.
    pub(super) fn fetch(&self, path: &str, to: &Path) -> Result<Option<Way>, BackupError> {
        let part = part(to)?;
        let way = match self.folder() {
            Some(folder) => match place(&folder.join(path), &part) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                placed => {
                    placed.map_err(|source| BackupError::File { action: "copy", path: folder.join(path), source })?
                }
            },
            None => match self.copy(&self.url(path), &part.to_string_lossy()) {
                Err(error) if is_missing(&error) => return Ok(None),
                copied => copied.map(|()| Way::Copied)?,
            },
        };
        fs::rename(&part, to).map_err(|source| BackupError::File { action: "write", path: to.to_owned(), source })?;
        Ok(Some(way))
    }

    /// Brings a local file into the store.
    pub(super) fn put(&self, from: &Path, path: &str) -> Result<Way, BackupError> {
        match self.folder() {
            Some(folder) => {
                let to = folder.join(path);
                let part = part(&to)?;
                place(from, &part)
                    .and_then(|way| fs::rename(&part, &to).map(|()| way))
                    .map_err(|source| BackupError::File { action: "write", path: to, source })
            }
            None => Ok(self.copy(&from.to_string_lossy(), &self.url(path)).map(|()| Way::Copied)?),
        }
    }

    /// Whether the store has any file.
    pub(super) fn is_empty(&self) -> Result<bool, BackupError> {
        match self.folder() {
            Some(folder) => Ok(fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())),
            None => {
                let sql = format!("SELECT count(*) FROM (FROM glob({}) LIMIT 1)", literal(&self.url("**")));
                let found: i64 = self
                    .lake
                    .connection
                    .query_row(&sql, [], |row| row.get(0))
                    .context("list the files in the store")?;
                Ok(found == 0)
            }
        }
    }

    fn copy(&self, from: &str, to: &str) -> Result<(), crate::LakeError> {
        let (from, to) = (literal(from), literal(to));
        let sql = format!("COPY (SELECT content FROM read_blob({from})) TO {to} (FORMAT blob)");
        self.lake.connection.execute_batch(&sql).context("copy a file from or to the store")
    }
}

/// Where a file is made before it takes its place, in a folder that exists.
fn part(to: &Path) -> Result<PathBuf, BackupError> {
    let folder = to.parent().unwrap_or(to);
    create(folder)?;
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    Ok(to.with_file_name(name))
}

/// Links a file, or copies it where that is not possible.
fn place(from: &Path, to: &Path) -> io::Result<Way> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::hard_link(from, to) {
        Ok(()) => Ok(Way::Linked),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        // Another file system, or one that has no links or too many.
        Err(_) => {
            fs::copy(from, to)?;
            fs::File::open(to)?.sync_all()?;
            Ok(Way::Copied)
        }
    }
}

/// DuckDB tells only by the text that a file is not there.
fn is_missing(error: &crate::LakeError) -> bool {
    use std::error::Error;
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    ["HTTP 404", "No files found"].iter().any(|mark| text.contains(mark))
}
