//! A lease in `MEMBERS`: one member of a group at a time does a piece of work.
//!
//! The key `lease.<name>` holds the member's id and expires [`TIME_TO_LIVE`] after the holder last prolonged it, or when [`Lease::lasting`] says. It is taken and
//! prolonged by compare-and-set on its revision, so that of two members one gets it. A member that leaves deletes the key; one that
//! dies is replaced when the key has expired. A lease is a hint, not a lock: a holder that is stopped for long may go on for a moment
//! when another has taken over, so what it does must stand that.

use std::time::Duration;

use async_nats::{
    header,
    jetstream::{
        context::{PublishError, PublishErrorKind},
        kv,
        message::PublishMessage,
    },
};
use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    Client,
    client::MemberId,
    streams::{self, DeclareError},
};

/// How long a lease holds after it was last prolonged, unless told otherwise.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(12);
/// How often it should be prolonged, or tried for.
pub const PROLONG: Duration = Duration::from_secs(3);
/// Longest time that the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why it is not known whether the lease is held.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The bucket is not there.
    #[error(transparent)]
    Bucket(#[from] DeclareError),
    /// The holder can't be read.
    #[error("failed to read who holds the lease")]
    Read(#[from] kv::EntryError),
    /// The broker refuses to store it.
    #[error("failed to take the lease")]
    Take(#[from] PublishError),
    /// It could not be given back; it expires instead.
    #[error("failed to give the lease back")]
    GiveBack(#[from] kv::DeleteError),
    /// The broker does not answer.
    #[error("no answer from the broker within {} s", PATIENCE.as_secs())]
    Timeout(#[from] tokio::time::error::Elapsed),
}

/// A member's part in a lease.
#[derive(Debug)]
pub struct Lease {
    client: Client,
    key: String,
    member: MemberId,
    time_to_live: Duration,
    held: Option<Held>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    revision: u64,
    /// By this member's own clock, counted from before it asked.
    until: Instant,
}

impl Lease {
    /// The lease of that name, which this member does not hold yet.
    #[must_use]
    pub fn new(client: &Client, name: &str, member: &MemberId) -> Self {
        Self {
            client: client.clone(),
            key: format!("lease.{name}"),
            member: member.clone(),
            time_to_live: TIME_TO_LIVE,
            held: None,
        }
    }

    /// The same, but it holds for so long after it was last prolonged: whole seconds, at least one.
    #[must_use]
    pub fn lasting(self, time_to_live: Duration) -> Self {
        Self { time_to_live, ..self }
    }

    /// Whether this member holds the lease for certain.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.is_some_and(|held| Instant::now() < held.until)
    }

    /// Takes the lease if it is free and prolongs it if it is held. Returns whether this member holds it now.
    ///
    /// Fails when the broker does not answer or refuses; a lease that was held before is then held until it expires.
    pub async fn hold(&mut self) -> Result<bool, LeaseError> {
        tokio::time::timeout(PATIENCE, self.try_hold()).await??;
        Ok(self.is_held())
    }

    async fn try_hold(&mut self) -> Result<(), LeaseError> {
        let bucket = streams::bucket(&self.client, streams::MEMBERS).await?;
        let asked = Instant::now();
        let expected = match self.held {
            Some(held) => Some(held.revision),
            None => self.free_revision(bucket.entry(&self.key).await?),
        };
        let Some(expected) = expected else { return Ok(()) };
        match self.put(expected).await {
            Ok(revision) => self.held = Some(Held { revision, until: asked + self.time_to_live }),
            // Another member was faster, or has taken over since this one's had expired.
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => self.held = None,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// The revision that taking the lease replaces; none while another member has it.
    fn free_revision(&self, entry: Option<kv::Entry>) -> Option<u64> {
        let Some(entry) = entry else { return Some(0) };
        // Its own is one whose acknowledgement was lost.
        let is_free = entry.operation != kv::Operation::Put || entry.value == self.member.as_ref().as_bytes();
        is_free.then_some(entry.revision)
    }

    async fn put(&self, expected: u64) -> Result<u64, PublishError> {
        let message = PublishMessage::build()
            .payload(Bytes::from(self.member.as_ref().to_owned()))
            .header(header::NATS_MESSAGE_TTL, self.time_to_live.as_secs().to_string().as_str())
            .expected_last_subject_sequence(expected);
        let subject = format!("$KV.{}.{}", streams::MEMBERS, self.key);
        Ok(self.client.jetstream.send_publish(subject, message).await?.await?.sequence)
    }

    /// Gives the lease back if this member holds it and the broker is there, so that another one need not wait until it expires.
    pub async fn give_back(&mut self) -> Result<(), LeaseError> {
        let Some(held) = self.held.take().filter(|_| self.client.is_connected()) else { return Ok(()) };
        let delete = async {
            let bucket = streams::bucket(&self.client, streams::MEMBERS).await?;
            Ok(bucket.delete_expect_revision(&self.key, Some(held.revision)).await?)
        };
        tokio::time::timeout(PATIENCE, delete).await?
    }
}
