//! Why an update did not come about.

use std::{io, path::PathBuf};

use crate::update::release::ReleaseError;

/// Why an update did not come about. The agent goes on as it is.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The HTTP client cannot be set up.
    #[error("failed to set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// An address is not one that a release may come from.
    #[error("`{url}` is not an address with https, or with http on loopback")]
    Url {
        /// The address.
        url: String,
    },
    /// Something could not be fetched.
    #[error("failed to fetch `{url}`")]
    Fetch {
        /// Where it is.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server does not have it or does not give it.
    #[error("failed to fetch `{url}`: the server answers {status}")]
    Status {
        /// Where it should be.
        url: String,
        /// The server's answer.
        status: u16,
    },
    /// More came than there may be.
    #[error("`{url}` is larger than the {limit_bytes} bytes that it may have")]
    TooLarge {
        /// Where it came from.
        url: String,
        /// How much it may have.
        limit_bytes: u64,
    },
    /// The description, its signature or the program is not to be trusted.
    #[error("`{place}` is refused")]
    Refused {
        /// The address or file.
        place: String,
        /// Why.
        source: ReleaseError,
    },
    /// A file of the state folder cannot be read or written.
    #[error("failed to use `{path}`")]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process adds a version at this moment.
    #[error("another update is under way")]
    Busy,
}

impl UpdateError {
    /// A failure at a file or folder.
    pub(crate) fn store(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Store { path, source }
    }

    /// A refusal of what an address or file holds.
    pub(crate) fn refused(place: impl ToString) -> impl FnOnce(ReleaseError) -> Self {
        let place = place.to_string();
        move |source| Self::Refused { place, source }
    }
}
