//! The contract of Plimsoll: what travels over NATS, under which names, and how workers share it.
//!
//! Everything that two services must agree on lives here: names, subjects, streams and buckets, the batch format, the
//! catalog of measurements, rules and alert transitions, and the partition groups by which workers divide a stream.

pub mod alert;
pub mod batch;
pub mod catalog;
pub mod client;
pub mod clock;
pub mod dead;
pub mod delivery;
pub mod event;
pub mod host;
pub mod lease;
pub mod members;
pub mod names;
pub mod partition_group;
pub mod position;
pub mod reader;
pub mod report;
pub mod rule;
pub mod server;
pub mod spelling;
pub mod streams;
pub mod subject;
#[cfg(feature = "testing")]
pub mod testing;

pub use async_nats;
pub use batch::{Batch, Column};
pub use client::{Client, ConnectError, NatsConfig};
pub use clock::now_ms;
pub use names::{HostId, Name, NameError};
pub use position::{Incarnation, PartitionId, Position, Sequence};
