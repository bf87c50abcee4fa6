//! The table `plimsoll.removed`: before which time rows of a tier may be gone.
//!
//! It moves in the transaction that deletes the rows, so that readers know in each snapshot from when on a tier holds everything. That
//! can't be seen from the rows themselves: late ones come back to days whose others are gone.

use std::collections::BTreeMap;

use duckdb::{Connection, params};
use plimsoll_nats::Name;

use super::Tier;
use crate::{LakeError, connection::LAKE, error::Context};

/// By measurement and tier, Unix ms; a start of a day or month.
pub type Removed = BTreeMap<(Name, Tier), i64>;

/// Reads the table in the connection's transaction; it must exist.
pub(crate) fn read(connection: &Connection) -> Result<Removed, LakeError> {
    let sql = format!("SELECT measurement, tier, epoch_ms(before) FROM {LAKE}.plimsoll.removed");
    let mut statement = connection.prepare(&sql).context("read what was removed")?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?)))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("read what was removed")?;
    let rows = rows.into_iter().filter_map(|(measurement, tier, before)| {
        let tier = Tier::ALL.into_iter().find(|known| known.label() == tier)?;
        Some(((Name::parse(&measurement).ok()?, tier), before))
    });
    Ok(rows.collect())
}

/// Notes within the connection's transaction that a tier's rows before a time are gone.
pub(super) fn note(connection: &Connection, measurement: &Name, tier: Tier, before_ms: i64) -> Result<(), LakeError> {
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {LAKE}.plimsoll.removed (measurement VARCHAR, tier VARCHAR, before TIMESTAMP_MS)"
    );
    connection.execute_batch(&create).context("create the table of what was removed")?;
    let update = format!(
        "UPDATE {LAKE}.plimsoll.removed SET before = greatest(before, make_timestamp_ms(?)::TIMESTAMP_MS)
         WHERE measurement = ? AND tier = ?"
    );
    let moved = connection
        .execute(&update, params![before_ms, &**measurement, tier.label()])
        .context("note what was removed")?;
    if moved > 0 {
        return Ok(());
    }
    let insert = format!("INSERT INTO {LAKE}.plimsoll.removed VALUES (?, ?, make_timestamp_ms(?)::TIMESTAMP_MS)");
    connection.execute(&insert, params![&**measurement, tier.label(), before_ms]).context("note what was removed")?;
    Ok(())
}
