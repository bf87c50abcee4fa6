//! Turns a stored message into rows, or into a dead one with the reason.

use plimsoll_nats::{
    Incarnation, PartitionId, Sequence,
    async_nats::HeaderMap,
    batch::{BatchDecoder, BatchView, DecodeError, ENCODING_HEADER},
    dead::{chain, header_text},
    reader::StoredMessage,
    subject::{MetricTokens, SubjectError},
};

/// A message as it came.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// The partition.
    pub partition: PartitionId,
    /// The life of the stream.
    pub incarnation: Incarnation,
    /// Its place in the stream.
    pub sequence: Sequence,
    /// When the broker stored it, Unix ms.
    pub stored_ms: i64,
    /// The stored subject.
    pub subject: &'a str,
    /// Headers.
    pub headers: Option<&'a HeaderMap>,
    /// Payload.
    pub payload: &'a [u8],
}

impl<'a> From<&'a StoredMessage> for Arrived<'a> {
    fn from(message: &'a StoredMessage) -> Self {
        let StoredMessage { partition, incarnation, sequence, stored_ms, .. } = *message;
        let (subject, headers, payload) = (message.subject(), message.headers(), message.payload());
        Self { partition, incarnation, sequence, stored_ms, subject, headers, payload }
    }
}

impl Arrived<'_> {
    /// How the payload is encoded, where the headers say so.
    #[must_use]
    pub fn encoding(&self) -> Option<&str> {
        Some(self.headers?.get(ENCODING_HEADER)?.as_str())
    }

    /// Decodes the message; the rows lie in the decoder and in the message.
    pub fn decode<'v>(&'v self, decoder: &'v mut BatchDecoder) -> Result<BatchView<'v>, DeadReason> {
        let decoded = MetricTokens::parse(self.subject)
            .map_err(Fault::from)
            .and_then(|subject| Ok(decoder.decode(subject.host, subject.measurement, self.headers, self.payload)?));
        decoded.map_err(|fault| DeadReason::new(&fault))
    }
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
