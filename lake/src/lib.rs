//! The lake: the one place that knows DuckDB and DuckLake.
//!
//! Layout: DuckLake 1.0. Each measurement is a table in schema `main` with the columns `ts TIMESTAMP_MS`, `host VARCHAR`, its tags
//! (`VARCHAR`, marked by the column comment `tag`) and its fields (`DOUBLE`, `BIGINT`, `BOOLEAN` or `VARCHAR`). Tables are sorted by
//! `(host, tags, ts)`, with the tags that they had at first, and partitioned by day. The table `plimsoll.positions` holds one row a partition of the stream: the last
//! sequence whose rows the lake contains, and the life of the stream that it counts in. Rollups stand beside the measurements'
//! tables; see [`rollup`].
//!
//! Invariant: rows and the positions that cover them are written by one transaction. After a crash at any point the lake holds
//! exactly the rows up to its positions, and a reader of the stream goes on right after them.

mod arrow;
pub mod backup;
pub mod config;
pub mod connection;
pub mod error;
pub mod export;
pub mod extensions;
pub mod import;
pub mod maintenance;
pub mod positions;
pub mod query;
mod redact;
pub mod replay;
mod retry;
pub mod rollup;
pub mod rows;
pub mod schema;
mod spill;
mod sql;
pub mod status;
mod store;
pub mod tail;
pub mod writer;

pub use config::{LakeConfig, S3Config};
pub use connection::{Access, Lake};
pub use error::LakeError;
pub use maintenance::{Keep, MaintenanceReport};
pub use positions::Positions;
pub use query::LakeReader;
pub use replay::ReplayWriter;
pub use rollup::Tier;
pub use rows::RowSet;
pub use status::LakeStatus;
pub use tail::Tail;
pub use writer::{CommitOutcome, CommitReport, LakeWriter, PendingMessage};
