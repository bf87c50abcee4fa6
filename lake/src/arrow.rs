//! Lays batches out as Arrow columns and stages them for a query.
//!
//! A text column ends at 2 GiB, past which its builder panics. Callers bound the batches by their weight, which counts every text:
//! tags and fields stay below it, and the host's name, up to 64 bytes where a row weighs 32 at least, below twice as much.

use std::sync::Arc;

use duckdb::{
    Connection,
    arrow::{
        array::{
            Array, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder,
            TimestampMillisecondBuilder,
        },
        datatypes::{DataType, Field, Schema, TimeUnit},
        error::ArrowError,
    },
};
use plimsoll_nats::{Batch, Column, Name, batch::FieldType};

use crate::{
    LakeError,
    error::Context,
    schema::{ColumnSchema, Role, TableSchema, sql_type},
    sql::ident,
};

/// Rows of one measurement in the order of the batches, with every column of its table.
pub(crate) fn record_batch(table: &TableSchema, batches: &[&Batch]) -> Result<RecordBatch, ArrowError> {
    let array = |(name, column): (&Name, ColumnSchema)| match (column.role, column.column_type) {
        (Role::Tag, _) => tags(name, batches),
        (Role::Field, FieldType::Float) => floats(name, batches),
        (Role::Field, FieldType::Integer) => integers(name, batches),
        (Role::Field, FieldType::Bool) => bools(name, batches),
        (Role::Field, FieldType::Text) => texts(name, batches),
    };
    columns(table, times(batches), hosts(batches), table.columns().map(array))
}

/// Times, hosts and the columns of a table as one.
pub(crate) fn columns(
    table: &TableSchema,
    times: ArrayRef,
    hosts: ArrayRef,
    others: impl Iterator<Item = ArrayRef>,
) -> Result<RecordBatch, ArrowError> {
    let mut fields = vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        Field::new("host", DataType::Utf8, false),
    ];
    let mut arrays = vec![times, hosts];
    for ((name, _), array) in table.columns().zip(others) {
        fields.push(Field::new(&**name, array.data_type().clone(), true));
        arrays.push(array);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn rows(batches: &[&Batch]) -> usize {
    batches.iter().map(|batch| batch.rows()).sum()
}

fn times(batches: &[&Batch]) -> ArrayRef {
    let mut builder = TimestampMillisecondBuilder::with_capacity(rows(batches));
    batches.iter().for_each(|batch| builder.append_slice(&batch.times));
    Arc::new(builder.finish())
}

fn hosts(batches: &[&Batch]) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(rows(batches), 0);
    for batch in batches {
        batch.times.iter().for_each(|_| builder.append_value(&batch.host));
    }
    Arc::new(builder.finish())
}

fn tags(name: &Name, batches: &[&Batch]) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(rows(batches), 0);
    for batch in batches {
        match batch.tags.get(name) {
            Some(values) => values.iter().for_each(|value| builder.append_value(value)),
            None => builder.append_nulls(batch.rows()),
        }
    }
    Arc::new(builder.finish())
}

fn floats(name: &Name, batches: &[&Batch]) -> ArrayRef {
    let mut builder = Float64Builder::with_capacity(rows(batches));
    for batch in batches {
        match batch.fields.get(name) {
            Some(Column::Float(values)) => builder.extend(values.iter().copied()),
            Some(Column::Integer(values)) => builder.extend(values.iter().map(|value| value.map(|v| v as f64))),
            _ => builder.append_nulls(batch.rows()),
        }
    }
    Arc::new(builder.finish())
}

fn integers(name: &Name, batches: &[&Batch]) -> ArrayRef {
    let mut builder = Int64Builder::with_capacity(rows(batches));
    for batch in batches {
        match batch.fields.get(name) {
            Some(Column::Integer(values)) => builder.extend(values.iter().copied()),
            _ => builder.append_nulls(batch.rows()),
        }
    }
    Arc::new(builder.finish())
}

fn bools(name: &Name, batches: &[&Batch]) -> ArrayRef {
    let mut builder = BooleanBuilder::with_capacity(rows(batches));
    for batch in batches {
        match batch.fields.get(name) {
            Some(Column::Bool(values)) => builder.extend(values.iter().copied()),
            _ => builder.append_nulls(batch.rows()),
        }
    }
    Arc::new(builder.finish())
}

fn texts(name: &Name, batches: &[&Batch]) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(rows(batches), 0);
    for batch in batches {
        match batch.fields.get(name) {
            Some(Column::Text(values)) => builder.extend(values.iter().map(Option::as_deref)),
            _ => builder.append_nulls(batch.rows()),
        }
    }
    Arc::new(builder.finish())
}

/// Puts the rows into a new temporary table of the measurement's columns, replacing one of the same name.
pub(crate) fn stage(
    connection: &Connection,
    staging: &str,
    measurement: &Name,
    table: &TableSchema,
    batches: &[&Batch],
) -> Result<(), LakeError> {
    stage_rows(connection, staging, measurement, table, || record_batch(table, batches))
}

/// The same of rows that are columns already.
pub(crate) fn stage_rows(
    connection: &Connection,
    staging: &str,
    measurement: &Name,
    table: &TableSchema,
    rows: impl FnOnce() -> Result<RecordBatch, ArrowError>,
) -> Result<(), LakeError> {
    let columns = table.columns().map(|(name, column)| format!(", {} {}", ident(name), sql_type(column.column_type)));
    let columns: String = columns.collect();
    let create = format!("CREATE OR REPLACE TEMP TABLE {} (ts TIMESTAMP_MS, host VARCHAR{columns})", ident(staging));
    connection.execute_batch(&create).context("create a staging table")?;
    let rows = rows().map_err(|source| LakeError::Columns { table: measurement.to_string(), source })?;
    if rows.num_rows() == 0 {
        return Ok(());
    }
    let mut appender =
        connection.appender_to_catalog_and_db(staging, "temp", "main").context("open the staging table")?;
    appender.append_record_batch(rows).context("stage rows")?;
    appender.flush().context("stage rows")
}
