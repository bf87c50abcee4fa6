//! Ingest as a fleet: PostgreSQL, S3, three brokers, four members, and what may befall them. After each fault every row is there
//! exactly once, by SQL over a lake attached apart, and nothing is on `DEAD`.
//!
//! `make test` runs each fault for some seconds; `make chaos` for a minute, and ends in a table of what was counted.

mod backlog;
mod brokers;
mod catalog;
mod cost;
mod disk;
mod fleet;
mod member;
mod members;
mod publisher;
mod scale;
mod store;
#[path = "../support/mod.rs"]
mod support;
