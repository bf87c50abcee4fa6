//! What a snapshot of the lake says besides rows. It is read once a snapshot and kept until the next one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use duckdb::Connection;
use plimsoll_nats::Name;

use super::tiers::Extent;
use crate::{
    LakeError, Positions, Tier,
    connection::{LAKE, MEASUREMENTS_SCHEMA},
    error::Context,
    schema::LakeSchema,
    sql::literal,
};

/// The catalog's own tables, as DuckLake attaches them.
const CATALOG: &str = "__ducklake_metadata_lake";
/// Length of an hour in ms.
const HOUR_MS: i64 = 3_600_000;

/// What one snapshot says.
#[derive(Debug, Default)]
pub(super) struct Facts {
    snapshot: i64,
    pub(super) positions: Positions,
    pub(super) schema: LakeSchema,
    /// Snapshots up to which rows are rolled up.
    contained: BTreeMap<(String, Tier), i64>,
    /// The columns of the rollups' tables, by table.
    columns: BTreeMap<String, BTreeSet<String>>,
    extents: Mutex<HashMap<Name, Extent>>,
}

/// Keeps the facts of the last snapshot that was read. Shared by all queries on one attached lake.
#[derive(Debug, Default)]
pub(super) struct FactsCache(Mutex<Option<Arc<Facts>>>);

impl FactsCache {
    /// The facts of the snapshot that the connection's transaction sees.
    pub(super) fn of(&self, connection: &Connection) -> Result<Arc<Facts>, LakeError> {
        let sql = format!("SELECT id FROM {LAKE}.current_snapshot()");
        // Prepared anew each time: a statement that is kept goes on to give the snapshot that it was prepared in.
        let snapshot: i64 = connection.query_row(&sql, [], |row| row.get(0)).context("read the snapshot")?;
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(facts) = kept.filter(|facts| facts.snapshot == snapshot) {
            return Ok(facts);
        }
        let facts = Arc::new(Facts::read(connection, snapshot)?);
        // Also where that is an earlier one: a restored catalog counts its snapshots from where it was.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&facts));
        Ok(facts)
    }
}

impl Facts {
    fn read(connection: &Connection, snapshot: i64) -> Result<Self, LakeError> {
        let (positions, schema) = (Positions::read(connection)?, LakeSchema::read(connection)?);
        let columns = rollup_columns(connection)?;
        let contained = if columns.contains_key("plimsoll.rollups") { contained(connection)? } else { BTreeMap::new() };
        Ok(Self { snapshot, positions, schema, contained, columns, extents: Mutex::default() })
    }

    /// The snapshot up to which the measurement's rows are contained in a tier; none where it was never rolled up.
    pub(super) fn contained(&self, measurement: &Name, tier: Tier) -> Option<i64> {
        let table = format!("{MEASUREMENTS_SCHEMA}.{measurement}{}", tier.suffix());
        let exists = tier != Tier::Raw && self.columns.contains_key(&table);
        exists.then(|| self.contained.get(&(measurement.to_string(), tier)).copied()).flatten()
    }

    /// Whether the table of a tier has a column of that name.
    pub(super) fn has_column(&self, measurement: &Name, tier: Tier, column: &str) -> bool {
        let table = format!("{MEASUREMENTS_SCHEMA}.{measurement}{}", tier.suffix());
        self.columns.get(&table).is_some_and(|columns| columns.contains(column))
    }

    /// What the tiers hold of a measurement.
    pub(super) fn extent(&self, connection: &Connection, measurement: &Name) -> Result<Extent, LakeError> {
        let known = self.extents.lock().unwrap_or_else(PoisonError::into_inner).get(measurement).copied();
        if let Some(extent) = known {
            return Ok(extent);
        }
        let extent = self.read_extent(connection, measurement)?;
        self.extents.lock().unwrap_or_else(PoisonError::into_inner).insert(measurement.clone(), extent);
        Ok(extent)
    }

    /// A finer tier has lost rows when the coarser one knows older ones: retention removes whole days. Only rows that are rolled up
    /// tell: late rows of a day whose others are gone are not, and they are gone as well soon after they are.
    fn read_extent(&self, connection: &Connection, measurement: &Name) -> Result<Extent, LakeError> {
        let Some(in_minutes) = self.contained(measurement, Tier::Minute) else { return Ok(Extent::RAW) };
        let in_hours = self.contained(measurement, Tier::Hour);
        let oldest = |tier: Tier, upto, whole| self.oldest(connection, measurement, tier, upto, whole);
        let minute = oldest(Tier::Minute, i64::MAX, Whole::Or)?;
        let hour = if in_hours.is_some() { oldest(Tier::Hour, i64::MAX, Whole::Or)? } else { None };
        let raw_from_ms =
            held_from(oldest(Tier::Raw, in_minutes, Whole::Only)?, &[(minute, Tier::Minute), (hour, Tier::Hour)]);
        let minute_from_ms = match in_hours {
            Some(in_hours) => held_from(oldest(Tier::Minute, in_hours, Whole::Only)?, &[(hour, Tier::Hour)]),
            None => i64::MIN,
        };
        let coarsest = if in_hours.is_some() { Tier::Hour } else { Tier::Minute };
        Ok(Extent { coarsest, raw_from_ms: raw_from_ms.max(minute_from_ms), minute_from_ms })
    }

