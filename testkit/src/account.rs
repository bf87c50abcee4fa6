//! What became of the rows that were sent, by SQL over the lake.

use std::{fs::File, io::Write as _};

use plimsoll_lake::Lake;

/// Names the file that accounts are added to, a line each, besides being printed.
pub const REPORT_VARIABLE: &str = "PLIMSOLL_CHAOS_REPORT";

/// The rows of a test, counted.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// What was done to the fleet, and how often.
    pub fault: String,
    /// Rows that the broker acknowledged.
    pub sent: i64,
    /// Rows that the lake holds once, as they were sent.
    pub once: i64,
    /// Rows that were sent and that the lake does not hold.
    pub lost: i64,
    /// Rows that the lake holds besides: again, changed, or never sent.
    pub doubled: i64,
    /// Messages on `DEAD`.
    pub dead: u64,
    /// Files that the catalog does not name: left by transactions that did not come about, seen by no query.
    pub orphans: i64,
}

impl Account {
    /// Tells the counts, and that they are as they should be.
    ///
    /// # Panics
    /// When a row was lost or doubled, or a message was put aside.
    pub fn settle(self) {
        let Self { fault, sent, once, lost, doubled, dead, orphans } = &self;
        let line = format!("{fault:<72} {sent:>9} {once:>11} {lost:>5} {doubled:>7} {dead:>5} {orphans:>7}");
        println!("{line}");
        if let Some(path) = std::env::var_os(REPORT_VARIABLE) {
            let file = File::options().create(true).append(true).open(path);
            // One write: tests run side by side.
            file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
                .expect("the report can be written");
        }
        assert!(*sent > 0, "nothing was sent");
        assert_eq!(
            (*once, *lost, *doubled, *dead),
            (*sent, 0, 0, 0),
            "rows stored once, lost, doubled, and DEAD: {self:?}"
        );
    }
}

/// Rows once, lost and doubled: `expected` and `stored` are queries of the same columns.
///
/// # Panics
/// When the lake can't be read.
#[must_use]
pub fn compare(lake: &Lake, expected: &str, stored: &str) -> (i64, i64, i64) {
    let sql = format!(
        "WITH expected AS MATERIALIZED ({expected}), stored AS MATERIALIZED ({stored})
         SELECT (SELECT count(*) FROM (FROM expected INTERSECT ALL FROM stored)),
                (SELECT count(*) FROM (FROM expected EXCEPT ALL FROM stored)),
                (SELECT count(*) FROM (FROM stored EXCEPT ALL FROM expected))"
    );
    let counts = lake.connection().query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    counts.expect("the lake can be read")
}

/// How many files below `data_path` the catalog does not name, and how many of those that it names are missing.
///
/// # Panics
/// When the lake can't be read.
#[must_use]
pub fn files(lake: &Lake, data_path: &str) -> (i64, i64) {
    let pattern = format!("{}/**", data_path.trim_end_matches('/')).replace('\'', "''");
    let sql = format!(
        "WITH named AS MATERIALIZED (
             SELECT parse_filename(path) AS file FROM __ducklake_metadata_lake.ducklake_data_file
             UNION ALL SELECT parse_filename(path) FROM __ducklake_metadata_lake.ducklake_delete_file
             UNION ALL SELECT parse_filename(path) FROM __ducklake_metadata_lake.ducklake_files_scheduled_for_deletion
         ), there AS MATERIALIZED (SELECT parse_filename(file) AS file FROM glob('{pattern}') WHERE file LIKE '%.parquet')
         SELECT (SELECT count(*) FROM there WHERE file NOT IN (SELECT file FROM named)),
                (SELECT count(*) FROM named WHERE file NOT IN (SELECT file FROM there))"
    );
    lake.connection().query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("the files can be listed")
}
