//! Publishes messages to a broker, many at a time, each acknowledged.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use plimsoll_nats::{
    Client, ConnectError, NatsConfig,
    async_nats::HeaderMap,
    async_nats::jetstream::context::{PublishAckFuture, PublishError},
    streams::{self, DeclareError},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Fleet, FleetConfig, FleetError, points,
    progress::Progress,
    recording::Record,
    wire::{Message, Packer},
};

/// Messages that wait for the broker at a time. Enough for the broker never to wait, and few enough for its answers to come in time.
const IN_FLIGHT: usize = 2000;

/// Why not all was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishingError {
    /// There is no such fleet.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The broker can't be reached.
    #[error("failed to reach the broker: is it running, and is `--nats-url` right?")]
    Connect(#[from] ConnectError),
    /// The streams can't be made.
    #[error("failed to declare the streams")]
    Declare(#[from] DeclareError),
    /// The broker did not store a message.
    #[error("failed to publish message {number}")]
    Publish {
        /// Which one, from 1.
        number: u64,
        /// Why.
        source: PublishError,
    },
}

/// What was published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    /// Messages that the broker stored.
    pub messages: u64,
    /// Rows in them.
    pub rows: u64,
    /// Values in them that are not nil.
    pub points: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// How fast time passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// So many times as fast as in reality.
    Times(f64),
    /// As fast as the broker takes it.
    Most,
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<f64>() {
            Ok(times) if times.is_finite() && times > 0.0 => Ok(Self::Times(times)),
            _ if text == "max" => Ok(Self::Most),
            _ => Err("expected a number above 0, or `max`".to_owned()),
        }
    }
}

/// Waits until it is time for what happened some time after the start.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Rate,
    started: Instant,
}

impl Pace {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, started: Instant::now() }
    }

    /// Returns whether to go on: not when `stop` comes first.
    pub(crate) async fn until(&self, since_start: Duration, stop: &CancellationToken) -> bool {
        if let Rate::Times(times) = self.rate {
            tokio::select! {
                biased;
                () = stop.cancelled() => return false,
                () = tokio::time::sleep_until(self.started + since_start.div_f64(times)) => {}
            }
        }
        !stop.is_cancelled()
    }
}

/// Sends messages and waits for the broker's acknowledgements.
pub struct Publisher {
    client: Client,
    waiting: VecDeque<PublishAckFuture>,
    acknowledged: u64,
    sent: Published,
}

impl Publisher {
    /// Connects once, and declares the streams where they are missing.
    ///
    /// Fails when the broker can't be reached or refuses.
    pub async fn connect(config: &NatsConfig) -> Result<Self, PublishingError> {
        let client = Client::connect_once(config, "plimsoll-bench").await?;
        streams::declare(&client, config).await?;
        Ok(Self { client, waiting: VecDeque::new(), acknowledged: 0, sent: Published::default() })
    }

    /// Sends a message of so many rows and points; returns before it is stored. Fails when an earlier one was not stored.
    pub async fn send(&mut self, message: Message, rows: usize, points: usize) -> Result<(), PublishingError> {
        self.sent.rows += rows as u64;
        self.sent.points += points as u64;
        let headers = message.headers();
        self.put(message.subject, headers, message.payload).await
    }

    /// Sends a message as it was recorded. Fails when an earlier one was not stored.
    pub(crate) async fn send_recorded(&mut self, record: Record) -> Result<(), PublishingError> {
        let headers = record.header_map();
        self.put(record.subject, headers, record.payload).await
    }

    async fn put(&mut self, subject: String, headers: HeaderMap, payload: Bytes) -> Result<(), PublishingError> {
        while self.waiting.len() >= IN_FLIGHT {
            self.acknowledge().await?;
        }
        self.sent.messages += 1;
        self.sent.bytes += payload.len() as u64;
        let number = self.sent.messages;
        let publishing = self.client.jetstream.publish_with_headers(subject, headers, payload);
        let waiting = publishing.await.map_err(|source| PublishingError::Publish { number, source })?;
        self.waiting.push_back(waiting);
        Ok(())
    }

    /// Waits until all is stored, and tells what that was. Fails when something was not.
    pub async fn finish(mut self) -> Result<Published, PublishingError> {
        while !self.waiting.is_empty() {
            self.acknowledge().await?;
        }
        Ok(self.sent)
    }

    async fn acknowledge(&mut self) -> Result<(), PublishingError> {
        let Some(oldest) = self.waiting.pop_front() else { return Ok(()) };
        self.acknowledged += 1;
        oldest.await.map_err(|source| PublishingError::Publish { number: self.acknowledged, source })?;
        Ok(())
    }
}

/// Publishes `ticks` samples of a fleet, or what was sampled until `stop`; returns once the broker has stored them.
///
/// Fails when there is no such fleet, and when the broker can't be reached or does not store a message.
pub async fn publish(
    nats: &NatsConfig,
    fleet: FleetConfig,
    ticks: u64,
    rate: Rate,
    stop: &CancellationToken,
) -> Result<Published, PublishingError> {
    let start_ms = fleet.start_ms;
    let mut fleet = Fleet::new(fleet)?;
    let mut publisher = Publisher::connect(nats).await?;
    let mut progress = Progress::new("samples of each host", Some(ticks));
    let (mut done, mut batches, mut packer) = (0, Vec::new(), Packer::default());
    let pace = Pace::new(rate);
    while done < ticks {
        let since_start = Duration::from_millis((fleet.time_ms() - start_ms).unsigned_abs());
        if !pace.until(since_start, stop).await {
            break;
        }
        done += fleet.sample(ticks - done, &mut batches);
        for batch in batches.drain(..) {
            publisher.send(packer.pack(&batch), batch.rows(), points(&batch)).await?;
        }
        progress.show(done, &format!(", {} messages", publisher.sent.messages));
    }
    publisher.finish().await
}
