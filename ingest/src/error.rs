//! Why ingest ends other than by being told to.

use plimsoll_lake::LakeError;
use plimsoll_nats::ConnectError;
use plimsoll_service::ops::ServeError;

use crate::lake_thread::ThreadEnded;

/// An error that waiting does not mend.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// HTTP could not be served.
    #[error("failed to serve the health endpoints")]
    Http(#[from] ServeError),
    /// The broker's address or credentials are wrong.
    #[error("failed to connect to the broker")]
    Connect(#[from] ConnectError),
    /// The lake can't be used.
    #[error("failed to open the lake")]
    Lake(#[from] LakeError),
    /// Nothing can be committed any more; nothing is lost.
    #[error("ingest can't go on and gives its partitions back: start it again")]
    Ended(#[from] ThreadEnded),
}
