//! Positions in a stream.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::subject::PARTITIONS;

/// One of the partitions of the `METRICS` stream, below [`PARTITIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionId(u16);

impl PartitionId {
    /// The partition of this number, or none when there is no such partition.
    #[must_use]
    pub fn new(partition: u16) -> Option<Self> {
        (partition < PARTITIONS).then_some(Self(partition))
    }

    /// All partitions in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self)
    }

    /// The partition's number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sequence number of a message in a stream. The first message has 1; 0 stands before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The sequence that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which life of a stream a sequence belongs to: the stream's creation time in nanoseconds since 1970.
///
/// A stream that was wiped and made anew counts from 1 again, under a later incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub i64);

/// The last message of a partition that a reader has contained: it holds `(start, position]`.
///
/// A position in a later life of the stream comes after every position in an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The life of the stream that the sequence counts in.
    pub incarnation: Incarnation,
    /// The last contained sequence; 0 when nothing is contained yet.
    pub sequence: Sequence,
}

impl Position {
    /// The position before the first message of a stream's life.
    #[must_use]
    pub fn start(incarnation: Incarnation) -> Self {
        Self { incarnation, sequence: Sequence(0) }
    }

    /// This position where it speaks of the given life of the stream, else the start of that life.
    #[must_use]
    pub fn within(self, incarnation: Incarnation) -> Self {
        if self.incarnation == incarnation { self } else { Self::start(incarnation) }
    }
}
