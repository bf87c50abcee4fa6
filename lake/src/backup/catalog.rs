//! Copies catalogs, between SQLite and PostgreSQL too, by DuckDB.
//!
//! A catalog is plain tables, which DuckDB shows as the database `__ducklake_metadata_<lake>`, though without listing them. The names
//! and columns are those of DuckLake 1.0, and come from an empty catalog that DuckLake itself makes first. Small inserts and deletes
//! lie in tables of their own, `ducklake_inlined_data_<table>_<version>` and `ducklake_inlined_delete_<table>`. SQLite holds their
//! columns as integers or texts; PostgreSQL has types, and texts as bytes, since it takes no NUL in a text.

use std::path::Path;

use duckdb::Connection;

use super::{BackupError, manifest::NEW_CATALOG};
use crate::{
    Lake, LakeConfig, LakeError,
    connection::LAKE,
    error::Context,
    extensions,
    sql::{ident, literal},
};

/// The name that a copy is attached under as a lake.
const COPY: &str = "copied";
/// The name that a catalog is attached under as plain tables.
const TABLES: &str = "copied_tables";

/// A file of a lake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataFile {
    /// Its path from the lake's data path.
    pub(super) path: String,
    /// Its size in bytes.
    pub(super) bytes: u64,
}

/// A catalog that was copied out of a lake.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) snapshot: u64,
    pub(super) files: Vec<DataFile>,
}

/// Copies the catalog of a lake, as it is now and without its history, to where a new one waits in the backup's folder.
pub(super) fn copy_out(lake: &Lake, config: &LakeConfig, folder: &Path) -> Result<Copied, BackupError> {
    let target = folder.join(NEW_CATALOG);
    for suffix in ["", "-wal", "-shm", "-journal"] {
        // Fails when there is none.
        let _ = std::fs::remove_file(folder.join(format!("{NEW_CATALOG}{suffix}")));
    }
    let connection = &lake.connection;
    load(connection, config, "sqlite_scanner")?;
    let data = folder.join(super::DATA);
    attach_lake(connection, &target, &data)?;
    detach(connection, COPY)?;
    attach_sqlite(connection, &target, "DELETE")?;
    let snapshot = copy_all(connection, &data);
    let detached = detach(connection, TABLES);
    let snapshot = snapshot?;
    detached?;
    attach_lake(connection, &target, &data)?;
    let files = without_history(connection).and_then(|()| data_files(connection, COPY));
    detach(connection, COPY)?;
    Ok(Copied { snapshot, files: files? })
}

/// Makes a copy of a backup's catalog that of a lake which looks for its data there. In WAL mode: readers can't switch to it.
pub(super) fn adopt(connection: &Connection, catalog: &Path, data_path: &str) -> Result<(), BackupError> {
    attach_sqlite(connection, catalog, "WAL")?;
    let written = write_data_path(connection, TABLES, data_path);
    detach(connection, TABLES)?;
    Ok(written?)
}

/// Turns the rows that a SQLite catalog holds itself into files, so that it can become one of another kind. Returns all files.
pub(super) fn flush(connection: &Connection, catalog: &Path, data: &Path) -> Result<Vec<DataFile>, BackupError> {
    attach_lake(connection, catalog, data)?;
    let flushed = connection
        .execute_batch(&format!("CALL ducklake_flush_inlined_data('{COPY}')"))
        .context("write the catalog's rows to files");
    let files = flushed.map_err(BackupError::from).and_then(|()| {
        without_history(connection)?;
        data_files(connection, COPY)
    });
    detach(connection, COPY)?;
    files
}

/// Replaces the catalog of the lake that is attached, which is new and empty, by that of a SQLite file without rows of its own.
pub(super) fn copy_in(connection: &Connection, catalog: &Path, target: &str) -> Result<(), BackupError> {
    attach_sqlite(connection, catalog, "DELETE")?;
    let copied = replace_all(connection, target);
    if copied.is_err() {
        // Fails when the transaction has ended already.
        let _ = connection.execute_batch("ROLLBACK");
    }
    detach(connection, TABLES)?;
    Ok(copied?)
}

/// Loads an extension that the lake itself may not need.
pub(super) fn load(connection: &Connection, config: &LakeConfig, extension: &'static str) -> Result<(), LakeError> {
    let file = extensions::find(config.extensions_dir.as_deref(), extension)?;
    connection.execute_batch(&format!("LOAD {}", literal(&file.to_string_lossy()))).context("load a DuckDB extension")
}

