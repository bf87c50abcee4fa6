//! Keeps the lake quick to read: merges small files, forgets old snapshots, deletes files that nothing uses any more.
//!
//! Commits leave a small file a measurement each; a query opens all of them. What is merged when is in [`plan`]. Every step is a
//! transaction of its own and safe to repeat or to cut off: what was merged is read instead of the small files from its commit on,
//! and these are deleted only after a grace time, since running queries may read them still. After a step comes a pause as long as
//! the step was, so that other writers get through.
//!
//! Rows keep their `snapshot_id`, which rollups rely on, but not their `rowid`: DuckLake numbers the rows of sorted files anew.
//!
//! Nothing here rewrites a table of the schema `plimsoll`: where its rows are updated meanwhile that ends DuckDB by a fatal error. What
//! the catalog keeps of their former rows is deleted; see [`history`].

mod clean;
mod history;
mod plan;
mod steps;
#[cfg(test)]
mod tests;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use duckdb::Row;

use self::{
    plan::{Merge, StoredFile, TARGET_BYTES, plan},
    steps::Steps,
};
use crate::{
    LakeError, LakeWriter,
    connection::{CATALOG, LAKE, MEASUREMENTS_SCHEMA},
    error::Context,
    sql::literal,
};

/// Snapshots younger than this are kept whatever is configured. DuckLake recognizes that another writer was faster by the number of
/// the snapshot that it would make next: were that one expired while a transaction runs, the transaction would commit as if nothing
/// had happened since it began, and rows would be there twice.
pub const MIN_SNAPSHOTS: Duration = Duration::from_secs(600);
/// How long no file may have come to a partition until its files count as settled and are merged however few they are.
const SETTLED: Duration = Duration::from_secs(3600);

/// What a run keeps.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// How long the lake's former states can be read; at least [`MIN_SNAPSHOTS`].
    pub snapshots: Duration,
    /// How long a file stays that is no longer part of the lake, for queries that still read it.
    pub unused_files: Duration,
    /// How old a file must be that no catalog entry names before it counts as left over by a writer that died; none does not look,
    /// since that lists all files.
    pub orphans: Option<Duration>,
}

/// What a run has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MaintenanceReport {
    /// Small files that were merged.
    pub merged_files: u64,
    /// Larger files that took their place.
    pub created_files: u64,
    /// Snapshots that can't be read any more.
    pub expired_snapshots: u64,
    /// Former rows of tables in the catalog that were deleted, since no snapshot shows them any more.
    pub forgotten_rows: u64,
    /// Files that were deleted.
    pub deleted_files: u64,
    /// Steps that gave up because other writers were always faster or the step took too long; the next run tries them again.
    pub postponed: u64,
    /// Whether the run was told to end before it was done.
    pub cancelled: bool,
    /// How long it took.
    pub duration: Duration,
}

impl LakeWriter {
    /// Merges, expires and deletes until all is done or `cancelled` is set, which also cuts off the step under way.
    ///
    /// Blocks for as long as that takes. Other writers may commit meanwhile. Fails when the lake can't be reached; whatever was done
    /// until then holds.
    pub fn maintain(&self, keep: Keep, cancelled: &AtomicBool) -> Result<MaintenanceReport, LakeError> {
        let started = Instant::now();
        let run = Run { steps: Steps::new(self.lake(), cancelled), report: MaintenanceReport::default() };
        let mut report = run.run(keep)?;
        report.cancelled = cancelled.load(Ordering::Relaxed);
        report.duration = started.elapsed();
        Ok(report)
    }
}

struct Run<'a> {
    steps: Steps<'a>,
    report: MaintenanceReport,
}

