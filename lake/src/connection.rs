//! Opens DuckDB in memory and attaches the lake to it.

use std::{path::Path, sync::Arc, time::Duration};

use duckdb::Connection;
use plimsoll_nats::PartitionId;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    LakeConfig, LakeError,
    config::read_secret,
    error::Context,
    extensions,
    spill::SpillFolder,
    sql::{ident, literal},
    store::Store,
};

/// The name that the lake is attached under.
pub(crate) const LAKE: &str = "lake";
/// The lake's catalog as a database of its own: DuckLake's tables, laid out as its specification says.
pub(crate) const CATALOG: &str = "__ducklake_metadata_lake";
/// The schema of the measurements' tables.
pub(crate) const MEASUREMENTS_SCHEMA: &str = "main";

/// Most tries of what several processes do that create or open a lake at the same time.
const ATTEMPTS: u32 = 20;

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Create the lake where it is missing, and write.
    Write,
    /// Read what is there.
    Read,
}

/// An attached lake. Cheap to clone into further connections, each for one thread at a time.
#[derive(Debug)]
pub struct Lake {
    pub(crate) connection: Connection,
    store: Option<Arc<Store>>,
    /// Stands after the connection: it goes once DuckDB has closed.
    spill: Arc<SpillFolder>,
}

impl Lake {
    /// Attaches the lake; with [`Access::Write`] it is created where it is missing.
    ///
    /// Blocks. Fails when an extension is missing, when catalog or data can't be reached, and for readers as long as no writer has
    /// created the lake.
    pub fn open(config: &LakeConfig, access: Access) -> Result<Self, LakeError> {
        prepare_folders(config, access)?;
        let open = || {
            let lake = Self::unattached(config)?;
            lake.attach(config, access)?;
            Ok(lake)
        };
        match access {
            Access::Read => open(),
            Access::Write => {
                let lake = attached_in_turn(open)?;
                lake.initialize()?;
                Ok(lake)
            }
        }
    }

    /// A DuckDB that could attach the lake: its extensions are loaded, and it has the credentials of the store.
    pub(crate) fn unattached(config: &LakeConfig) -> Result<Self, LakeError> {
        let lake = Self::detached(config)?;
        lake.load_extensions(config)?;
        Ok(lake)
    }

    /// A DuckDB without the lake.
    pub(crate) fn detached(config: &LakeConfig) -> Result<Self, LakeError> {
        let settings = duckdb::Config::default()
            .enable_autoload_extension(false)
            .and_then(|c| c.with("autoinstall_known_extensions", "false"))
            .and_then(|c| c.max_memory(&config.memory_limit))
            .context("configure DuckDB")?;
        let connection = Connection::open_in_memory_with_flags(settings).context("open DuckDB")?;
        if let Some(threads) = config.threads {
            connection.execute_batch(&format!("SET threads = {threads}")).context("set the number of threads")?;
        }
        let spill = Arc::new(SpillFolder::unique());
        let (folder, limit) = (literal(&spill.path().to_string_lossy()), literal(&config.temp_limit));
        connection
            .execute_batch(&format!("SET temp_directory = {folder}; SET max_temp_directory_size = {limit}"))
            .context("set the folder for spilling")?;
        let store = config.s3.as_ref().map(Store::new).transpose()?.map(Arc::new);
        Ok(Self { connection, store, spill })
    }

    /// A further connection to the same attached lake.
    pub fn try_clone(&self) -> Result<Self, LakeError> {
        let connection = self.connection.try_clone().context("open a connection")?;
        Ok(Self { connection, store: self.store.clone(), spill: Arc::clone(&self.spill) })
    }

    /// Commits the transaction. Whoever writes to the lake commits by this, since a bare `COMMIT` may lose rows; see [`crate::store`].
    pub(crate) fn commit(&self) -> Result<(), LakeError> {
        let commit = || self.connection.execute_batch("COMMIT").context("commit");
        let Some(store) = &self.store else { return commit() };
        store.take(&self.connection)?;
        let committed = commit();
        // Where this fails the commit may have come about: the caller reads the positions before it tries again.
        store.give(&self.connection)?;
        committed
    }

