//! Imports: rows of files into the lake, by the rules that rows of the stream follow.
//!
//! A series has one row a time: of a row whose host, tags and time the lake holds already, only the fields that it lacks there are
//! stored, as a further row; a value that is there stays. So importing a file twice changes nothing.
//!
//! Rows are stored a chunk a transaction, which is tried again when another writer was faster. The stream's positions are not
//! touched. Two imports at the same time would not see each other's rows: each transaction counts up in `plimsoll.imports`, so that
//! the later one is tried again from a fresh read.

mod columns;
mod error;
mod json_lines;
mod store;
mod table;

use std::sync::Arc;

use duckdb::InterruptHandle;
use plimsoll_nats::{Batch, Name};

pub use self::{
    columns::Precision,
    error::ImportError,
    table::{BadRow, Chunk, TableFile, TableFormat, TableSource},
};
use crate::{
    Access, Lake, LakeConfig, LakeError, arrow,
    connection::{LAKE, has_table},
    error::Context,
    schema::{LakeSchema, Role, TableSchema},
};

/// Tries of a transaction that other writers get in the way of.
const ATTEMPTS: u32 = 30;

/// How to import.
#[derive(Debug, Clone, Copy)]
pub struct ImportOptions {
    /// The time of the import, Unix ms: rows may be as far off it as rows of the stream may be off their arrival.
    pub now_ms: i64,
    /// Whether rows may be older than that.
    pub allow_old: bool,
    /// Whether to write nothing and only tell what would be written.
    pub dry_run: bool,
}

/// What came of the rows of a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Rows read.
    pub read: u64,
    /// Rows written.
    pub rows: u64,
    /// Rows that were joined with others of the chunk, of the same series and time.
    pub joined: u64,
    /// Rows that the lake held already.
    pub contained: u64,
    /// Rows with a value other than that of the same series and time, which came first and stays.
    pub differing: u64,
    /// Rows left out because something in them can't be stored.
    pub bad: u64,
}

impl Stored {
    /// Adds what came of other rows.
    pub fn add(&mut self, other: &Self) {
        self.read += other.read;
        self.rows += other.rows;
        self.joined += other.joined;
        self.contained += other.contained;
        self.differing += other.differing;
        self.bad += other.bad;
    }
}

/// Ends what an import or export is doing, from another thread.
#[derive(Clone)]
pub struct Interrupt(Arc<InterruptHandle>);

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupt")
    }
}

impl Interrupt {
    pub(crate) fn of(lake: &Lake) -> Self {
        Self(lake.connection.interrupt_handle())
    }

    /// Ends the present statement, which then fails with [`LakeError::Interrupted`]; between two statements it is forgotten, so
    /// that it must be repeated.
    pub fn interrupt(&self) {
        self.0.interrupt();
    }
}

/// Puts rows of files into the lake. Blocks; give it a thread of its own.
#[derive(Debug)]
pub struct Importer {
    lake: Lake,
    options: ImportOptions,
    /// The tables as they would be by now; in a dry run only.
    planned: Option<LakeSchema>,
    /// Whether there is a lake; only a dry run goes without.
    attached: bool,
}

impl Importer {
    /// Opens the lake and, but in a dry run, creates it where it is missing.
    pub fn open(config: &LakeConfig, options: ImportOptions) -> Result<Self, LakeError> {
        let (lake, attached) = if options.dry_run {
            match Lake::open(config, Access::Read) {
                Err(LakeError::NotCreated) => (Lake::detached(config)?, false),
                lake => (lake?, true),
            }
        } else {
            (Lake::open(config, Access::Write)?, true)
        };
        lake.connection.execute_batch("SET TimeZone = 'UTC'").context("set the time zone")?;
        let importer = Self { lake, options, planned: options.dry_run.then(LakeSchema::default), attached };
        importer.prepare()?;
        let planned = importer.options.dry_run.then(|| importer.stored_schema()).transpose()?;
        Ok(Self { planned, ..importer })
    }

    /// What ends the present statement.
    #[must_use]
    pub fn interrupt(&self) -> Interrupt {
        Interrupt::of(&self.lake)
    }

    /// The tables as they are now.
    pub fn schema(&self) -> Result<LakeSchema, LakeError> {
        match &self.planned {
            Some(planned) => Ok(planned.clone()),
            None => self.stored_schema(),
        }
    }

    /// Stores the rows of batches in one transaction. Times are the caller's to check.
    pub fn store_batches(&mut self, batches: &[Batch]) -> Result<Stored, ImportError> {
        let mut schema = self.schema()?;
        let mut measurements: Vec<&Name> = Vec::new();
        for batch in batches {
            schema.admit(batch).map_err(|reason| ImportError::refused(&batch.measurement, reason))?;
            if !measurements.contains(&&batch.measurement) {
                measurements.push(&batch.measurement);
            }
        }
        let mut staged = Vec::new();
        for (index, measurement) in measurements.into_iter().enumerate() {
            let batches: Vec<&Batch> = batches.iter().filter(|batch| batch.measurement == *measurement).collect();
            let table = of_batches(&schema, measurement, &batches);
            let relation = format!("import_rows_{index}");
            arrow::stage(&self.lake.connection, &relation, measurement, &table, &batches)?;
            staged.push(store::Staged { measurement: measurement.clone(), relation, table });
        }
        let stored = self.store(&staged);
        for staged in &staged {
            self.drop_table(&staged.relation)?;
        }
        stored
    }

    fn drop_table(&self, name: &str) -> Result<(), LakeError> {
        let sql = format!("DROP TABLE IF EXISTS temp.{name}");
        self.lake.connection.execute_batch(&sql).context("drop a staging table")
    }

    fn stored_schema(&self) -> Result<LakeSchema, LakeError> {
        if self.attached { LakeSchema::read(&self.lake.connection) } else { Ok(LakeSchema::default()) }
    }

    /// Makes the count of imports' transactions; several imports may do so at the same time.
    fn prepare(&self) -> Result<(), LakeError> {
        if self.options.dry_run {
            return Ok(());
        }
        let prepared = self.lake.retried(ATTEMPTS, || {
            let connection = &self.lake.connection;
            connection.execute_batch("BEGIN").context("begin to prepare an import")?;
            if has_table(connection, "plimsoll", "imports")? {
                return connection.execute_batch("ROLLBACK").context("look for the count of imports");
            }
            let create = format!(
                "CREATE TABLE {LAKE}.plimsoll.imports (transactions BIGINT);
                 COMMENT ON TABLE {LAKE}.plimsoll.imports IS 'Counts the transactions of imports, so that they take turns';
                 INSERT INTO {LAKE}.plimsoll.imports VALUES (0)"
            );
            connection.execute_batch(&create).context("create the count of imports")?;
            self.lake.commit()
        });
        prepared.map(|((), _)| ())
    }
}

/// The columns of a measurement that batches have, of the types that the schema gives them.
fn of_batches(schema: &LakeSchema, measurement: &Name, batches: &[&Batch]) -> TableSchema {
    let table = schema.table(measurement).expect("admitting a batch makes its table");
    let has = |name: &Name, role: Role| match role {
        Role::Tag => batches.iter().any(|batch| batch.tags.contains_key(name)),
        Role::Field => batches.iter().any(|batch| batch.fields.contains_key(name)),
    };
    table
        .columns()
        .filter(|(name, column)| has(name, column.role))
        .map(|(name, column)| (name.clone(), column))
        .collect()
}