impl Run<'_> {
    fn run(mut self, keep: Keep) -> Result<MaintenanceReport, LakeError> {
        self.set_options()?;
        let outcome = self.merge_all().and_then(|()| self.clean(keep));
        // The one who writes may go on with this connection.
        let reset = self.steps.connection.execute_batch("RESET ducklake_max_retry_count").context("end maintenance");
        self.report.postponed = self.steps.postponed();
        match outcome {
            // A step that was cut off, or a look at the catalog.
            Err(LakeError::Interrupted) if self.steps.is_cancelled() => Ok(self.report),
            outcome => outcome.and(reset).map(|()| self.report),
        }
    }

    /// Sets the size of merged files, and how often DuckLake itself tries a commit again: with a SQLite catalog never, since it then
    /// reports the conflict as an internal error of DuckDB's, and would work on what it read before.
    fn set_options(&self) -> Result<(), LakeError> {
        let retries =
            if self.times_are_texts()? { "SET ducklake_max_retry_count = 0" } else { "RESET ducklake_max_retry_count" };
        let options = format!("SET ducklake_target_file_size = '{TARGET_BYTES}B'; {retries}");
        self.steps.connection.execute_batch(&options).context("prepare maintenance")
    }

    /// Whether the catalog keeps times as texts, as SQLite does and PostgreSQL does not.
    fn times_are_texts(&self) -> Result<bool, LakeError> {
        let sql = format!("SELECT typeof(snapshot_time) = 'VARCHAR' FROM {CATALOG}.ducklake_snapshot LIMIT 1");
        self.steps.connection.query_row(&sql, [], |row| row.get(0)).context("look at the catalog")
    }

    fn merge_all(&mut self) -> Result<(), LakeError> {
        let files = self.stored_files()?;
        plan(&files).iter().try_for_each(|merge| self.merge(merge))
    }

    /// The files of all measurements and rollups whose rows are all there: DuckLake merges no others.
    fn stored_files(&self) -> Result<Vec<StoredFile>, LakeError> {
        let since = steps::ago(SETTLED).unwrap_or_else(|| "'epoch'".to_owned());
        let sql = format!(
            "SELECT t.table_name, regexp_replace(f.path, '[^/]*$', ''),
                    (SELECT max(v.schema_version) FROM {CATALOG}.ducklake_schema_versions v
                     WHERE v.table_id = f.table_id AND v.begin_snapshot <= f.begin_snapshot),
                    f.file_size_bytes::UBIGINT,
                    coalesce(coalesce(f.partial_max, f.begin_snapshot)
                             < (SELECT min(snapshot_id) FROM {CATALOG}.ducklake_snapshot
                                WHERE snapshot_time::TIMESTAMPTZ >= {since}), true)
             FROM {CATALOG}.ducklake_data_file f
             JOIN {CATALOG}.ducklake_table t ON t.table_id = f.table_id AND t.end_snapshot IS NULL
             JOIN {CATALOG}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
             WHERE f.end_snapshot IS NULL AND s.schema_name = {schema}
               AND NOT EXISTS (FROM {CATALOG}.ducklake_delete_file d
                               WHERE d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL)",
            schema = literal(MEASUREMENTS_SCHEMA)
        );
        let mut statement = self.steps.connection.prepare(&sql).context("list the files")?;
        let files = statement.query_map([], |row| {
            Ok(StoredFile {
                table: row.get(0)?,
                partition: row.get(1)?,
                schema_version: row.get(2)?,
                bytes: row.get(3)?,
                settled: row.get(4)?,
            })
        });
        files.and_then(Iterator::collect).context("list the files")
    }

    /// Merges files of a size, a few at a time, until none are left.
    fn merge(&mut self, merge: &Merge) -> Result<(), LakeError> {
        let sql = |at_once| {
            format!(
                "SELECT coalesce(sum(files_processed), 0)::UBIGINT, coalesce(sum(files_created), 0)::UBIGINT
             FROM ducklake_merge_adjacent_files({}, {}, schema => {}, min_file_size => {}, max_file_size => {},
                                                max_compacted_files => {at_once})",
                literal(LAKE),
                literal(&merge.table),
                literal(MEASUREMENTS_SCHEMA),
                merge.from,
                merge.below,
            )
        };
        loop {
            let merged = self.steps.write(|connection, attempt| {
                let at_once = if attempt.is_contended() { 1 } else { merge.at_once() };
                let counts = |row: &Row<'_>| Ok((at_once, row.get::<_, u64>(0)?, row.get::<_, u64>(1)?));
                connection.query_row(&sql(at_once), [], counts).context("merge files")
            })?;
            let Some((at_once, processed, created)) = merged else { return Ok(()) };
            self.report.merged_files += processed;
            self.report.created_files += created;
            if processed > 0 {
                self.steps.rest();
            }
            if created < at_once {
                return Ok(());
            }
        }
    }
}
