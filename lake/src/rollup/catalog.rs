//! What DuckLake's catalog knows of new rows: the days that they lie in, without a look into any file.
//!
//! Layout, as of DuckLake 1.0 (<https://ducklake.select/docs/stable/specification/introduction>): `ducklake_data_file` has a row a file
//! with `begin_snapshot`, in which its rows came, and for a file merged from several `partial_max`, the last of theirs;
//! `ducklake_file_column_stats` has the least and the largest value of each of its columns, as text. Rows of small commits are not
//! in files, but in tables of the catalog, which `ducklake_inlined_data_tables` names, a table's columns being `begin_snapshot`,
//! `end_snapshot` and its own.

use std::collections::BTreeMap;

use duckdb::Connection;

use crate::{
    LakeError,
    connection::{LAKE, MEASUREMENTS_SCHEMA},
    error::Context,
    sql::{ident, literal},
};

/// Length of a day in ms.
pub(super) const DAY_MS: i64 = 86_400_000;
/// Most tables of the catalog in one query.
const TABLES_IN_A_QUERY: usize = 100;

/// First and last day, since 1970, of rows.
pub(super) type Span = (i64, i64);

/// The last snapshot of the lake.
pub(super) fn last_snapshot(connection: &Connection) -> Result<i64, LakeError> {
    let sql = format!("SELECT max(snapshot_id) FROM {}", meta("ducklake_snapshot"));
    connection.query_row(&sql, [], |row| row.get(0)).context("read the last snapshot")
}

/// The days of the rows that came after a snapshot, by table, as files and the catalog hold them: distinct, in order, possibly
/// overlapping. A table without any is left out, and one that is not wanted, given how many rows its new files have at most.
///
/// What comes while this reads may be missing.
pub(super) fn spans(
    connection: &Connection,
    after: &BTreeMap<String, i64>,
    is_wanted: impl Fn(&str, u64) -> bool,
) -> Result<BTreeMap<String, Vec<Span>>, LakeError> {
    let mut spans = BTreeMap::<String, Vec<Span>>::new();
    let Some(asked) = asked_sql(after.iter()) else { return Ok(spans) };
    // In this order: rows move from the catalog into files, never back.
    let inlined = inlined_sql(connection, &asked)?;
    for query in inlined.chunks(TABLES_IN_A_QUERY).map(|queries| queries.join(" UNION ALL ")) {
        collect(connection, &query, &mut spans)?;
    }
    let rows = new_rows(connection, &asked)?;
    let is_wanted = |table: &String| is_wanted(table, rows.get(table).copied().unwrap_or_default());
    spans.retain(|table, _| is_wanted(table));
    // The files' statistics, by far the largest part of the catalog, are read only where there is a new file.
    let with_files = after.iter().filter(|(table, _)| rows.contains_key(*table) && is_wanted(table));
    if let Some(asked) = asked_sql(with_files) {
        collect(connection, &files_sql(&asked), &mut spans)?;
    }
    spans.values_mut().for_each(|spans| {
        spans.sort_unstable();
        spans.dedup();
    });
    Ok(spans)
}

/// Tables, each with the snapshot after which its rows are asked for, as SQL; none for no table.
fn asked_sql<'a>(after: impl Iterator<Item = (&'a String, &'a i64)>) -> Option<String> {
    let asked: Vec<String> = after.map(|(table, snapshot)| format!("({}, {snapshot})", literal(table))).collect();
    (!asked.is_empty()).then(|| format!("(VALUES {}) AS asked(table_name, after)", asked.join(", ")))
}

/// How many rows the files have that hold new ones, by table; those that have some.
fn new_rows(connection: &Connection, asked: &str) -> Result<BTreeMap<String, u64>, LakeError> {
    let sql = format!(
        "SELECT asked.table_name, sum(f.record_count)::UBIGINT FROM {} JOIN {} GROUP BY asked.table_name",
        tables(asked),
        new_files(),
    );
    let mut statement = connection.prepare(&sql).context("count new rows")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect);
    rows.context("count new rows")
}

