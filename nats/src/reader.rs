//! Reads one partition of `METRICS` for one member of a group.
//!
//! The group has one durable pull consumer a partition, with the pinned-client policy: the broker gives messages to one client
//! at a time and tells its pin id with each message. What the broker believes delivered or acked says nothing about what is
//! contained in the lake. So a reader waits until nobody holds the partition, asks its [`StartSource`], and makes the consumer
//! again from there unless it stands exactly there; with its first message it asks once more, and when its pin changes it starts
//! over. Deliveries are counted: one that is missing, as after a cut connection, makes it start over too. So nothing between the
//! start and the last message can be skipped.
//!
//! Sequences rise strictly between two [`ReaderEvent::Started`]; redeliveries within are dropped.

use std::{fmt, sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, Info, PriorityPolicy, PullConsumer, pull},
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Client, Incarnation, NatsConfig, PartitionId, Sequence,
    clock::unix_ms,
    dead::chain,
    streams::{self, DeclareError},
    subject,
};

/// Expiry of one pull; well below [`PIN_TIMEOUT`], so that a waiting reader keeps its pin.
const PULL_EXPIRES: Duration = Duration::from_secs(3);
/// How long the broker keeps a partition for a silent reader.
///
/// Longer than the client waits before it repeats a pull that it did not see through, which happens while a slow commit holds
/// the reader up; short enough for a dead member to be replaced within 10 s.
pub const PIN_TIMEOUT: Duration = Duration::from_secs(7);
/// Longer than any commit takes: a redelivery is only wasted work, since a new owner begins from the position anyway.
const ACK_WAIT: Duration = Duration::from_secs(600);
/// Messages asked for in one pull, unless [`NatsConfig::pull_bytes`] are fewer.
const PULL_MESSAGES: usize = 1000;
/// What a message takes besides its headers and payload, in the broker's count for a pull.
const ENVELOPE_BYTES: usize = 64 * 1024;
/// Bytes of messages that the readers of a group have yielded and that are not dropped yet; they wait for room for more.
pub const YIELDED_BYTES: usize = 16 * 1024 * 1024;
/// Pause before a reader tries again after the broker refused or vanished.
const RETRY: Duration = Duration::from_millis(500);
/// How often a reader that has had no message yet looks whether another client gets them.
///
/// And how often one that has had some looks whether the consumer is still its own: while it was held up, another one may have
/// made it anew, had the last messages, and died; or a reconnect may have swallowed them, or the client's pull.
const LOOK: Duration = Duration::from_secs(2);
/// Longest pause after errors in a row.
const MAX_RETRY: Duration = Duration::from_secs(5);

/// Where a partition's reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Right after a sequence.
    After(Sequence),
    /// With the first message that the stream stored within the last so long.
    Recent(Duration),
}

/// Tells a reader where to begin each time that it gets its partition.
pub trait StartSource: Clone + Send + Sync + 'static {
    /// Where to begin in this life of the stream. An error is logged and asked again.
    fn start(
        &self,
        partition: PartitionId,
        incarnation: Incarnation,
    ) -> impl Future<Output = Result<Start, StartError>> + Send;
}

/// Why the start of a partition is not known now.
#[derive(Debug, thiserror::Error)]
#[error("failed to look up where the partition starts")]
pub struct StartError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// What a reader yields.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every event is a message")]
pub enum ReaderEvent {
    /// The reader has got the partition. Whatever came from it before and is not committed comes again.
    Started {
        /// The partition.
        partition: PartitionId,
        /// The life of the stream that sequences count in from now on.
        incarnation: Incarnation,
    },
    /// The next message.
    Message(StoredMessage),
    /// The reader has ended because the partition was taken away or the worker stops.
    Stopped {
        /// The partition.
        partition: PartitionId,
    },
}

/// A message of a partition as the stream holds it.
pub struct StoredMessage {
    /// The partition that it was read for.
    pub partition: PartitionId,
    /// The life of the stream that the sequence counts in.
    pub incarnation: Incarnation,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// When the broker stored it, Unix ms.
    pub stored_ms: i64,
    /// How many messages the broker still holds for the reader after this one.
    pub pending: u64,
    message: jetstream::Message,
    _room: OwnedSemaphorePermit,
}

impl fmt::Debug for StoredMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredMessage")
            .field("partition", &self.partition)
            .field("sequence", &self.sequence)
            .field("subject", &self.message.subject)
            .finish_non_exhaustive()
    }
}

