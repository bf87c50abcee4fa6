//! Errors of queries.

use plimsoll_nats::Name;

use crate::{LakeError, tail::StaleSnapshot};

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Neither lake nor tail hold the measurement.
    #[error("measurement `{measurement}` is not stored")]
    UnknownMeasurement {
        /// The measurement.
        measurement: Name,
    },
    /// The measurement has no such field.
    #[error("`{field}` is not a field of `{measurement}`")]
    UnknownField {
        /// The measurement.
        measurement: Name,
        /// What was asked for.
        field: Name,
        /// The fields that it has.
        known: Vec<Name>,
    },
    /// The measurement has no such tag.
    #[error("`{tag}` is not a tag of `{measurement}`")]
    UnknownTag {
        /// The measurement.
        measurement: Name,
        /// What was asked for.
        tag: Name,
        /// The tags that it has.
        known: Vec<Name>,
    },
    /// The field is text, of which there are no aggregates.
    #[error("`{field}` is text: only numbers and bools have aggregates")]
    NotNumeric {
        /// The field.
        field: Name,
    },
    /// The query needs more memory than DuckDB may take.
    #[error("the query needs more memory than `lake.memory_limit` allows")]
    OutOfMemory(#[source] duckdb::Error),
    /// The answer would not fit into memory.
    #[error("the answer would have more than {limit} values")]
    TooLarge {
        /// Most values that an answer may have.
        limit: usize,
    },
    /// The tail moved past the snapshot again and again.
    #[error("the lake moved on faster than it could be read")]
    Stale,
    /// The lake did not answer.
    #[error(transparent)]
    Lake(LakeError),
}

impl QueryError {
    /// Whether a fresh snapshot will do.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Stale)
            || matches!(self, Self::Lake(error) if error.is_conflict() || error.is_missing_file())
    }
}

impl From<LakeError> for QueryError {
    fn from(error: LakeError) -> Self {
        match error {
            LakeError::Database { source, .. } if source.to_string().starts_with("Out of Memory Error") => {
                Self::OutOfMemory(source)
            }
            error => Self::Lake(error),
        }
    }
}

impl From<StaleSnapshot> for QueryError {
    fn from(StaleSnapshot: StaleSnapshot) -> Self {
        Self::Stale
    }
}
