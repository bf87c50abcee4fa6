//! Messages as an agent publishes them.

use bytes::Bytes;
use plimsoll_nats::{
    Batch,
    async_nats::HeaderMap,
    batch::{ENCODING_HEADER, ENCODING_ZSTD},
    subject,
};
use zstd::bulk::Compressor;

/// The header of the id by which the broker knows what it holds already.
pub const ID_HEADER: &str = "Nats-Msg-Id";
/// From this size on an agent compresses a batch.
const COMPRESS_FROM_BYTES: usize = 1024;
const COMPRESSION_LEVEL: i32 = 3;

/// A message to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The public subject.
    pub subject: String,
    /// The message's id.
    pub id: String,
    /// Whether the payload is compressed with zstd.
    pub compressed: bool,
    /// The batch.
    pub payload: Bytes,
}

impl Message {
    /// The headers that it travels with.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ID_HEADER, self.id.as_str());
        if self.compressed {
            headers.insert(ENCODING_HEADER, ENCODING_ZSTD);
        }
        headers
    }
}

/// Encodes batches, and compresses them where an agent does.
pub struct Packer(Compressor<'static>);

impl Default for Packer {
    fn default() -> Self {
        Self(Compressor::new(COMPRESSION_LEVEL).expect("zstd knows the level"))
    }
}

impl Packer {
    /// The message of a batch.
    pub fn pack(&mut self, batch: &Batch) -> Message {
        let plain = batch.encode();
        let compressed = if plain.len() < COMPRESS_FROM_BYTES { None } else { self.0.compress(&plain).ok() };
        Message {
            subject: subject::metrics(&batch.host, &batch.measurement),
            id: batch.message_id(),
            compressed: compressed.is_some(),
            payload: compressed.unwrap_or(plain).into(),
        }
    }
}
