//! What the tables look like, and which batches fit them.
//!
//! The rule for a field that changes type: numbers fit numbers. Integers go into a float column as floats, and an integer column
//! becomes a float column with the first float, its integers with it (exact up to 2^53). Any other change is refused, and the
//! message goes to `DEAD`. So the order in which integers and floats come decides nothing about what is stored.

use std::{collections::BTreeMap, time::Duration};

use duckdb::Connection;
use plimsoll_nats::{Batch, Name, batch::FieldType, spelling};

use crate::{
    LakeError,
    connection::{LAKE, MEASUREMENTS_SCHEMA, table},
    error::Context,
    rollup,
    sql::ident,
};

/// Most measurements.
pub const MAX_TABLES: usize = 512;
/// Most tags and fields of a measurement; with `ts` and `host` a table has 256 columns.
pub const MAX_COLUMNS: usize = 254;
/// How far a row may be ahead of the time at which the broker stored it.
pub const MAX_AHEAD: Duration = Duration::from_secs(10 * 60);
/// How old a row may be when the broker stores it: as old as the longest default retention, two years.
pub const MAX_AGE: Duration = Duration::from_secs(2 * 366 * 24 * 3600);

const TAG_COMMENT: &str = "tag";
/// What a column is to its measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Tells series apart.
    Tag,
    /// Is measured.
    Field,
}

/// A tag or field of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnSchema {
    /// Tag or field.
    pub role: Role,
    /// The type; tags are text.
    pub column_type: FieldType,
}

/// The tags and fields of a table by name, without `ts` and `host`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableSchema {
    columns: BTreeMap<Name, ColumnSchema>,
}

impl TableSchema {
    /// All columns by name.
    pub fn columns(&self) -> impl Iterator<Item = (&Name, ColumnSchema)> {
        self.columns.iter().map(|(name, column)| (name, *column))
    }

    /// The same table with its tags and only these fields.
    #[must_use]
    pub fn with_fields(&self, fields: &[Name]) -> Self {
        let kept = |name: &Name, column: &ColumnSchema| column.role == Role::Tag || fields.contains(name);
        let columns = self.columns.iter().filter(|(name, column)| kept(name, column));
        Self { columns: columns.map(|(name, column)| (name.clone(), *column)).collect() }
    }

    /// The column of that name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<ColumnSchema> {
        self.columns.get(name).copied()
    }

    /// The names of the tags, in order.
    pub fn tags(&self) -> impl Iterator<Item = &Name> {
        self.columns.iter().filter(|(_, column)| column.role == Role::Tag).map(|(name, _)| name)
    }

    /// The fields with their types, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&Name, FieldType)> {
        let fields = self.columns.iter().filter(|(_, column)| column.role == Role::Field);
        fields.map(|(name, column)| (name, column.column_type))
    }
}

impl FromIterator<(Name, ColumnSchema)> for TableSchema {
    fn from_iter<I: IntoIterator<Item = (Name, ColumnSchema)>>(columns: I) -> Self {
        Self { columns: columns.into_iter().collect() }
    }
}

/// All tables of measurements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LakeSchema {
    tables: BTreeMap<Name, TableSchema>,
}

/// Why a batch does not fit into the lake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// A row's time is ahead.
    #[error("row {row} is {seconds} s ahead of the time of its arrival: at most {} s are allowed", MAX_AHEAD.as_secs())]
    Ahead {
        /// The row, from 0.
        row: usize,
        /// By how many seconds.
        seconds: i64,
    },
    /// A row's time is too long ago.
    #[error("row {row} is {days} days older than its arrival: at most {} are allowed", MAX_AGE.as_secs() / 86_400)]
    TooOld {
        /// The row, from 0.
        row: usize,
        /// Its age in days.
        days: i64,
    },
    /// The measurement would be taken for a rollup of another one.
    #[error("the names of measurements may not end in `_1m` or `_1h`: these are for rollups")]
    Rollup,
    /// The lake has as many measurements as it may.
    #[error("the lake has {MAX_TABLES} measurements already")]
    TooManyTables,
    /// The measurement has as many columns as it may.
    #[error("the measurement would have {columns} tags and fields: at most {MAX_COLUMNS} are allowed")]
    TooManyColumns {
        /// How many it would have.
        columns: usize,
    },
    /// A column has a name that the lake or one of the possible catalogs keeps for itself.
    #[error("a column may not be named `{column}`: {why}")]
    Reserved {
        /// The column.
        column: Name,
        /// Who keeps it.
        why: &'static str,
    },
    /// DuckDB or DuckLake refuses what the batch needs, for a reason that nobody thought of.
    #[error("the lake refuses the table or columns of this batch: {detail}")]
    Refused {
        /// What they say.
        detail: String,
    },
    /// A tag was a field before, or the other way round.
    #[error("`{column}` is a {stored} in the lake and a {found} here")]
    Role {
        /// The column.
        column: Name,
        /// What it is in the lake.
        stored: &'static str,
        /// What the batch says.
        found: &'static str,
    },
    /// A field had another type before.
    #[error(
        "field `{column}` is {stored} in the lake and {found} here: send it under another name, such as `{column}_{found}`"
    )]
    Type {
        /// The field.
        column: Name,
        /// Its type in the lake.
        stored: FieldType,
        /// Its type in the batch.
        found: FieldType,
    },
}