    /// The DuckDB connection, with the lake attached under the name `lake`.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn load_extensions(&self, config: &LakeConfig) -> Result<(), LakeError> {
        let catalog = if config.sqlite_file().is_some() { "sqlite_scanner" } else { "postgres_scanner" };
        let s3 = config.s3.as_ref().map(|_| "httpfs");
        for name in [catalog, "ducklake"].into_iter().chain(s3) {
            let file = extensions::find(config.extensions_dir.as_deref(), name)?;
            self.connection
                .execute_batch(&format!("LOAD {}", literal(&file.to_string_lossy())))
                .context("load a DuckDB extension")?;
        }
        self.store.as_ref().map_or(Ok(()), |store| store.set_up(&self.connection))
    }

    pub(crate) fn attach(&self, config: &LakeConfig, access: Access) -> Result<(), LakeError> {
        let mut options = vec![format!("DATA_PATH {}", literal(&config.data_path))];
        if config.sqlite_file().is_some() {
            options.push("META_JOURNAL_MODE 'WAL'".to_owned());
            options.push(format!("META_BUSY_TIMEOUT {}", config.busy_timeout_ms));
        }
        if config.is_embedded() {
            // The catalog remembers where the files were when it was made; an embedded lake may have been moved since.
            options.push("OVERRIDE_DATA_PATH true".to_owned());
        }
        if access == Access::Read {
            options.push("READ_ONLY".to_owned());
        }
        let password = read_secret(config.catalog_password.as_ref(), config.catalog_password_file.as_deref())?;
        let password = password.map(|secret| format!(" password={}", libpq_value(&secret))).unwrap_or_default();
        let target = format!("ducklake:{}{password}", config.catalog);
        let statement = format!("ATTACH {} AS {LAKE} ({})", literal(&target), options.join(", "));
        self.connection.execute_batch(&statement).context("attach the lake")?;
        // Few rows would otherwise go into the catalog, and could never leave it: moving them to files breaks other processes that
        // read the lake. Tables that are updated set a limit of their own.
        self.connection
            .execute_batch("SET GLOBAL ducklake_default_data_inlining_row_limit = 0")
            .context("keep rows out of the catalog")
    }

    /// Creates what every lake has. Several members may do so at the same time: the slower ones try again and find it done.
    fn initialize(&self) -> Result<(), LakeError> {
        self.retried(ATTEMPTS, || self.initialize_once())?;
        self.keep_in_catalog("positions", "Last stream sequence whose rows the lake contains, by partition")
    }

    pub(crate) fn is_initialized(&self) -> Result<bool, LakeError> {
        has_table(&self.connection, "plimsoll", "positions")
    }

    fn initialize_once(&self) -> Result<(), LakeError> {
        // One transaction looks and creates, so that nobody creates in between.
        self.connection.execute_batch("BEGIN").context("begin to create the lake")?;
        if self.is_initialized()? {
            return self.connection.execute_batch("ROLLBACK").context("look for the positions");
        }
        let rows: Vec<String> = PartitionId::all().map(|partition| format!("({partition}, 0, 0)")).collect();
        let rows = rows.join(", ");
        self.connection
            .execute_batch(&format!(
                "CALL {LAKE}.set_option('parquet_compression', 'zstd');
                 CALL {LAKE}.set_option('parquet_version', '2');
                 CREATE SCHEMA {LAKE}.plimsoll;
                 CREATE TABLE {LAKE}.plimsoll.positions (partition USMALLINT, incarnation BIGINT, sequence UBIGINT);
                 INSERT INTO {LAKE}.plimsoll.positions VALUES {rows}"
            ))
            .context("create the lake")?;
        self.commit()
    }

    /// Lets the catalog hold the rows of a table of the schema `plimsoll`, whose rows are updated all the time, where it does not yet:
    /// DuckLake takes this only after the transaction that makes the table, and whoever made it may have died in between.
    pub(crate) fn keep_in_catalog(&self, table: &str, comment: &str) -> Result<(), LakeError> {
        let told = format!(
            "SELECT count(*) FROM {CATALOG}.ducklake_metadata m
             JOIN {CATALOG}.ducklake_table t ON t.table_id = m.scope_id AND t.end_snapshot IS NULL
             JOIN {CATALOG}.ducklake_schema s ON s.schema_id = t.schema_id AND s.end_snapshot IS NULL
             WHERE m.key = 'data_inlining_row_limit' AND m.scope = 'table' AND s.schema_name = 'plimsoll' AND t.table_name = {}",
            literal(table)
        );
        // Of two that tell it at once one must fail, which they do by changing the table.
        let tell = format!(
            "COMMENT ON TABLE {LAKE}.plimsoll.{} IS {};
             CALL {LAKE}.set_option('data_inlining_row_limit', 1000, schema => 'plimsoll', table_name => {})",
            ident(table),
            literal(comment),
            literal(table)
        );
        self.retried(ATTEMPTS, || {
            self.connection.execute_batch("BEGIN").context("look for a table's options")?;
            let options: i64 =
                self.connection.query_row(&told, [], |row| row.get(0)).context("look for a table's options")?;
            if options > 0 {
                return self.connection.execute_batch("ROLLBACK").context("look for a table's options");
            }
            self.connection.execute_batch(&tell).context("set a table's options")?;
            self.commit()
        })?;
        Ok(())
    }
}

/// Attaches the lake, again while others that create it at the same time are in the way.
fn attached_in_turn(open: impl Fn() -> Result<Lake, LakeError>) -> Result<Lake, LakeError> {
    let mut attempt = 1;
    loop {
        match open() {
            Err(error) if attempt < ATTEMPTS && error.is_creation_race() => pause(attempt),
            opened => return opened,
        }
        attempt += 1;
    }
}

