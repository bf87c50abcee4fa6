//! A batch as it lies in its payload.

use std::io::Read;

use async_nats::HeaderMap;
use ulid::Ulid;
use zstd::zstd_safe::DCtx;

use super::{
    Batch, Column, DecodeError, ENCODING_HEADER, ENCODING_ZSTD, FieldType, MAX_COLUMNS, MAX_DECODED_BYTES, MAX_ROWS,
    MAX_TAG_BYTES, MAX_TEXT_BYTES,
    wire::{Cell, ColumnLayout, Header, Layout},
};
use crate::{HostId, Name, names::excerpt};

/// Decodes one payload after the other. It keeps its memory, so that a batch costs no allocation for a value or a name.
#[derive(Default)]
pub struct BatchDecoder {
    layout: Layout,
    decompressed: Vec<u8>,
    context: Option<DCtx<'static>>,
}

impl std::fmt::Debug for BatchDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchDecoder").finish_non_exhaustive()
    }
}

/// A valid batch whose texts lie in the payload and whose values lie in the decoder.
#[derive(Debug, Clone, Copy)]
pub struct BatchView<'a> {
    bytes: &'a [u8],
    layout: &'a Layout,
    header: Header<'a>,
}

/// A tag of a [`BatchView`].
#[derive(Debug, Clone, Copy)]
pub struct TagView<'a> {
    /// Its name, a valid [`Name`].
    pub name: &'a str,
    bytes: &'a [u8],
    cells: &'a [Cell],
}

/// A field of a [`BatchView`].
#[derive(Debug, Clone, Copy)]
pub struct FieldView<'a> {
    /// Its name, a valid [`Name`].
    pub name: &'a str,
    /// The type of all its values.
    pub field_type: FieldType,
    bytes: &'a [u8],
    cells: &'a [Cell],
}

impl BatchDecoder {
    /// Decodes and checks the payload of a message whose subject names `host` and `measurement`.
    ///
    /// Fails on anything but a whole, valid batch of this version; the error says what was expected.
    pub fn decode<'a>(
        &'a mut self,
        host: &str,
        measurement: &str,
        headers: Option<&HeaderMap>,
        payload: &'a [u8],
    ) -> Result<BatchView<'a>, DecodeError> {
        let Self { layout, decompressed, context } = self;
        let bytes = decompress(headers, payload, decompressed, context)?;
        let header = layout.read(bytes)?;
        for (what, found, subject) in [("host", header.host, host), ("measurement", header.measurement, measurement)] {
            if found != subject {
                return Err(DecodeError::SubjectMismatch { what, found: excerpt(found), subject: subject.to_owned() });
            }
        }
        // A column of nothing but nil says nothing about its type.
        layout.fields.retain(|field| field.field_type.is_some());
        let view = BatchView { bytes, layout, header };
        view.validate()?;
        Ok(view)
    }
}

fn decompress<'a>(
    headers: Option<&HeaderMap>,
    payload: &'a [u8],
    decompressed: &'a mut Vec<u8>,
    context: &mut Option<DCtx<'static>>,
) -> Result<&'a [u8], DecodeError> {
    let Some(encoding) = headers.and_then(|headers| headers.get(ENCODING_HEADER)) else {
        return Ok(payload);
    };
    if encoding.as_str() != ENCODING_ZSTD {
        return Err(DecodeError::Encoding { encoding: excerpt(encoding.as_str()) });
    }
    // Reads one byte past the limit, so that a bomb is refused without being unpacked.
    decompressed.clear();
    zstd::Decoder::with_context(payload, context.get_or_insert_with(DCtx::create))
        .take(MAX_DECODED_BYTES as u64 + 1)
        .read_to_end(decompressed)
        .map_err(DecodeError::Decompress)?;
    if decompressed.len() > MAX_DECODED_BYTES {
        return Err(DecodeError::TooLarge);
    }
    Ok(decompressed)
}

