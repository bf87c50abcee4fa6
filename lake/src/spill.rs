//! The folder that one DuckDB spills to.

use std::path::{Path, PathBuf};

/// A folder of one DuckDB's own: two that spill into the same one destroy each other's files. DuckDB creates it when it first
/// spills; dropping this removes it.
#[derive(Debug)]
pub(crate) struct SpillFolder(PathBuf);

impl SpillFolder {
    /// A folder that no other DuckDB has, also where containers share the folder of temporary files and their process ids.
    pub(crate) fn unique() -> Self {
        let (process, number) = (std::process::id(), rand::random::<u64>());
        Self(std::env::temp_dir().join(format!("plimsoll-duckdb-{process}-{number:016x}")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SpillFolder {
    fn drop(&mut self) {
        // Fails when nothing was spilled, or DuckDB has removed it already.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