impl StoredMessage {
    /// The stored subject, `plimsoll.p.<partition>.<host>.<measurement>`.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.message.subject
    }

    /// The headers, where there are some.
    #[must_use]
    pub fn headers(&self) -> Option<&async_nats::HeaderMap> {
        self.message.headers.as_ref()
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.message.payload
    }

    /// What acknowledges this message and all before it in the partition.
    #[must_use]
    pub fn into_acker(self) -> Acker {
        Acker(self.message.split().1)
    }
}

/// Room for what the readers of a group have yielded, [`YIELDED_BYTES`] at most.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(YIELDED_BYTES)))
    }
}

impl Room {
    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let bytes = u32::try_from(bytes.min(YIELDED_BYTES)).expect("the limit fits into 32 bits");
        Arc::clone(&self.0).acquire_many_owned(bytes).await.expect("nobody closes it")
    }
}

/// Acknowledges a message and all before it in its partition.
pub struct Acker(jetstream::message::Acker);

impl Acker {
    /// Sends the acknowledgement; nobody waits for an answer.
    pub async fn ack(&self) -> Result<(), async_nats::Error> {
        self.0.ack().await
    }
}

impl fmt::Debug for Acker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acker").finish_non_exhaustive()
    }
}

/// The name of a group's consumer on a partition.
#[must_use]
pub fn consumer_name(group: &str, partition: PartitionId) -> String {
    format!("{group}-{partition}")
}

/// Reads one partition while it is assigned to this member.
#[derive(Debug)]
pub struct PartitionReader<S> {
    client: Client,
    config: NatsConfig,
    group: &'static str,
    partition: PartitionId,
    start: S,
    room: Room,
    /// The pin that this reader got last.
    pin: Option<String>,
}

