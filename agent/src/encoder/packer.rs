//! The room in which batches are encoded, used again for each.

use bytes::Bytes;
use plimsoll_nats::batch::MAX_DECODED_BYTES;
use zstd::{bulk::Compressor, zstd_safe::compress_bound};

/// From this size on a batch is compressed. Below it, zstd saves a tenth of what goes over the wire, and readers spend ten times as
/// long on the message (`docs/adr/0007-what-samples-take-on-the-wire.md`).
const COMPRESS_FROM_BYTES: usize = 1024;
/// The level of compression.
const COMPRESSION_LEVEL: i32 = 3;
/// Room that is kept for the next batch; what a larger one took is given back.
const KEPT_BYTES: usize = 256 * 1024;

/// An encoded batch.
#[derive(Debug)]
pub struct Packed {
    /// Whether it is compressed with zstd.
    pub compressed: bool,
    /// The batch, in memory of its own.
    pub payload: Bytes,
}

/// Encodes and compresses in buffers of its own. One does for all measurements.
pub struct Packer {
    plain: Vec<u8>,
    compressed: Vec<u8>,
    compressor: Compressor<'static>,
}

impl Default for Packer {
    fn default() -> Self {
        Self {
            plain: Vec::new(),
            compressed: Vec::new(),
            compressor: Compressor::new(COMPRESSION_LEVEL).expect("zstd knows the level"),
        }
    }
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("plain", &self.plain.len()).finish_non_exhaustive()
    }
}

impl Packer {
    /// What `encode` appends, compressed where that is worth it; none when it is larger than a reader takes, or than `limit` bytes.
    pub fn pack(&mut self, limit: usize, encode: impl FnOnce(&mut Vec<u8>)) -> Option<Packed> {
        self.plain.clear();
        encode(&mut self.plain);
        let packed = if self.plain.len() > MAX_DECODED_BYTES { None } else { self.packed(limit) };
        for buffer in [&mut self.plain, &mut self.compressed] {
            buffer.clear();
            buffer.shrink_to(KEPT_BYTES);
        }
        packed
    }

    fn packed(&mut self, limit: usize) -> Option<Packed> {
        let compressed = self.plain.len() >= COMPRESS_FROM_BYTES && self.compress();
        let bytes = if compressed { &self.compressed } else { &self.plain };
        (bytes.len() <= limit).then(|| Packed { compressed, payload: Bytes::copy_from_slice(bytes) })
    }

    fn compress(&mut self) -> bool {
        self.compressed.reserve(compress_bound(self.plain.len()));
        self.compressor.compress_to_buffer(&self.plain, &mut self.compressed).is_ok()
    }
}