fn attach_lake(connection: &Connection, catalog: &Path, data: &Path) -> Result<(), LakeError> {
    let (catalog, data) = (format!("ducklake:sqlite:{}", catalog.display()), data.to_string_lossy());
    // One file, and no journal beside it.
    let options = format!("DATA_PATH {}, OVERRIDE_DATA_PATH true, META_JOURNAL_MODE 'DELETE'", literal(&data));
    connection
        .execute_batch(&format!("ATTACH {} AS {COPY} ({options})", literal(&catalog)))
        .context("attach the copy of the lake")
}

fn attach_sqlite(connection: &Connection, catalog: &Path, journal: &str) -> Result<(), LakeError> {
    connection
        .execute_batch(&format!(
            "ATTACH {} AS {TABLES} (TYPE sqlite, JOURNAL_MODE '{journal}')",
            literal(&catalog.to_string_lossy())
        ))
        .context("attach the copy of the catalog")
}

fn detach(connection: &Connection, name: &str) -> Result<(), LakeError> {
    connection.execute_batch(&format!("DETACH {name}")).context("close the copy of the catalog")
}

/// The tables of the attached lake's catalog.
fn metadata(lake: &str) -> String {
    format!("__ducklake_metadata_{lake}")
}

/// Copies every table in one transaction, which sees one snapshot of the lake; returns which.
fn copy_all(connection: &Connection, data: &Path) -> Result<u64, LakeError> {
    connection.execute_batch("BEGIN").context("begin to copy the catalog")?;
    let copied = copy_tables(connection, data);
    let end = if copied.is_ok() { "COMMIT" } else { "ROLLBACK" };
    connection.execute_batch(end).context("copy the catalog")?;
    copied
}

fn copy_tables(connection: &Connection, data: &Path) -> Result<u64, LakeError> {
    let source = metadata(LAKE);
    let sql = format!("SELECT max(snapshot_id) FROM {source}.ducklake_snapshot");
    let snapshot = connection.query_row(&sql, [], |row| row.get(0)).context("read the snapshot")?;
    for table in tables(connection)? {
        replace(connection, &format!("{source}.{}", ident(&table)), &format!("{TABLES}.{}", ident(&table)))?;
    }
    for table in inlined_tables(connection, &source)? {
        copy_inlined(connection, &format!("{source}.{}", ident(&table)), &format!("{TABLES}.{}", ident(&table)))?;
    }
    write_data_path(connection, TABLES, &data.to_string_lossy())?;
    Ok(snapshot)
}

/// The tables of an empty catalog.
fn tables(connection: &Connection) -> Result<Vec<String>, LakeError> {
    let sql = "SELECT table_name FROM duckdb_tables() WHERE database_name = ? AND table_name LIKE 'ducklake\\_%' ESCAPE '\\'
                   AND NOT starts_with(table_name, 'ducklake_inlined_data_') AND NOT starts_with(table_name, 'ducklake_inlined_delete_')
               UNION ALL SELECT 'ducklake_inlined_data_tables' ORDER BY 1";
    texts(connection, sql, &[TABLES])
}