/// The files with new rows of the tables asked for, as SQL to join these with.
fn new_files() -> String {
    format!(
        "{} AS f ON f.table_id = t.table_id AND f.end_snapshot IS NULL \
         AND coalesce(f.partial_max, f.begin_snapshot) > asked.after",
        meta("ducklake_data_file")
    )
}

/// Joins spans, in order, that overlap or touch.
pub(super) fn joined(spans: &[Span]) -> Vec<Span> {
    let mut joined: Vec<Span> = Vec::new();
    for &(first, last) in spans {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// A query of the tables asked for, with their ids.
fn tables(asked: &str) -> String {
    format!(
        "{asked} JOIN {} AS t ON t.table_name = asked.table_name AND t.end_snapshot IS NULL \
         JOIN {} AS s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL AND s.schema_name = {}",
        meta("ducklake_table"),
        meta("ducklake_schema"),
        literal(MEASUREMENTS_SCHEMA),
    )
}

fn files_sql(asked: &str) -> String {
    format!(
        "SELECT asked.table_name, try_cast(min_value AS TIMESTAMP), try_cast(max_value AS TIMESTAMP) FROM {} \
         JOIN {} AS c ON c.table_id = t.table_id AND c.column_name = 'ts' AND c.end_snapshot IS NULL \
         JOIN {} JOIN {} AS v ON v.data_file_id = f.data_file_id AND v.column_id = c.column_id",
        tables(asked),
        meta("ducklake_column"),
        new_files(),
        meta("ducklake_file_column_stats"),
    )
}

/// A query for each of the catalog's tables of rows.
fn inlined_sql(connection: &Connection, asked: &str) -> Result<Vec<String>, LakeError> {
    let sql = format!(
        "SELECT asked.table_name, asked.after, i.table_name FROM {} JOIN {} AS i ON i.table_id = t.table_id",
        tables(asked),
        meta("ducklake_inlined_data_tables"),
    );
    let mut statement = connection.prepare(&sql).context("read the catalog")?;
    let queries = statement
        .query_map([], |row| {
            let (table, after, inlined) = (row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?);
            Ok(format!(
                "SELECT {} AS table_name, min(ts::VARCHAR::TIMESTAMP) AS first, max(ts::VARCHAR::TIMESTAMP) AS last FROM {} \
                 WHERE begin_snapshot > {after} AND end_snapshot IS NULL",
                literal(&table),
                meta(&inlined),
            ))
        })
        .and_then(Iterator::collect::<Result<Vec<_>, _>>);
    queries.context("read the catalog")
}

/// Adds the spans of a query's rows.
fn collect(connection: &Connection, query: &str, spans: &mut BTreeMap<String, Vec<Span>>) -> Result<(), LakeError> {
    let day = |time: &str| format!("floor(epoch_ms({time}) / {DAY_MS})::BIGINT");
    let sql = format!(
        "SELECT DISTINCT table_name, {}, {} FROM ({query}) AS span(table_name, first, last) WHERE last IS NOT NULL",
        day("first"),
        day("last"),
    );
    let mut statement = connection.prepare(&sql).context("find rows in the catalog")?;
    let found = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, (row.get(1)?, row.get(2)?))))
        .and_then(Iterator::collect::<Result<Vec<(String, Span)>, _>>)
        .context("find rows in the catalog")?;
    for (table, span) in found {
        spans.entry(table).or_default().push(span);
    }
    Ok(())
}

fn meta(table: &str) -> String {
    format!("{}.{}", ident(&format!("__ducklake_metadata_{LAKE}")), ident(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_overlap_or_touch_are_one() {
        assert_eq!(joined(&[(1, 1), (1, 3), (2, 2), (4, 4), (6, 7)]), [(1, 4), (6, 7)]);
        assert_eq!(joined(&[]), []);
    }
}
