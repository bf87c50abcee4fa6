//! Publishes the buffer's batches and keeps each until the stream has it.
//!
//! Publishing is idempotent. What was sent and not answered is in doubt after a reconnect, a timeout or a refusal. The stream
//! is then asked, a measurement at a time, which of the doubtful batches it holds; only the others are sent again. An outage
//! may therefore outlast the broker's memory of message ids.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use plimsoll_nats::{
    Client, HostId, Name, NatsConfig,
    async_nats::jetstream::{
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
        publish::PublishAck,
    },
    batch::{ENCODING_HEADER, ENCODING_ZSTD},
    dead::chain,
    streams, subject,
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use self::ledger::{Ledger, LedgerError, MessageIds};
use crate::{buffer::SharedBuffer, encoder::PayloadLimit, message::Message, update::Receipts};

mod ledger;

/// Most batches in flight at a time.
const WINDOW: usize = 256;
/// How often the connection is looked at while answers are awaited.
const LOOK: Duration = Duration::from_millis(250);
/// Shortest pause before a doubt is tried anew.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a doubt is tried anew.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long the last attempt at shutdown may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The fate of one publish.
struct Outcome {
    measurement: Name,
    seq: u64,
    result: Result<PublishAck, PublishError>,
}

/// Why a doubt could not be resolved or a batch not be stored.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("broker is away")]
    Away,
    #[error("failed to publish")]
    Publish(#[from] PublishError),
    #[error("stream `{found}` takes the agents' subjects, expected `{}`", streams::METRICS)]
    OtherStream { found: String },
    #[error("failed to ask the stream what it holds")]
    Ledger(#[from] LedgerError),
}

/// Sends what the buffer holds.
pub struct Publisher {
    client: Client,
    host: HostId,
    ids: MessageIds,
    buffer: Arc<SharedBuffer>,
    limit: PayloadLimit,
    ledger: Ledger,
    in_flight: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// How many connections there had been when the last doubt began to be resolved; what is in flight was sent on that one.
    connection: u64,
    in_doubt: bool,
    pause: Duration,
    trouble_since: Option<Instant>,
    receipts: Receipts,
}

impl Publisher {
    /// Publishes batches of `host` and this run's `epoch` from the buffer.
    #[must_use]
    pub fn new(
        client: Client,
        config: &NatsConfig,
        (host, epoch): (HostId, Ulid),
        buffer: Arc<SharedBuffer>,
        limit: PayloadLimit,
    ) -> Self {
        Self {
            ids: MessageIds::new(&host, epoch),
            ledger: Ledger::new(client.clone(), config.clone(), host.clone()),
            client,
            host,
            buffer,
            limit,
            in_flight: FuturesUnordered::new(),
            connection: 0,
            in_doubt: true,
            pause: MIN_PAUSE,
            trouble_since: None,
            receipts: Receipts::default(),
        }
    }

    /// The same, telling `receipts` of each batch stored.
    #[must_use]
    pub fn telling(self, receipts: Receipts) -> Self {
        Self { receipts, ..self }
    }

    /// Publishes until `shutdown`.
    pub async fn run(&mut self, shutdown: &CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = async { loop { self.step().await } } => {}
        }
        // The step that was broken off may have left a batch marked as sent that was not.
        self.in_doubt = true;
    }

    /// Publishes what is left, for at most five seconds. Returns how many batches are lost.
    pub async fn flush(&mut self) -> usize {
        let all = async {
            while !self.buffer.lock().is_empty() {
                self.step().await;
            }
        };
        let _ = timeout(FLUSH_TIMEOUT, all).await;
        self.buffer.lock().len()
    }

    async fn step(&mut self) {
        let result = if self.in_doubt { self.resolve().await } else { self.exchange().await };
        match result {
            Ok(()) => {}
            Err(trouble) => {
                self.in_doubt = true;
                self.report(&trouble);
                sleep(self.pause).await;
                self.pause = (self.pause * 2).min(MAX_PAUSE);
            }
        }
    }

    /// Sends what may be sent and takes what answers come. Any failure leaves a doubt.
    async fn exchange(&mut self) -> Result<(), Trouble> {
        self.send().await?;
        let answers = !self.in_flight.is_empty();
        tokio::select! {
            biased;
            Some(outcome) = self.in_flight.next() => self.take(outcome)?,
            () = self.buffer.filled() => {}
            () = sleep(LOOK), if answers => {}
        }
        if self.is_unbroken() { Ok(()) } else { Err(Trouble::Away) }
    }

    async fn send(&mut self) -> Result<(), Trouble> {
        while self.in_flight.len() < WINDOW {
            let Some(message) = self.buffer.lock().send(self.ledger.reached()) else {
                break;
            };
            let (measurement, seq) = (message.measurement.clone(), message.seq);
            let subject = subject::metrics(&self.host, &measurement);
            match self.client.jetstream.send_publish(subject, self.publish_message(message)).await {
                Ok(answer) => self
                    .in_flight
                    .push(answer.into_future().map(move |result| Outcome { measurement, seq, result }).boxed()),
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    tracing::error!(%measurement, batch.seq = seq, "batch is larger than the broker takes and is lost");
                    self.buffer.lock().remove(&measurement, seq);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn publish_message(&self, message: Message) -> PublishMessage {
        let id = self.ids.of(&message.measurement, message.seq);
        let publish = PublishMessage::build().message_id(id).payload(message.payload);
        if message.compressed { publish.header(ENCODING_HEADER, ENCODING_ZSTD) } else { publish }
    }

    fn take(&mut self, Outcome { measurement, seq, result }: Outcome) -> Result<(), Trouble> {
        let ack = result?;
        if ack.stream != streams::METRICS {
            return Err(Trouble::OtherStream { found: ack.stream });
        }
        self.ledger.reach(ack.sequence);
        self.buffer.lock().remove(&measurement, seq);
        self.receipts.samples();
        self.pause = MIN_PAUSE;
        Ok(())
    }

    /// Finds out which of the batches in doubt the stream holds.
    async fn resolve(&mut self) -> Result<(), Trouble> {
        self.await_answers().await;
        if !self.client.is_connected() {
            return Err(Trouble::Away);
        }
        self.connection = self.connections();
        self.limit.set(self.client.nats.server_info().max_payload);
        if self.ledger.open().await? {
            self.buffer.lock().forget_sequences();
        }
        let doubts = self.buffer.lock().doubts();
        for doubt in &doubts {
            let stored = self.ledger.stored(&self.ids, doubt).await?;
            self.buffer.lock().settle(doubt, &stored);
        }
        if !self.is_unbroken() {
            return Err(Trouble::Away);
        }
        self.in_doubt = false;
        self.report_end_of_trouble();
        Ok(())
    }

    /// Waits until every publish is answered or given up, unless the connection is gone and its answers with it.
    ///
    /// The stream must not be asked before that: what is still under way would be taken for missing.
    async fn await_answers(&mut self) {
        while !self.in_flight.is_empty() {
            if !self.is_unbroken() {
                self.in_flight = FuturesUnordered::new();
                return;
            }
            tokio::select! {
                biased;
                Some(outcome) = self.in_flight.next() => drop(self.take(outcome)),
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Whether the connection stands, and has without a break since the last doubt began to be resolved.
    fn is_unbroken(&self) -> bool {
        self.client.is_connected() && self.connection == self.connections()
    }

    fn connections(&self) -> u64 {
        self.client.nats.statistics().connects.load(Ordering::Relaxed)
    }

    fn report(&mut self, trouble: &Trouble) {
        if self.trouble_since.is_none() {
            self.trouble_since = Some(Instant::now());
            tracing::warn!(error = %chain(trouble), "samples cannot be published, they are buffered");
        }
    }

    fn report_end_of_trouble(&mut self) {
        if let Some(since) = self.trouble_since.take() {
            let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(duration_ms, batches = self.buffer.lock().len(), "samples are published again");
        }
    }
}
