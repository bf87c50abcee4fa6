//! What is stored.

use std::collections::BTreeMap;

use plimsoll_nats::{Name, batch::FieldType};
use serde::Serialize;

use super::{
    QueryError,
    source::{Snapshot, admit},
};
use crate::{LakeError, Tail, connection::LAKE, error::Context};

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
    let mut rows = stored_rows(snapshot)?;
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

/// Rows of each table by the catalog's own count, which reads no file.
fn stored_rows(snapshot: &Snapshot<'_>) -> Result<BTreeMap<String, u64>, LakeError> {
    if snapshot.facts.schema.tables().next().is_none() {
        return Ok(BTreeMap::new());
    }
    let sql = "SELECT table_name, estimated_size FROM duckdb_tables() WHERE database_name = ?";
    let mut statement = snapshot.connection.prepare_cached(sql).context("count rows")?;
    let rows = statement
        .query_map([LAKE], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?.unwrap_or(0).unsigned_abs()))
        })
        .and_then(Iterator::collect::<Result<BTreeMap<_, _>, _>>);
    rows.context("count rows")
}
