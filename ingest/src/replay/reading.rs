//! Reads a stretch of the stream, through breaks of the connection.

use std::time::{Duration, UNIX_EPOCH};

use futures_util::StreamExt;
use plimsoll_lake::{PendingMessage, replay::ReplaySet};
use plimsoll_nats::{
    Batch, Client, Column, Incarnation, Sequence,
    async_nats::jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, pull},
    },
    batch::DecodeError,
    clock::unix_ms,
    dead::chain,
    delivery::DeliveryError,
    streams::{self, DeclareError},
    subject::{MetricSubject, SubjectError},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Progress, ReplayConfig, ReplayError};

/// Messages and bytes asked for in one pull. A message has 1 MB at most unless the broker was told otherwise.
const PULL_MESSAGES: usize = 4000;
const PULL_BYTES: usize = 32 * 1024 * 1024;
/// Expiry of one pull.
const PULL_EXPIRES: Duration = Duration::from_secs(10);
/// The broker says so often that it is there; twice as long without a word ends the session.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long nothing may come before the consumer is asked whether there is anything left: messages may have expired.
const IDLE: Duration = Duration::from_secs(2);
/// How long the broker keeps the consumer of a reader that has vanished, or that waits for a slow lake.
const INACTIVE: Duration = Duration::from_secs(300);
/// Pause before a session is begun anew, and how often that is done without getting on.
const RETRY: Duration = Duration::from_secs(1);
const FAILURES: u32 = 30;

/// What went wrong in a session with the broker.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream can't be looked up.
    #[error(transparent)]
    Stream(#[from] DeclareError),
    /// Messages come no more.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    /// The stream was wiped.
    #[error("the stream was deleted and made anew")]
    OtherLife,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("failed to read the subject")]
    Subject(#[from] SubjectError),
    #[error("failed to read the batch")]
    Batch(#[from] DecodeError),
}

/// The part of the stream that is read.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) incarnation: Incarnation,
    /// Unix ms of the oldest message, where more is asked for.
    pub(super) held_since_ms: Option<i64>,
    /// The last message that may be read.
    end: Sequence,
    /// Messages of the selection that come after that, where an end was asked for.
    beyond: u64,
}

impl Stretch {
    pub(super) async fn find(client: &Client, config: &ReplayConfig) -> Result<Self, ReplayError> {
        let (stream, incarnation) = streams::metrics(client).await?;
        let state = &stream.cached_info().state;
        if state.messages == 0 {
            return Err(ReplayError::Empty);
        }
        let oldest_ms = unix_ms(state.first_timestamp.unix_timestamp_nanos());
        if config.until_ms.is_some_and(|until| until <= oldest_ms) {
            return Err(ReplayError::Gone { held_since_ms: oldest_ms });
        }
        let held_since_ms = (config.since_ms < oldest_ms).then_some(oldest_ms);
        let mut stretch = Self { incarnation, held_since_ms, end: Sequence(state.last_sequence), beyond: 0 };
        if let Some(until_ms) = config.until_ms {
            let consumer = create(&stream, config, by_time(until_ms)).await.map_err(ReplayError::Reading)?;
            let info = consumer.cached_info();
            // Of a consumer that was just made: where it begins, and what lies after that.
            stretch.end = stretch.end.min(Sequence(info.delivered.stream_sequence));
            stretch.beyond = info.num_pending;
            // Otherwise the broker removes it.
            let _ = stream.delete_consumer(&info.name).await;
        }
        Ok(stretch)
    }
}

fn by_time(unix_ms: i64) -> DeliverPolicy {
    let since_1970 = Duration::from_millis(u64::try_from(unix_ms).unwrap_or_default());
    DeliverPolicy::ByStartTime { start_time: (UNIX_EPOCH + since_1970).into() }
}

