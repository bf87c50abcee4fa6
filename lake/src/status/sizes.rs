//! How large tables are, as the catalog counts them.

use std::collections::BTreeMap;

use duckdb::Connection;

use super::SMALL_BYTES;
use crate::{
    LakeError, LakeWriter,
    connection::{CATALOG, MEASUREMENTS_SCHEMA},
    error::Context,
    rollup::Tier,
    sql::literal,
};

/// The size of a table, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Rows in files.
    pub rows: u64,
    /// Size of the files in bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Files smaller than [`SMALL_BYTES`].
    pub small_files: u64,
}

/// How many tables a tier has, and what they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierSize {
    /// Tables.
    pub tables: u64,
    /// All of them.
    pub size: Size,
}

impl LakeWriter {
    /// What each tier takes.
    ///
    /// Blocks. Fails when the catalog can't be reached.
    pub fn tiers(&self) -> Result<BTreeMap<Tier, TierSize>, LakeError> {
        let mut tiers: BTreeMap<Tier, TierSize> =
            Tier::ALL.into_iter().map(|tier| (tier, TierSize::default())).collect();
        for (table, size) in of_tables(self.lake().connection())? {
            let TierSize { tables, size: all } = tiers.entry(Tier::of_table(&table).1).or_default();
            *tables += 1;
            all.rows += size.rows;
            all.bytes += size.bytes;
            all.files += size.files;
            all.small_files += size.small_files;
        }
        Ok(tiers)
    }
}

/// The sizes of the tables of measurements and rollups, by one query that reads no statistics of files and looks at no table by itself.
pub(crate) fn of_tables(connection: &Connection) -> Result<BTreeMap<String, Size>, LakeError> {
    let sql = format!(
        "WITH files AS (
             SELECT table_id, record_count AS rows, file_size_bytes AS bytes, 1 AS files,
                    (file_size_bytes < {SMALL_BYTES})::INTEGER AS small
             FROM {CATALOG}.ducklake_data_file WHERE end_snapshot IS NULL
             UNION ALL
             SELECT table_id, -delete_count, 0, 0, 0 FROM {CATALOG}.ducklake_delete_file WHERE end_snapshot IS NULL)
         SELECT t.table_name, coalesce(sum(f.rows), 0)::UBIGINT, coalesce(sum(f.bytes), 0)::UBIGINT,
                coalesce(sum(f.files), 0)::UBIGINT, coalesce(sum(f.small), 0)::UBIGINT
         FROM {CATALOG}.ducklake_table t
         JOIN {CATALOG}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
         LEFT JOIN files f ON f.table_id = t.table_id
         WHERE t.end_snapshot IS NULL AND s.schema_name = {}
         GROUP BY t.table_name",
        literal(MEASUREMENTS_SCHEMA)
    );
    let mut statement = connection.prepare(&sql).context("read the tables' sizes")?;
    let sizes = statement.query_map([], |row| {
        let size = Size { rows: row.get(1)?, bytes: row.get(2)?, files: row.get(3)?, small_files: row.get(4)? };
        Ok((row.get(0)?, size))
    });
    sizes.and_then(Iterator::collect).context("read the tables' sizes")
}
