//! The decoder of before, which reads into memory of its own value by value: what the present one is measured against.

use std::{borrow::Cow, collections::BTreeMap, fmt, io::Read};

use plimsoll_nats::{
    Batch, Column, HostId, Name,
    async_nats::HeaderMap,
    batch::{
        DecodeError, ENCODING_HEADER, ENCODING_ZSTD, FieldType, MAX_COLUMNS, MAX_DECODED_BYTES, MAX_ROWS,
        MAX_TAG_BYTES, MAX_TEXT_BYTES, VERSION,
    },
};
use serde::{Deserialize, Deserializer, de};
use ulid::Ulid;

#[derive(Deserialize)]
struct WireIn {
    v: u64,
    host: String,
    measurement: String,
    epoch: Ulid,
    seq: u64,
    times: Vec<i64>,
    #[serde(default)]
    tags: BTreeMap<Name, TagIn>,
    fields: BTreeMap<Name, ColumnIn>,
}

/// Decodes and checks a payload, as `Batch::decode` does.
pub fn decode(
    host: &HostId,
    measurement: &Name,
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> Result<Batch, DecodeError> {
    let bytes = decompress(headers, payload)?;
    let wire = decode_wire(&bytes)?;
    for (what, found, subject) in [("host", &wire.host, &**host), ("measurement", &wire.measurement, &**measurement)] {
        if found != subject {
            return Err(DecodeError::SubjectMismatch { what, found: excerpt(found), subject: subject.to_owned() });
        }
    }
    let fields = wire.fields.into_iter().filter_map(|(name, column)| Some((name, column.0?))).collect();
    let batch = Batch {
        host: host.clone(),
        measurement: measurement.clone(),
        epoch: wire.epoch,
        seq: wire.seq,
        times: wire.times,
        tags: wire.tags.into_iter().map(|(name, tag)| (name, tag.0)).collect(),
        fields,
    };
    validate(&batch)?;
    Ok(batch)
}

/// The start of a hostile or overlong text.
fn excerpt(value: &str) -> String {
    const SHOWN: usize = 80;
    let shown: String = value.chars().take(SHOWN).flat_map(char::escape_default).collect();
    if value.chars().nth(SHOWN).is_some() { format!("{shown}…") } else { shown }
}

fn validate(batch: &Batch) -> Result<(), DecodeError> {
    let rows = batch.times.len();
    if rows == 0 || rows > MAX_ROWS {
        return Err(DecodeError::Rows { rows });
    }
    if batch.fields.is_empty() || batch.tags.len() + batch.fields.len() > MAX_COLUMNS {
        return Err(DecodeError::Columns { tags: batch.tags.len(), fields: batch.fields.len() });
    }
    for (name, values) in &batch.tags {
        validate_column(name, values.len(), rows)?;
        if batch.fields.contains_key(name) {
            return Err(DecodeError::ColumnName { column: name.clone(), why: "both a tag and a field" });
        }
        validate_texts(name, values.iter().map(|text| Some(text.as_str())), MAX_TAG_BYTES)?;
    }
    for (name, column) in &batch.fields {
        validate_column(name, column.len(), rows)?;
        match column {
            Column::Float(values) => validate_finite(name, values)?,
            Column::Text(values) => validate_texts(name, values.iter().map(Option::as_deref), MAX_TEXT_BYTES)?,
            Column::Integer(_) | Column::Bool(_) => {}
        }
    }
    Ok(())
}

fn decompress<'a>(headers: Option<&HeaderMap>, payload: &'a [u8]) -> Result<Cow<'a, [u8]>, DecodeError> {
    let Some(encoding) = headers.and_then(|headers| headers.get(ENCODING_HEADER)) else {
        return Ok(Cow::Borrowed(payload));
    };
    if encoding.as_str() != ENCODING_ZSTD {
        return Err(DecodeError::Encoding { encoding: excerpt(encoding.as_str()) });
    }
    // Reads one byte past the limit, so that a bomb is refused without being unpacked.
    let mut bytes = Vec::new();
    zstd::Decoder::new(payload)
        .and_then(|decoder| decoder.take(MAX_DECODED_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(DecodeError::Decompress)?;
    if bytes.len() > MAX_DECODED_BYTES {
        return Err(DecodeError::TooLarge);
    }
    Ok(Cow::Owned(bytes))
}

fn decode_wire(bytes: &[u8]) -> Result<WireIn, DecodeError> {
    if bytes.len() > MAX_DECODED_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let mut deserializer = rmp_serde::Deserializer::new(std::io::Cursor::new(bytes));
    let wire = WireIn::deserialize(&mut deserializer).map_err(|error| other_version(bytes, error))?;
    if wire.v != VERSION {
        return Err(DecodeError::Version { version: wire.v });
    }
    let read = usize::try_from(deserializer.position()).unwrap_or(usize::MAX);
    if read < bytes.len() {
        return Err(DecodeError::TrailingBytes { count: bytes.len() - read });
    }
    Ok(wire)
}

/// Why a map does not have this version's layout: a later version may have changed everything but the version itself.
fn other_version(bytes: &[u8], error: rmp_serde::decode::Error) -> DecodeError {
    #[derive(Deserialize)]
    struct Version {
        v: u64,
    }
    match rmp_serde::from_slice::<Version>(bytes) {
        Ok(Version { v }) if v != VERSION => DecodeError::Version { version: v },
        _ => DecodeError::MessagePack(error),
    }
}

fn validate_column(name: &Name, found: usize, expected: usize) -> Result<(), DecodeError> {
    let why = match &**name {
        "ts" | "host" => Some("a column of every table already"),
        // DuckLake keeps them for the rows that it holds in the catalog.
        "row_id" | "begin_snapshot" | "end_snapshot" => Some("reserved by the lake, choose another name"),
        _ => None,
    };
    if let Some(why) = why {
        return Err(DecodeError::ColumnName { column: name.clone(), why });
    }
    if found != expected {
        return Err(DecodeError::ColumnLength { column: name.clone(), found, expected });
    }
    Ok(())
}

fn validate_finite(name: &Name, values: &[Option<f64>]) -> Result<(), DecodeError> {
    match values.iter().position(|value| value.is_some_and(|v| !v.is_finite())) {
        Some(row) => Err(DecodeError::NotFinite { column: name.clone(), row }),
        None => Ok(()),
    }
}

fn validate_texts<'a>(
    name: &Name,
    mut values: impl Iterator<Item = Option<&'a str>>,
    limit: usize,
) -> Result<(), DecodeError> {
    match values.position(|value| value.is_some_and(|text| text.len() > limit)) {
        Some(row) => Err(DecodeError::TextLength { column: name.clone(), row, limit }),
        None => Ok(()),
    }
}

