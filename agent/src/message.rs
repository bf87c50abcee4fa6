//! Encoded batches on their way to the broker.

use bytes::Bytes;
use plimsoll_nats::Name;
use ulid::Ulid;

/// An encoded batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What was sampled.
    pub measurement: Name,
    /// The run of the agent that sampled it.
    pub epoch: Ulid,
    /// The batch's number within its run and measurement.
    pub seq: u64,
    /// Whether the payload is compressed with zstd.
    pub compressed: bool,
    /// The batch as MessagePack.
    pub payload: Bytes,
}
