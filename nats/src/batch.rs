//! The batch, version 1: what an agent publishes.
//!
//! Layout: one MessagePack map with string keys, columnar: `v` (1), `host`, `measurement`, `epoch` (ULID as text), `seq`,
//! `times` (n Unix times in ms), `tags` (`{name: [n strings]}`) and `fields` (`{name: [n values]}`). The header
//! `Content-Encoding: zstd` says that the map is compressed. Readers ignore unknown keys; writers never change a key's meaning
//! within a version.
//!
//! Invariants that [`BatchDecoder`] proves: host and measurement equal the subject's tokens, every column has n values, a
//! column has one type (integers among floats widen), floats are finite, names and limits are kept. A column of nothing but
//! nil says nothing about its type and is left out.

mod column;
mod view;
mod wire;

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use serde::Serialize;
use ulid::Ulid;

pub use self::{
    column::{Column, FieldType},
    view::{BatchDecoder, BatchView, FieldView, TagView},
};
use crate::{HostId, Name};

/// The version that this code writes.
pub const VERSION: u64 = 1;
/// Most rows in a batch.
pub const MAX_ROWS: usize = 65_536;
/// Most tags and fields together, so that a table keeps room for `ts` and `host` within its 256 columns.
pub const MAX_COLUMNS: usize = 254;
/// Longest tag value in bytes.
pub const MAX_TAG_BYTES: usize = 1024;
/// Longest text field value in bytes.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;
/// Largest batch in bytes once decompressed.
pub const MAX_DECODED_BYTES: usize = 8 * 1024 * 1024;

/// The header that names the compression.
pub const ENCODING_HEADER: &str = "Content-Encoding";
/// The one compression in use.
pub const ENCODING_ZSTD: &str = "zstd";

/// Rows of one measurement of one host.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The host that was sampled.
    pub host: HostId,
    /// What was sampled.
    pub measurement: Name,
    /// Id of this run of the agent.
    pub epoch: Ulid,
    /// Counts up by one per epoch and measurement.
    pub seq: u64,
    /// Unix time in ms of each row.
    pub times: Vec<i64>,
    /// A value a row for each tag.
    pub tags: BTreeMap<Name, Vec<String>>,
    /// A value or nil a row for each field.
    pub fields: BTreeMap<Name, Column>,
}

/// Why a message is not a batch. Each text says what was expected.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The `Content-Encoding` header names something else than zstd.
    #[error("content encoding `{encoding}` is unknown: expected `zstd` or no such header")]
    Encoding {
        /// What the header says.
        encoding: String,
    },
    /// The compressed payload is broken.
    #[error("failed to decompress the zstd payload")]
    Decompress(#[source] std::io::Error),
    /// The payload is larger than allowed.
    #[error("batch is larger than {MAX_DECODED_BYTES} bytes once decompressed")]
    TooLarge,
    /// Not MessagePack, truncated, or of other types than the layout says.
    #[error("failed to decode the MessagePack map")]
    MessagePack(#[source] rmp_serde::decode::Error),
    /// Bytes follow the map.
    #[error("{count} bytes follow the batch")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// Written by a later version of the format.
    #[error("batch version {version} is not supported: expected {VERSION}")]
    Version {
        /// The version found.
        version: u64,
    },
    /// The subject speaks of another host or measurement.
    #[error("{what} `{found}` differs from the subject's `{subject}`")]
    SubjectMismatch {
        /// `host` or `measurement`.
        what: &'static str,
        /// What the batch says.
        found: String,
        /// What the subject says.
        subject: String,
    },
    /// The batch has no row, or too many.
    #[error("batch has {rows} rows: expected 1 to {MAX_ROWS}")]
    Rows {
        /// How many rows.
        rows: usize,
    },
    /// The batch has no field, or too many tags and fields.
    #[error(
        "batch has {tags} tags and {fields} fields: expected at least one field and at most {MAX_COLUMNS} together"
    )]
    Columns {
        /// How many tags.
        tags: usize,
        /// How many fields.
        fields: usize,
    },
    /// A column is shorter or longer than `times`.
    #[error("column `{column}` has {found} values, `times` has {expected}")]
    ColumnLength {
        /// The tag or field.
        column: Name,
        /// Its length.
        found: usize,
        /// The number of rows.
        expected: usize,
    },
    /// A column's name means something else in the table.
    #[error("column `{column}` is {why}")]
    ColumnName {
        /// The tag or field.
        column: Name,
        /// What it collides with.
        why: &'static str,
    },
    /// A float is NaN or infinite.
    #[error("field `{column}` row {row} is not finite: send nil where there is no value")]
    NotFinite {
        /// The field.
        column: Name,
        /// The row, from 0.
        row: usize,
    },
    /// A text is too long.
    #[error("column `{column}` row {row} is longer than {limit} bytes")]
    TextLength {
        /// The tag or field.
        column: Name,
        /// The row, from 0.
        row: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// What a batch is encoded from when its parts lie elsewhere: `times` serializes as a sequence, `tags` and `fields` as maps of
/// sequences, all as long as there are rows.
#[derive(Debug, Clone, Copy)]
pub struct BatchParts<'a, I, T, F> {
    /// The host that was sampled.
    pub host: &'a HostId,
    /// What was sampled.
    pub measurement: &'a Name,
    /// Id of this run of the agent.
    pub epoch: Ulid,
    /// Counts up by one per epoch and measurement.
    pub seq: u64,
    /// Unix time in ms of each row.
    pub times: I,
    /// A value a row for each tag.
    pub tags: T,
    /// A value or nil a row for each field.
    pub fields: F,
}

