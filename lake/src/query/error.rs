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
    Lake(#[from] LakeError),
}

impl QueryError {
    /// Whether a fresh snapshot will do.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Stale) || matches!(self, Self::Lake(error) if error.is_conflict())
    }
}

impl From<StaleSnapshot> for QueryError {
    fn from(StaleSnapshot: StaleSnapshot) -> Self {
        Self::Stale
    }
}
