//! What is stored.

use std::collections::BTreeMap;

use duckdb::Connection;
use plimsoll_nats::{Name, batch::FieldType};
use serde::Serialize;

use super::{
    QueryError,
    source::{Snapshot, admit},
};
use crate::{
    LakeError, Tail,
    connection::{CATALOG, MEASUREMENTS_SCHEMA},
    error::Context,
    sql::literal,
};

/// A measurement that lake or tail hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredMeasurement {
    /// Its name.
    pub name: Name,
    /// The tags that its series have, in order.
    pub tags: Vec<Name>,
    /// The fields with their types.
    pub fields: BTreeMap<Name, FieldType>,
    /// Rows in lake and tail.
    pub rows: u64,
}

/// Reads the tables of the lake and what the tail adds to them.
pub(super) fn read(snapshot: &Snapshot<'_>, tail: &Tail) -> Result<(bool, Vec<StoredMeasurement>), QueryError> {
    snapshot.agree()?;
    let added = tail.select(&snapshot.facts.positions, None, None)?;
    let mut schema = snapshot.facts.schema.clone();
    let mut rows = stored_rows(snapshot.connection)?;
    for batch in admit(&mut schema, &added.batches) {
        *rows.entry(batch.measurement.to_string()).or_default() += batch.rows() as u64;
    }
    let stored = schema.tables().map(|(name, table)| StoredMeasurement {
        name: name.clone(),
        tags: table.tags().cloned().collect(),
        fields: table.fields().map(|(field, field_type)| (field.clone(), field_type)).collect(),
        rows: rows.get(&**name).copied().unwrap_or_default(),
    });
    Ok((added.complete && snapshot.lake_reached(), stored.collect()))
}

/// Rows of each measurement's table as the catalog counts them: no file is read, and no table looked at by itself.
fn stored_rows(connection: &Connection) -> Result<BTreeMap<String, u64>, LakeError> {
    let sql = format!(
        "WITH rows AS (
             SELECT table_id, record_count AS count FROM {CATALOG}.ducklake_data_file WHERE end_snapshot IS NULL
             UNION ALL
             SELECT table_id, -delete_count FROM {CATALOG}.ducklake_delete_file WHERE end_snapshot IS NULL)
         SELECT t.table_name, sum(rows.count)::UBIGINT FROM rows
         JOIN {CATALOG}.ducklake_table t ON t.table_id = rows.table_id AND t.end_snapshot IS NULL
         JOIN {CATALOG}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
         WHERE s.schema_name = {} GROUP BY t.table_name",
        literal(MEASUREMENTS_SCHEMA)
    );
    let mut statement = connection.prepare(&sql).context("count rows")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect);
    rows.context("count rows")
}
