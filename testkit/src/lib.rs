//! Servers that tests run for themselves, and faults before them. For tests only: no binary depends on it.
//!
//! Each server is a real one, a child process on free ports of loopback with a folder of its own, killed and removed on drop. What
//! they need is fetched by `make test-tools`; PostgreSQL comes from the system.

#![allow(clippy::unwrap_used, reason = "for tests only")]

pub mod account;
mod cluster;
pub mod http;
mod place;
pub mod ports;
pub mod postgres;
mod postgres_proxy;
mod process;
mod s3;
mod s3_proxy;
mod servers;
mod view;

pub use account::Account;
pub use cluster::TestCluster;
pub use place::LakePlace;
pub use postgres::TestPostgres;
pub use postgres_proxy::{CommitFault, PostgresProxy};
pub use process::Process;
pub use s3::TestS3;
pub use s3_proxy::{S3Fault, S3Proxy};
pub use servers::Servers;
pub use view::LakeView;
