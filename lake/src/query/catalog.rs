//! What is stored.

use std::collections::BTreeMap;

use plimsoll_nats::{Name, batch::FieldType};
use serde::Serialize;

use super::{QueryError, source::Snapshot};
use crate::{Tail, status::table_sizes};

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
    let sizes = table_sizes(snapshot.connection)?;
    let mut rows: BTreeMap<String, u64> = sizes.into_iter().map(|(table, size)| (table, size.rows)).collect();
    for run in added.admitted(&mut schema) {
        *rows.entry(run.measurement().to_string()).or_default() += run.rows() as u64;
    }
    let stored = schema.tables().map(|(name, table)| StoredMeasurement {
        name: name.clone(),
        tags: table.tags().cloned().collect(),
        fields: table.fields().map(|(field, field_type)| (field.clone(), field_type)).collect(),
        rows: rows.get(&**name).copied().unwrap_or_default(),
    });
    Ok((added.complete && snapshot.lake_reached(), stored.collect()))
}
