//! The files of a measurement's tables, so that a query reads those that can hold its rows, and nothing else.
//!
//! DuckLake plans each scan anew: it asks the catalog for the table's files, for their statistics, and for each table of rows that
//! it may hold itself, one by one. That takes longer than most queries take to read. The list of files is the same for all
//! queries of a snapshot, so it is kept with it, and DuckDB reads the files without DuckLake. That gives the same rows wherever a
//! table is nothing but whole files whose columns have kept their names; every other table is left to DuckLake: one with deleted
//! rows in a file, rows in the catalog, files that others have added or that hold rows of later snapshots, renamed columns, and
//! columns with defaults.
//!
//! A file has the columns that its table had in the snapshot of the file's first rows, under their names; files of other columns
//! are never merged with each other. What it lacks is null in all of its rows, and integers become floats where the column did.

use std::collections::{BTreeMap, BTreeSet};

use duckdb::Connection;
use plimsoll_nats::Name;

use crate::{
    LakeConfig, LakeError, Tier,
    connection::{CATALOG, MEASUREMENTS_SCHEMA},
    error::Context,
    sql::{ident, literal},
};

/// The column in which files with rows of several snapshots keep these.
const SNAPSHOT_COLUMN: &str = "_ducklake_internal_snapshot_id";

/// The catalog's database, asked in its own SQL, and where the files are.
///
/// Only within an open transaction: what hands statements on keeps the database of the transaction that it was prepared in.
#[derive(Debug, Clone)]
pub(super) struct CatalogReader {
    /// DuckDB's function that hands a statement on.
    function: &'static str,
    /// The names of the catalog's own tables, as a query.
    own_tables: &'static str,
    /// The folder or prefix of all files; none where DuckDB would take it for a pattern.
    root: Option<String>,
}

/// A table all of whose rows are in whole files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TableFiles {
    columns: Vec<StoredColumn>,
    files: Vec<DataFile>,
}

/// A column as it was for some snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StoredColumn {
    id: i64,
    name: String,
    /// Its type, as the catalog spells it.
    kind: String,
    begin: i64,
    /// The snapshot from which on it is another or gone.
    end: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct DataFile {
    path: String,
    /// The snapshots of its first and its last rows.
    snapshots: (i64, i64),
    /// The times of its earliest and its latest row, Unix ms.
    times: (i64, i64),
    rows: i64,
}

/// The tables of a measurement that can be read by their files.
pub(super) type Tables = BTreeMap<Tier, TableFiles>;

/// Rows that are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Unix ms, inclusive.
    pub(super) from_ms: i64,
    /// Unix ms, exclusive; none where there is no end.
    pub(super) to_ms: Option<i64>,
    /// Only rows of later snapshots than this one.
    pub(super) after: Option<i64>,
}

impl CatalogReader {
    pub(super) fn new(config: &LakeConfig) -> Self {
        let (function, own_tables) = match config.sqlite_file() {
            Some(_) => ("sqlite_query", "SELECT name AS table_name FROM sqlite_master"),
            None => ("postgres_query", "SELECT table_name FROM information_schema.tables"),
        };
        let is_pattern = config.data_path.contains(['*', '?', '[']);
        let root = (!is_pattern).then(|| format!("{}/", config.data_path.trim_end_matches('/')));
        Self { function, own_tables, root }
    }

    /// The newest snapshot that the connection's transaction sees in the catalog's database.
    pub(super) fn snapshot(&self, connection: &Connection) -> Result<i64, LakeError> {
        let sql =
            format!("SELECT id::BIGINT FROM {}", self.ask("SELECT max(snapshot_id) AS id FROM ducklake_snapshot"));
        connection.query_row(&sql, [], |row| row.get(0)).context("read the snapshot")
    }