/// Checks the times of a batch that the broker stored at `stored_ms`.
///
/// The arrival and not the present decides, so that every reader of the stream decides alike, at any later time.
pub fn check_times(batch: &Batch, stored_ms: i64) -> Result<(), AdmitError> {
    check_row_times(&batch.times, stored_ms)
}

/// Checks the times of rows, Unix ms, as [`check_times`] does.
pub fn check_row_times(times: &[i64], stored_ms: i64) -> Result<(), AdmitError> {
    let (ahead, age) = (millis(MAX_AHEAD), millis(MAX_AGE));
    for (row, time) in times.iter().enumerate() {
        let lead = time.saturating_sub(stored_ms);
        if lead > ahead {
            return Err(AdmitError::Ahead { row, seconds: lead / 1000 });
        }
        if lead < -age {
            return Err(AdmitError::TooOld { row, days: -(lead / 86_400_000) });
        }
    }
    Ok(())
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).expect("the limits are a few years at most")
}

impl LakeSchema {
    /// Reads the tables in the connection's transaction.
    pub fn read(connection: &Connection) -> Result<Self, LakeError> {
        let sql = "SELECT table_name, column_name, data_type, comment FROM duckdb_columns()
                   WHERE database_name = ? AND schema_name = ?";
        let mut statement = connection.prepare_cached(sql).context("read the tables")?;
        let rows = statement
            .query_map([LAKE, MEASUREMENTS_SCHEMA], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, Option<String>>(3)?,
                ))
            })
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .context("read the tables")?;
        let mut schema = Self::default();
        for (table, column, data_type, comment) in rows {
            // Tables and columns of other names or types were not made here and are nobody's measurement.
            let (Ok(table), Ok(column)) = (Name::parse(&table), Name::parse(&column)) else { continue };
            if rollup::is_reserved(&table) {
                continue;
            }
            let columns = &mut schema.tables.entry(table).or_default().columns;
            if matches!(&*column, "ts" | "host") {
                continue;
            }
            let Some(column_type) = parse_type(&data_type) else { continue };
            let role = if comment.as_deref() == Some(TAG_COMMENT) { Role::Tag } else { Role::Field };
            columns.insert(column, ColumnSchema { role, column_type });
        }
        Ok(schema)
    }

    /// The table of a measurement.
    #[must_use]
    pub fn table(&self, measurement: &str) -> Option<&TableSchema> {
        self.tables.get(measurement)
    }

    /// All tables by measurement.
    pub fn tables(&self) -> impl Iterator<Item = (&Name, &TableSchema)> {
        self.tables.iter()
    }

    /// This schema with the same number of tables, of which only one measurement's columns are known: all that admitting batches of
    /// that measurement needs, at less cost than a clone.
    pub(crate) fn of(&self, measurement: &Name) -> Self {
        let table = |(name, table): (&Name, &TableSchema)| {
            (name.clone(), if name == measurement { table.clone() } else { TableSchema::default() })
        };
        Self { tables: self.tables.iter().map(table).collect() }
    }

    /// Makes room for a batch: afterwards its measurement has a table with all its tags and fields.
    ///
    /// Returns whether that changed the schema. Fails, and changes nothing, when the batch does not fit.
    pub fn admit(&mut self, batch: &Batch) -> Result<bool, AdmitError> {
        let tags = batch.tags.keys().map(|name| (name, Role::Tag, FieldType::Text));
        let fields = batch.fields.iter().map(|(name, column)| (name, Role::Field, column.field_type()));
        self.admit_columns(&batch.measurement, tags.chain(fields))
    }

    /// Makes room for the columns of a batch, as [`LakeSchema::admit`] does. What was refused once stays refused, and what was
    /// admitted stays so, since tables and columns are only added and numbers only widened.
    pub fn admit_columns<'n>(
        &mut self,
        measurement: &Name,
        columns: impl Iterator<Item = (&'n Name, Role, FieldType)>,
    ) -> Result<bool, AdmitError> {
        if rollup::is_reserved(measurement) {
            return Err(AdmitError::Rollup);
        }
        let known = self.tables.get(measurement);
        if known.is_none() && self.tables.len() >= MAX_TABLES {
            return Err(AdmitError::TooManyTables);
        }
        let (mut changed, mut added) = (Vec::new(), 0);
        for (name, role, column_type) in columns {
            let found = ColumnSchema { role, column_type };
            match known.and_then(|table| table.columns.get(name)) {
                Some(stored) => changed.extend(settle(name, *stored, found)?.map(|wider| (name.clone(), wider))),
                None => {
                    check_name(name)?;
                    added += 1;
                    changed.push((name.clone(), found));
                }
            }
        }
        let columns = known.map_or(0, |table| table.columns.len()) + added;
        if columns > MAX_COLUMNS {
            return Err(AdmitError::TooManyColumns { columns });
        }
        let changes = known.is_none() || !changed.is_empty();
        if changes {
            self.tables.entry(measurement.clone()).or_default().columns.extend(changed);
        }
        Ok(changes)
    }

    /// Takes back what a batch has changed about its measurement's table, which was `before`.
    pub(crate) fn restore(&mut self, measurement: &Name, before: Option<TableSchema>) {
        match before {
            Some(table) => self.tables.insert(measurement.clone(), table),
            None => self.tables.remove(measurement),
        };
    }

    /// The statements that turn `stored` into this schema, which has all of its tables and columns.
    pub(crate) fn migration(&self, stored: &Self) -> Vec<String> {
        self.tables.keys().flat_map(|measurement| self.migration_of(measurement, stored)).collect()
    }

    /// Those of the statements that concern one measurement.
    pub(crate) fn migration_of(&self, measurement: &Name, stored: &Self) -> Vec<String> {
        let mut statements = Vec::new();
        match (self.tables.get(measurement), stored.tables.get(measurement)) {
            (Some(wanted), None) => create(measurement, wanted, &mut statements),
            (Some(wanted), Some(present)) if present != wanted => {
                extend(measurement, present, wanted, &mut statements);
            }
            _ => {}
        }
        statements
    }
}

