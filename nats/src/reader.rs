//! Reads one partition of `METRICS` for one member of a group.
//!
//! The group has one durable pull consumer a partition, with the pinned-client policy: the broker gives messages to one client
//! at a time, and a new pin id says that the reader has just got the partition. What the broker believes delivered or acked
//! says nothing about what is contained in the lake, so a reader that gets a pin asks its [`StartSource`] anew and, unless the
//! consumer is known to begin exactly there, deletes the consumer and makes it again from there. Nothing between the start and
//! the first message can thereby be skipped.
//!
//! Sequences rise strictly between two [`ReaderEvent::Started`]; redeliveries within are dropped.

use std::{fmt, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, PriorityPolicy, PullConsumer, pull},
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    Client, Incarnation, NatsConfig, PartitionId, Sequence,
    dead::chain,
    streams::{self, DeclareError},
    subject,
};

/// Expiry of one pull; well below [`PIN_TIMEOUT`], so that a waiting reader keeps its pin.
const PULL_EXPIRES: Duration = Duration::from_secs(1);
/// How long the broker keeps a partition for a silent reader.
pub const PIN_TIMEOUT: Duration = Duration::from_secs(4);
/// Longer than any commit takes: a redelivery is only wasted work, since a new owner begins from the position anyway.
const ACK_WAIT: Duration = Duration::from_secs(600);
/// Messages asked for in one pull.
const PULL_MESSAGES: usize = 1000;
/// Pause before a reader tries again after the broker refused or vanished.
const RETRY: Duration = Duration::from_millis(500);

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
    pub fn into_acker(self) -> jetstream::message::Acker {
        self.message.split().1
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
}

/// Why a session ended without an error.
enum SessionEnd {
    /// The reader is to stop.
    Stop,
    /// The consumer must be made anew from the right start.
    Rewind,
}

impl<S: StartSource> PartitionReader<S> {
    /// A reader of `partition` for a member of `group`.
    pub fn new(client: &Client, config: &NatsConfig, group: &'static str, partition: PartitionId, start: S) -> Self {
        Self { client: client.clone(), config: config.clone(), group, partition, start }
    }

    /// Reads until `stop`, then gives the partition back to the broker.
    pub async fn run(self, events: mpsc::Sender<ReaderEvent>, stop: CancellationToken) {
        let mut rewind = false;
        let mut pinned = false;
        while !stop.is_cancelled() {
            match self.session(std::mem::take(&mut rewind), &mut pinned, &events, &stop).await {
                Ok(SessionEnd::Stop) => break,
                Ok(SessionEnd::Rewind) => rewind = true,
                Err(error) => {
                    tracing::warn!(group = self.group, partition.id = %self.partition, error = %chain(&error), "reading a partition failed, trying again");
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
            }
        }
        if pinned {
            self.release().await;
        }
        let _ = events.send(ReaderEvent::Stopped { partition: self.partition }).await;
    }

    /// One run of the consumer. With `rewind` the consumer is made anew first.
    async fn session(
        &self,
        rewind: bool,
        pinned: &mut bool,
        events: &mpsc::Sender<ReaderEvent>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, SessionError> {
        let (stream, incarnation) = self.stream().await?;
        let start = self.start.start(self.partition, incarnation).await?;
        let name = consumer_name(self.group, self.partition);
        *pinned = false;
        if rewind {
            let _ = stream.delete_consumer(&name).await;
        }
        let (consumer, fresh) = match stream.get_consumer::<pull::Config>(&name).await {
            Ok(consumer) => (consumer, false),
            Err(_) => {
                let created = self.create_strict(&name, start).await;
                (created?, true)
            }
        };
        let made_from = fresh.then_some(start);
        self.pull(&consumer, incarnation, made_from, pinned, events, stop).await
    }

    async fn pull(
        &self,
        consumer: &PullConsumer,
        incarnation: Incarnation,
        made_from: Option<Start>,
        pinned: &mut bool,
        events: &mpsc::Sender<ReaderEvent>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, SessionError> {
        let mut messages = consumer
            .stream()
            .group(self.group)
            .expires(PULL_EXPIRES)
            .max_messages_per_batch(PULL_MESSAGES)
            .messages()
            .await
            .map_err(|error| SessionError::Pull(error.into()))?;
        let mut pin: Option<String> = None;
        let mut last = Sequence(0);
        loop {
            let message = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(SessionEnd::Stop),
                message = messages.next() => match message {
                    Some(message) => message.map_err(|error| SessionError::Pull(error.into()))?,
                    None => return Ok(SessionEnd::Rewind),
                },
            };
            let delivered = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(async_nats::header::NATS_PIN_ID))
                .map(|pin| pin.as_str().to_owned());
            let info = message.info().map_err(SessionError::Delivery)?;
            let (sequence, consumer_sequence) = (Sequence(info.stream_sequence), info.consumer_sequence);
            let stored_ms = i64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
            let pending = info.pending;
            if pin.is_none() || delivered != pin {
                let first = consumer_sequence == 1 && pin.is_none();
                if !(first && self.begins_right(made_from, incarnation).await?) {
                    return Ok(SessionEnd::Rewind);
                }
                pin = delivered;
                *pinned = true;
                let started = ReaderEvent::Started { partition: self.partition, incarnation };
                if events.send(started).await.is_err() {
                    return Ok(SessionEnd::Stop);
                }
            }
            if sequence <= last {
                continue;
            }
            last = sequence;
            let partition = self.partition;
            let stored = StoredMessage { partition, incarnation, sequence, stored_ms, pending, message };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(SessionEnd::Stop),
                sent = events.send(ReaderEvent::Message(stored)) => if sent.is_err() { return Ok(SessionEnd::Stop) },
            }
        }
    }

    /// Whether a consumer that was made from `made_from` begins where a reader that has just got the pin must begin.
    async fn begins_right(&self, made_from: Option<Start>, incarnation: Incarnation) -> Result<bool, StartError> {
        match made_from {
            None => Ok(false),
            Some(Start::Recent(_)) => Ok(true),
            Some(start) => Ok(self.start.start(self.partition, incarnation).await? == start),
        }
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

    /// Creates the consumer; fails when another member was faster with a different start.
    async fn create_strict(&self, name: &str, start: Start) -> Result<PullConsumer, SessionError> {
        self.client
            .jetstream
            .create_consumer_strict_on_stream(self.consumer_config(name, start), streams::METRICS)
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
        if !self.client.is_connected() {
            return;
        }
        let name = consumer_name(self.group, self.partition);
        if let Ok(stream) = self.client.jetstream.get_stream_no_info(streams::METRICS).await {
            // Fails when the consumer is gone or pinned to nobody, which is as good.
            let _ = stream.unpin_consumer(&name, self.group).await;
        }
    }
}