/// What went wrong in a session with the broker; the reader begins a new one.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("failed to prepare the stream")]
    Declare(#[from] DeclareError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("failed to create the consumer")]
    Consumer(#[source] async_nats::Error),
    #[error("failed to pull messages")]
    Pull(#[source] async_nats::Error),
    #[error("failed to understand a delivery")]
    Delivery(#[source] async_nats::Error),
    #[error(
        "the position {position} is ahead of the stream, which ends at {last}: the broker was restored from an older copy. \
         Delete the stream METRICS, so that it begins a new life, or restore the lake of that time"
    )]
    Ahead { position: Sequence, last: Sequence },
}

/// A partition's consumer that nobody held, and where it begins.
struct Taken {
    consumer: PullConsumer,
    incarnation: Incarnation,
    start: Start,
}

/// Why a session ended without an error.
#[derive(Debug)]
enum SessionEnd {
    /// The reader is to stop.
    Stop,
    /// Another client has the partition; look again in a moment.
    Busy,
    /// The partition has to be taken anew.
    Lost,
}

impl<S: StartSource> PartitionReader<S> {
    /// A reader of `partition` for a member of `group`, whose readers share the room for what they have yielded.
    pub fn new(
        client: &Client,
        config: &NatsConfig,
        group: &'static str,
        partition: PartitionId,
        start: S,
        room: Room,
    ) -> Self {
        Self { client: client.clone(), config: config.clone(), group, partition, start, room, pin: None }
    }

    /// Reads until `stop`, then gives the partition back to the broker.
    pub async fn run(mut self, events: mpsc::Sender<ReaderEvent>, stop: CancellationToken) {
        let mut pause = RETRY;
        while !stop.is_cancelled() {
            let end = self.session(&events, &stop).await;
            tracing::debug!(group = self.group, partition.id = %self.partition, end = ?end.as_ref().ok(), "a session ended");
            match end {
                Ok(SessionEnd::Stop) => break,
                Ok(SessionEnd::Lost) => {
                    pause = RETRY;
                    continue;
                }
                Ok(SessionEnd::Busy) => pause = RETRY,
                Err(error) => {
                    tracing::warn!(group = self.group, partition.id = %self.partition, error = %chain(&error), "reading a partition failed, trying again");
                    pause = (pause * 2).min(MAX_RETRY);
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
        let _ = events.send(ReaderEvent::Stopped { partition: self.partition }).await;
    }

    /// Takes the partition once it is free and reads it until it is lost.
    async fn session(
        &mut self,
        events: &mpsc::Sender<ReaderEvent>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, SessionError> {
        match stop.run_until_cancelled(self.take()).await {
            None => Ok(SessionEnd::Stop),
            Some(taken) => match taken? {
                None => Ok(SessionEnd::Busy),
                Some(taken) => self.pull(taken, events, stop).await,
            },
        }
    }

    /// Makes the consumer begin where the partition does; none while another client has it.
    async fn take(&self) -> Result<Option<Taken>, SessionError> {
        let (stream, incarnation) = self.stream().await?;
        let name = consumer_name(self.group, self.partition);
        let existing = stream.get_consumer::<pull::Config>(&name).await.ok();
        if existing.as_ref().is_some_and(|consumer| self.is_held_by_another(consumer.cached_info())) {
            return Ok(None);
        }
        let start = self.start.start(self.partition, incarnation).await?;
        let last = Sequence(stream.cached_info().state.last_sequence);
        if let Start::After(position) = start
            && position > last
        {
            return Err(SessionError::Ahead { position, last });
        }
        let config = self.consumer_config(&name, start);
        let consumer = match existing {
            Some(consumer) if begins_at(consumer.cached_info(), &config) => consumer,
            existing => {
                if existing.is_some() {
                    let _ = stream.delete_consumer(&name).await;
                }
                self.create(config).await?
            }
        };
        tracing::debug!(group = self.group, partition.id = %self.partition, ?start, "waiting for the partition's messages");
        Ok(Some(Taken { consumer, incarnation, start }))
    }

    async fn pull(
        &mut self,
        taken: Taken,
        events: &mpsc::Sender<ReaderEvent>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, SessionError> {
        let mut messages = self.messages(&taken.consumer).await?;
        let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut suspected = false;
        let mut delivered = 0;
        let mut last = Sequence(0);
        let mut left = PULL_MESSAGES;
        loop {
            let message = tokio::select! {
                biased;
                () = stop.cancelled() => match arrived(&mut messages).filter(|_| delivered > 0 && left > 0) {
                    Some(message) => {
                        left -= 1;
                        message
                    }
                    None => return Ok(SessionEnd::Stop),
                },
                message = messages.next() => match message {
                    Some(message) => message.map_err(|error| SessionError::Pull(error.into()))?,
                    None => return Ok(SessionEnd::Lost),
                },
                _ = look.tick() => {
                    if !self.is_still_own(&taken, delivered).await? && std::mem::replace(&mut suspected, true) {
                        return Ok(SessionEnd::Lost);
                    }
                    continue;
                }
            };
            suspected = false;
            let pin = pin_of(&message);
            let info = message.info().map_err(SessionError::Delivery)?;
            let (sequence, pending) = (Sequence(info.stream_sequence), info.pending);
            let stored_ms = unix_ms(info.published.unix_timestamp_nanos());
            delivered += 1;
            if info.consumer_sequence != delivered || (delivered > 1 && pin != self.pin.as_deref()) {
                // Messages went elsewhere: to another client, or to a connection that was cut.
                self.pin = pin.map(str::to_owned);
                return Ok(SessionEnd::Lost);
            }
            if delivered == 1 {
                self.pin = pin.map(str::to_owned);
                if !self.still_starts_at(&taken).await? {
                    return Ok(SessionEnd::Lost);
                }
                tracing::debug!(group = self.group, partition.id = %self.partition, stream.seq = %sequence, "reading the partition");
                let event = ReaderEvent::Started { partition: self.partition, incarnation: taken.incarnation };
                if events.send(event).await.is_err() {
                    return Ok(SessionEnd::Stop);
                }
            }
            if sequence <= last {
                continue;
            }
            last = sequence;
            let (partition, incarnation) = (self.partition, taken.incarnation);
            let _room = self.room.take(message.length).await;
            let stored = StoredMessage { partition, incarnation, sequence, stored_ms, pending, message, _room };
            if events.send(ReaderEvent::Message(stored)).await.is_err() {
                return Ok(SessionEnd::Stop);
            }
        }
    }

    async fn messages(&self, consumer: &PullConsumer) -> Result<pull::Stream, SessionError> {
        let largest = self.client.nats.server_info().max_payload;
        consumer
            .stream()
            .group(self.group)
            .expires(PULL_EXPIRES)
            .max_messages_per_batch(PULL_MESSAGES)
            // A larger message than asked for would never come.
            .max_bytes_per_batch(self.config.pull_bytes.get().max(largest + ENVELOPE_BYTES))
            .messages()
            .await
            .map_err(|error| SessionError::Pull(error.into()))
    }

    /// Whether the consumer is the one that this reader took, gives its messages to nobody else, and is pulled from. Messages
    /// under way to this reader look like lost ones, so one look that says no is not enough.
    async fn is_still_own(&self, taken: &Taken, delivered: u64) -> Result<bool, SessionError> {
        let info = taken.consumer.get_info().await.map_err(|error| SessionError::Pull(error.into()))?;
        let same = info.created == taken.consumer.cached_info().created;
        let all_here = info.delivered.consumer_sequence == delivered;
        let pulled = info.num_pending == 0 || info.num_waiting > 0;
        let mine = delivered == 0 || !self.is_held_by_another(&info);
        Ok(same && all_here && pulled && mine)
    }

    /// Whether the broker gives the partition's messages to another client than this reader.
    fn is_held_by_another(&self, info: &Info) -> bool {
        let pinned = info.priority_groups.iter().find_map(|group| group.pinned_client_id.as_ref());
        pinned.is_some_and(|pinned| self.pin.as_ref() != Some(pinned))
    }

    /// Whether the partition, whose pin this reader has just got, is in the same life of the stream and still begins where its
    /// consumer was made to begin.
    async fn still_starts_at(&self, taken: &Taken) -> Result<bool, SessionError> {
        let (_, incarnation) = streams::metrics(&self.client).await?;
        let same_start = match taken.start {
            Start::Recent(_) => true,
            start => self.start.start(self.partition, incarnation).await? == start,
        };
        Ok(incarnation == taken.incarnation && same_start)
    }

    /// The stream, declared again where it has vanished.
    async fn stream(&self) -> Result<(jetstream::stream::Stream, Incarnation), DeclareError> {
        match streams::metrics(&self.client).await {
            Ok(found) => Ok(found),
            Err(_) => {
                streams::declare(&self.client, &self.config).await?;
                streams::metrics(&self.client).await
            }
        }
    }

    /// Creates the consumer; fails when another member was faster with another configuration.
    async fn create(&self, config: pull::Config) -> Result<PullConsumer, SessionError> {
        self.client
            .jetstream
            .create_consumer_strict_on_stream(config, streams::METRICS)
            .await
            .map_err(|error| SessionError::Consumer(error.into()))
    }

    fn consumer_config(&self, name: &str, start: Start) -> pull::Config {
        let deliver_policy = match start {
            Start::After(sequence) => DeliverPolicy::ByStartSequence { start_sequence: sequence.next().0 },
            Start::Recent(length) => {
                DeliverPolicy::ByStartTime { start_time: (std::time::SystemTime::now() - length).into() }
            }
        };
        pull::Config {
            durable_name: Some(name.to_owned()),
            deliver_policy,
            ack_policy: AckPolicy::All,
            ack_wait: ACK_WAIT,
            max_ack_pending: -1,
            max_deliver: -1,
            filter_subject: subject::partition_filter(self.partition),
            priority_policy: PriorityPolicy::PinnedClient,
            priority_groups: vec![self.group.to_owned()],
            priority_timeout: PIN_TIMEOUT,
            ..pull::Config::default()
        }
    }

    /// Lets another member have the partition at once instead of after [`PIN_TIMEOUT`].
    async fn release(&self) {
        if self.pin.is_none() || !self.client.is_connected() {
            return;
        }
        let name = consumer_name(self.group, self.partition);
        let Ok(stream) = self.client.jetstream.get_stream_no_info(streams::METRICS).await else { return };
        let Ok(consumer) = stream.get_consumer::<pull::Config>(&name).await else { return };
        if !self.is_held_by_another(consumer.cached_info()) {
            // Fails when nobody has the pin any more, which is as good.
            let _ = stream.unpin_consumer(&name, self.group).await;
        }
    }
}

/// Whether an existing consumer, that nobody holds, has given nothing away and begins as `wanted`.
fn begins_at(info: &Info, wanted: &pull::Config) -> bool {
    let same_start = match (&info.config.deliver_policy, &wanted.deliver_policy) {
        (DeliverPolicy::ByStartTime { .. }, DeliverPolicy::ByStartTime { .. }) => true,
        (existing, wanted) => existing == wanted,
    };
    info.delivered.consumer_sequence == 0 && same_start
}

/// The next message, if it has arrived already: a reader that stops takes it along.
fn arrived(messages: &mut pull::Stream) -> Option<jetstream::Message> {
    messages.next().now_or_never()??.ok()
}

fn pin_of(message: &jetstream::Message) -> Option<&str> {
    let headers = message.headers.as_ref()?;
    // A publisher may have sent a header of that name; the broker's own comes last.
    headers.get_last(async_nats::header::NATS_PIN_ID).map(|pin| pin.as_str())
}