fn create(measurement: &Name, wanted: &TableSchema, statements: &mut Vec<String>) {
    let target = table(measurement);
    let columns = wanted.columns().map(|(name, column)| format!(", {} {}", ident(name), sql_type(column.column_type)));
    let columns: String = columns.collect();
    statements.push(format!("CREATE TABLE {target} (ts TIMESTAMP_MS, host VARCHAR{columns})"));
    statements.push(format!("ALTER TABLE {target} SET PARTITIONED BY (year(ts), month(ts), day(ts))"));
    statements.extend(wanted.tags().map(|tag| comment(&target, tag)));
    statements.push(format!("ALTER TABLE {target} SET SORTED BY ({})", sort_keys(wanted)));
}

/// The sort keys stay those of the first batch: DuckLake 1.0 fails to write out rows that it holds in the catalog from before a column
/// that it is to sort by.
fn extend(measurement: &Name, present: &TableSchema, wanted: &TableSchema, statements: &mut Vec<String>) {
    let target = table(measurement);
    for (name, column) in wanted.columns() {
        let (quoted, column_type) = (ident(name), sql_type(column.column_type));
        match present.column(name) {
            None => {
                statements.push(format!("ALTER TABLE {target} ADD COLUMN {quoted} {column_type}"));
                if column.role == Role::Tag {
                    statements.push(comment(&target, name));
                }
            }
            Some(present) if present.column_type != column.column_type => {
                statements.push(format!("ALTER TABLE {target} ALTER COLUMN {quoted} SET DATA TYPE {column_type}"));
            }
            Some(_) => {}
        }
    }
}

pub(crate) fn comment(target: &str, tag: &Name) -> String {
    format!("COMMENT ON COLUMN {target}.{} IS '{TAG_COMMENT}'", ident(tag))
}

fn sort_keys(table: &TableSchema) -> String {
    let tags = table.tags().map(|tag| format!("{}, ", ident(tag)));
    format!("host, {}ts", tags.collect::<String>())
}

fn check_name(name: &Name) -> Result<(), AdmitError> {
    match spelling::column_problem(name) {
        Some(why) => Err(AdmitError::Reserved { column: name.clone(), why }),
        None => Ok(()),
    }
}

/// What a stored column must become to take the found one: none where it takes it as it is.
fn settle(name: &Name, stored: ColumnSchema, found: ColumnSchema) -> Result<Option<ColumnSchema>, AdmitError> {
    let describe = |role| if role == Role::Tag { "tag" } else { "field" };
    if stored.role != found.role {
        let (stored, found) = (describe(stored.role), describe(found.role));
        return Err(AdmitError::Role { column: name.clone(), stored, found });
    }
    match (stored.column_type, found.column_type) {
        (stored, found) if stored == found => Ok(None),
        (FieldType::Float, FieldType::Integer) => Ok(None),
        (FieldType::Integer, FieldType::Float) => Ok(Some(found)),
        (stored, found) => Err(AdmitError::Type { column: name.clone(), stored, found }),
    }
}

pub(crate) fn sql_type(field_type: FieldType) -> &'static str {
    match field_type {
        FieldType::Float => "DOUBLE",
        FieldType::Integer => "BIGINT",
        FieldType::Bool => "BOOLEAN",
        FieldType::Text => "VARCHAR",
    }
}

fn parse_type(data_type: &str) -> Option<FieldType> {
    match data_type {
        "DOUBLE" => Some(FieldType::Float),
        "BIGINT" => Some(FieldType::Integer),
        "BOOLEAN" => Some(FieldType::Bool),
        "VARCHAR" => Some(FieldType::Text),
        _ => None,
    }
}