    /// The time of the oldest row of a tier among those of snapshots up to one, from the files' statistics and the rows that the catalog
    /// itself holds.
    fn oldest(
        &self,
        connection: &Connection,
        measurement: &Name,
        tier: Tier,
        upto: i64,
        whole: Whole,
    ) -> Result<Option<i64>, LakeError> {
        let (snapshot, name) = (self.snapshot, literal(&format!("{measurement}{}", tier.suffix())));
        let alive = |alias: &str| {
            format!(
                "{alias}.begin_snapshot <= {snapshot} AND ({alias}.end_snapshot IS NULL OR {alias}.end_snapshot > {snapshot})"
            )
        };
        let of_others = if whole == Whole::Only { "max" } else { "min" };
        let sql = format!(
            "SELECT epoch_ms(min(CASE WHEN d.data_file_id IS NULL THEN s.min_value ELSE s.{of_others}_value END::TIMESTAMP))
             FROM {CATALOG}.ducklake_table t
             JOIN {CATALOG}.ducklake_schema n ON n.schema_id = t.schema_id AND n.schema_name = '{MEASUREMENTS_SCHEMA}'
             JOIN {CATALOG}.ducklake_column c ON c.table_id = t.table_id AND c.column_name = 'ts'
             JOIN {CATALOG}.ducklake_data_file f ON f.table_id = t.table_id
             JOIN {CATALOG}.ducklake_file_column_stats s ON s.data_file_id = f.data_file_id AND s.column_id = c.column_id
             LEFT JOIN {CATALOG}.ducklake_delete_file d ON d.data_file_id = f.data_file_id AND {}
             WHERE t.table_name = {name} AND {} AND {} AND f.begin_snapshot <= {upto}",
            alive("d"),
            alive("t"),
            alive("f"),
        );
        let in_files: Option<i64> = connection.query_row(&sql, [], |row| row.get(0)).context("find the oldest file")?;
        let before =
            in_files.map(|time| format!(" AND ts < epoch_ms({time}::BIGINT)::TIMESTAMP_MS")).unwrap_or_default();
        let table = tier.table(measurement);
        let sql = format!("SELECT epoch_ms(min(ts)) FROM {table} WHERE snapshot_id <= {upto}{before}");
        let inlined: Option<i64> = connection.query_row(&sql, [], |row| row.get(0)).context("find the oldest row")?;
        Ok(inlined.into_iter().chain(in_files).min())
    }
}

/// What counts of a file that has lost single rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    /// Its newest row: of those before, some are gone.
    Only,
    /// Its oldest row, be that gone or not.
    Or,
}

/// From when on a tier holds everything, by its own oldest row and those of coarser tiers.
fn held_from(own: Option<i64>, coarser: &[(Option<i64>, Tier)]) -> i64 {
    let start = |time: i64, tier: Tier| time - time.rem_euclid(tier.bucket_ms().unwrap_or(1));
    let is_older = |(oldest, tier): &(Option<i64>, Tier)| match (oldest, own) {
        (Some(oldest), Some(own)) => *oldest < start(own, *tier),
        (oldest, None) => oldest.is_some(),
        (None, _) => false,
    };
    match own {
        _ if !coarser.iter().any(is_older) => i64::MIN,
        Some(own) => start(own + HOUR_MS - 1, Tier::Hour),
        None => i64::MAX,
    }
}

/// The columns of all tables that hold summaries, and of those of schema `plimsoll`, by `schema.table`.
fn rollup_columns(connection: &Connection) -> Result<BTreeMap<String, BTreeSet<String>>, LakeError> {
    let sql = "SELECT schema_name || '.' || table_name, column_name FROM duckdb_columns()
               WHERE database_name = ? AND (schema_name = 'plimsoll' OR suffix(table_name, '_1m') OR suffix(table_name, '_1h'))";
    let mut statement = connection.prepare_cached(sql).context("read the rollups' tables")?;
    let mut rows = statement.query([LAKE]).context("read the rollups' tables")?;
    let mut columns = BTreeMap::<String, BTreeSet<String>>::new();
    while let Some(row) = rows.next().context("read the rollups' tables")? {
        let table = row.get(0).context("read a table's name")?;
        columns.entry(table).or_default().insert(row.get(1).context("read a column's name")?);
    }
    Ok(columns)
}

fn contained(connection: &Connection) -> Result<BTreeMap<(String, Tier), i64>, LakeError> {
    let sql = format!("SELECT measurement, tier, snapshot::BIGINT FROM {LAKE}.plimsoll.rollups");
    let mut statement = connection.prepare_cached(&sql).context("read what is rolled up")?;
    let mut rows = statement.query([]).context("read what is rolled up")?;
    let mut contained = BTreeMap::new();
    while let Some(row) = rows.next().context("read what is rolled up")? {
        let tier: String = row.get(1).context("read a tier")?;
        if let Some(tier) = Tier::ALL.into_iter().find(|known| known.label() == tier) {
            let measurement = row.get(0).context("read a measurement")?;
            contained.insert((measurement, tier), row.get(2).context("read a snapshot")?);
        }
    }
    Ok(contained)
}
