//! The columns of a batch: the values of its fields, all of one type.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

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
