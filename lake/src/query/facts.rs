//! What a snapshot of the lake says besides rows. It is read once a snapshot and kept until the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use duckdb::Connection;
use plimsoll_nats::Name;

use super::{
    files::{CatalogReader, Tables},
    tiers::Extent,
};
use crate::{
    LakeConfig, LakeError, Positions, Tier,
    connection::{LAKE, MEASUREMENTS_SCHEMA},
    error::Context,
    rollup::{
        marks::{self, Marks},
        removed::{self, Removed},
    },
    schema::LakeSchema,
};

/// What one snapshot says.
#[derive(Debug, Default)]
pub(super) struct Facts {
    snapshot: i64,
    pub(super) positions: Positions,
    pub(super) schema: LakeSchema,
    /// Up to which snapshots rows are rolled up.
    marks: Marks,
    /// The columns of the rollups' tables, by table.
    columns: BTreeMap<String, BTreeSet<String>>,
    /// Before which times rows of the tiers may be gone.
    removed: Removed,
    /// The files of the measurements that were asked about.
    files: Mutex<BTreeMap<Name, Arc<Tables>>>,
}

/// Keeps the facts of the last snapshot that was read. Shared by all queries on one attached lake.
#[derive(Debug)]
pub(super) struct FactsCache {
    catalog: CatalogReader,
    last: Mutex<Option<Arc<Facts>>>,
}

/// The facts of the snapshot that a transaction sees.
#[derive(Debug, Clone)]
pub(super) struct SeenFacts {
    pub(super) facts: Arc<Facts>,
    /// The newest snapshot that the transaction sees in the catalog's database itself: DuckLake reads the catalog in a transaction of
    /// its own, which begins when it is first asked.
    in_catalog: i64,
}

impl FactsCache {
    pub(super) fn new(config: &LakeConfig) -> Self {
        Self { catalog: CatalogReader::new(config), last: Mutex::default() }
    }

    /// The facts of the snapshot that the connection's transaction sees.
    pub(super) fn of(&self, connection: &Connection) -> Result<SeenFacts, LakeError> {
        let in_catalog = self.catalog.snapshot(connection)?;
        let kept = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(facts) = kept.filter(|facts| facts.snapshot == in_catalog) {
            return Ok(SeenFacts { facts, in_catalog });
        }
        let facts = Arc::new(Facts::read(connection, snapshot_of_lake(connection)?)?);
        // Also where that is an earlier one: a restored catalog counts its snapshots from where it was.
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&facts));
        Ok(SeenFacts { facts, in_catalog })
    }

    /// The tables of a measurement that can be read by their files.
    pub(super) fn files(
        &self,
        connection: &Connection,
        seen: &SeenFacts,
        measurement: &Name,
    ) -> Result<Arc<Tables>, LakeError> {
        let SeenFacts { facts, in_catalog } = seen;
        let kept = facts.files.lock().unwrap_or_else(PoisonError::into_inner).get(measurement).cloned();
        if let Some(files) = kept {
            return Ok(files);
        }
        if *in_catalog < facts.snapshot {
            // Somebody has committed between the first look at the catalog and DuckLake's.
            return Ok(Arc::default());
        }
        let files = Arc::new(self.catalog.tables(connection, facts.snapshot, measurement)?);
        let mut all = facts.files.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(measurement.clone(), Arc::clone(&files));
        Ok(files)
    }
}

/// The snapshot that DuckLake reads in the connection's transaction.
pub(super) fn snapshot_of_lake(connection: &Connection) -> Result<i64, LakeError> {
    let sql = format!("SELECT id FROM {LAKE}.current_snapshot()");
    // Prepared anew each time: a statement that is kept goes on to give the snapshot that it was prepared in.
    connection.query_row(&sql, [], |row| row.get(0)).context("read the snapshot")
}

impl Facts {
    /// The snapshot that they are of.
    pub(super) fn snapshot(&self) -> i64 {
        self.snapshot
    }

    fn read(connection: &Connection, snapshot: i64) -> Result<Self, LakeError> {
        let (positions, schema) = (Positions::read(connection)?, LakeSchema::read(connection)?);
        let columns = rollup_columns(connection)?;
        let marks = if columns.contains_key("plimsoll.rollups") { marks::stored(connection)? } else { Marks::new() };
        let removed =
            if columns.contains_key("plimsoll.removed") { removed::read(connection)? } else { Removed::new() };
        Ok(Self { snapshot, positions, schema, marks, columns, removed, files: Mutex::default() })
    }

    /// The snapshot up to which the measurement's rows are contained in a tier; none where it was never rolled up.
    pub(super) fn contained(&self, measurement: &Name, tier: Tier) -> Option<i64> {
        let table = format!("{MEASUREMENTS_SCHEMA}.{measurement}{}", tier.suffix());
        let exists = tier != Tier::Raw && self.columns.contains_key(&table);
        exists.then(|| self.marks.get(&(measurement.clone(), tier)).map(|mark| mark.snapshot)).flatten()
    }

    /// Whether the table of a tier has a column of that name.
    pub(super) fn has_column(&self, measurement: &Name, tier: Tier, column: &str) -> bool {
        let table = format!("{MEASUREMENTS_SCHEMA}.{measurement}{}", tier.suffix());
        self.columns.get(&table).is_some_and(|columns| columns.contains(column))
    }

    /// What the tiers hold of a measurement.
    pub(super) fn extent(&self, measurement: &Name) -> Extent {
        let exists = |tier: &Tier| self.contained(measurement, *tier).is_some();
        let coarsest = match [Tier::Minute, Tier::Hour].iter().take_while(|tier| exists(tier)).last() {
            Some(coarsest) => *coarsest,
            None => return Extent::RAW,
        };
        let from = |tier| self.removed.get(&(measurement.clone(), tier)).copied().unwrap_or(i64::MIN);
        let minute_from_ms = if coarsest == Tier::Hour { from(Tier::Minute) } else { i64::MIN };
        Extent { coarsest, raw_from_ms: from(Tier::Raw).max(minute_from_ms), minute_from_ms }
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
