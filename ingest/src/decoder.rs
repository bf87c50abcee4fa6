//! Turns a stored message into rows, or into a dead one with the reason.

use bytes::Bytes;
use plimsoll_nats::{
    Batch, Incarnation, PartitionId, Sequence,
    async_nats::HeaderMap,
    batch::DecodeError,
    dead::{chain, header_text},
    reader::{Acker, StoredMessage},
    subject::{MetricSubject, SubjectError},
};

/// A message as it came, kept until it is stored or put aside.
#[derive(Debug, Clone)]
pub struct Original {
    /// The partition.
    pub partition: PartitionId,
    /// The life of the stream.
    pub incarnation: Incarnation,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// The stored subject.
    pub subject: String,
    /// Headers.
    pub headers: Option<HeaderMap>,
    /// Payload.
    pub payload: Bytes,
}

impl Original {
    /// Memory that the message takes, in bytes and roughly.
    #[must_use]
    pub fn weight(&self) -> usize {
        let headers = self.headers.iter().flat_map(HeaderMap::iter).map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(|value| name.len() + value.as_str().len()).sum::<usize>()
        });
        self.subject.len() + self.payload.len() + headers.sum::<usize>()
    }
}

/// A message that was read.
#[derive(Debug)]
pub struct Decoded {
    /// As it came.
    pub original: Original,
    /// When the broker stored it, Unix ms.
    pub stored_ms: i64,
    /// Its rows, or why it has none.
    pub batch: Result<Batch, DeadReason>,
    /// Acknowledges it and all before it in its partition.
    pub acker: Option<Acker>,
}

/// Why a message can't be decoded: the chain of causes as `DEAD` shows it. No more is kept, since an error may quote all of a
/// message that is much larger decompressed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeadReason(String);

impl DeadReason {
    pub(crate) fn new(error: &(dyn std::error::Error + 'static)) -> Self {
        Self(header_text(&chain(error)))
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("failed to read the subject")]
    Subject(#[from] SubjectError),
    #[error("failed to read the batch")]
    Batch(#[from] DecodeError),
}

/// Decodes a message.
#[must_use]
pub fn decode(message: StoredMessage) -> Decoded {
    let batch = decode_batch(message.subject(), message.headers(), message.payload());
    let batch = batch.map_err(|fault| DeadReason::new(&fault));
    let original = Original {
        partition: message.partition,
        incarnation: message.incarnation,
        sequence: message.sequence,
        subject: message.subject().to_owned(),
        headers: message.headers().cloned(),
        payload: message.payload().clone(),
    };
    Decoded { original, stored_ms: message.stored_ms, batch, acker: Some(message.into_acker()) }
}

fn decode_batch(subject: &str, headers: Option<&HeaderMap>, payload: &[u8]) -> Result<Batch, Fault> {
    let subject = MetricSubject::parse(subject)?;
    Ok(Batch::decode(&subject.host, &subject.measurement, headers, payload)?)
}
