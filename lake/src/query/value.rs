//! Values as queries yield them.

use duckdb::Row;
use plimsoll_nats::batch::FieldType;
use serde::Serialize;

use crate::{LakeError, error::Context};

/// A measured value; true is the integer 1 and false 0.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// An integer, exact.
    Integer(i64),
    /// A number.
    Float(f64),
    /// Text.
    Text(String),
}

impl Value {
    /// The value as a number; none for text.
    #[must_use]
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Text(_) => None,
        }
    }
}

/// A column as the SQL expression from which [`get`] reads it.
pub(super) fn expression(column: &str, field_type: FieldType) -> String {
    match field_type {
        FieldType::Bool => format!("{column}::BIGINT"),
        FieldType::Float | FieldType::Integer | FieldType::Text => column.to_owned(),
    }
}

/// The value of a result's column; none when it is null.
pub(super) fn get(row: &Row<'_>, index: usize, field_type: FieldType) -> Result<Option<Value>, LakeError> {
    let value = match field_type {
        FieldType::Float => row.get::<_, Option<f64>>(index).map(|value| value.map(Value::Float)),
        FieldType::Integer | FieldType::Bool => row.get::<_, Option<i64>>(index).map(|value| value.map(Value::Integer)),
        FieldType::Text => row.get::<_, Option<String>>(index).map(|value| value.map(Value::Text)),
    };
    value.context("read a value")
}
