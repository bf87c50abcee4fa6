//! Deletes the former rows of tables that lie in the catalog.
//!
//! Rows that are updated with every commit, as those of `plimsoll.positions`, stand in tables of the catalog, which
//! `ducklake_inlined_data_tables` names: one for each version of a table's columns, with `begin_snapshot` and `end_snapshot` besides
//! its own. An update ends a row and adds another; DuckLake reads all of them with each query and keeps them for ever, though it
//! expires the snapshots that show them.
//!
//! A snapshot `s` shows the rows with `begin_snapshot <= s` that have no `end_snapshot` or a later one. So none shows a row that had
//! ended when the oldest one was made. Commits only end rows that have not ended and add others: none touches what is deleted here.
//! A query that outlasts its snapshot, and so the time for which snapshots are kept, may fail for lack of these rows, as for lack of files.
//! The tables themselves stay, empty or not, since other processes remember them.

use super::{
    Run,
    clean::{column, first},
};
use crate::{LakeError, connection::CATALOG, error::Context, sql::ident};

/// Rows that a step deletes, and those besides that ended with the last of them.
const ROWS_AT_ONCE: usize = 20_000;

impl Run<'_> {
    /// Deletes the rows of all such tables that no snapshot shows any more.
    pub(super) fn forget_ended_rows(&mut self) -> Result<(), LakeError> {
        let names = format!(
            "SELECT i.table_name FROM {CATALOG}.ducklake_inlined_data_tables i
             JOIN {CATALOG}.ducklake_table t ON t.table_id = i.table_id AND t.end_snapshot IS NULL
             JOIN {CATALOG}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
             WHERE s.schema_name = 'plimsoll' ORDER BY ALL"
        );
        let tables: Vec<String> = column(self.steps.connection, &names, "list the catalog's rows")?;
        tables.iter().try_for_each(|table| self.forget_ended_rows_of(table))
    }

    fn forget_ended_rows_of(&mut self, table: &str) -> Result<(), LakeError> {
        let table = format!("{CATALOG}.{}", ident(table));
        let oldest = format!("SELECT min(snapshot_id) FROM {CATALOG}.ducklake_snapshot");
        let last = format!(
            "SELECT max(end_snapshot) FROM
                 (SELECT end_snapshot FROM {table} WHERE end_snapshot <= ({oldest}) ORDER BY ALL LIMIT {ROWS_AT_ONCE})"
        );
        loop {
            let deleted = self.steps.take(|connection, _| {
                let Some(last) = first::<Option<i64>>(connection, &last, "look for ended rows")? else { return Ok(0) };
                let delete = format!("DELETE FROM {table} WHERE end_snapshot <= {last}");
                connection.execute(&delete, []).context("delete ended rows")
            })?;
            let deleted = deleted.unwrap_or(0);
            self.report.forgotten_rows += deleted as u64;
            if deleted > 0 {
                self.steps.rest();
            }
            if deleted < ROWS_AT_ONCE {
                return Ok(());
            }
        }
    }
}
