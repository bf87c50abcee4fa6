//! What the lake holds and takes, as its catalog and the statistics of its files tell; rows are read for the shares of hosts alone.

mod sizes;

use std::{collections::BTreeMap, fs, path::Path};

use duckdb::Connection;
use plimsoll_nats::PartitionId;
use serde::Serialize;

pub(crate) use self::sizes::of_tables as table_sizes;
pub use self::sizes::{Size, TierSize};
use crate::{
    Access, Lake, LakeConfig, LakeError, Positions,
    connection::{CATALOG, MEASUREMENTS_SCHEMA, table},
    error::Context,
    rollup::Tier,
    sql::{ident, literal},
};

/// Files below this size count as small.
pub const SMALL_BYTES: u64 = 1024 * 1024;

/// The lake at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LakeStatus {
    /// The catalog.
    pub catalog: CatalogStatus,
    /// All tables of measurements and their rollups, by name.
    pub tables: Vec<TableStatus>,
    /// What each measurement takes with its rollups, the largest first.
    pub measurements: Vec<MeasurementUsage>,
    /// The sums of all tables.
    pub total: Usage,
    /// Files that the lake needs no more and that are still there.
    pub unused_files: u64,
    /// Up to where the lake contains each partition of the stream.
    pub positions: Vec<PositionStatus>,
    /// What each host takes, the largest first; none unless asked for.
    pub hosts: Option<Vec<HostUsage>>,
}

/// The lake's catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogStatus {
    /// `sqlite` or `postgres`.
    pub kind: String,
    /// Version of DuckLake's format.
    pub version: String,
    /// Size of the catalog's files in bytes; none where it is in a database server.
    pub bytes: Option<u64>,
    /// Former states that can be read, and the present one.
    pub snapshots: u64,
    /// When the oldest of these was made, Unix ms.
    pub oldest_snapshot_ms: i64,
}

/// Rows, values and files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Rows.
    pub rows: u64,
    /// Values of fields that are not null; in rollups, summaries.
    pub points: u64,
    /// Size of the files in bytes.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Files smaller than [`SMALL_BYTES`].
    pub small_files: u64,
    /// Rows that are in the catalog instead of a file; they are counted among the rows, and their values are not counted.
    pub inlined_rows: u64,
}

impl Usage {
    /// Bytes of files a value; none where there is no value.
    #[must_use]
    pub fn bytes_a_point(&self) -> Option<f64> {
        (self.points > 0).then(|| self.bytes as f64 / self.points as f64)
    }

    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.points += other.points;
        self.bytes += other.bytes;
        self.files += other.files;
        self.small_files += other.small_files;
        self.inlined_rows += other.inlined_rows;
    }
}

/// A table of the lake.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableStatus {
    /// The table.
    pub table: String,
    /// The measurement that it is of.
    pub measurement: String,
    /// How finely rows stand in it.
    pub tier: Tier,
    /// What it takes.
    #[serde(flatten)]
    pub usage: Usage,
    /// Time of the oldest row in files, Unix ms.
    pub oldest_ms: Option<i64>,
    /// Time of the newest row in files, Unix ms.
    pub newest_ms: Option<i64>,
}

/// What a measurement takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MeasurementUsage {
    /// The measurement.
    pub measurement: String,
    /// Size of all its files in bytes.
    pub bytes: u64,
    /// Those of samples.
    pub raw_bytes: u64,
    /// Those of summaries by minute.
    pub minute_bytes: u64,
    /// Those of summaries by hour.
    pub hour_bytes: u64,
}

/// Up to where the lake contains a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PositionStatus {
    /// The partition.
    pub partition: u16,
    /// The life of the stream: its creation time in Unix ns; 0 before anything was stored.
    pub incarnation: i64,
    /// The last sequence that is contained.
    pub sequence: u64,
}

/// What a host takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostUsage {
    /// The host.
    pub host: String,
    /// Its rows in all tables.
    pub rows: u64,
    /// Its part of the files, roughly: of each table's bytes as much as of its rows.
    pub bytes: u64,
}

