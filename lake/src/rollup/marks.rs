//! The table `plimsoll.rollups`: up to which snapshot each rollup contains its source.

use std::collections::BTreeMap;

use duckdb::{Connection, params};
use plimsoll_nats::Name;

use super::{Tier, transaction::transaction};
use crate::{
    Lake, LakeError,
    connection::{LAKE, has_table},
    error::Context,
};

/// What a rollup contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The last snapshot of the lake whose rows of the source are contained.
    pub snapshot: i64,
    /// When all that there was to be rolled up had been, Unix ms; none while the first run goes on.
    pub rolled_ms: Option<i64>,
}

/// The marks of all rollups.
pub type Marks = BTreeMap<(Name, Tier), Mark>;

/// Reads the marks in the connection's transaction; there are none before the first run.
pub fn read(connection: &Connection) -> Result<Marks, LakeError> {
    if !has_table(connection, "plimsoll", "rollups")? {
        return Ok(Marks::new());
    }
    stored(connection)
}

/// The same where the table is known to exist.
pub(crate) fn stored(connection: &Connection) -> Result<Marks, LakeError> {
    let sql = format!("SELECT measurement, tier, snapshot, epoch_ms(rolled_at) FROM {LAKE}.plimsoll.rollups");
    let mut statement = connection.prepare(&sql).context("read the rollups' marks")?;
    let rows = statement
        .query_map([], |row| {
            let mark = Mark { snapshot: row.get(2)?, rolled_ms: row.get(3)? };
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, mark))
        })
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("read the rollups' marks")?;
    let marks = rows.into_iter().filter_map(|(measurement, tier, mark)| {
        let tier = Tier::ROLLED.into_iter().find(|known| known.label() == tier)?;
        Some(((Name::parse(&measurement).ok()?, tier), mark))
    });
    Ok(marks.collect())
}

/// Creates the table of marks where it is missing.
pub(super) fn ensure(lake: &Lake) -> Result<(), LakeError> {
    let connection = &lake.connection;
    if !has_table(connection, "plimsoll", "rollups")? {
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {LAKE}.plimsoll.rollups
                 (measurement VARCHAR, tier VARCHAR, snapshot BIGINT, rolled_at TIMESTAMP_MS)"
        );
        transaction(lake, || connection.execute_batch(&create).context("create the table of the rollups' marks"))?;
    }
    // Every step changes a row.
    lake.keep_in_catalog("rollups", "Last snapshot whose rows a rollup contains, by measurement and tier")
}

/// Moves a mark within the connection's transaction, or sets the first one.
pub(super) fn set(
    connection: &Connection,
    (measurement, tier): (&Name, Tier),
    before: Option<Mark>,
    to: Mark,
) -> Result<(), LakeError> {
    let tier = tier.label();
    if before.is_none() {
        let sql = format!("INSERT INTO {LAKE}.plimsoll.rollups VALUES (?, ?, ?, make_timestamp_ms(?))");
        let values = params![&**measurement, tier, to.snapshot, to.rolled_ms];
        connection.execute(&sql, values).context("set a rollup's mark")?;
        return Ok(());
    }
    let sql = format!(
        "UPDATE {LAKE}.plimsoll.rollups SET snapshot = ?, rolled_at = make_timestamp_ms(?) WHERE measurement = ? AND tier = ?"
    );
    let values = params![to.snapshot, to.rolled_ms, &**measurement, tier];
    let moved = connection.execute(&sql, values).context("move a rollup's mark")?;
    if moved == 1 { Ok(()) } else { Err(LakeError::RollupChanged { measurement: measurement.to_string(), tier }) }
}