    /// Those of a measurement's tables that are nothing but whole files at a snapshot, which the transaction must see.
    pub(super) fn tables(
        &self,
        connection: &Connection,
        snapshot: i64,
        measurement: &Name,
    ) -> Result<Tables, LakeError> {
        let Some(root) = &self.root else { return Ok(Tables::new()) };
        let names: BTreeMap<String, Tier> = Tier::ALL.map(|tier| (tier.table_name(measurement), tier)).into();
        let listed: Vec<String> = names.keys().map(|name| literal(name)).collect();
        let at = At { snapshot, tables: listed.join(", ") };
        let (mut tables, mut others) = self.columns(connection, &at)?;
        others.extend(self.with_rows_in_catalog(connection, &at)?);
        for (table, file) in self.files(connection, &at, root)? {
            match (file, tables.get_mut(&table)) {
                (Some(file), Some(known)) if file.snapshots.1 <= snapshot => known.files.push(file),
                _ => drop(others.insert(table)),
            }
        }
        tables.retain(|table, _| !others.contains(table));
        Ok(tables.into_iter().filter_map(|(table, files)| Some((*names.get(&table)?, files))).collect())
    }

    /// The tables with all columns that they ever had, and the names of those that have a column with a default.
    fn columns(
        &self,
        connection: &Connection,
        at: &At,
    ) -> Result<(BTreeMap<String, TableFiles>, BTreeSet<String>), LakeError> {
        let sql = format!(
            "SELECT t.table_name AS table_name, c.column_id AS column_id, c.column_name AS column_name, c.column_type AS kind, c.begin_snapshot AS first,
                    c.end_snapshot AS next, CASE WHEN c.initial_default IS NULL THEN 1 ELSE 0 END AS plain
             FROM {} JOIN ducklake_column c ON c.table_id = t.table_id AND c.parent_column IS NULL",
            at.tables()
        );
        let sql = format!(
            "SELECT table_name::VARCHAR, column_id::BIGINT, column_name::VARCHAR, kind::VARCHAR, first::BIGINT, next::BIGINT, plain::INTEGER FROM {}",
            self.ask(&sql)
        );
        let mut statement = connection.prepare(&sql).context("list columns")?;
        let rows = statement.query_map([], |row| {
            let (id, name, kind) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let column = StoredColumn { id, name, kind, begin: row.get(4)?, end: row.get(5)? };
            Ok((row.get::<_, String>(0)?, column, row.get::<_, i32>(6)? == 1))
        });
        let rows = rows.and_then(Iterator::collect::<Result<Vec<_>, _>>).context("list columns")?;
        let (mut tables, mut others) = (BTreeMap::<String, TableFiles>::new(), BTreeSet::new());
        for (table, column, is_plain) in rows {
            let known = tables.entry(table.clone()).or_default();
            let renamed = known.columns.iter().any(|other| (other.id == column.id) != (other.name == column.name));
            if renamed || !is_plain {
                others.insert(table);
            }
            known.columns.push(column);
        }
        Ok((tables, others))
    }

    /// The names of those tables that have rows in the catalog, or may have deleted some there.
    fn with_rows_in_catalog(&self, connection: &Connection, at: &At) -> Result<Vec<String>, LakeError> {
        let names = |sql: &str| {
            let sql = format!("SELECT table_name::VARCHAR, other::VARCHAR FROM {}", self.ask(sql));
            let mut statement = connection.prepare(&sql).context("list what the catalog holds")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
            rows.and_then(Iterator::collect::<Result<Vec<_>, _>>).context("list what the catalog holds")
        };
        let deleting = format!(
            "SELECT t.table_name AS table_name, o.table_name AS other FROM {} JOIN ({}) o
             ON o.table_name = 'ducklake_inlined_delete_' || t.table_id",
            at.tables(),
            self.own_tables
        );
        let mut found: Vec<String> = names(&deleting)?.into_iter().map(|(table, _)| table).collect();
        let holding = format!(
            "SELECT t.table_name AS table_name, i.table_name AS other FROM {} JOIN ducklake_inlined_data_tables i ON i.table_id = t.table_id",
            at.tables()
        );
        let any = names(&holding)?.into_iter().map(|(table, held)| {
            let lives = at.lives("r");
            let table = literal(&table);
            format!("SELECT {table} AS table_name, '' AS other WHERE EXISTS (SELECT 1 FROM {held} r WHERE {lives})")
        });
        let any: Vec<String> = any.collect();
        if !any.is_empty() {
            found.extend(names(&any.join(" UNION ALL "))?.into_iter().map(|(table, _)| table));
        }
        Ok(found)
    }

