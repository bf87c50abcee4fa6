//! Publishes a buffer's messages and keeps each until the stream has it.
//!
//! Publishing is idempotent. What was sent and not answered is in doubt after a reconnect, a timeout or a refusal, and so is what
//! an earlier run may have sent. The stream is then asked, a lane at a time, which of the doubtful messages it holds; only the
//! others are sent again. An outage may therefore outlast the broker's memory of message ids.
//!
//! Each stream has two publishers, one for each [`Side`] of its buffer, so that a long backlog keeps no new sample waiting. The live
//! one decides when publishing is in trouble.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use plimsoll_nats::{
    Client,
    async_nats::jetstream::{
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
        publish::PublishAck,
    },
    batch::{ENCODING_HEADER, ENCODING_ZSTD},
    dead::chain,
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::ledger::{Ledger, LedgerError};
use crate::{
    buffer::{Mode, SharedBuffer, Side},
    encoder::PayloadLimit,
    message::{Lane, Message, Stream},
    spool::SpoolError,
    update::Receipts,
};

mod ledger;

pub use self::ledger::Declarer;

/// Most live messages in flight at a time.
const LIVE_WINDOW: usize = 256;
/// Most messages of the backlog in flight at a time: few enough that a live one is not kept behind them.
const BACKLOG_WINDOW: usize = 128;
/// How often the connection is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long answers may be missing until publishing is in trouble.
const STALLED: Duration = Duration::from_secs(2);
/// Shortest pause before a doubt is tried anew.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a doubt is tried anew.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long the last attempt at shutdown may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The fate of one publish.
struct Outcome {
    lane: Lane,
    id: u64,
    result: Result<PublishAck, PublishError>,
}

