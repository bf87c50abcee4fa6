//! The rollups' tables.

use std::collections::BTreeSet;

use duckdb::Connection;
use plimsoll_nats::Name;

use super::{SUMMARY_TYPE, Tier, sketch::Grouping};
use crate::{
    LakeError,
    connection::{LAKE, MEASUREMENTS_SCHEMA},
    error::Context,
    schema,
    sql::ident,
};

/// The columns of a tier's table; none where there is no such table.
pub(super) fn columns(connection: &Connection, measurement: &Name, tier: Tier) -> Result<BTreeSet<String>, LakeError> {
    let sql = "SELECT column_name FROM duckdb_columns() WHERE database_name = ? AND schema_name = ? AND table_name = ?";
    let table = tier.table_name(measurement);
    let mut statement = connection.prepare_cached(sql).context("read a rollup's columns")?;
    let columns = statement
        .query_map([LAKE, MEASUREMENTS_SCHEMA, &table], |row| row.get(0))
        .and_then(Iterator::collect::<Result<_, _>>);
    columns.context("read a rollup's columns")
}

/// The names of all tables of measurements and rollups.
pub(super) fn all(connection: &Connection) -> Result<BTreeSet<String>, LakeError> {
    let sql = "SELECT DISTINCT table_name FROM duckdb_columns() WHERE database_name = ? AND schema_name = ?";
    let mut statement = connection.prepare_cached(sql).context("list the tables")?;
    let tables = statement.query_map([LAKE, MEASUREMENTS_SCHEMA], |row| row.get(0)).and_then(Iterator::collect);
    tables.context("list the tables")
}

/// Makes a rollup's table have all tags and fields, given the columns that it has.
pub(super) fn migrate(
    connection: &Connection,
    measurement: &Name,
    tier: Tier,
    grouping: &Grouping,
    present: &BTreeSet<String>,
) -> Result<(), LakeError> {
    let statements = statements(measurement, tier, grouping, present);
    statements
        .iter()
        .try_for_each(|statement| connection.execute_batch(statement).context("create or extend a rollup's table"))
}

fn statements(measurement: &Name, tier: Tier, grouping: &Grouping, present: &BTreeSet<String>) -> Vec<String> {
    let target = tier.table(measurement);
    let mut statements = Vec::new();
    let is_new = present.is_empty();
    if is_new {
        statements.push(format!("CREATE TABLE {target} (ts TIMESTAMP_MS, host VARCHAR)"));
        let days = if tier == Tier::Hour { "" } else { ", day(ts)" };
        statements.push(format!("ALTER TABLE {target} SET PARTITIONED BY (year(ts), month(ts){days})"));
    }
    let missing = |name: &&Name| !present.contains(&***name);
    let tags: Vec<&Name> = grouping.tags.iter().filter(missing).collect();
    for tag in &tags {
        statements.push(format!("ALTER TABLE {target} ADD COLUMN {} VARCHAR", ident(tag)));
        statements.push(schema::comment(&target, tag));
    }
    for field in grouping.fields.iter().map(|(name, _)| name).filter(missing) {
        statements.push(format!("ALTER TABLE {target} ADD COLUMN {} {SUMMARY_TYPE}", ident(field)));
    }
    if is_new || !tags.is_empty() {
        let tags: String = grouping.tags.iter().map(|tag| format!("{}, ", ident(tag))).collect();
        statements.push(format!("ALTER TABLE {target} SET SORTED BY (host, {tags}ts)"));
    }
    statements
}
