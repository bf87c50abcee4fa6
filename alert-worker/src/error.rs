//! Why the alert worker ends without having been told to.

use plimsoll_nats::ConnectError;
use plimsoll_service::ops::ServeError;

/// Why the alert worker cannot run or ends without having been told to.
#[derive(Debug, thiserror::Error)]
pub enum AlertWorkerError {
    /// The HTTP endpoints cannot be served.
    #[error("failed to serve the HTTP endpoints")]
    Http(#[from] ServeError),
    /// The connection cannot come about, however long one waits.
    #[error("failed to connect to the broker")]
    Connect(#[from] ConnectError),
    /// The client for webhooks cannot be made.
    #[error("failed to set up the HTTP client: are the system's CA certificates installed?")]
    HttpClient(#[source] reqwest::Error),
    /// A part of the worker ended on its own: a bug.
    #[error("the {part} ended unexpectedly: please report this")]
    Ended {
        /// Which part.
        part: &'static str,
    },
}
