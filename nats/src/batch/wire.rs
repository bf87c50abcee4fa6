//! Reads the MessagePack map of a batch into a [`Layout`], value by value and without an allocation for any of them.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny},
};
use ulid::Ulid;

use super::{DecodeError, FieldType, MAX_DECODED_BYTES, MAX_ROWS, VERSION};
use crate::Name;

/// Where a text lies in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub(super) fn of(self, bytes: &[u8]) -> &str {
        let text = &bytes[self.start as usize..self.end as usize];
        std::str::from_utf8(text).expect("it was a text when the payload was read")
    }

    pub(super) fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// A value as it was read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cell {
    Nil,
    Float(f64),
    Integer(i64),
    Bool(bool),
    Text(Span),
}

impl Cell {
    fn field_type(self) -> Option<FieldType> {
        match self {
            Self::Nil => None,
            Self::Float(_) => Some(FieldType::Float),
            Self::Integer(_) => Some(FieldType::Integer),
            Self::Bool(_) => Some(FieldType::Bool),
            Self::Text(_) => Some(FieldType::Text),
        }
    }
}

/// A tag or field: where its name and its values are, and the values' type, which a column of nothing but nil does not have.
#[derive(Debug, Clone, Copy)]
pub(super) struct ColumnLayout {
    pub(super) name: Span,
    pub(super) field_type: Option<FieldType>,
    first: u32,
    end: u32,
}

impl ColumnLayout {
    pub(super) fn len(&self) -> usize {
        (self.end - self.first) as usize
    }

    pub(super) fn cells<'l>(&self, layout: &'l Layout) -> &'l [Cell] {
        &layout.cells[self.first as usize..self.end as usize]
    }
}

/// What a payload holds; its texts stay where they are. Kept from one payload to the next for its memory.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) times: Vec<i64>,
    cells: Vec<Cell>,
    /// By name, each once.
    pub(super) tags: Vec<ColumnLayout>,
    /// By name, each once.
    pub(super) fields: Vec<ColumnLayout>,
}

/// What a payload says besides its columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'p> {
    version: u64,
    pub(super) host: &'p str,
    pub(super) measurement: &'p str,
    pub(super) epoch: Ulid,
    pub(super) seq: u64,
}

impl Layout {
    /// Reads a payload in place of the one before. Fails when it has not the layout of this version.
    pub(super) fn read<'p>(&mut self, bytes: &'p [u8]) -> Result<Header<'p>, DecodeError> {
        if bytes.len() > MAX_DECODED_BYTES {
            return Err(DecodeError::TooLarge);
        }
        self.clear();
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
        let seed = BatchSeed { layout: self, begin: bytes.as_ptr().addr() };
        let header = seed.deserialize(&mut deserializer).map_err(|error| other_version(bytes, error))?;
        if header.version != VERSION {
            return Err(DecodeError::Version { version: header.version });
        }
        // Ends at once where nothing is left.
        let end = IgnoredAny::deserialize(&mut deserializer);
        if !matches!(&end, Err(rmp_serde::decode::Error::InvalidMarkerRead(_))) {
            return Err(DecodeError::TrailingBytes { count: bytes.len() - length(bytes) });
        }
        sort(&mut self.tags, bytes);
        sort(&mut self.fields, bytes);
        Ok(header)
    }

    fn clear(&mut self) {
        // What a hostile payload has made large is given back.
        const KEPT: usize = 4 * MAX_ROWS;
        self.times.clear();
        self.times.shrink_to(KEPT);
        self.cells.clear();
        self.cells.shrink_to(KEPT);
        self.tags.clear();
        self.tags.shrink_to(KEPT);
        self.fields.clear();
        self.fields.shrink_to(KEPT);
    }
}

/// Length of the first value.
fn length(bytes: &[u8]) -> usize {
    let mut deserializer = rmp_serde::Deserializer::new(std::io::Cursor::new(bytes));
    let _ = IgnoredAny::deserialize(&mut deserializer);
    usize::try_from(deserializer.position()).unwrap_or(usize::MAX)
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

/// Orders columns by name; of several of one name the last counts. Writers send them in order, mostly.
fn sort(columns: &mut Vec<ColumnLayout>, bytes: &[u8]) {
    if columns.is_sorted_by(|a, b| a.name.of(bytes) < b.name.of(bytes)) {
        return;
    }
    columns.reverse();
    columns.sort_by_key(|column| column.name.of(bytes));
    columns.dedup_by_key(|column| column.name.of(bytes));
}

/// The keys of the map, in the order that a writer of version 1 may also leave them out and send an array.
const KEYS: [&str; 8] = ["v", "host", "measurement", "epoch", "seq", "times", "tags", "fields"];

struct BatchSeed<'l> {
    layout: &'l mut Layout,
    /// Address of the payload.
    begin: usize,
}