/// Why a doubt could not be resolved or a message not be stored.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("broker is away")]
    Away,
    #[error("failed to publish")]
    Publish(#[from] PublishError),
    #[error("stream `{found}` takes the agents' subjects, expected `{expected}`")]
    OtherStream { found: String, expected: &'static str },
    #[error("failed to ask the stream what it holds")]
    Ledger(#[from] LedgerError),
    #[error("failed to load what waits on disk")]
    Spool(#[from] SpoolError),
}

/// Sends what one side of a buffer holds.
pub struct Publisher {
    client: Client,
    stream: Stream,
    side: Side,
    buffer: Arc<SharedBuffer>,
    limit: PayloadLimit,
    ledger: Ledger,
    in_flight: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// When the last answer came, or the first publish was sent that awaits one.
    answered: Instant,
    /// How many connections there had been when the last doubt began to be resolved; what is in flight was sent on that one.
    connection: u64,
    in_doubt: bool,
    pause: Duration,
    trouble_since: Option<Instant>,
    receipts: Receipts,
}

impl Publisher {
    /// Publishes one side of the buffer to a stream.
    #[must_use]
    pub fn new(
        declarer: Declarer,
        (stream, side): (Stream, Side),
        buffer: Arc<SharedBuffer>,
        limit: PayloadLimit,
    ) -> Self {
        Self {
            client: declarer.client().clone(),
            ledger: Ledger::new(declarer, stream),
            stream,
            side,
            buffer,
            limit,
            in_flight: FuturesUnordered::new(),
            answered: Instant::now(),
            connection: 0,
            in_doubt: true,
            pause: MIN_PAUSE,
            trouble_since: None,
            receipts: Receipts::default(),
        }
    }

    /// The same, telling `receipts` of each batch of this run's samples that is stored.
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
        // The step that was broken off may have left a message marked as sent that was not.
        self.in_doubt = true;
    }

    /// Publishes what is left, for at most five seconds, and no longer than there is hope or need.
    pub async fn flush(&mut self) {
        let all = async {
            while self.has_more_to_flush() {
                self.step().await;
            }
        };
        let _ = timeout(FLUSH_TIMEOUT, all).await;
    }

    fn has_more_to_flush(&self) -> bool {
        let is_left = |side| !self.buffer.is_delivered(side);
        // The backlog waits for the live side to find the broker.
        let is_needed = is_left(Side::Backlog) || (self.side == Side::Live && is_left(Side::Live));
        is_needed && (self.client.is_connected() || !self.buffer.is_safe())
    }

    async fn step(&mut self) {
        // The backlog waits until the live side has found the broker, and has nothing to do before there is some.
        while self.side == Side::Backlog
            && (self.buffer.mode() == Mode::Away || self.buffer.is_delivered(Side::Backlog))
        {
            self.buffer.filled(Side::Backlog).await;
        }
        let result = if self.in_doubt { self.resolve().await } else { self.exchange().await };
        if let Err(trouble) = result {
            self.in_doubt = true;
            if self.side == Side::Live {
                self.buffer.retreat();
            }
            self.report(&trouble);
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(MAX_PAUSE);
        }
    }

    /// Sends what may be sent and takes what answers come. Any failure leaves a doubt.
    async fn exchange(&mut self) -> Result<(), Trouble> {
        if !self.is_unbroken() {
            return Err(Trouble::Away);
        }
        match self.side {
            Side::Live if self.is_stalled() => self.buffer.retreat(),
            Side::Live => {
                self.buffer.settle();
                self.send().await?;
            }
            Side::Backlog => {
                if self.buffer.wants_backlog() && self.load().await? {
                    self.in_doubt = true;
                    return Ok(());
                }
                self.send().await?;
            }
        }
        let looks = !self.in_flight.is_empty() || self.side == Side::Live;
        tokio::select! {
            biased;
            Some(outcome) = self.in_flight.next() => self.take(outcome)?,
            () = self.buffer.filled(self.side) => {}
            () = sleep(LOOK), if looks => {}
        }
        if self.is_unbroken() { Ok(()) } else { Err(Trouble::Away) }
    }

    async fn load(&mut self) -> Result<bool, Trouble> {
        let (buffer, reached) = (Arc::clone(&self.buffer), self.ledger.reached());
        // Goes on to its end if this is dropped, so that nothing is held by the spool and unknown to the buffer.
        match tokio::task::spawn_blocking(move || buffer.load(reached)).await {
            Ok(loaded) => Ok(loaded?),
            Err(_) => Ok(false),
        }
    }

    async fn send(&mut self) -> Result<(), Trouble> {
        let window = if self.side == Side::Live { LIVE_WINDOW } else { BACKLOG_WINDOW };
        while self.in_flight.len() < window {
            let Some(outgoing) = self.buffer.send(self.side, self.ledger.reached()) else {
                break;
            };
            let (lane, id, seq) = (outgoing.lane, outgoing.id, outgoing.message.seq);
            let subject = outgoing.message.subject();
            match self.client.jetstream.send_publish(subject, publish_message(outgoing.message)).await {
                Ok(answer) => {
                    if self.in_flight.is_empty() {
                        self.answered = Instant::now();
                    }
                    self.in_flight.push(answer.into_future().map(move |result| Outcome { lane, id, result }).boxed());
                }
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    tracing::error!(%lane, batch.seq = seq, "message is larger than the broker takes and is lost");
                    self.buffer.give_up(self.side, &lane, id);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take(&mut self, Outcome { lane, id, result }: Outcome) -> Result<(), Trouble> {
        let ack = result?;
        if ack.stream != self.stream.name() {
            return Err(Trouble::OtherStream { found: ack.stream, expected: self.stream.name() });
        }
        self.ledger.reach(ack.sequence);
        self.buffer.acknowledge(self.side, &lane, id);
        if (self.stream, self.side) == (Stream::Metrics, Side::Live) {
            self.receipts.samples();
        }
        self.answered = Instant::now();
        self.pause = MIN_PAUSE;
        Ok(())
    }

    /// Finds out which of the messages in doubt the stream holds.
    async fn resolve(&mut self) -> Result<(), Trouble> {
        self.await_answers().await;
        if !self.client.is_connected() {
            return Err(Trouble::Away);
        }
        self.connection = self.connections();
        self.limit.set(self.client.nats.server_info().max_payload);
        self.ledger.open().await?;
        let doubts = self.buffer.doubts(self.side, self.ledger.reached().incarnation);
        for (doubt, stored) in self.ledger.stored(doubts).await? {
            self.buffer.resolve(self.side, &doubt, &stored);
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
            if self.side == Side::Live && self.is_stalled() {
                self.buffer.retreat();
            }
            tokio::select! {
                biased;
                Some(outcome) = self.in_flight.next() => drop(self.take(outcome)),
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Whether answers have been missing for too long.
    fn is_stalled(&self) -> bool {
        !self.in_flight.is_empty() && self.answered.elapsed() > STALLED
    }

    /// Whether the connection stands, and has without a break since the last doubt began to be resolved.
    fn is_unbroken(&self) -> bool {
        self.client.is_connected() && self.connection == self.connections()
    }

    fn connections(&self) -> u64 {
        self.client.nats.statistics().connects.load(Ordering::Relaxed)
    }

    fn report(&mut self, trouble: &Trouble) {
        if self.trouble_since.is_some() {
            return;
        }
        self.trouble_since = Some(Instant::now());
        let (stream, error) = (self.stream.name(), chain(trouble));
        match (trouble, self.stream, self.side) {
            // All publishers share the connection: one of them tells.
            (Trouble::Away, Stream::Events, _) | (Trouble::Away, _, Side::Backlog) => {}
            (_, _, Side::Live) => tracing::warn!(stream, error, "samples cannot be published, they are kept"),
            (_, _, Side::Backlog) => tracing::warn!(stream, error, "what waits on disk cannot be published yet"),
        }
    }

    fn report_end_of_trouble(&mut self) {
        let Some(since) = self.trouble_since.take() else { return };
        if (self.stream, self.side) == (Stream::Metrics, Side::Live) {
            let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            let stats = self.buffer.stats();
            tracing::info!(duration_ms, batches = stats.spool.batches, "samples are published again");
        }
    }
}

fn publish_message(message: Message) -> PublishMessage {
    let publish = PublishMessage::build().message_id(message.id()).payload(message.payload);
    if message.compressed { publish.header(ENCODING_HEADER, ENCODING_ZSTD) } else { publish }
}
