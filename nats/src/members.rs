//! Heartbeats of workers in `MEMBERS`, and who is alive according to them.
//!
//! Each worker of a group puts `<group>.<member>` once a second with a time to live. A worker that leaves deletes its key;
//! one that dies is missed when the key expires, or when its last heartbeat has grown too old by the watcher's own clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::{
    header,
    jetstream::{kv, message::PublishMessage},
};
use futures_util::StreamExt;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Client, NatsConfig,
    client::MemberId,
    streams::{self, DeclareError},
};

/// How often a worker announces itself.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a worker is believed alive after its last heartbeat.
pub const TIME_TO_LIVE: Duration = Duration::from_secs(4);

/// Why a member is not announced or does not hear of others; it tries again.
#[derive(Debug, thiserror::Error)]
enum MembersError {
    #[error(transparent)]
    Bucket(#[from] DeclareError),
    #[error("failed to watch the members")]
    Watch(#[source] async_nats::Error),
    #[error("failed to send a heartbeat")]
    Announce(#[source] async_nats::Error),
    #[error("failed to take the heartbeat away")]
    Leave(#[source] async_nats::Error),
}

/// A worker's place in its group.
#[derive(Debug)]
pub struct Membership {
    client: Client,
    config: NatsConfig,
    group: String,
    member: MemberId,
    members: watch::Sender<BTreeSet<MemberId>>,
}

impl Membership {
    /// A member of `group`. It is announced once [`Membership::run`] does so.
    #[must_use]
    pub fn new(client: &Client, config: &NatsConfig, group: &str, member: MemberId) -> Self {
        let members = watch::Sender::new(BTreeSet::new());
        Self { client: client.clone(), config: config.clone(), group: group.to_owned(), member, members }
    }

    /// The members that are alive, this one included once it is announced.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<BTreeSet<MemberId>> {
        self.members.subscribe()
    }

    /// Announces the worker and follows the others until `shutdown`, then takes the worker's key away.
    ///
    /// A broker that is away is waited for: the members known last stay, this worker alone among them for certain.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut seen = BTreeMap::new();
        while !shutdown.is_cancelled() {
            if let Err(error) = self.follow(&mut seen, &shutdown).await {
                tracing::warn!(error = %crate::dead::chain(&error), "failed to follow the members, trying again");
                self.restore().await;
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(HEARTBEAT) => {}
                }
            }
        }
        if self.client.is_connected()
            && let Err(error) = self.leave().await
        {
            tracing::warn!(error = %crate::dead::chain(&error), "failed to leave the group, the heartbeat expires instead");
        }
    }

    async fn leave(&self) -> Result<(), MembersError> {
        let bucket = streams::bucket(&self.client, streams::MEMBERS).await?;
        bucket.delete(self.key()).await.map_err(|error| MembersError::Leave(error.into()))
    }

    /// Announces and watches until `shutdown`. Fails when the bucket is not there or the broker refuses a heartbeat: a watch on a
    /// bucket that was made anew hears nothing, so both begin again.
    async fn follow(
        &self,
        seen: &mut BTreeMap<MemberId, Instant>,
        shutdown: &CancellationToken,
    ) -> Result<(), MembersError> {
        let bucket = streams::bucket(&self.client, streams::MEMBERS).await?;
        // Announced first, so that the history has an end to be told: nobody is counted before all are known.
        self.announce(seen).await?;
        let mut known = false;
        let mut away = false;
        let watched = bucket.watch_with_history(format!("{}.*", self.group)).await;
        let mut watch = watched.map_err(|error| MembersError::Watch(error.into()))?;
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                _ = beat.tick() => {
                    let announced = self.announce(seen).await;
                    if self.client.is_connected() && std::mem::take(&mut away) {
                        // Nobody could be heard meanwhile, which says nothing about them.
                        seen.values_mut().for_each(|heard| *heard = Instant::now());
                    }
                    away |= !self.client.is_connected();
                    if known {
                        self.publish(seen);
                    }
                    announced?;
                }
                entry = watch.next() => match entry {
                    Some(Ok(entry)) => {
                        self.note(&entry, seen);
                        known |= entry.delta == 0;
                        if known {
                            self.publish(seen);
                        }
                    }
                    Some(Err(error)) => return Err(MembersError::Watch(error.into())),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Declares the bucket again where a broker that was wiped has lost it.
    async fn restore(&self) {
        if self.client.is_connected()
            && let Err(error) = streams::declare(&self.client, &self.config).await
        {
            tracing::warn!(error = %crate::dead::chain(&error), "failed to declare the members' bucket");
        }
    }

    /// Sends a heartbeat. Fails when the broker is there and refuses it; one that is away is waited for.
    async fn announce(&self, seen: &mut BTreeMap<MemberId, Instant>) -> Result<(), MembersError> {
        let subject = format!("$KV.{}.{}", streams::MEMBERS, self.key());
        let beat =
            PublishMessage::build().header(header::NATS_MESSAGE_TTL, TIME_TO_LIVE.as_secs().to_string().as_str());
        let published = async { self.client.jetstream.send_publish(subject, beat).await?.await.map(drop) };
        match tokio::time::timeout(HEARTBEAT, published).await {
            Ok(Ok(())) => {
                seen.insert(self.member.clone(), Instant::now());
                Ok(())
            }
            Ok(Err(error)) if self.client.is_connected() => Err(MembersError::Announce(error.into())),
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("no answer to a heartbeat");
                Ok(())
            }
        }
    }

    fn note(&self, entry: &kv::Entry, seen: &mut BTreeMap<MemberId, Instant>) {
        let Some(member) = entry.key.strip_prefix(&self.group).and_then(|key| key.strip_prefix('.')) else { return };
        let member = MemberId::from(member);
        match entry.operation {
            kv::Operation::Put => seen.insert(member, Instant::now()),
            kv::Operation::Delete | kv::Operation::Purge => seen.remove(&member),
        };
    }

    /// Tells who is alive, when that has changed.
    fn publish(&self, seen: &mut BTreeMap<MemberId, Instant>) {
        // While the broker is away nobody is heard, which says nothing about the others.
        if self.client.is_connected() {
            seen.retain(|_, heard| heard.elapsed() < TIME_TO_LIVE + HEARTBEAT);
        }
        let alive: BTreeSet<MemberId> = seen.keys().cloned().collect();
        self.members.send_if_modified(|known| {
            let changed = *known != alive;
            if changed {
                *known = alive;
            }
            changed
        });
    }

    fn key(&self) -> String {
        format!("{}.{}", self.group, self.member)
    }
}