impl<I: Serialize, T: Serialize, F: Serialize> BatchParts<'_, I, T, F> {
    /// Appends the batch as uncompressed MessagePack. Allocates nothing where `out` has room and the parts serialize without.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let wire = WireOut {
            v: VERSION,
            host: self.host,
            measurement: self.measurement,
            epoch: self.epoch,
            seq: self.seq,
            times: &self.times,
            tags: &self.tags,
            fields: &self.fields,
        };
        rmp_serde::encode::write_named(out, &wire)
            .expect("every part of a batch has a MessagePack form, and a Vec takes all bytes");
    }
}

#[derive(Serialize)]
struct WireOut<'a, I, T, F> {
    v: u64,
    host: &'a HostId,
    measurement: &'a Name,
    epoch: Ulid,
    seq: u64,
    times: &'a I,
    tags: &'a T,
    fields: &'a F,
}

impl Batch {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.times.len()
    }

    /// Memory that the batch takes once decoded, in bytes and roughly: what readers bound their buffers by, since the payload says
    /// little about it.
    ///
    /// Measured on decoded batches: in one of few rows the columns' names, map nodes and vectors outweigh the values ten to one.
    #[must_use]
    pub fn weight(&self) -> usize {
        const BATCH: usize = 500;
        const COLUMN: usize = 280;
        const VALUE: usize = 16;
        const TEXT: usize = 24;
        let tags: usize = self.tags.values().flatten().map(|text| text.len() + VALUE + TEXT).sum();
        let texts = self.fields.values().map(|column| match column {
            Column::Text(values) => values.iter().flatten().map(|text| text.len() + TEXT).sum(),
            Column::Float(_) | Column::Integer(_) | Column::Bool(_) => 0,
        });
        let columns = self.tags.len() + self.fields.len();
        let values = (1 + self.fields.len()) * self.rows() * VALUE;
        BATCH + columns * COLUMN + tags + values + texts.sum::<usize>()
    }

    /// Encodes the batch as uncompressed MessagePack.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let parts = BatchParts {
            host: &self.host,
            measurement: &self.measurement,
            epoch: self.epoch,
            seq: self.seq,
            times: &self.times,
            tags: &self.tags,
            fields: &self.fields,
        };
        let mut out = Vec::new();
        parts.encode_into(&mut out);
        out
    }

    /// The `Nats-Msg-Id` of this batch: `<host>/<measurement>/<epoch>/<seq>`.
    #[must_use]
    pub fn message_id(&self) -> String {
        format!("{}/{}/{}/{}", self.host, self.measurement, self.epoch, self.seq)
    }

    /// Decodes and checks the payload of a message whose subject names `host` and `measurement`.
    ///
    /// Fails on anything but a whole, valid batch of this version; the error says what was expected.
    pub fn decode(
        host: &HostId,
        measurement: &Name,
        headers: Option<&HeaderMap>,
        payload: &[u8],
    ) -> Result<Self, DecodeError> {
        let mut decoder = BatchDecoder::default();
        Ok(decoder.decode(host, measurement, headers, payload)?.to_batch(host, measurement))
    }
}