impl BatchSeed<'_> {
    fn columns(&mut self, role: Role) -> ColumnsSeed<'_> {
        ColumnsSeed { layout: self.layout, begin: self.begin, role }
    }
}

/// What was read of the header so far.
#[derive(Default)]
struct PartialHeader<'p> {
    version: Option<u64>,
    host: Option<&'p str>,
    measurement: Option<&'p str>,
    epoch: Option<Ulid>,
    seq: Option<u64>,
    times: Option<()>,
    tags: Option<()>,
    fields: Option<()>,
}

impl<'p> PartialHeader<'p> {
    fn whole<E: de::Error>(self) -> Result<Header<'p>, E> {
        let header = Header {
            version: self.version.ok_or_else(|| E::missing_field("v"))?,
            host: self.host.ok_or_else(|| E::missing_field("host"))?,
            measurement: self.measurement.ok_or_else(|| E::missing_field("measurement"))?,
            epoch: self.epoch.ok_or_else(|| E::missing_field("epoch"))?,
            seq: self.seq.ok_or_else(|| E::missing_field("seq"))?,
        };
        self.times.ok_or_else(|| E::missing_field("times"))?;
        self.fields.ok_or_else(|| E::missing_field("fields"))?;
        Ok(header)
    }
}

impl<'de> DeserializeSeed<'de> for BatchSeed<'_> {
    type Value = Header<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Header<'de>, D::Error> {
        deserializer.deserialize_struct("Batch", &KEYS, self)
    }
}

impl<'de> de::Visitor<'de> for BatchSeed<'_> {
    type Value = Header<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with the keys of a batch")
    }

    fn visit_map<A: de::MapAccess<'de>>(mut self, mut map: A) -> Result<Header<'de>, A::Error> {
        let mut header = PartialHeader::default();
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Known(0) => once(&mut header.version, 0, || map.next_value())?,
                Key::Known(1) => once(&mut header.host, 1, || map.next_value())?,
                Key::Known(2) => once(&mut header.measurement, 2, || map.next_value())?,
                Key::Known(3) => once(&mut header.epoch, 3, || map.next_value().and_then(ulid))?,
                Key::Known(4) => once(&mut header.seq, 4, || map.next_value())?,
                Key::Known(5) => once(&mut header.times, 5, || map.next_value_seed(TimesSeed(&mut self.layout.times)))?,
                Key::Known(6) => once(&mut header.tags, 6, || map.next_value_seed(self.columns(Role::Tag)))?,
                Key::Known(7) => once(&mut header.fields, 7, || map.next_value_seed(self.columns(Role::Field)))?,
                Key::Known(_) | Key::Unknown => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        header.whole()
    }

    fn visit_seq<A: de::SeqAccess<'de>>(mut self, mut seq: A) -> Result<Header<'de>, A::Error> {
        fn there<T, E: de::Error>(index: usize, value: Option<T>) -> Result<T, E> {
            value.ok_or_else(|| E::invalid_length(index, &"the 8 parts of a batch"))
        }
        let header = PartialHeader {
            version: Some(there(0, seq.next_element()?)?),
            host: Some(there(1, seq.next_element()?)?),
            measurement: Some(there(2, seq.next_element()?)?),
            epoch: Some(there(3, seq.next_element()?).and_then(ulid)?),
            seq: Some(there(4, seq.next_element()?)?),
            times: Some(there(5, seq.next_element_seed(TimesSeed(&mut self.layout.times))?)?),
            tags: seq.next_element_seed(self.columns(Role::Tag))?,
            fields: Some(there(7, seq.next_element_seed(self.columns(Role::Field))?)?),
        };
        header.whole()
    }
}

/// Takes the value of a key that may be there once.
fn once<T, E: de::Error>(slot: &mut Option<T>, key: usize, read: impl FnOnce() -> Result<T, E>) -> Result<(), E> {
    if slot.is_some() {
        return Err(E::duplicate_field(KEYS[key]));
    }
    *slot = Some(read()?);
    Ok(())
}

fn ulid<E: de::Error>(text: &str) -> Result<Ulid, E> {
    Ulid::from_string(text).map_err(E::custom)
}

/// A key of the map.
enum Key {
    /// The one of this index in [`KEYS`].
    Known(usize),
    Unknown,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl de::Visitor<'_> for KeyVisitor {
            type Value = Key;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_u64<E>(self, value: u64) -> Result<Key, E> {
                Ok(usize::try_from(value).map_or(Key::Unknown, Key::Known))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Key, E> {
                self.visit_bytes(value.as_bytes())
            }
            fn visit_bytes<E>(self, value: &[u8]) -> Result<Key, E> {
                Ok(KEYS.iter().position(|key| key.as_bytes() == value).map_or(Key::Unknown, Key::Known))
            }
        }
        deserializer.deserialize_identifier(KeyVisitor)
    }
}

struct TimesSeed<'l>(&'l mut Vec<i64>);

