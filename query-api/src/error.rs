//! Why the service ends.

use plimsoll_lake::LakeError;
use plimsoll_nats::{ConnectError, streams::DeclareError};
use plimsoll_service::ops::ServeError;

/// Why the service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum QueryApiError {
    /// The broker can't be connected to, however long one waits.
    #[error("failed to connect to the broker")]
    Connect(#[from] ConnectError),
    /// The streams and buckets could not be declared.
    #[error("failed to prepare the broker")]
    Declare(#[from] DeclareError),
    /// DuckDB could not be opened.
    #[error("failed to prepare queries")]
    Lake(#[from] LakeError),
    /// The HTTP endpoints can't be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The listener could not be shared.
    #[error("failed to use the listener")]
    Listener(#[source] std::io::Error),
}
