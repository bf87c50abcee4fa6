//! Stores transitions and tells of them, each as if it happened once.
//!
//! A transition takes three steps, in this order:
//!
//! 1. The state is stored in `ALERT_STATE` by compare-and-set, with `announced: false`. Of two members that both believe
//!    they own a series one loses here; a transition that is not newer than the stored one, or leads to the same
//!    status, is dropped.
//! 2. The transition is published on `ALERTS` and, for each channel of the rule, queued on `NOTIFY`. The `Nats-Msg-Id` is
//!    made of the state's key, the time and the status, so that the broker takes a repeated message for the same one.
//! 3. The state is stored with `announced: true`.
//!
//! A member that dies before step 1 leaves nothing, and its successor comes to the same transition by replaying the rows. One
//! that dies before step 3 leaves `announced: false`, and its successor repeats step 2. Within the stream's duplicate window
//! (two minutes; a take-over needs ten seconds) that is harmless; later it may tell a second time, and never forgets.
//! An alert that no rule accounts for any more is taken away. One that is open is resolved first, in these three steps, so that
//! whoever was told that it fires is told of its end.
//!
//! While the broker is away each step is tried until it comes back.

use std::sync::Arc;

use futures_util::StreamExt;
use plimsoll_nats::{
    Client, HostId, Name, PartitionId,
    alert::{AlertState, AlertStatus, Notification, Transition},
    async_nats::jetstream::{
        kv::{self, UpdateErrorKind},
        message::PublishMessage,
        stream::DirectGetErrorKind,
    },
    dead::chain,
    rule::{Channel, Rule},
    streams::{self, DeclareError},
    subject,
};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::{message::message, metrics::Metrics, retry::Backoff};

/// A state as the bucket holds it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub key: String,
    pub revision: u64,
    pub state: AlertState,
}

/// Transitions of one series in order of time, and the revision that the first of them is to replace.
#[derive(Debug)]
pub(crate) struct Record {
    pub partition: PartitionId,
    pub key: String,
    pub revision: u64,
    pub states: Vec<AlertState>,
    pub rule: Option<Arc<Rule>>,
}

/// Stores states and publishes transitions.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    client: Client,
    states: kv::Store,
    rules: kv::Store,
    metrics: Metrics,
    shutdown: CancellationToken,
}

/// The service is to stop, and the step at hand is undone.
#[derive(Debug)]
pub(crate) struct Stopped;

impl Recorder {
    pub async fn open(client: &Client, metrics: &Metrics, shutdown: &CancellationToken) -> Result<Self, DeclareError> {
        let states = streams::bucket(client, streams::ALERT_STATE).await?;
        let rules = streams::bucket(client, streams::RULES).await?;
        Ok(Self { client: client.clone(), states, rules, metrics: metrics.clone(), shutdown: shutdown.clone() })
    }

    /// All stored states.
    pub async fn load(&self) -> Result<Vec<Stored>, Stopped> {
        self.persist("failed to read the alert states, trying again", || async {
            let mut stored = Vec::new();
            if self.states.status().await?.values() == 0 {
                return Ok(stored);
            }
            let mut entries = self.states.watch_with_history(">").await?;
            while let Some(entry) = entries.next().await {
                let entry = entry?;
                let last = entry.delta == 0;
                stored.extend(read_entry(entry));
                if last {
                    return Ok(stored);
                }
            }
            Err("the watch ended".into())
        })
        .await
    }

    /// Stores and announces transitions of a series. Returns the revision that the next one is to replace.
    pub async fn record(self, record: Record) -> Result<(PartitionId, String, u64), Stopped> {
        let Record { partition, key, mut revision, states, rule } = record;
        for state in states {
            let to = state.transition.to;
            if let Some(stored) = self.store(&key, &mut revision, state).await? {
                self.metrics.transition(to);
                self.announce(&key, &mut revision, stored, rule.as_deref()).await?;
            }
        }
        Ok((partition, key, revision))
    }

    /// Takes away the state of a series that is no longer watched, and resolves it first as of `at_ms` if it is open.
    ///
    /// The channels are those of `rule`: without it the transition is only published.
    pub async fn remove(&self, key: &str, rule: Option<&Rule>, at_ms: i64) -> Result<(), Stopped> {
        while let Some(Stored { mut revision, state, .. }) = self.read(key).await?.and_then(read_entry) {
            let open = state.open;
            let last = if open { resolved(state, at_ms) } else { state };
            if open {
                if !self.update(key, &mut revision, &last).await? {
                    continue;
                }
                self.metrics.transition(last.transition.to);
            }
            if !last.announced {
                self.announce(key, &mut revision, last, rule).await?;
            }
            break;
        }
        tracing::info!(state.key = %key, "alert dropped, no rule watches its series any more");
        let delete = || async { self.states.delete(key).await.map_err(Into::into) };
        self.persist("failed to delete an alert state, trying again", delete).await
    }

    /// Whether the bucket of rules holds a document of this name, valid or not.
    pub async fn rule_exists(&self, rule: &Name) -> Result<bool, Stopped> {
        let read = || async { Ok(self.rules.get(rule.to_string()).await?.is_some()) };
        self.persist("failed to look for a rule, trying again", read).await
    }