    /// The files of the tables; none where one must be left to DuckLake.
    fn files(
        &self,
        connection: &Connection,
        at: &At,
        root: &str,
    ) -> Result<Vec<(String, Option<DataFile>)>, LakeError> {
        let (files, deletes, columns) = (at.lives("f"), at.lives("d"), at.lives("c"));
        let sql = format!(
            "SELECT t.table_name AS table_name, s.path || t.path || f.path AS path, f.begin_snapshot AS first,
                    coalesce(f.partial_max, f.begin_snapshot) AS last, CASE WHEN v.null_count = 0 THEN v.min_value END AS earliest,
                    CASE WHEN v.null_count = 0 THEN v.max_value END AS latest, f.record_count AS rows_of_file,
                    CASE WHEN s.path_is_relative AND t.path_is_relative AND f.path_is_relative AND f.file_format = 'parquet'
                              AND f.mapping_id IS NULL AND coalesce(f.encryption_key, '') = ''
                              AND NOT EXISTS (SELECT 1 FROM ducklake_delete_file d WHERE d.data_file_id = f.data_file_id AND {deletes})
                         THEN 1 ELSE 0 END AS plain
             FROM {} JOIN ducklake_data_file f ON f.table_id = t.table_id AND {files}
             LEFT JOIN ducklake_column c ON c.table_id = t.table_id AND c.column_name = 'ts' AND c.parent_column IS NULL AND {columns}
             LEFT JOIN ducklake_file_column_stats v
               ON v.table_id = t.table_id AND v.column_id = c.column_id AND v.data_file_id = f.data_file_id",
            at.tables()
        );
        let sql = format!(
            "SELECT table_name::VARCHAR, path::VARCHAR, first::BIGINT, last::BIGINT, epoch_ms(try_cast(earliest AS TIMESTAMP)),
                    epoch_ms(try_cast(latest AS TIMESTAMP)), rows_of_file::BIGINT, plain::INTEGER
             FROM {} ORDER BY path",
            self.ask(&sql)
        );
        let mut statement = connection.prepare(&sql).context("list files")?;
        let files = statement.query_map([], |row| {
            let (first, last) = (row.get(2)?, row.get(3)?);
            let earliest = row.get::<_, Option<i64>>(4)?.unwrap_or(i64::MIN);
            let latest = row.get::<_, Option<i64>>(5)?.unwrap_or(i64::MAX);
            let path = format!("{root}{}", row.get::<_, String>(1)?);
            let file = DataFile { path, snapshots: (first, last), times: (earliest, latest), rows: row.get(6)? };
            Ok((row.get(0)?, (row.get::<_, i32>(7)? == 1).then_some(file)))
        });
        files.and_then(Iterator::collect).context("list files")
    }

    /// A statement of the catalog's database as a table of DuckDB's.
    fn ask(&self, sql: &str) -> String {
        format!("{}({}, {})", self.function, literal(CATALOG), literal(sql))
    }
}

/// Which tables the catalog is asked about, at which snapshot.
struct At {
    snapshot: i64,
    /// Their names as literals, joined by commas.
    tables: String,
}

impl At {
    /// The condition that a row of the catalog belongs to the snapshot.
    fn lives(&self, row: &str) -> String {
        let snapshot = self.snapshot;
        format!(
            "{row}.begin_snapshot <= {snapshot} AND ({row}.end_snapshot IS NULL OR {row}.end_snapshot > {snapshot})"
        )
    }