impl<'a> BatchView<'a> {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.layout.times.len()
    }

    /// Unix time in ms of each row.
    #[must_use]
    pub fn times(&self) -> &'a [i64] {
        &self.layout.times
    }

    /// The host that was sampled, a valid [`HostId`].
    #[must_use]
    pub fn host(&self) -> &'a str {
        self.header.host
    }

    /// What was sampled, a valid [`Name`].
    #[must_use]
    pub fn measurement(&self) -> &'a str {
        self.header.measurement
    }

    /// Id of the agent's run.
    #[must_use]
    pub fn epoch(&self) -> Ulid {
        self.header.epoch
    }

    /// Counts up by one per epoch and measurement.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.header.seq
    }

    /// The tags by name, each as long as there are rows.
    pub fn tags(&self) -> impl ExactSizeIterator<Item = TagView<'a>> + use<'a> {
        let Self { bytes, layout, .. } = *self;
        layout.tags.iter().map(move |tag| TagView { name: tag.name.text(bytes), bytes, cells: tag.cells(layout) })
    }

    /// The fields by name, each as long as there are rows.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = FieldView<'a>> + use<'a> {
        let Self { bytes, layout, .. } = *self;
        layout.fields.iter().map(move |field| FieldView {
            name: field.name.text(bytes),
            field_type: field.field_type.expect("fields of no type are left out"),
            bytes,
            cells: field.cells(layout),
        })
    }

    /// The batch with memory of its own. `host` and `measurement` are those that it was decoded for.
    #[must_use]
    pub fn to_batch(&self, host: &HostId, measurement: &Name) -> Batch {
        let name = |text: &str| Name::parse(text).expect("names were checked when they were read");
        Batch {
            host: host.clone(),
            measurement: measurement.clone(),
            epoch: self.epoch(),
            seq: self.seq(),
            times: self.times().to_vec(),
            tags: self.tags().map(|tag| (name(tag.name), tag.values().map(str::to_owned).collect())).collect(),
            fields: self.fields().map(|field| (name(field.name), field.to_column())).collect(),
        }
    }

    fn validate(&self) -> Result<(), DecodeError> {
        let Self { bytes, layout, .. } = *self;
        let rows = self.rows();
        if rows == 0 || rows > MAX_ROWS {
            return Err(DecodeError::Rows { rows });
        }
        let (tags, fields) = (&layout.tags, &layout.fields);
        if fields.is_empty() || tags.len() + fields.len() > MAX_COLUMNS {
            return Err(DecodeError::Columns { tags: tags.len(), fields: fields.len() });
        }
        for tag in tags {
            let name = tag.name.bytes(bytes);
            validate_column(tag, name, rows)?;
            if fields.binary_search_by_key(&name, |field| field.name.bytes(bytes)).is_ok() {
                return Err(DecodeError::ColumnName { column: owned(name), why: "both a tag and a field" });
            }
            validate_values(tag.cells(layout), name, MAX_TAG_BYTES)?;
        }
        for field in fields {
            let name = field.name.bytes(bytes);
            validate_column(field, name, rows)?;
            validate_values(field.cells(layout), name, MAX_TEXT_BYTES)?;
        }
        Ok(())
    }
}

fn owned(name: &[u8]) -> Name {
    let name = std::str::from_utf8(name).ok().and_then(|name| Name::parse(name).ok());
    name.expect("names were checked when they were read")
}

fn validate_column(column: &ColumnLayout, name: &[u8], rows: usize) -> Result<(), DecodeError> {
    let why = match name {
        b"ts" | b"host" => Some("a column of every table already"),
        // DuckLake keeps them for the rows that it holds in the catalog.
        b"row_id" | b"begin_snapshot" | b"end_snapshot" => Some("reserved by the lake, choose another name"),
        _ => None,
    };
    if let Some(why) = why {
        return Err(DecodeError::ColumnName { column: owned(name), why });
    }
    if column.len() != rows {
        return Err(DecodeError::ColumnLength { column: owned(name), found: column.len(), expected: rows });
    }
    Ok(())
}

fn validate_values(cells: &[Cell], name: &[u8], limit: usize) -> Result<(), DecodeError> {
    for (row, cell) in cells.iter().enumerate() {
        match cell {
            Cell::Float(value) if !value.is_finite() => {
                return Err(DecodeError::NotFinite { column: owned(name), row });
            }
            Cell::Text(text) if text.len() > limit => {
                return Err(DecodeError::TextLength { column: owned(name), row, limit });
            }
            _ => {}
        }
    }
    Ok(())
}

impl<'a> TagView<'a> {
    /// The value of each row.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &'a str> + use<'a> {
        let bytes = self.bytes;
        self.cells.iter().map(move |cell| match cell {
            Cell::Text(text) => text.text(bytes),
            _ => unreachable!("tags are read as texts"),
        })
    }
}

impl<'a> FieldView<'a> {
    /// The value of each row where the field is of floats, integers among them included; nil else.
    pub fn floats(&self) -> impl ExactSizeIterator<Item = Option<f64>> + use<'a> {
        self.cells.iter().map(|cell| match cell {
            Cell::Float(value) => Some(*value),
            Cell::Integer(value) => Some(*value as f64),
            _ => None,
        })
    }

    /// The value of each row where the field is of integers; nil else.
    pub fn integers(&self) -> impl ExactSizeIterator<Item = Option<i64>> + use<'a> {
        self.cells.iter().map(|cell| if let Cell::Integer(value) = cell { Some(*value) } else { None })
    }

    /// The value of each row where the field is of bools; nil else.
    pub fn bools(&self) -> impl ExactSizeIterator<Item = Option<bool>> + use<'a> {
        self.cells.iter().map(|cell| if let Cell::Bool(value) = cell { Some(*value) } else { None })
    }

    /// The value of each row where the field is of texts; nil else.
    pub fn texts(&self) -> impl ExactSizeIterator<Item = Option<&'a str>> + use<'a> {
        let bytes = self.bytes;
        self.cells.iter().map(move |cell| if let Cell::Text(text) = cell { Some(text.text(bytes)) } else { None })
    }

    fn to_column(self) -> Column {
        match self.field_type {
            FieldType::Float => Column::Float(self.floats().collect()),
            FieldType::Integer => Column::Integer(self.integers().collect()),
            FieldType::Bool => Column::Bool(self.bools().collect()),
            FieldType::Text => Column::Text(self.texts().map(|text| text.map(str::to_owned)).collect()),
        }
    }
}