fn inlined_tables(connection: &Connection, source: &str) -> Result<Vec<String>, LakeError> {
    let mut inlined = texts(connection, &format!("SELECT table_name FROM {source}.ducklake_inlined_data_tables"), &[])?;
    let deletes = texts(
        connection,
        &format!("SELECT DISTINCT 'ducklake_inlined_delete_' || table_id FROM {source}.ducklake_table"),
        &[],
    )?;
    for table in deletes {
        // Made with the first small delete from its table; nothing but trying tells whether it is there.
        match connection.prepare(&format!("SELECT 1 FROM {source}.{}", ident(&table))).context("look for small deletes")
        {
            Ok(_) => inlined.push(table),
            Err(error) if error.refusal().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(inlined)
}

fn replace(connection: &Connection, from: &str, to: &str) -> Result<(), LakeError> {
    connection
        .execute_batch(&format!("DELETE FROM {to}; INSERT INTO {to} BY NAME SELECT * FROM {from}"))
        .context("copy a table of the catalog")
}

fn copy_inlined(connection: &Connection, from: &str, to: &str) -> Result<(), LakeError> {
    let sql = format!("SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {from})");
    let mut statement = connection.prepare(&sql).context("read the columns of small inserts")?;
    let columns = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("read the columns of small inserts")?;
    let (mut definitions, mut values) = (Vec::new(), Vec::new());
    for (name, column_type) in &columns {
        let name = ident(name);
        let (kind, value) = match column_type.as_str() {
            "BIGINT" | "INTEGER" | "SMALLINT" | "BOOLEAN" => ("BIGINT", format!("{name}::BIGINT")),
            "BLOB" => ("VARCHAR", format!("decode({name})")),
            _ => ("VARCHAR", format!("{name}::VARCHAR")),
        };
        definitions.push(format!("{name} {kind}"));
        values.push(format!("{value} AS {name}"));
    }
    let (definitions, values) = (definitions.join(", "), values.join(", "));
    connection
        .execute_batch(&format!("CREATE TABLE {to} ({definitions}); INSERT INTO {to} SELECT {values} FROM {from}"))
        .context("copy small inserts")
}

fn replace_all(connection: &Connection, target: &str) -> Result<(), LakeError> {
    connection.execute_batch("BEGIN").context("begin to write the catalog")?;
    let sql = format!("SELECT value FROM {target}.ducklake_metadata WHERE key = 'data_path' AND scope IS NULL");
    let data_path: String = connection.query_row(&sql, [], |row| row.get(0)).context("read the data path")?;
    for table in tables(connection)? {
        replace(connection, &format!("{TABLES}.{}", ident(&table)), &format!("{target}.{}", ident(&table)))?;
    }
    // They are empty, and made anew with the next small insert.
    connection
        .execute_batch(&format!("DELETE FROM {target}.ducklake_inlined_data_tables"))
        .context("write the catalog")?;
    write_data_path(connection, target, &data_path)?;
    connection.execute_batch("COMMIT").context("write the catalog")
}

fn write_data_path(connection: &Connection, tables: &str, data_path: &str) -> Result<(), LakeError> {
    let data_path = format!("{}/", data_path.trim_end_matches('/'));
    connection
        .execute(
            &format!("UPDATE {tables}.ducklake_metadata SET value = ? WHERE key = 'data_path' AND scope IS NULL"),
            [data_path],
        )
        .map(|_| ())
        .context("write the data path")
}

/// Forgets earlier snapshots and the files that only they need.
fn without_history(connection: &Connection) -> Result<(), BackupError> {
    let metadata = metadata(COPY);
    let snapshots: i64 = connection
        .query_row(&format!("SELECT count(*) FROM {metadata}.ducklake_snapshot"), [], |row| row.get(0))
        .context("count the snapshots")?;
    if snapshots > 1 {
        connection
            .execute_batch(&format!("CALL ducklake_expire_snapshots('{COPY}', older_than => now())"))
            .context("forget earlier snapshots")?;
    }
    connection
        .execute_batch(&format!("DELETE FROM {metadata}.ducklake_files_scheduled_for_deletion"))
        .context("forget deleted files")?;
    Ok(())
}

/// The files of an attached lake.
fn data_files(connection: &Connection, lake: &str) -> Result<Vec<DataFile>, BackupError> {
    let m = metadata(lake);
    let sql = format!(
        "SELECT CASE WHEN s.path_is_relative AND t.path_is_relative AND f.path_is_relative THEN s.path || t.path || f.path END,
             f.path, f.file_size_bytes
         FROM (SELECT table_id, path, path_is_relative, file_size_bytes FROM {m}.ducklake_data_file
               UNION ALL SELECT table_id, path, path_is_relative, file_size_bytes FROM {m}.ducklake_delete_file) f
         JOIN (SELECT DISTINCT table_id, schema_id, path, path_is_relative FROM {m}.ducklake_table) t USING (table_id)
         JOIN (SELECT DISTINCT schema_id, path, path_is_relative FROM {m}.ducklake_schema) s USING (schema_id)
         ORDER BY 1"
    );
    let mut statement = connection.prepare(&sql).context("read the files")?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, String>(1)?, row.get(2)?)))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("read the files")?;
    rows.into_iter()
        .map(|(path, shown, bytes)| {
            path.map(|path| DataFile { path, bytes }).ok_or(BackupError::Outside { path: shown })
        })
        .collect()
}

fn texts(connection: &Connection, sql: &str, parameters: &[&str]) -> Result<Vec<String>, LakeError> {
    let mut statement = connection.prepare(sql).context("read the catalog")?;
    statement
        .query_map(duckdb::params_from_iter(parameters), |row| row.get(0))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("read the catalog")
}