impl<'de> DeserializeSeed<'de> for TimesSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> de::Visitor<'de> for TimesSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(time) = seq.next_element()? {
            self.0.push(time);
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Role {
    Tag,
    Field,
}

/// The map of tags or fields.
struct ColumnsSeed<'l> {
    layout: &'l mut Layout,
    begin: usize,
    role: Role,
}

impl<'de> DeserializeSeed<'de> for ColumnsSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> de::Visitor<'de> for ColumnsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (layout, begin) = (self.layout, self.begin);
        while let Some(name) = map.next_key_seed(NameSeed { begin })? {
            let first = layout.cells.len();
            let cells = &mut layout.cells;
            let field_type = match self.role {
                Role::Tag => map.next_value_seed(TagSeed { cells, begin })?,
                Role::Field => map.next_value_seed(FieldSeed { cells, begin })?,
            };
            let end = layout.cells.len();
            let position = |cells| u32::try_from(cells).expect("a payload has fewer values than bytes");
            let column = ColumnLayout { name, field_type, first: position(first), end: position(end) };
            match self.role {
                Role::Tag => layout.tags.push(column),
                Role::Field => layout.fields.push(column),
            }
        }
        Ok(())
    }
}

fn span(text: &str, begin: usize) -> Span {
    let position = |at: usize| u32::try_from(at).expect("a payload is much shorter than 4 GiB");
    let start = text.as_ptr().addr() - begin;
    Span { start: position(start), end: position(start + text.len()) }
}

struct NameSeed {
    begin: usize,
}

impl<'de> DeserializeSeed<'de> for NameSeed {
    type Value = Span;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Span, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> de::Visitor<'de> for NameSeed {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<Span, E> {
        Name::check(value).map_err(E::custom)?;
        Ok(span(value, self.begin))
    }
}

/// The values of a tag.
struct TagSeed<'l> {
    cells: &'l mut Vec<Cell>,
    begin: usize,
}

impl<'de> DeserializeSeed<'de> for TagSeed<'_> {
    type Value = Option<FieldType>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> de::Visitor<'de> for TagSeed<'_> {
    type Value = Option<FieldType>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let first = self.cells.len();
        while let Some(value) = seq.next_element()? {
            if self.cells.len() - first == MAX_ROWS {
                return Err(de::Error::custom(format!("a tag has more than {MAX_ROWS} values")));
            }
            self.cells.push(Cell::Text(span(value, self.begin)));
        }
        Ok(Some(FieldType::Text))
    }
}

/// The values of a field.
struct FieldSeed<'l> {
    cells: &'l mut Vec<Cell>,
    begin: usize,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = Option<FieldType>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        // Asked for a sequence, it would take bytes apart.
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for FieldSeed<'_> {
    type Value = Option<FieldType>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of values of one type")
    }

    fn visit_borrowed_bytes<E: de::Error>(self, value: &'de [u8]) -> Result<Self::Value, E> {
        if value.is_empty() { Ok(None) } else { Err(E::invalid_type(de::Unexpected::Bytes(value), &self)) }
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let first = self.cells.len();
        let mut field_type = None;
        while let Some(cell) = seq.next_element_seed(CellSeed { begin: self.begin })? {
            let row = self.cells.len() - first;
            field_type = together(field_type, cell.field_type())
                .map_err(|(of, is)| de::Error::custom(format!("a column of {of} has {is} at row {row}")))?;
            self.cells.push(cell);
            if row == MAX_ROWS {
                return Err(de::Error::custom(format!("a column has more than {MAX_ROWS} values")));
            }
        }
        Ok(field_type)
    }
}

/// The type of a column so far and its next value. Fails with both when they don't go together.
fn together(column: Option<FieldType>, value: Option<FieldType>) -> Result<Option<FieldType>, (FieldType, FieldType)> {
    match (column, value) {
        (column, None) => Ok(column),
        (None, value) => Ok(value),
        (Some(column), Some(value)) if column == value => Ok(Some(column)),
        (Some(FieldType::Float | FieldType::Integer), Some(FieldType::Float | FieldType::Integer)) => {
            Ok(Some(FieldType::Float))
        }
        (Some(column), Some(value)) => Err((column, value)),
    }
}

struct CellSeed {
    begin: usize,
}

impl<'de> DeserializeSeed<'de> for CellSeed {
    type Value = Cell;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cell, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for CellSeed {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a float, integer, bool, string or nil")
    }

    fn visit_unit<E>(self) -> Result<Cell, E> {
        Ok(Cell::Nil)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Cell, E> {
        Ok(Cell::Float(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Cell, E> {
        Ok(Cell::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Cell, E> {
        i64::try_from(value)
            .map(Cell::Integer)
            .map_err(|_| E::custom(format!("integer {value} does not fit into 64 bits with sign")))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Cell, E> {
        Ok(Cell::Bool(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Cell, E> {
        Ok(Cell::Text(span(value, self.begin)))
    }
}
