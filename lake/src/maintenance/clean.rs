//! Expires snapshots and deletes files.
//!
//! DuckLake compares times as texts where the catalog is SQLite: the stored ones have a space between date and time, its own a `T`,
//! so that `older_than` takes everything of the same day for older. Snapshots are therefore expired by their ids, and the times of
//! unused files are brought into the form that DuckLake compares them with.

use std::{collections::BTreeSet, time::Duration};

use duckdb::Connection;
use jiff::Timestamp;

use super::{Keep, MIN_SNAPSHOTS, Run, steps};
use crate::{
    LakeError,
    connection::{CATALOG, LAKE},
    error::Context,
    sql::literal,
};

/// Most snapshots or files that a step takes, so that it takes a second at most, on a store over the network some ten.
const AT_ONCE: usize = 1000;

impl Run<'_> {
    pub(super) fn clean(&mut self, keep: Keep) -> Result<(), LakeError> {
        self.expire(keep.snapshots.max(MIN_SNAPSHOTS))?;
        self.forget_ended_rows()?;
        self.delete_unused(keep.unused_files)?;
        match keep.orphans {
            Some(age) => self.delete_orphans(age),
            None => Ok(()),
        }
    }

    /// Expires what is older, the present state never.
    fn expire(&mut self, keep: Duration) -> Result<(), LakeError> {
        let Some(before) = steps::ago(keep) else { return Ok(()) };
        let expired = format!(
            "SELECT snapshot_id::UBIGINT FROM {CATALOG}.ducklake_snapshot
             WHERE snapshot_time::TIMESTAMPTZ < {before}
               AND snapshot_id < (SELECT max(snapshot_id) FROM {CATALOG}.ducklake_snapshot)
             ORDER BY ALL LIMIT {AT_ONCE}"
        );
        loop {
            let taken = self.steps.take(|connection, _| {
                let snapshots = column::<u64>(connection, &expired, "list the snapshots")?;
                if !snapshots.is_empty() {
                    let versions = snapshots.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
                    let call = format!("CALL ducklake_expire_snapshots({}, versions => [{versions}])", literal(LAKE));
                    connection.execute_batch(&call).context("expire snapshots")?;
                }
                Ok(snapshots.len())
            })?;
            let count = taken.unwrap_or(0);
            self.report.expired_snapshots += count as u64;
            if count > 0 {
                self.steps.rest();
            }
            if count < AT_ONCE {
                return Ok(());
            }
        }
    }

    /// Deletes the files that the lake has not needed for so long, the oldest first.
    fn delete_unused(&mut self, keep: Duration) -> Result<(), LakeError> {
        let Some(before) = steps::ago(keep) else { return Ok(()) };
        let texts = self.times_are_texts()?;
        let unused = format!("{CATALOG}.ducklake_files_scheduled_for_deletion");
        let oldest = format!(
            "SELECT epoch_us(since) FROM (SELECT schedule_start::TIMESTAMPTZ AS since FROM {unused})
             WHERE since < {before} ORDER BY ALL LIMIT {AT_ONCE}"
        );
        let comparable = format!(
            "UPDATE {unused} SET schedule_start = replace(schedule_start, ' ', 'T') WHERE schedule_start LIKE '% %'"
        );
        if texts {
            self.steps
                .take(|connection, _| connection.execute_batch(&comparable).context("prepare to delete files"))?;
        }
        loop {
            let deleted = self.steps.take(|connection, _| {
                let Some(last) = column::<i64>(connection, &oldest, "list the unused files")?.into_iter().max() else {
                    return Ok(0);
                };
                let call = format!("ducklake_cleanup_old_files({}, older_than => {})", literal(LAKE), after(last)?);
                count(connection, &call, "delete unused files")
            })?;
            let deleted = deleted.unwrap_or(0);
            self.report.deleted_files += deleted;
            if deleted > 0 {
                self.steps.rest();
            }
            if deleted < AT_ONCE as u64 {
                return Ok(());
            }
        }
    }

    /// Deletes files that no entry of the catalog names. Nothing where the catalog does name one of them: its paths must then be
    /// written in some other way than the store lists them.
    fn delete_orphans(&mut self, age: Duration) -> Result<(), LakeError> {
        let Some(before) = steps::ago(age) else { return Ok(()) };
        let call = |dry_run: bool| {
            format!("ducklake_delete_orphaned_files({}, older_than => {before}, dry_run => {dry_run})", literal(LAKE))
        };
        let named = format!(
            "SELECT path FROM {CATALOG}.ducklake_data_file UNION ALL SELECT path FROM {CATALOG}.ducklake_delete_file
             UNION ALL SELECT path FROM {CATALOG}.ducklake_files_scheduled_for_deletion"
        );
        let deleted = self.steps.take(|connection, _| {
            let orphans: Vec<String> =
                column(connection, &format!("SELECT path FROM {}", call(true)), "list orphaned files")?;
            if orphans.is_empty() {
                return Ok(0);
            }
            let named: Vec<String> = column(connection, &named, "list the files")?;
            let named: BTreeSet<&str> = named.iter().map(|path| file_name(path)).collect();
            if let Some(path) = orphans.iter().find(|path| named.contains(file_name(path))) {
                return Err(LakeError::NoOrphan { path: path.clone() });
            }
            count(connection, &call(false), "delete orphaned files")
        })?;
        self.report.deleted_files += deleted.unwrap_or(0);
        Ok(())
    }
}

/// Right after a time in Unix µs, as SQL.
fn after(unix_us: i64) -> Result<String, LakeError> {
    let time = Timestamp::from_microsecond(unix_us.saturating_add(1));
    time.map(steps::time).map_err(|_| LakeError::BadTime { unix_us })
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

pub(super) fn column<T: duckdb::types::FromSql>(
    connection: &Connection,
    sql: &str,
    action: &'static str,
) -> Result<Vec<T>, LakeError> {
    let mut statement = connection.prepare(sql).context(action)?;
    let rows = statement.query_map([], |row| row.get(0));
    rows.and_then(Iterator::collect).context(action)
}

pub(super) fn first<T: duckdb::types::FromSql>(
    connection: &Connection,
    sql: &str,
    action: &'static str,
) -> Result<T, LakeError> {
    connection.query_row(sql, [], |row| row.get(0)).context(action)
}

fn count(connection: &Connection, call: &str, action: &'static str) -> Result<u64, LakeError> {
    first(connection, &format!("SELECT count(*)::UBIGINT FROM {call}"), action)
}