    /// The tables `t` in their schema `s`.
    fn tables(&self) -> String {
        format!(
            "ducklake_schema s JOIN ducklake_table t ON t.schema_id = s.schema_id AND s.schema_name = {} AND {} AND {}
               AND t.table_name IN ({})",
            literal(MEASUREMENTS_SCHEMA),
            self.lives("s"),
            self.lives("t"),
            self.tables
        )
    }
}

/// What files that are read as one table have in common: whether some rows came too early, whether all are of the wanted time, and the
/// types of the columns.
type Alike<'f> = (bool, bool, Vec<Option<&'f str>>);

/// A table, to be put into a `FROM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) table: String,
    /// Whether all of its rows are of the wanted time. Comparing times that need not be read takes as long as reading a field.
    pub(super) within_time: bool,
    /// The condition, begun with `AND`, that rows came after the wanted snapshot.
    pub(super) later: String,
}

impl Wanted {
    /// Whether all rows of the file are of this time.
    fn contains(&self, file: &DataFile) -> bool {
        file.times.0 >= self.from_ms && self.to_ms.is_none_or(|to| file.times.1 < to)
    }

    fn may_be_in(&self, file: &DataFile) -> bool {
        file.times.1 >= self.from_ms
            && self.to_ms.is_none_or(|to| file.times.0 < to)
            && self.after.is_none_or(|after| file.snapshots.1 > after)
    }
}

impl TableFiles {
    /// How many rows the files have that may have wanted ones.
    pub(super) fn rows(&self, wanted: &Wanted) -> i64 {
        self.files.iter().filter(|file| wanted.may_be_in(file)).map(|file| file.rows).sum()
    }

    /// Tables that together hold the wanted rows; none where no file has such rows.
    pub(super) fn read(&self, wanted: &Wanted, columns: &[(String, &str)]) -> Vec<Piece> {
        let after = wanted.after.unwrap_or(i64::MIN);
        // DuckDB takes columns and types from the first file: a later one's floats would become its integers.
        let mut groups = BTreeMap::<Alike<'_>, Vec<&DataFile>>::new();
        for file in self.files.iter().filter(|file| wanted.may_be_in(file)) {
            let has = columns.iter().map(|(name, _)| self.kind(file, name)).collect();
            groups.entry((file.snapshots.0 <= after, wanted.contains(file), has)).or_default().push(file);
        }
        let piece = |((partly, within_time, has), files): (Alike<'_>, Vec<&DataFile>)| {
            let later = if partly { format!(" AND {SNAPSHOT_COLUMN} > {after}") } else { String::new() };
            Piece { table: table(&files, columns, &has, partly), within_time, later }
        };
        groups.into_iter().map(piece).collect()
    }

    /// The type of the file's column of that name; none where it has none.
    fn kind(&self, file: &DataFile, name: &str) -> Option<&str> {
        let first = file.snapshots.0;
        let lives = |column: &&StoredColumn| column.begin <= first && column.end.is_none_or(|end| end > first);
        self.columns.iter().filter(lives).find(|column| column.name == name).map(|column| &*column.kind)
    }
}

