//! The folder that holds everything `plimsoll up` keeps, for one process at a time.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

/// The data folder, locked until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why the data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It can't be created or written.
    #[error("the data directory `{path}` is not writable: choose another with --data-dir")]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process uses it.
    #[error(
        "the data directory `{path}` is in use by another `plimsoll up`: stop that one, or choose another with --data-dir"
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

impl DataDir {
    /// Creates the folder where it is missing and locks it. The lock goes with the process, however it ends.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let not_writable = |source| DataDirError::NotWritable { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(not_writable)?;
        let path = path.canonicalize().map_err(not_writable)?;
        let lock = File::create(path.join("lock")).map_err(not_writable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(not_writable(source)),
        }
    }

    /// Where the broker keeps its streams.
    pub fn broker_store(&self) -> PathBuf {
        self.path.join("nats/store")
    }

    /// Where the broker's configuration and log are.
    pub fn broker_run(&self) -> PathBuf {
        self.path.join("nats/run")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let path = dir.path().join("new/data");
        let first = DataDir::open(&path).expect("opens");
        let second = DataDir::open(&path).expect_err("is in use").to_string();
        assert!(second.contains("in use") && second.contains("--data-dir"), "{second}");
        drop(first);
        DataDir::open(&path).expect("opens again");
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let error = DataDir::open(&file.path().join("data")).expect_err("not a folder").to_string();
        assert!(error.contains("not writable"), "{error}");
    }
}
