//! What a stream holds of an agent's messages, as the stream itself tells.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use plimsoll_nats::{
    Client, Incarnation, NatsConfig, Position, Sequence,
    async_nats::{
        header::NATS_MESSAGE_ID,
        jetstream::{
            ErrorCode,
            context::{GetStreamError, GetStreamErrorKind},
            stream::{RawMessageError, RawMessageErrorKind, Stream as OpenStream},
        },
    },
    streams::{self, DeclareError},
};
use tokio::sync::Mutex;

use crate::{
    buffer::Doubt,
    message::{Lane, Number, Stream},
};

/// Lanes that the stream is asked about at a time.
const LANES_AT_A_TIME: usize = 8;

/// Why the stream could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The stream could not be looked up.
    #[error("failed to look up stream `{stream}`")]
    Lookup {
        /// The stream.
        stream: &'static str,
        /// Why.
        source: GetStreamError,
    },
    /// The stream is missing and could not be declared.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// A stored message could not be fetched.
    #[error("failed to fetch what is stored of `{lane}`")]
    Fetch {
        /// The lane.
        lane: Lane,
        /// Why.
        source: RawMessageError,
    },
}

/// Declares streams, for one ledger at a time.
#[derive(Debug, Clone)]
pub struct Declarer {
    client: Client,
    config: Arc<NatsConfig>,
    turn: Arc<Mutex<()>>,
}

impl Declarer {
    /// Declares on this connection.
    #[must_use]
    pub fn new(client: Client, config: &NatsConfig) -> Self {
        Self { client, config: Arc::new(config.clone()), turn: Arc::default() }
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Declares all streams when this one is missing. An existing one is left as it is: a newer service may have declared it
    /// otherwise.
    async fn ensure(&self, stream: Stream) -> Result<(), LedgerError> {
        let _turn = self.turn.lock().await;
        match self.client.jetstream.get_stream(stream.name()).await {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Ok(streams::declare(&self.client, &self.config).await?),
            Err(source) => Err(LedgerError::Lookup { stream: stream.name(), source }),
        }
    }
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Asks a stream.
#[derive(Debug)]
pub struct Ledger {
    declarer: Declarer,
    stream: Stream,
    open: Option<OpenStream>,
    reached: Position,
}

impl Ledger {
    /// Asks this stream.
    #[must_use]
    pub fn new(declarer: Declarer, stream: Stream) -> Self {
        Self { declarer, stream, open: None, reached: Position::start(Incarnation(0)) }
    }

    /// A position that the stream is known to have reached.
    #[must_use]
    pub fn reached(&self) -> Position {
        self.reached
    }

    /// Takes note of a sequence of the stream.
    pub fn reach(&mut self, sequence: u64) {
        self.reached.sequence = self.reached.sequence.max(Sequence(sequence));
    }

    /// Looks the stream up, declaring it when it is missing, and takes note of which life it is in and how far.
    pub async fn open(&mut self) -> Result<(), LedgerError> {
        self.declarer.ensure(self.stream).await?;
        let (open, incarnation) = streams::open(&self.declarer.client, self.stream.name()).await?;
        self.reached = self.reached.within(incarnation);
        self.reach(open.cached_info().state.last_sequence);
        self.open = Some(open);
        Ok(())
    }

    /// Which of the messages in doubt the stream holds, each doubt with its answer.
    ///
    /// Asking for the last one stored would not do: a broker whose leader changes may lose a publish and take the next one, and
    /// what was spooled is sent beside what is sampled now. The leader is asked, as replicas may lag behind.
    pub async fn stored(&self, doubts: Vec<Doubt>) -> Result<Vec<(Doubt, BTreeSet<Number>)>, LedgerError> {
        let Some(open) = &self.open else { return Ok(Vec::new()) };
        let answers = doubts.into_iter().map(|doubt| async move {
            let stored = stored_of(open, &doubt).await?;
            Ok((doubt, stored))
        });
        stream::iter(answers).buffer_unordered(LANES_AT_A_TIME).try_collect().await
    }
}

async fn stored_of(open: &OpenStream, doubt: &Doubt) -> Result<BTreeSet<Number>, LedgerError> {
    let mut stored = BTreeSet::new();
    let filter = doubt.lane.stored_filter();
    let mut from = doubt.after + 1;
    while stored.len() < doubt.messages.len() {
        match open.raw_message_builder().sequence(from).next_by_subject(&filter).send().await {
            Ok(message) => {
                let number = message.headers.get(NATS_MESSAGE_ID).and_then(|id| Number::of_id(id.as_str()));
                stored.extend(number.filter(|number| doubt.messages.contains_key(number)));
                from = message.sequence + 1;
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
            Err(source) => return Err(LedgerError::Fetch { lane: doubt.lane.clone(), source }),
        }
    }
    Ok(stored)
}
