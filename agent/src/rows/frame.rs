//! The columns of rows, in buffers that stay when the rows go.

use std::{mem::discriminant, ops::Range};

use plimsoll_nats::{Column, Name, batch::FieldType};
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap as _, SerializeSeq as _},
};

use super::{Columns, texts::Texts};

/// A number takes no more than this in MessagePack.
const NUMBER_BYTES: usize = 9;
/// What MessagePack puts before a text takes no more than this.
const TEXT_HEADER_BYTES: usize = 5;

/// The values of one field, one a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    Float(Vec<Option<f64>>),
    Integer(Vec<Option<i64>>),
    Bool(Vec<Option<bool>>),
    /// A nil is an empty text that is not there.
    Text {
        texts: Texts,
        there: Vec<bool>,
    },
}

/// Rows of one measurement, column by column.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    pub(super) tags: Vec<(Name, Texts)>,
    pub(super) fields: Vec<(Name, Values)>,
    pub(super) rows: usize,
}

impl Frame {
    /// The columns of so many rows.
    #[must_use]
    pub fn new(rows: usize, columns: Columns) -> Self {
        let tags = columns.tags.into_iter().map(|(name, values)| (name, values.iter().map(String::as_str).collect()));
        let fields = columns.fields.into_iter().map(|(name, column)| (name, Values::from(column)));
        Self { tags: tags.collect(), fields: fields.collect(), rows }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// No less than the rows take in MessagePack, without names.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let texts = |texts: &Texts| texts.bytes() + texts.len() * TEXT_HEADER_BYTES;
        let tags: usize = self.tags.iter().map(|(_, column)| texts(column)).sum();
        let fields = self.fields.iter().map(|(_, values)| match values {
            Values::Text { texts: column, .. } => texts(column),
            Values::Float(_) | Values::Integer(_) | Values::Bool(_) => self.rows * NUMBER_BYTES,
        });
        tags + fields.sum::<usize>()
    }

    /// Whether the other has the same columns of the same types, in the same order.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let same = |((name, values), (other_name, others)): (&(Name, Values), &(Name, Values))| {
            name == other_name && discriminant(values) == discriminant(others)
        };
        self.tags.iter().map(|(name, _)| name).eq(other.tags.iter().map(|(name, _)| name))
            && self.fields.len() == other.fields.len()
            && self.fields.iter().zip(&other.fields).all(same)
    }

    /// Adds the rows of a frame that [is like](Self::is_like) this one.
    pub fn append(&mut self, other: &Self) {
        debug_assert!(self.is_like(other), "columns differ");
        for ((_, column), (_, others)) in self.tags.iter_mut().zip(&other.tags) {
            column.append(others);
        }
        for ((_, values), (_, others)) in self.fields.iter_mut().zip(&other.fields) {
            values.append(others);
        }
        self.rows += other.rows;
    }

    /// Removes all rows and keeps the columns and their room.
    pub fn clear(&mut self) {
        self.tags.iter_mut().for_each(|(_, column)| column.clear());
        self.fields.iter_mut().for_each(|(_, values)| values.clear());
        self.rows = 0;
    }

    /// The tags of a range of rows, as a map of sequences.
    pub fn tags(&self, rows: Range<usize>) -> impl Serialize {
        Map(&self.tags, rows)
    }

    /// The fields of a range of rows, as a map of sequences.
    pub fn fields(&self, rows: Range<usize>) -> impl Serialize {
        Map(&self.fields, rows)
    }

    /// A copy of all columns.
    #[must_use]
    pub fn to_columns(&self) -> Columns {
        let texts = |texts: &Texts| (0..self.rows).map(|row| texts.get(row).to_owned()).collect();
        Columns {
            tags: self.tags.iter().map(|(name, column)| (name.clone(), texts(column))).collect(),
            fields: self.fields.iter().map(|(name, values)| (name.clone(), values.to_column())).collect(),
        }
    }
}

impl Values {
    pub(super) fn none_of(field_type: FieldType) -> Self {
        match field_type {
            FieldType::Float => Self::Float(Vec::new()),
            FieldType::Integer => Self::Integer(Vec::new()),
            FieldType::Bool => Self::Bool(Vec::new()),
            FieldType::Text => Self::Text { texts: Texts::default(), there: Vec::new() },
        }
    }

    fn append(&mut self, other: &Self) {
        match (self, other) {
            (Self::Float(values), Self::Float(others)) => values.extend_from_slice(others),
            (Self::Integer(values), Self::Integer(others)) => values.extend_from_slice(others),
            (Self::Bool(values), Self::Bool(others)) => values.extend_from_slice(others),
            (Self::Text { texts, there }, Self::Text { texts: other_texts, there: others_there }) => {
                texts.append(other_texts);
                there.extend_from_slice(others_there);
            }
            _ => unreachable!("frames are appended to those of the same types"),
        }
    }

    fn clear(&mut self) {
        match self {
            Self::Float(values) => values.clear(),
            Self::Integer(values) => values.clear(),
            Self::Bool(values) => values.clear(),
            Self::Text { texts, there } => {
                texts.clear();
                there.clear();
            }
        }
    }

    fn to_column(&self) -> Column {
        match self {
            Self::Float(values) => Column::Float(values.clone()),
            Self::Integer(values) => Column::Integer(values.clone()),
            Self::Bool(values) => Column::Bool(values.clone()),
            Self::Text { texts, there } => {
                let text = |(row, there): (usize, &bool)| there.then(|| texts.get(row).to_owned());
                Column::Text(there.iter().enumerate().map(text).collect())
            }
        }
    }
}

impl From<Column> for Values {
    fn from(column: Column) -> Self {
        match column {
            Column::Float(values) => Self::Float(values),
            Column::Integer(values) => Self::Integer(values),
            Column::Bool(values) => Self::Bool(values),
            Column::Text(values) => Self::Text {
                texts: values.iter().map(|value| value.as_deref().unwrap_or_default()).collect(),
                there: values.iter().map(Option::is_some).collect(),
            },
        }
    }
}

/// Some rows of a column as a sequence.
trait Slice {
    fn serialize_rows<S: Serializer>(&self, rows: Range<usize>, serializer: S) -> Result<S::Ok, S::Error>;
}

impl Slice for Texts {
    fn serialize_rows<S: Serializer>(&self, rows: Range<usize>, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(rows.len()))?;
        for row in rows {
            seq.serialize_element(self.get(row))?;
        }
        seq.end()
    }
}

impl Slice for Values {
    fn serialize_rows<S: Serializer>(&self, rows: Range<usize>, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Float(values) => values[rows].serialize(serializer),
            Self::Integer(values) => values[rows].serialize(serializer),
            Self::Bool(values) => values[rows].serialize(serializer),
            Self::Text { texts, there } => {
                let mut seq = serializer.serialize_seq(Some(rows.len()))?;
                for row in rows {
                    seq.serialize_element(&there[row].then(|| texts.get(row)))?;
                }
                seq.end()
            }
        }
    }
}

/// Named columns as a map.
struct Map<'a, C>(&'a [(Name, C)], Range<usize>);

impl<C: Slice> Serialize for Map<'_, C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, column) in self.0 {
            map.serialize_entry(name, &Entry(column, self.1.clone()))?;
        }
        map.end()
    }
}

struct Entry<'a, C>(&'a C, Range<usize>);

impl<C: Slice> Serialize for Entry<'_, C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_rows(self.1.clone(), serializer)
    }
}