impl Drop for Lake {
    /// Closes DuckDB where that is safe. Where a PostgreSQL catalog was lost in the middle of a transaction, an attached lake would keep
    /// this DuckDB in memory, with its threads, though nobody has it any more; and a DuckDB that a fatal error has left with an open
    /// transaction would end the process on its way out, so that one is left behind instead.
    fn drop(&mut self) {
        let _ = self.connection.execute_batch("ROLLBACK");
        let is_last = Arc::strong_count(&self.spill) == 1;
        let fatal = |error: duckdb::Error| error.to_string().contains("database has been invalidated");
        let is_broken = self.connection.execute_batch("SELECT 1").is_err_and(fatal);
        if is_broken && let Ok(other) = Connection::open_in_memory() {
            std::mem::forget(std::mem::replace(&mut self.connection, other));
        } else if is_last {
            // Fails when the lake was not attached.
            let _ = self.connection.execute_batch(&format!("DETACH {LAKE}"));
        }
    }
}

/// Waits a random part of a span that grows with the attempt, before a transaction is tried again.
pub(crate) fn pause(attempt: u32) {
    const MAX: Duration = Duration::from_secs(2);
    let span = Duration::from_millis(20 * 2_u64.pow(attempt.min(7))).min(MAX);
    std::thread::sleep(span.mul_f64(rand::random_range(0.2..1.0)));
}

/// Whether the lake has a table, in the connection's transaction.
pub(crate) fn has_table(connection: &Connection, schema: &str, table: &str) -> Result<bool, LakeError> {
    // Its columns, since `duckdb_tables` tells sizes as well, for which DuckLake reads the files of every table.
    let sql = "SELECT count(*) FROM duckdb_columns() WHERE database_name = ? AND schema_name = ? AND table_name = ?";
    let columns: i64 =
        connection.query_row(sql, [LAKE, schema, table], |row| row.get(0)).context("look for a table")?;
    Ok(columns > 0)
}

/// The qualified, quoted name of a measurement's table.
pub(crate) fn table(measurement: &str) -> String {
    format!("{LAKE}.{MEASUREMENTS_SCHEMA}.{}", ident(measurement))
}

fn prepare_folders(config: &LakeConfig, access: Access) -> Result<(), LakeError> {
    let catalog = config.sqlite_file();
    if access == Access::Read {
        return match catalog {
            Some(file) if !file.exists() => Err(LakeError::NotCreated),
            _ => Ok(()),
        };
    }
    let local = (!config.data_path.contains("://")).then(|| Path::new(&config.data_path));
    for folder in catalog.and_then(Path::parent).into_iter().chain(local) {
        std::fs::create_dir_all(folder).map_err(|source| LakeError::File { path: folder.to_owned(), source })?;
    }
    Ok(())
}

/// A value of a PostgreSQL connection string, quoted as libpq reads it.
fn libpq_value(secret: &SecretString) -> String {
    format!("'{}'", secret.expose_secret().replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    fn small() -> LakeConfig {
        LakeConfig { memory_limit: "60MB".to_owned(), threads: Some(1), ..LakeConfig::default() }
    }

    /// Holds more than the memory limit until it is dropped.
    const SPILLING: &str = "CREATE TEMP TABLE large AS SELECT random() AS x, random() AS y FROM range(8000000)";

    #[test]
    fn instances_that_spill_at_the_same_time_have_folders_of_their_own_and_leave_none() {
        let folders: Vec<_> = std::thread::scope(|scope| {
            let spill = || {
                let lake = Lake::detached(&small()).expect("opens");
                let further = lake.try_clone().expect("opens");
                lake.connection.execute_batch(SPILLING).expect("spills");
                let folder = lake.spill.path().to_owned();
                assert!(folder.is_dir());
                drop(lake);
                assert!(folder.is_dir(), "a further connection still uses it");
                drop(further);
                folder
            };
            let threads = [scope.spawn(spill), scope.spawn(spill)];
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_ne!(folders[0], folders[1]);
        assert!(folders.iter().all(|folder| !folder.exists()), "{folders:?}");
    }

    #[test]
    fn what_is_spilled_is_bounded() {
        let lake = Lake::detached(&LakeConfig { temp_limit: "1MB".to_owned(), ..small() }).expect("opens");
        let refused = lake.connection.execute_batch(SPILLING).expect_err("does not fit").to_string();
        assert!(refused.contains("max_temp_directory_size"), "{refused}");
    }

    #[test]
    fn an_error_never_tells_the_password() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let config = LakeConfig {
            catalog: "postgres:host=127.0.0.1 port=1 dbname=lake user=plimsoll".to_owned(),
            catalog_password: Some(SecretString::from("hun'ter 2\\")),
            ..LakeConfig::embedded(dir.path())
        };
        for access in [Access::Read, Access::Write] {
            let error = Lake::open(&config, access).expect_err("nobody listens there");
            let source = error.source().expect("DuckDB says why").to_string();
            assert!(source.contains("port=1") && source.contains("Connection refused"), "{source}");
            let told = format!("{error} {source} {error:?}");
            assert!(!told.contains("hun") && !told.contains("ter 2"), "{told}");
        }
    }
}
