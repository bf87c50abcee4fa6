//! Why an import ends.

use std::path::PathBuf;

use plimsoll_nats::Name;

use super::BadRow;
use crate::{LakeError, retry::AsLakeError, schema::AdmitError};

/// Why rows of a file are not in the lake.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The lake failed.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The file can't be read as what it should be.
    #[error("failed to read `{file}`")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: LakeError,
    },
    /// The file's columns can't be told apart, or can't be stored.
    #[error("`{file}`: {problem}")]
    Columns {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A line is not one of the file's format.
    #[error("`{file}`, line {line}: {problem}")]
    BadLine {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A row can't be stored.
    #[error("`{file}`, {row}")]
    BadRow {
        /// The file.
        file: PathBuf,
        /// The row.
        row: Box<BadRow>,
    },
    /// The lake has no place for a measurement or its columns.
    #[error("measurement `{measurement}` can't be stored")]
    Refused {
        /// The measurement.
        measurement: Name,
        /// Why.
        #[source]
        reason: AdmitError,
    },
}

impl ImportError {
    pub(super) fn refused(measurement: &Name, reason: AdmitError) -> Self {
        Self::Refused { measurement: measurement.clone(), reason }
    }

    /// Whether the import was told to end.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Lake(LakeError::Interrupted) | Self::Read { source: LakeError::Interrupted, .. })
    }
}

impl AsLakeError for ImportError {
    fn as_lake_error(&self) -> Option<&LakeError> {
        if let Self::Lake(error) = self { Some(error) } else { None }
    }
}