impl LakeStatus {
    /// Reads the status; with `hosts` also what each host takes, which reads a column of every file.
    ///
    /// Blocks. Fails when there is no lake or it can't be reached.
    pub fn read(config: &LakeConfig, hosts: bool) -> Result<Self, LakeError> {
        let lake = Lake::open(config, Access::Read)?;
        let connection = lake.connection();
        connection.execute_batch("BEGIN").context("begin to read the status")?;
        let tables = tables(connection)?;
        let mut total = Usage::default();
        tables.iter().for_each(|table| total.add(&table.usage));
        Ok(Self {
            catalog: catalog(connection, config)?,
            measurements: measurements(&tables),
            total,
            unused_files: number(connection, &format!("FROM {CATALOG}.ducklake_files_scheduled_for_deletion"))?,
            positions: positions(&Positions::read(connection)?),
            hosts: if hosts { Some(host_usage(connection, &tables)?) } else { None },
            tables,
        })
    }
}

fn catalog(connection: &Connection, config: &LakeConfig) -> Result<CatalogStatus, LakeError> {
    let sql = format!(
        "SELECT (SELECT any_value(value) FROM {CATALOG}.ducklake_metadata WHERE key = 'version'),
                count(*)::UBIGINT, epoch_ms(min(snapshot_time::TIMESTAMPTZ)) FROM {CATALOG}.ducklake_snapshot"
    );
    let read = |row: &duckdb::Row<'_>| {
        Ok(CatalogStatus {
            kind: config.catalog_kind().to_owned(),
            version: row.get(0)?,
            bytes: config.sqlite_file().map(file_bytes),
            snapshots: row.get(1)?,
            oldest_snapshot_ms: row.get(2)?,
        })
    };
    connection.query_row(&sql, [], read).context("read the catalog's version")
}

/// Size of a SQLite database with what it has not yet taken over from its log.
fn file_bytes(file: &Path) -> u64 {
    let log = format!("{}-wal", file.display());
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    size(file) + size(Path::new(&log))
}

/// The tables with what their files hold.
fn tables(connection: &Connection) -> Result<Vec<TableStatus>, LakeError> {
    let (mut inlined, mut contents) = (inlined_rows(connection)?, contents(connection)?);
    let status = table_sizes(connection)?.into_iter().map(|(table, size)| {
        let Contents { points, oldest_ms, newest_ms } = contents.remove(&table).unwrap_or_default();
        let inlined_rows = inlined.remove(&table).unwrap_or_default();
        let Size { rows, bytes, files, small_files } = size;
        let usage = Usage { rows: rows + inlined_rows, points, bytes, files, small_files, inlined_rows };
        let (measurement, tier) = Tier::of_table(&table);
        TableStatus { measurement: measurement.to_owned(), tier, table, usage, oldest_ms, newest_ms }
    });
    Ok(status.collect())
}

/// The tables' sizes by measurement.
fn measurements(tables: &[TableStatus]) -> Vec<MeasurementUsage> {
    let mut sizes = BTreeMap::<&str, BTreeMap<Tier, u64>>::new();
    for status in tables {
        *sizes.entry(&status.measurement).or_default().entry(status.tier).or_default() += status.usage.bytes;
    }
    let of = |(measurement, tiers): (&str, BTreeMap<Tier, u64>)| {
        let bytes = |tier| tiers.get(&tier).copied().unwrap_or_default();
        MeasurementUsage {
            measurement: measurement.to_owned(),
            bytes: tiers.values().sum(),
            raw_bytes: bytes(Tier::Raw),
            minute_bytes: bytes(Tier::Minute),
            hour_bytes: bytes(Tier::Hour),
        }
    };
    let mut usage: Vec<_> = sizes.into_iter().map(of).collect();
    usage.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.measurement.cmp(&b.measurement)));
    usage
}

/// What the files of a table hold.
#[derive(Debug, Default)]
struct Contents {
    points: u64,
    oldest_ms: Option<i64>,
    newest_ms: Option<i64>,
}

