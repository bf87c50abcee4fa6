//! Records what hosts publish: as it comes, or what the stream holds.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use plimsoll_nats::{
    Client, ConnectError, NatsConfig,
    async_nats::{
        SubscribeError,
        jetstream::consumer::{DeliverPolicy, pull::OrderedConfig},
    },
    clock::{now_ms, unix_ms},
    streams::{self, DeclareError},
    subject::{METRICS_WILDCARD, MetricSubject},
};
use tokio_util::sync::CancellationToken;

use crate::{
    progress::Progress,
    recording::{Record, RecordingError, RecordingWriter},
};

/// Why nothing or not all was recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The broker can't be reached.
    #[error("failed to reach the broker: is it running, and is `--nats-url` right?")]
    Connect(#[from] ConnectError),
    /// There is no stream to read.
    #[error("failed to open the stream")]
    Stream(#[from] DeclareError),
    /// The broker does not let this client subscribe.
    #[error("failed to subscribe")]
    Subscribe(#[from] SubscribeError),
    /// The broker stopped sending what the stream holds.
    #[error("failed to read the stream")]
    Read(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The file can't be written.
    #[error(transparent)]
    Recording(#[from] RecordingError),
}

/// What was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Messages.
    pub messages: u64,
    /// Size of the file in bytes.
    pub bytes: u64,
}

/// Records what is published from now on, for `time` or until `stop`.
///
/// Fails when the broker can't be reached, and when the file is there already or can't be written.
pub async fn live(
    nats: &NatsConfig,
    file: &Path,
    time: Duration,
    stop: &CancellationToken,
) -> Result<Recorded, RecordError> {
    let client = Client::connect_once(nats, "plimsoll-bench").await?;
    let mut messages = client.nats.subscribe(METRICS_WILDCARD).await?;
    // Whatever the broker answers: then it has the subscription, and what is published from now on is recorded.
    let _ = client.jetstream.query_account().await;
    let mut writer = RecordingWriter::create(file)?;
    let mut recorded = Recorded::default();
    let mut progress = Progress::new("seconds", Some(time.as_secs()));
    let started = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut ending = false;
    loop {
        tokio::select! {
            biased;
            () = until(started + time, stop), if !ending => {
                // What the broker has had until now still comes; then there is no more.
                ending = true;
                messages.drain().await.map_err(read_failed)?;
            }
            _ = tick.tick() => progress.show(started.elapsed().as_secs(), &format!(", {} messages", recorded.messages)),
            message = messages.next() => {
                let Some(message) = message else { break };
                let headers = Record::headers_of(message.headers.as_ref());
                let subject = message.subject.to_string();
                writer.write(&Record { time_ms: now_ms(), subject, headers, payload: message.payload })?;
                recorded.messages += 1;
            }
        }
    }
    recorded.bytes = writer.finish()?;
    Ok(recorded)
}

/// Waits until it is time to end.
async fn until(end: tokio::time::Instant, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep_until(end) => {}
    }
}

/// Records what the stream has stored within the last `time`, up to what it holds now.
///
/// Fails as [`live`] does, and when there is no stream.
pub async fn stored(
    nats: &NatsConfig,
    file: &Path,
    time: Duration,
    stop: &CancellationToken,
) -> Result<Recorded, RecordError> {
    let client = Client::connect_once(nats, "plimsoll-bench").await?;
    let (stream, _) = streams::metrics(&client).await?;
    let start_time = (SystemTime::now() - time).into();
    let config =
        OrderedConfig { deliver_policy: DeliverPolicy::ByStartTime { start_time }, ..OrderedConfig::default() };
    let mut consumer = stream.create_consumer(config).await.map_err(read_failed)?;
    let mut left = consumer.info().await.map_err(read_failed)?.num_pending;
    let mut messages = consumer.messages().await.map_err(read_failed)?;
    let mut writer = RecordingWriter::create(file)?;
    let mut progress = Progress::new("messages", Some(left));
    let mut recorded = Recorded::default();
    while left > 0 && !stop.is_cancelled() {
        let Some(message) = messages.next().await else { break };
        let message = message.map_err(read_failed)?;
        let info = message.info().map_err(read_failed)?;
        left = info.pending;
        // What stands under another subject is nothing that an agent has published.
        let Ok(subject) = MetricSubject::parse(&message.subject) else { continue };
        let time_ms = unix_ms(info.published.unix_timestamp_nanos());
        let headers = Record::headers_of(message.headers.as_ref());
        let payload = message.payload.clone();
        writer.write(&Record { time_ms, subject: subject.public(), headers, payload })?;
        recorded.messages += 1;
        progress.show(recorded.messages, "");
    }
    recorded.bytes = writer.finish()?;
    Ok(recorded)
}

fn read_failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RecordError {
    RecordError::Read(error.into())
}