/// A decoded tag. Bounded while it is read: empty texts take more memory than bytes on the wire.
struct TagIn(Vec<String>);

impl<'de> Deserialize<'de> for TagIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TagVisitor;
        impl<'de> de::Visitor<'de> for TagVisitor {
            type Value = TagIn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of strings")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<TagIn, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    if values.len() == MAX_ROWS {
                        return Err(de::Error::custom(format!("a tag has more than {MAX_ROWS} values")));
                    }
                    values.push(value);
                }
                Ok(TagIn(values))
            }
        }
        deserializer.deserialize_seq(TagVisitor)
    }
}

/// A decoded column; none when every value is nil.
struct ColumnIn(Option<Column>);

impl<'de> Deserialize<'de> for ColumnIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ColumnVisitor).map(ColumnIn)
    }
}

enum Scalar {
    Float(f64),
    Integer(i64),
    Bool(bool),
    Text(String),
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl de::Visitor<'_> for ScalarVisitor {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a float, integer, bool, string or nil")
            }
            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar::Float(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Scalar, E> {
                i64::try_from(value)
                    .map(Scalar::Integer)
                    .map_err(|_| E::custom(format!("integer {value} does not fit into 64 bits with sign")))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ColumnVisitor;

impl<'de> de::Visitor<'de> for ColumnVisitor {
    type Value = Option<Column>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of values of one type")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Column>, A::Error> {
        let mut column: Option<Column> = None;
        let mut row = 0;
        while let Some(value) = seq.next_element::<Option<Scalar>>()? {
            push(&mut column, row, value)
                .map_err(|(of, is)| de::Error::custom(format!("a column of {of} has {is} at row {row}")))?;
            row += 1;
            if row > MAX_ROWS {
                return Err(de::Error::custom(format!("a column has more than {MAX_ROWS} values")));
            }
        }
        Ok(column)
    }
}

/// Appends the value of `row`; nils before the first value take its type. Fails with both types when they don't go together.
fn push(column: &mut Option<Column>, row: usize, value: Option<Scalar>) -> Result<(), (FieldType, FieldType)> {
    let Some(value) = value else {
        match column {
            Some(Column::Float(values)) => values.push(None),
            Some(Column::Integer(values)) => values.push(None),
            Some(Column::Bool(values)) => values.push(None),
            Some(Column::Text(values)) => values.push(None),
            None => {}
        }
        return Ok(());
    };
    if let (Some(Column::Integer(values)), Scalar::Float(_)) = (&*column, &value) {
        *column = Some(Column::Float(values.iter().map(|v| v.map(|v| v as f64)).collect()));
    }
    let column = column.get_or_insert_with(|| match &value {
        Scalar::Float(_) => Column::Float(vec![None; row]),
        Scalar::Integer(_) => Column::Integer(vec![None; row]),
        Scalar::Bool(_) => Column::Bool(vec![None; row]),
        Scalar::Text(_) => Column::Text(vec![None; row]),
    });
    match (&mut *column, value) {
        (Column::Float(values), Scalar::Float(value)) => values.push(Some(value)),
        (Column::Float(values), Scalar::Integer(value)) => values.push(Some(value as f64)),
        (Column::Integer(values), Scalar::Integer(value)) => values.push(Some(value)),
        (Column::Bool(values), Scalar::Bool(value)) => values.push(Some(value)),
        (Column::Text(values), Scalar::Text(value)) => values.push(Some(value)),
        (column, value) => return Err((column.field_type(), value.field_type())),
    }
    Ok(())
}

impl Scalar {
    fn field_type(&self) -> FieldType {
        match self {
            Self::Float(_) => FieldType::Float,
            Self::Integer(_) => FieldType::Integer,
            Self::Bool(_) => FieldType::Bool,
            Self::Text(_) => FieldType::Text,
        }
    }
}
