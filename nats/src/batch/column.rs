//! The columns of a batch: fields and tags, and how they are read from MessagePack value by value.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::MAX_ROWS;

/// The values of one field, one a row, all of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// 64-bit floating point.
    Float(Vec<Option<f64>>),
    /// 64-bit signed integer.
    Integer(Vec<Option<i64>>),
    /// True or false.
    Bool(Vec<Option<bool>>),
    /// Text.
    Text(Vec<Option<String>>),
}

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// 64-bit floating point.
    Float,
    /// 64-bit signed integer.
    Integer,
    /// True or false.
    Bool,
    /// Text.
    Text,
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float => "float",
            Self::Integer => "integer",
            Self::Bool => "bool",
            Self::Text => "text",
        })
    }
}

impl Column {
    /// Number of rows, nil ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::Integer(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the values.
    #[must_use]
    pub fn field_type(&self) -> FieldType {
        match self {
            Self::Float(_) => FieldType::Float,
            Self::Integer(_) => FieldType::Integer,
            Self::Bool(_) => FieldType::Bool,
            Self::Text(_) => FieldType::Text,
        }
    }

    /// The value of a row as a number; true is 1, and text and nil are none.
    #[must_use]
    pub fn number(&self, row: usize) -> Option<f64> {
        match self {
            Self::Float(values) => *values.get(row)?,
            Self::Integer(values) => values.get(row)?.map(|v| v as f64),
            Self::Bool(values) => values.get(row)?.map(|v| f64::from(u8::from(v))),
            Self::Text(_) => None,
        }
    }

    /// The value of a row as JSON; nil is null.
    #[must_use]
    pub fn json(&self, row: usize) -> serde_json::Value {
        match self {
            Self::Float(values) => values.get(row).copied().flatten().into(),
            Self::Integer(values) => values.get(row).copied().flatten().into(),
            Self::Bool(values) => values.get(row).copied().flatten().into(),
            Self::Text(values) => values.get(row).cloned().flatten().into(),
        }
    }
}

impl Serialize for Column {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Float(values) => values.serialize(serializer),
            Self::Integer(values) => values.serialize(serializer),
            Self::Bool(values) => values.serialize(serializer),
            Self::Text(values) => values.serialize(serializer),
        }
    }
}

/// A decoded tag. Bounded while it is read: empty texts take more memory than bytes on the wire.
pub(super) struct TagIn(pub(super) Vec<String>);

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
pub(super) struct ColumnIn(pub(super) Option<Column>);

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