/// What the files of each table hold by their statistics; those that have some.
///
/// A field's values are counted by its own column, a summary's by its part `count`; `ts`, `host` and tags are no values.
fn contents(connection: &Connection) -> Result<BTreeMap<String, Contents>, LakeError> {
    let sql = format!(
        "WITH tables AS (
             SELECT t.table_id, t.table_name FROM {CATALOG}.ducklake_table t
             JOIN {CATALOG}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
             WHERE t.end_snapshot IS NULL AND s.schema_name = {schema}),
         files AS (SELECT * FROM {CATALOG}.ducklake_data_file WHERE end_snapshot IS NULL),
         columns AS (
             SELECT c.table_id, c.column_id, c.parent_column IS NULL AND c.column_name = 'ts' AS is_time,
                    CASE WHEN c.parent_column IS NOT NULL THEN c.column_name = 'count'
                         WHEN c.column_name IN ('ts', 'host') THEN false
                         ELSE NOT EXISTS (FROM {CATALOG}.ducklake_column_tag g
                                          WHERE g.table_id = c.table_id AND g.column_id = c.column_id
                                            AND g.end_snapshot IS NULL AND g.key = 'comment' AND g.value = 'tag')
                    END AS is_value
             FROM {CATALOG}.ducklake_column c WHERE c.end_snapshot IS NULL)
         SELECT tables.table_name,
                coalesce(sum(files.record_count - s.null_count) FILTER (WHERE columns.is_value), 0)::UBIGINT,
                epoch_ms(min(TRY_CAST(s.min_value AS TIMESTAMP)) FILTER (WHERE columns.is_time)),
                epoch_ms(max(TRY_CAST(s.max_value AS TIMESTAMP)) FILTER (WHERE columns.is_time))
         FROM {CATALOG}.ducklake_file_column_stats s
         JOIN files ON files.data_file_id = s.data_file_id
         JOIN tables ON tables.table_id = files.table_id
         JOIN columns ON columns.table_id = files.table_id AND columns.column_id = s.column_id
         WHERE columns.is_value OR columns.is_time
         GROUP BY tables.table_name",
        schema = literal(MEASUREMENTS_SCHEMA)
    );
    let mut statement = connection.prepare(&sql).context("prepare to read the tables")?;
    let contents = statement.query_map([], |row| {
        Ok((row.get(0)?, Contents { points: row.get(1)?, oldest_ms: row.get(2)?, newest_ms: row.get(3)? }))
    });
    contents.and_then(Iterator::collect).context("read the tables")
}

/// Rows in the catalog, by table; those that have some.
fn inlined_rows(connection: &Connection) -> Result<BTreeMap<String, u64>, LakeError> {
    let sql = format!(
        "SELECT t.table_name, i.table_name FROM {CATALOG}.ducklake_inlined_data_tables i
         JOIN {CATALOG}.ducklake_table t ON t.table_id = i.table_id AND t.end_snapshot IS NULL
         JOIN {CATALOG}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
         WHERE s.schema_name = {}",
        literal(MEASUREMENTS_SCHEMA)
    );
    let mut statement = connection.prepare(&sql).context("prepare to look for inlined rows")?;
    let tables = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
    let tables: Vec<_> = tables.and_then(Iterator::collect).context("look for inlined rows")?;
    let mut rows = BTreeMap::<String, u64>::new();
    for (table, inlined) in tables {
        let count = number(connection, &format!("FROM {CATALOG}.{} WHERE end_snapshot IS NULL", ident(&inlined)))?;
        if count > 0 {
            *rows.entry(table).or_default() += count;
        }
    }
    Ok(rows)
}

fn positions(positions: &Positions) -> Vec<PositionStatus> {
    let stored = PartitionId::all().filter_map(|partition| Some((partition, positions.stored(partition)?)));
    let status = stored.map(|(partition, position)| PositionStatus {
        partition: partition.get(),
        incarnation: position.incarnation.0,
        sequence: position.sequence.0,
    });
    status.collect()
}

fn host_usage(connection: &Connection, tables: &[TableStatus]) -> Result<Vec<HostUsage>, LakeError> {
    let mut hosts = BTreeMap::<String, (u64, f64)>::new();
    for status in tables.iter().filter(|status| status.usage.rows > 0) {
        let sql = format!("SELECT host, count(*)::UBIGINT FROM {} GROUP BY host", table(&status.table));
        let mut statement = connection.prepare(&sql).context("prepare to count the hosts' rows")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, u64>(1)?)));
        let rows: Vec<_> = rows.and_then(Iterator::collect).context("count the hosts' rows")?;
        for (host, rows) in rows {
            let share = status.usage.bytes as f64 * rows as f64 / status.usage.rows as f64;
            let entry = hosts.entry(host.unwrap_or_default()).or_default();
            *entry = (entry.0 + rows, entry.1 + share);
        }
    }
    let usage = hosts.into_iter().map(|(host, (rows, bytes))| HostUsage { host, rows, bytes: bytes.round() as u64 });
    let mut usage: Vec<_> = usage.collect();
    usage.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.host.cmp(&b.host)));
    Ok(usage)
}

fn number(connection: &Connection, from: &str) -> Result<u64, LakeError> {
    connection.query_row(&format!("SELECT count(*)::UBIGINT {from}"), [], |row| row.get(0)).context("count")
}