    /// When the broker stored the newest message of a measurement that it still holds, Unix ms.
    pub async fn last_message_ms(&self, host: &HostId, measurement: &Name) -> Result<Option<i64>, Stopped> {
        let stored = subject::stored(host, measurement);
        let read = || async {
            let stream = self.client.jetstream.get_stream_no_info(streams::METRICS).await?;
            match stream.direct_get_last_for_subject(stored.as_str()).await {
                Ok(message) => Ok(i64::try_from(message.time.unix_timestamp_nanos() / 1_000_000).ok()),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        self.persist("failed to look for the last message, trying again", read).await
    }

    /// Step 1. Returns the state that is stored and not announced, if there is one.
    async fn store(&self, key: &str, revision: &mut u64, state: AlertState) -> Result<Option<AlertState>, Stopped> {
        loop {
            if self.update(key, revision, &state).await? {
                return Ok(Some(state));
            }
            let entry = self.read(key).await?;
            *revision = entry.as_ref().map_or(0, |entry| entry.revision);
            let (to, at_ms) = (state.transition.to, state.transition.at_ms);
            if let Some(stored) = entry.and_then(read_entry)
                && (stored.state.transition.at_ms >= at_ms || stored.state.transition.to == to)
            {
                // Another member was here first, or the answer to this one's own update was lost.
                return Ok((!stored.state.announced).then_some(stored.state));
            }
        }
    }

    /// Steps 2 and 3 for a state that is stored.
    pub async fn announce(
        &self,
        key: &str,
        revision: &mut u64,
        mut state: AlertState,
        rule: Option<&Rule>,
    ) -> Result<(), Stopped> {
        let transition = &state.transition;
        tracing::info!(
            rule.name = %transition.rule, host.id = %transition.series.host, from = %transition.from, to = %transition.to,
            "alert changed"
        );
        let id = format!("{key}/{}/{}", transition.at_ms, transition.to);
        let alert = subject::alert(&transition.rule, &transition.series.host);
        self.publish(alert, &id, transition).await?;
        if let Some(rule) = rule.filter(|_| transition.notifies()) {
            let message = message(transition, rule);
            for channel in &rule.notify {
                let (name, address) = match channel {
                    Channel::Webhook { url } => ("webhook", url),
                };
                let id = format!("{id}/{name}/{:016x}", xxh3_64(address.as_bytes()));
                let (transition, channel, message) = (transition.clone(), channel.clone(), message.clone());
                self.publish(subject::notify(name), &id, &Notification { transition, channel, message }).await?;
            }
        }
        state.announced = true;
        // Whoever has stored something newer meanwhile announces that.
        self.update(key, revision, &state).await.map(drop)
    }

    async fn publish(&self, subject: String, id: &str, body: &impl serde::Serialize) -> Result<(), Stopped> {
        let message = PublishMessage::build().payload(json(body).into()).message_id(id);
        let send = || async {
            let sent = self.client.jetstream.send_publish(subject.clone(), message.clone()).await?;
            sent.await.map(drop).map_err(Into::into)
        };
        self.persist("failed to publish an alert, trying again", send).await
    }

    async fn read(&self, key: &str) -> Result<Option<kv::Entry>, Stopped> {
        let read = || async { Ok(self.states.entry(key).await?) };
        self.persist("failed to read an alert state, trying again", read).await
    }

    /// Replaces a revision and moves it on. Returns false when the bucket holds another one.
    async fn update(&self, key: &str, revision: &mut u64, state: &AlertState) -> Result<bool, Stopped> {
        let expected = *revision;
        let update = || async {
            match self.states.update(key, json(state).into(), expected).await {
                Ok(revision) => Ok(Some(revision)),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        let updated = self.persist("failed to store an alert state, trying again", update).await?;
        *revision = updated.unwrap_or(expected);
        Ok(updated.is_some())
    }

    /// Does a step until the broker says that it is done.
    async fn persist<T, F>(&self, failure: &'static str, step: impl Fn() -> F) -> Result<T, Stopped>
    where
        F: Future<Output = Result<T, plimsoll_nats::async_nats::Error>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match self.shutdown.run_until_cancelled(step()).await {
                None => return Err(Stopped),
                Some(Ok(done)) => return Ok(done),
                Some(Err(error)) => {
                    tracing::warn!(error = %chain(&*error), "{failure}");
                    backoff.pause(&self.shutdown).await;
                }
            }
        }
    }
}

/// The end of an open alert that is no longer watched; its transition has no value.
fn resolved(state: AlertState, at_ms: i64) -> AlertState {
    let last = state.transition;
    let transition = Transition {
        from: last.to,
        to: AlertStatus::Resolved,
        at_ms: at_ms.max(last.at_ms.saturating_add(1)),
        value: None,
        ..last
    };
    AlertState { transition, since_ms: None, open: false, announced: false }
}

fn json(document: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("maps of strings to plain values have a JSON form")
}

fn read_entry(entry: kv::Entry) -> Option<Stored> {
    if entry.operation != kv::Operation::Put {
        return None;
    }
    match serde_json::from_slice(&entry.value) {
        Ok(state) => Some(Stored { key: entry.key, revision: entry.revision, state }),
        Err(error) => {
            tracing::warn!(state.key = %entry.key, error = %chain(&error), "ignored a document in ALERT_STATE");
            None
        }
    }
}
