//! Fills the tail from the stream.
//!
//! One consumer reads all partitions in the order of the stream. It begins at the first message that the lake lacks; after a break
//! it goes on after the last message that it has seen, so that no row vanishes from queries while it reconnects. In another life
//! of the stream, and when the lake's positions have gone back, all partitions start anew.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, pull},
};
use futures_util::StreamExt;
use plimsoll_lake::{LakeError, LakeReader, Tail, schema::check_times};
use plimsoll_nats::{
    Batch, Client, HostId, Incarnation, PartitionId, Sequence,
    clock::unix_ms,
    dead::chain,
    delivery::DeliveryError,
    report::Reached,
    streams::{self, DeclareError},
    subject::{self, MetricSubject},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Messages asked for in one pull.
const PULL_MESSAGES: usize = 2000;
/// Expiry of one pull.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// The broker says so often that it is there; twice as long without a word ends the session.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the broker keeps the consumer of a reader that has vanished.
const INACTIVE: Duration = Duration::from_secs(30);
/// Pause before a session is begun anew.
const RETRY: Duration = Duration::from_millis(250);

/// How far the tail is, and which hosts it has seen.
#[derive(Debug, Default)]
pub struct FeedState {
    current: AtomicBool,
    rewind: AtomicBool,
    /// Wakes the session when `rewind` is set.
    rewound: Notify,
    last_seen: Mutex<HashMap<HostId, i64>>,
}

impl FeedState {
    /// Whether the tail holds everything that the stream held when the session with the broker began, and receives the rest.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    /// Asks for a new start from the lake's positions, because they have gone back.
    pub fn rewind(&self) {
        self.current.store(false, Ordering::Release);
        self.rewind.store(true, Ordering::Release);
        self.rewound.notify_one();
    }

    /// Unix ms of the newest sample of each host since the service started.
    #[must_use]
    pub fn last_seen(&self) -> HashMap<HostId, i64> {
        self.last_seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a sample of the host has been seen.
    #[must_use]
    pub fn has_seen(&self, host: &HostId) -> bool {
        self.last_seen.lock().unwrap_or_else(PoisonError::into_inner).contains_key(host)
    }

    fn saw(&self, host: &HostId, time_ms: i64) {
        let mut seen = self.last_seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(host) {
            Some(last) => *last = time_ms.max(*last),
            None => drop(seen.insert(host.clone(), time_ms)),
        }
    }
}

/// Reads the stream into the tail.
#[derive(Debug)]
pub struct Feed {
    client: Client,
    reader: Arc<LakeReader>,
    tail: Arc<Tail>,
    state: Arc<FeedState>,
    metrics: Metrics,
    /// The last message that was read, in its life of the stream.
    progress: Option<(Incarnation, Sequence)>,
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Stream(#[from] DeclareError),
    #[error("failed to read the lake's positions")]
    Positions(#[from] LakeError),
    #[error("failed to look up where the tail begins")]
    Begin(#[source] jetstream::stream::RawMessageError),
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    #[error("the lake's positions have gone back")]
    Rewound,
}

impl Feed {
    /// A feed that has not begun.
    pub fn new(
        client: Client,
        reader: Arc<LakeReader>,
        tail: Arc<Tail>,
        state: Arc<FeedState>,
        metrics: Metrics,
    ) -> Self {
        Self { client, reader, tail, state, metrics, progress: None }
    }

    /// Reads until `shutdown`, through all breaks.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut failures = 0_u32;
        loop {
            let was_current = self.state.is_current();
            let outcome = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                outcome = self.session() => outcome,
            };
            // A session that got somewhere begins a new series of failures.
            failures = if self.state.is_current() && !was_current { 1 } else { failures + 1 };
            self.state.current.store(false, Ordering::Release);
            if let Err(error) = outcome
                && failures.is_power_of_two()
            {
                tracing::warn!(error = %chain(&error), failures, "reading the stream broke off, going on after the last message");
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// One run of a consumer; ends by an error only.
    async fn session(&mut self) -> Result<(), SessionError> {
        let (stream, incarnation) = streams::metrics(&self.client).await?;
        let stored = stream.cached_info().state.clone();
        let start = self.start(&stream, incarnation, Sequence(stored.last_sequence)).await?;
        let messages = consume(&stream, start).await?;
        tokio::pin!(messages);
        let target = if stored.messages == 0 { Sequence(0) } else { Sequence(stored.last_sequence) };
        let mut delivered = 0;
        let mut last = start;
        loop {
            if self.state.rewind.load(Ordering::Acquire) {
                return Err(SessionError::Rewound);
            }
            if last >= target && !self.state.is_current() {
                self.state.current.store(true, Ordering::Release);
                tracing::info!(stream.seq = last.0, "the tail has caught up with the stream");
            }
            let message = tokio::select! {
                biased;
                // Maybe of a request that this session has begun with already.
                () = self.state.rewound.notified() => continue,
                message = messages.next() => message.ok_or(DeliveryError::Ended)?,
            };
            let message = message.map_err(|error| DeliveryError::Pull(error.into()))?;
            let info = message.info().map_err(DeliveryError::Place)?;
            delivered += 1;
            if info.consumer_sequence != delivered {
                return Err(DeliveryError::Gap.into());
            }
            last = Sequence(info.stream_sequence);
            let stored_ms = unix_ms(info.published.unix_timestamp_nanos());
            self.take(&message, last, stored_ms);
            self.metrics.read(Reached { stored_ms, pending: info.pending });
            self.progress = Some((incarnation, last));
        }
    }

    /// After which message to begin: the last one seen, where this is still the same stream, else before the first that the lake
    /// does not contain. The lowest position would not do: a partition without hosts has none, however long the stream is.
    async fn start(
        &mut self,
        stream: &jetstream::stream::Stream,
        incarnation: Incarnation,
        newest: Sequence,
    ) -> Result<Sequence, SessionError> {
        let rewind = self.state.rewind.swap(false, Ordering::AcqRel);
        match self.progress {
            Some((seen, last)) if seen == incarnation && last <= newest && !rewind => return Ok(last),
            _ => {}
        }
        let positions = match self.reader.positions().await {
            Ok(positions) => positions,
            Err(error) => {
                self.state.rewind.fetch_or(rewind, Ordering::AcqRel);
                return Err(error.into());
            }
        };
        let mut start = newest;
        for partition in PartitionId::all() {
            let position = positions.of(partition, incarnation);
            self.tail.reset(partition, position);
            let first =
                streams::first_after(stream, partition, position.sequence).await.map_err(SessionError::Begin)?;
            start = first.map_or(start, |first| start.min(Sequence(first.0 - 1)));
        }
        self.progress = None;
        Ok(start)
    }

    /// Puts a message into the tail; one that ingest would reject leaves no rows.
    fn take(&self, message: &jetstream::Message, sequence: Sequence, stored_ms: i64) {
        let Ok(subject) = MetricSubject::parse(&message.subject) else {
            self.metrics.tail_unusable.inc();
            return;
        };
        let decoded = Batch::decode(&subject.host, &subject.measurement, message.headers.as_ref(), &message.payload);
        let batch = decoded.ok().filter(|batch| check_times(batch, stored_ms).is_ok());
        match &batch {
            Some(batch) => {
                let newest = batch.times.iter().copied().max().unwrap_or(stored_ms);
                self.state.saw(&subject.host, newest.min(stored_ms));
            }
            None => drop(self.metrics.tail_unusable.inc()),
        }
        self.tail.push(subject.partition, sequence, batch.map(Arc::new));
    }
}

async fn consume(stream: &jetstream::stream::Stream, start: Sequence) -> Result<pull::Stream, DeliveryError> {
    let config = pull::Config {
        description: Some("tail of a query service".to_owned()),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: start.next().0 },
        ack_policy: AckPolicy::None,
        filter_subject: subject::PARTITIONED_WILDCARD.to_owned(),
        inactive_threshold: INACTIVE,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| DeliveryError::Consumer(error.into()))?;
    consumer
        .stream()
        .max_messages_per_batch(PULL_MESSAGES)
        .expires(PULL_EXPIRES)
        .heartbeat(HEARTBEAT)
        .messages()
        .await
        .map_err(|error| DeliveryError::Pull(error.into()))
}