/// A subquery of the columns of files that all have the same of them.
fn table(files: &[&DataFile], columns: &[(String, &str)], has: &[Option<&str>], with_snapshots: bool) -> String {
    // Later files may have the snapshots' column besides, but must not lack it.
    let (single, several): (Vec<&&DataFile>, Vec<&&DataFile>) =
        files.iter().partition(|file| file.snapshots.0 == file.snapshots.1);
    let paths: Vec<String> = single.into_iter().chain(several).map(|file| literal(&file.path)).collect();
    let column = |((name, kind), has): (&(String, &str), &Option<&str>)| match (ident(name), has.is_some()) {
        (name, false) => format!("NULL::{kind} AS {name}"),
        // It may have been one of integers.
        (name, true) if *kind == "DOUBLE" => format!("{name}::DOUBLE AS {name}"),
        (name, true) => name,
    };
    let snapshots = with_snapshots.then(|| SNAPSHOT_COLUMN.to_owned());
    let columns: Vec<String> = columns.iter().zip(has).map(column).chain(snapshots).collect();
    format!("(SELECT {} FROM read_parquet([{}], hive_partitioning = false))", columns.join(", "), paths.join(", "))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use plimsoll_testkit::{LakePlace, Servers};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Access, Lake,
        query::{facts::snapshot_of_lake, tests::config},
    };

    const DAY: i64 = 86_400_000;
    const MEASUREMENT: &str = "load";

    /// What befalls a table, whose columns are those of a measurement's and, for summaries, nested.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        /// Rows of a time come, so many.
        Insert {
            day: i64,
            rows: i64,
        },
        /// Few rows come, which go into the catalog.
        Inline {
            day: i64,
        },
        Merge,
        AddColumn,
        Widen,
        DeleteDay {
            day: i64,
        },
        DeleteSome {
            day: i64,
        },
        Expire,
    }

    fn event() -> impl Strategy<Value = Event> {
        let day = || 0..3_i64;
        prop_oneof![
            8 => (day(), 1..40_i64).prop_map(|(day, rows)| Event::Insert { day, rows }),
            1 => day().prop_map(|day| Event::Inline { day }),
            4 => Just(Event::Merge),
            1 => Just(Event::AddColumn),
            1 => Just(Event::Widen),
            1 => day().prop_map(|day| Event::DeleteDay { day }),
            1 => day().prop_map(|day| Event::DeleteSome { day }),
            1 => Just(Event::Expire),
        ]
    }

    struct World {
        lake: Lake,
        catalog: CatalogReader,
        added: Cell<usize>,
        is_widened: Cell<bool>,
        _dir: Option<tempfile::TempDir>,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::TempDir::new().expect("a folder");
            let world = Self::at(&LakeConfig::embedded(dir.path()));
            Self { _dir: Some(dir), ..world }
        }

        fn at(config: &LakeConfig) -> Self {
            let lake = Lake::open(config, Access::Write).expect("opens");
            let catalog = CatalogReader::new(config);
            let world = Self { lake, catalog, added: Cell::new(0), is_widened: Cell::new(false), _dir: None };
            world.run(
                "CREATE TABLE lake.main.load (ts TIMESTAMP_MS, host VARCHAR, core VARCHAR, x BIGINT);
                 ALTER TABLE lake.main.load SET PARTITIONED BY (year(ts), month(ts), day(ts));
                 ALTER TABLE lake.main.load SET SORTED BY (host, core, ts);
                 CREATE TABLE lake.main.other (ts TIMESTAMP_MS, host VARCHAR)",
            );
            world
        }

        fn run(&self, sql: &str) {
            self.lake.connection.execute_batch(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
        }

        fn number(&self, sql: &str) -> i64 {
            let number = self.lake.connection.query_row(sql, [], |row| row.get(0));
            number.unwrap_or_else(|error| panic!("{error}\n{sql}"))
        }

        fn insert(&self, day: i64, rows: i64) {
            let (start, x) = (day * DAY, if self.is_widened.get() { "r + 0.5" } else { "r" });
            self.run(&format!(
                "INSERT INTO lake.main.load BY NAME SELECT epoch_ms(({start} + 1000 * r) % (3 * {DAY}))::TIMESTAMP_MS AS ts,
                   'web-' || r % 3 AS host, CASE WHEN r % 4 > 0 THEN (r % 2)::VARCHAR END AS core, {x} AS x FROM range({rows}) x(r)"
            ));
        }

        fn happen(&self, event: Event) {
            match event {
                Event::Insert { day, rows } => self.insert(day, rows),
                Event::Inline { day } => {
                    self.run("SET GLOBAL ducklake_default_data_inlining_row_limit = 5");
                    self.insert(day, 3);
                    self.run("SET GLOBAL ducklake_default_data_inlining_row_limit = 0");
                }
                Event::Merge => self.run("CALL ducklake_merge_adjacent_files('lake')"),
                Event::AddColumn => {
                    self.added.set(self.added.get() + 1);
                    let added = self.added.get();
                    self.run(&format!(
                        "BEGIN; ALTER TABLE lake.main.load ADD COLUMN y{added} DOUBLE;
                         INSERT INTO lake.main.load BY NAME SELECT epoch_ms(7)::TIMESTAMP_MS AS ts, 'new' AS host, 0.5 AS y{added} FROM range(20);
                         COMMIT"
                    ));
                }
                Event::Widen => {
                    self.run("ALTER TABLE lake.main.load ALTER COLUMN x SET DATA TYPE DOUBLE");
                    self.is_widened.set(true);
                    self.insert(0, 20);
                }
                Event::DeleteDay { day } => {
                    let (from, to) = (day * DAY, (day + 1) * DAY);
                    self.run(&format!(
                        "DELETE FROM lake.main.load WHERE epoch_ms(ts) >= {from} AND epoch_ms(ts) < {to}"
                    ));
                }
                Event::DeleteSome { day } => {
                    self.run(&format!("DELETE FROM lake.main.load WHERE epoch_ms(ts) = {}", day * DAY));
                }
                Event::Expire => {
                    self.run("CALL ducklake_expire_snapshots('lake', older_than => now()); CALL ducklake_cleanup_old_files('lake', cleanup_all => true)");
                }
            }
        }

        /// Compares what the files give with DuckLake's own scan; whether the table can be read by its files.
        fn check(&self, from_ms: i64, to_ms: Option<i64>, after_part: i64) -> bool {
            self.run("BEGIN");
            let connection = &self.lake.connection;
            let snapshot = self.catalog.snapshot(connection).expect("reads");
            assert_eq!(snapshot, snapshot_of_lake(connection).expect("reads"));
            let measurement = Name::parse(MEASUREMENT).expect("a name");
            let tables = self.catalog.tables(connection, snapshot, &measurement).expect("reads");
            let found = tables.get(&Tier::Raw);
            if let Some(files) = found {
                let mut columns = vec![("ts".to_owned(), "TIMESTAMP_MS"), ("host".to_owned(), "VARCHAR")];
                columns.push(("core".to_owned(), "VARCHAR"));
                columns.push(("x".to_owned(), if self.is_widened.get() { "DOUBLE" } else { "BIGINT" }));
                columns.extend((1..=self.added.get()).map(|added| (format!("y{added}"), "DOUBLE")));
                let names: Vec<&str> = columns.iter().map(|(name, _)| &**name).collect();
                let names = names.join(", ");
                for after in [None, Some(snapshot * after_part / 10)] {
                    let to = to_ms.map(|to| format!(" AND epoch_ms(ts) < {to}")).unwrap_or_default();
                    let condition = format!("epoch_ms(ts) >= {from_ms}{to}");
                    let mut branches = vec![format!("SELECT {names} FROM lake.main.load WHERE false")];
                    for Piece { table, within_time, later } in files.read(&Wanted { from_ms, to_ms, after }, &columns) {
                        let condition = if within_time { "true" } else { &*condition };
                        branches.push(format!("SELECT {names} FROM {table} WHERE {condition}{later}"));
                    }
                    let later = after.map(|after| format!(" AND snapshot_id > {after}")).unwrap_or_default();
                    let lake = format!("SELECT {names} FROM lake.main.load WHERE {condition}{later}");
                    let files = branches.join(" UNION ALL ");
                    let differing = format!(
                        "SELECT (SELECT count(*) FROM (({lake}) EXCEPT ALL ({files}))) + (SELECT count(*) FROM (({files}) EXCEPT ALL ({lake})))"
                    );
                    assert_eq!(self.number(&differing), 0, "after {after:?}: {files}");
                }
            }
            self.run("ROLLBACK");
            found.is_some()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn files_give_what_ducklake_gives_whatever_befell_the_table(
            events in prop::collection::vec((event(), -DAY..3 * DAY, prop::option::of(0..4 * DAY), 0..11_i64), 16)
        ) {
            let world = World::new();
            // From the first of these on, rows are in the catalog or deleted in a file.
            let mut is_whole = true;
            for (event, from_ms, to_ms, after_part) in events {
                world.happen(event);
                is_whole &= !matches!(event, Event::Inline { .. } | Event::DeleteSome { .. });
                let by_files = world.check(from_ms, to_ms, after_part);
                prop_assert!(by_files || !is_whole, "not read by its files after {:?}", event);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn files_on_s3_that_postgresql_names_give_what_ducklake_gives() {
        let servers = Servers::shared().await;
        let world = World::at(&config(&LakePlace::fleet(&servers)));
        let insert = |day| Event::Insert { day, rows: 25 };
        let befalls = [
            insert(0),
            insert(1),
            insert(1),
            Event::Merge,
            insert(2),
            Event::AddColumn,
            insert(0),
            Event::DeleteDay { day: 1 },
            Event::Widen,
            insert(1),
            insert(1),
            Event::Merge,
            Event::Expire,
            insert(2),
        ];
        for (index, event) in befalls.into_iter().enumerate() {
            world.happen(event);
            let day = index as i64 % 3 * DAY;
            assert!(world.check(day, Some(day + DAY), 5), "not read by its files after {event:?}");
        }
        assert!(world.check(-DAY, None, 0));
        world.happen(Event::DeleteSome { day: 0 });
        assert!(!world.check(0, None, 5), "a row of a file is deleted");
        let other = World::at(&config(&LakePlace::fleet(&servers)));
        other.insert(0, 30);
        assert!(other.check(0, None, 5));
        other.happen(Event::Inline { day: 1 });
        assert!(!other.check(0, None, 5), "rows are in the catalog");
    }

    #[test]
    fn tables_that_are_more_than_whole_files_are_left_to_ducklake() {
        let world = World::new();
        world.insert(0, 30);
        assert!(world.check(0, None, 5));
        world.happen(Event::Inline { day: 1 });
        assert!(!world.check(0, None, 5), "rows are in the catalog");
        let world = World::new();
        world.insert(0, 30);
        world.happen(Event::DeleteSome { day: 0 });
        assert!(!world.check(0, None, 5), "a row of a file is deleted");
        let world = World::new();
        world.insert(0, 30);
        world.run(
            "ALTER TABLE lake.main.load RENAME COLUMN core TO cpu; ALTER TABLE lake.main.load ADD COLUMN core VARCHAR",
        );
        assert!(!world.check(0, None, 5), "a name means another column in older files");
        let world = World::new();
        world.insert(0, 30);
        world.run("ALTER TABLE lake.main.load ADD COLUMN z BIGINT DEFAULT 5");
        assert!(!world.check(0, None, 5), "older files have a default");
    }

    #[test]
    fn a_file_that_is_gone_is_told_apart_from_other_failures() {
        let world = World::new();
        let missing = |sql: &str| {
            let failed = world.lake.connection.execute_batch(sql).context("read files").expect_err("fails");
            failed.is_missing_file()
        };
        assert!(missing("SELECT * FROM read_parquet(['/nowhere/at/all.parquet'])"));
        assert!(!missing("SELECT * FROM nothing"));
        world.insert(0, 30);
        world.run("BEGIN");
        let snapshot = world.catalog.snapshot(&world.lake.connection).expect("reads");
        let measurement = Name::parse(MEASUREMENT).expect("a name");
        let tables = world.catalog.tables(&world.lake.connection, snapshot, &measurement).expect("reads");
        world.run("ROLLBACK");
        std::fs::remove_file(&tables[&Tier::Raw].files[0].path).expect("deletes");
        assert!(missing("SELECT * FROM lake.main.load"), "as DuckLake says it");
    }
}