async fn create(
    stream: &jetstream::stream::Stream,
    config: &ReplayConfig,
    deliver_policy: DeliverPolicy,
) -> Result<jetstream::consumer::PullConsumer, SessionError> {
    let mut subjects = config.selection.subjects();
    let (filter_subject, filter_subjects) = match subjects.len() {
        1 => (subjects.remove(0), Vec::new()),
        _ => (String::new(), subjects),
    };
    let config = pull::Config {
        description: Some("plimsoll replay".to_owned()),
        deliver_policy,
        ack_policy: AckPolicy::None,
        filter_subject,
        filter_subjects,
        inactive_threshold: INACTIVE,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    Ok(stream.create_consumer(config).await.map_err(|error| DeliveryError::Consumer(error.into()))?)
}

/// Reads, decodes and gathers.
pub(super) struct Reader {
    client: Client,
    config: ReplayConfig,
    stretch: Stretch,
    /// The last message that was read.
    last: Sequence,
    gathered: ReplaySet,
    rows: usize,
    bytes: usize,
    total: u64,
}

/// Why a session ended without an error.
enum SessionEnd {
    /// Everything was read.
    Complete,
    /// Nobody wants more.
    Stopped,
}

/// What the reader hands sets over to.
type Sender = mpsc::Sender<Result<ReplaySet, ReplayError>>;

impl Reader {
    /// A reader that begins after a sequence, and at the configured time where that is 0. Fails when there is nothing to read.
    pub(super) async fn open(
        client: Client,
        config: ReplayConfig,
        stretch: Stretch,
        after: Sequence,
    ) -> Result<Self, ReplayError> {
        let (gathered, rows, bytes) = (ReplaySet::default(), 0, 0);
        let mut reader = Self { client, config, stretch, last: after, gathered, rows, bytes, total: 0 };
        let consumer = reader.consumer().await.map_err(ReplayError::Reading)?;
        reader.total = consumer.cached_info().num_pending.saturating_sub(reader.stretch.beyond);
        if reader.total == 0 && after == Sequence(0) {
            return Err(ReplayError::NoMatch { selection: reader.config.selection.to_string() });
        }
        Ok(reader)
    }

    /// Messages to read, as far as is known at the begin.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    async fn consumer(&self) -> Result<jetstream::consumer::PullConsumer, SessionError> {
        let (stream, incarnation) = streams::metrics(&self.client).await?;
        if incarnation != self.stretch.incarnation {
            return Err(SessionError::OtherLife);
        }
        let policy = match self.last {
            Sequence(0) => by_time(self.config.since_ms),
            last => DeliverPolicy::ByStartSequence { start_sequence: last.next().0 },
        };
        create(&stream, &self.config, policy).await
    }

    /// Reads to the end or until `stop`, and hands over what is gathered.
    pub(super) async fn run(mut self, sets: Sender, progress: watch::Sender<Progress>, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            let before = self.last;
            match self.session(&sets, &progress, &stop).await {
                Ok(SessionEnd::Complete) => {
                    self.gathered.reached = self.gathered.reached.max(self.stretch.end);
                    self.gathered.is_last = true;
                    self.hand_over(&sets).await;
                    return;
                }
                Ok(SessionEnd::Stopped) => return self.hand_over(&sets).await,
                Err(error) => {
                    failures = if self.last > before { 1 } else { failures + 1 };
                    if failures >= FAILURES || matches!(error, SessionError::OtherLife) {
                        self.hand_over(&sets).await;
                        // Fails when nobody waits any more.
                        let _ = sets.send(Err(ReplayError::Reading(error))).await;
                        return;
                    }
                    tracing::warn!(error = %chain(&error), failures, "reading the stream broke off, going on after the last message");
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.hand_over(&sets).await,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn hand_over(&mut self, sets: &Sender) {
        let set = std::mem::take(&mut self.gathered);
        (self.rows, self.bytes) = (0, 0);
        if set.is_last || set.reached > Sequence(0) {
            // Fails when nobody waits any more, because storing has failed.
            let _ = sets.send(Ok(set)).await;
        }
    }

    async fn session(
        &mut self,
        sets: &Sender,
        progress: &watch::Sender<Progress>,
        stop: &CancellationToken,
    ) -> Result<SessionEnd, SessionError> {
        let mut consumer = self.consumer().await?;
        if consumer.cached_info().num_pending == 0 || self.last >= self.stretch.end {
            return Ok(SessionEnd::Complete);
        }
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(PULL_MESSAGES)
            .max_bytes_per_batch(PULL_BYTES)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| DeliveryError::Pull(error.into()))?;
        let mut delivered = 0;
        loop {
            let message = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(SessionEnd::Stopped),
                () = sets.closed() => return Ok(SessionEnd::Stopped),
                message = messages.next() => message.ok_or(DeliveryError::Ended)?,
                () = tokio::time::sleep(IDLE) => {
                    let info = consumer.info().await.map_err(|error| DeliveryError::Consumer(error.into()))?;
                    if info.num_pending == 0 && info.delivered.consumer_sequence == delivered {
                        return Ok(SessionEnd::Complete);
                    }
                    continue;
                }
            };
            let message = message.map_err(|error| DeliveryError::Pull(error.into()))?;
            let info = message.info().map_err(DeliveryError::Place)?;
            delivered += 1;
            if info.consumer_sequence != delivered {
                return Err(DeliveryError::Gap.into());
            }
            let (sequence, pending, stored_ms) =
                (Sequence(info.stream_sequence), info.pending, unix_ms(info.published.unix_timestamp_nanos()));
            if sequence > self.stretch.end {
                return Ok(SessionEnd::Complete);
            }
            self.take(&message, sequence, stored_ms, progress);
            if self.rows >= self.config.limits.rows || self.bytes >= self.config.limits.bytes {
                self.hand_over(sets).await;
            }
            if pending == 0 {
                return Ok(SessionEnd::Complete);
            }
        }
    }

    /// Gathers a message and counts it.
    fn take(
        &mut self,
        message: &jetstream::Message,
        sequence: Sequence,
        stored_ms: i64,
        progress: &watch::Sender<Progress>,
    ) {
        (self.last, self.gathered.reached) = (sequence, sequence);
        let subject = MetricSubject::parse(&message.subject);
        let is_selected = subject.as_ref().map_or(self.config.selection.is_everything(), |subject| {
            self.config.selection.matches(&subject.host, &subject.measurement)
        });
        let decoded = is_selected.then(|| decode(message, subject));
        progress.send_modify(|progress| {
            progress.messages += 1;
            match &decoded {
                Some(Ok((_, batch))) => {
                    progress.rows += batch.rows() as u64;
                    progress.points += points(batch);
                }
                Some(Err(fault)) => progress.refuse(fault),
                None => {}
            }
        });
        if let Some(Ok((subject, batch))) = decoded {
            self.rows += batch.rows();
            self.bytes += batch.weight();
            if !self.config.is_trial {
                let partition = subject.partition;
                self.gathered.messages.push(PendingMessage { partition, sequence, stored_ms, batch });
            }
        }
    }
}

fn decode(
    message: &jetstream::Message,
    subject: Result<MetricSubject, SubjectError>,
) -> Result<(MetricSubject, Batch), Fault> {
    let subject = subject?;
    let headers = message.headers.as_ref();
    let batch = Batch::decode(&subject.host, &subject.measurement, headers, &message.payload)?;
    Ok((subject, batch))
}

fn points(batch: &Batch) -> u64 {
    let present = |column: &Column| match column {
        Column::Float(values) => values.iter().flatten().count(),
        Column::Integer(values) => values.iter().flatten().count(),
        Column::Bool(values) => values.iter().flatten().count(),
        Column::Text(values) => values.iter().flatten().count(),
    };
    batch.fields.values().map(present).sum::<usize>() as u64
}
