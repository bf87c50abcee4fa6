//! Errors of the lake, and which of them pass.

use std::path::PathBuf;

use crate::redact::redacted;

/// Why the lake did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// A DuckDB extension is not where it should be.
    #[error(
        "DuckDB extension `{name}` was not found: run `make tools`, or name its folder in PLIMSOLL_DUCKDB_EXTENSIONS"
    )]
    ExtensionMissing {
        /// The extension.
        name: &'static str,
    },
    /// A folder or secret's file could not be used.
    #[error("failed to use `{path}`")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another transaction was faster, or holds the catalog.
    #[error("another writer was faster")]
    Conflict(#[source] duckdb::Error),
    /// The query took longer than allowed or was cancelled.
    #[error("the query was interrupted")]
    Interrupted,
    /// The catalog has not been created yet.
    #[error("the lake does not exist yet: it is created when ingest first starts")]
    NotCreated,
    /// A stage of work failed.
    #[error("failed to {action}")]
    Database {
        /// What was being done.
        action: &'static str,
        /// Why.
        source: duckdb::Error,
    },
    /// The rows could not be laid out as columns.
    #[error("failed to build columns for `{table}`")]
    Columns {
        /// The measurement.
        table: String,
        /// Why.
        source: duckdb::arrow::error::ArrowError,
    },
    /// The lake has taken other rows than it was given; nothing is written.
    #[error("`{table}` took {inserted} rows of {offered}")]
    RowsMissing {
        /// The measurement.
        table: String,
        /// How many it was given.
        offered: usize,
        /// How many it took.
        inserted: usize,
    },
    /// A rollup's table and its row in the table of rollups are not both there.
    #[error(
        "the rollup `{tier}` of `{measurement}` was changed by hand: drop its tables `{measurement}_1m` and `{measurement}_1h` and delete \
         its rows from `plimsoll.rollups`, and it is made anew"
    )]
    RollupChanged {
        /// The measurement.
        measurement: String,
        /// The tier's label.
        tier: &'static str,
    },
    /// A part of the stream is to be replayed into a lake that ingest may be about to fill for the first time.
    #[error(
        "nothing was ever ingested into this lake, and ingest would leave out the other hosts and measurements: wait until it has \
         committed for the first time, or name a lake for these alone with --into"
    )]
    NotIngested,
    /// The row of a replay that is under way is gone.
    #[error("the lake does not know the replay that is under way: its table `plimsoll.replays` was changed by hand")]
    ReplayMissing,
    /// A file that seems to be left over is part of the lake.
    #[error("`{path}` seems to be left over, but the catalog names it: no left-over file was deleted")]
    NoOrphan {
        /// The file.
        path: String,
    },
    /// The catalog holds a time that can't be.
    #[error("the catalog holds the time {unix_us} (Unix µs), which is out of range")]
    BadTime {
        /// The time in Unix µs.
        unix_us: i64,
    },
    /// The table of positions lacks a partition's row.
    #[error("the lake has no position for partition {partition}: its catalog was changed by hand")]
    PositionMissing {
        /// The partition.
        partition: u16,
    },
    /// Other rows of the table of positions have moved than should have; nothing is written.
    #[error("{moved} positions moved where {expected} should have: the lake's catalog was changed by hand")]
    PositionsMissing {
        /// How many have moved.
        moved: usize,
        /// How many should have.
        expected: usize,
    },
}

impl LakeError {
    /// Whether trying the whole transaction again from a fresh read can succeed at once.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }

    /// Whether a file of the lake is gone, as is one that was merged away while a query lasted longer than such files are kept.
    pub(crate) fn is_missing_file(&self) -> bool {
        const MARKS: [&str; 3] = ["No such file", "No files found that match", "404"];
        let Self::Database { source, .. } = self else { return false };
        let text = source.to_string();
        ["IO Error", "HTTP Error"].iter().any(|kind| text.starts_with(kind))
            && text.contains(".parquet")
            && MARKS.iter().any(|mark| text.contains(mark))
    }

    /// Whether this came of others that create the catalog at the same time, so that attaching it anew can succeed at once.
    pub(crate) fn is_creation_race(&self) -> bool {
        const MARKS: [&str; 3] = ["duplicate key value", "already exists", "Current transaction is aborted"];
        match self {
            Self::Conflict(_) => true,
            Self::Database { source, .. } => {
                let text = source.to_string();
                MARKS.iter().any(|mark| text.contains(mark))
            }
            _ => false,
        }
    }

    /// Whether DuckDB's memory did not suffice.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Database { source, .. } if source.to_string().starts_with("Out of Memory Error"))
    }

    /// What DuckDB or DuckLake says where it refuses a statement for what the statement is, so that trying again can't help.
    pub(crate) fn refusal(&self) -> Option<String> {
        // Not among them: `IO Error` and others that come and go with the catalog.
        const KINDS: [&str; 4] = ["Binder Error", "Catalog Error", "Not implemented Error", "Parser Error"];
        // A statement fails as by its binder, too, when DuckLake looks in vain for what it is about: in a catalog that is away. No name
        // that an error may quote looks like these, since names have neither capitals nor spaces.
        const AWAY: [&str; 3] = ["from DuckLake", "Failed to execute", "Failed to prepare"];
        let Self::Database { source, .. } = self else { return None };
        let text = source.to_string();
        if AWAY.iter().any(|mark| text.contains(mark)) {
            return None;
        }
        KINDS.iter().any(|kind| text.starts_with(kind)).then(|| text.lines().next().unwrap_or_default().to_owned())
    }
}

/// Gives database errors their context without the secrets in their texts, and tells conflicts apart.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str) -> Result<T, LakeError>;
}

impl<T> Context<T> for Result<T, duckdb::Error> {
    fn context(self, action: &'static str) -> Result<T, LakeError> {
        self.map_err(|source| classify(action, redacted(source)))
    }
}

/// What errors say that come of another writer. The last is said by DuckLake's own retry, where that meets a table that is just being made.
const CONFLICTS: [&str; 6] = [
    "database is locked",
    "onflict",
    "could not serialize",
    "concurrent",
    "maximum retry count",
    "does not have any columns",
];

/// DuckDB tells a conflict only by its text.
fn classify(action: &'static str, source: duckdb::Error) -> LakeError {
    let text = source.to_string();
    if text.contains("INTERRUPT") || text.contains("Interrupted") {
        LakeError::Interrupted
    } else if CONFLICTS.iter().any(|mark| text.contains(mark)) {
        LakeError::Conflict(source)
    } else {
        LakeError::Database { action, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_that_goes_away_is_no_refusal() {
        let refusal = |text: &str| {
            let source = duckdb::Error::DuckDBFailure(duckdb::ffi::Error::new(1), Some(text.to_owned()));
            Err::<(), _>(source).context("create a column").expect_err("an error").refusal()
        };
        assert!(refusal("Binder Error: Column with name \"connection\" is reserved").is_some());
        for away in [
            "Binder Error: Failed to get data file list from DuckLake: Failed to prepare query \"SELECT 1\": server closed the connection unexpectedly",
            "Binder Error: Failed to execute query \"BEGIN\": no connection to the server",
            "IO Error: Unable to connect to Postgres",
        ] {
            assert_eq!(refusal(away), None);
        }
    }
}
