//! Staged rows on their way into the lake, without those that it holds.

use plimsoll_nats::Name;

use super::{ATTEMPTS, ImportError, Importer, Stored};
use crate::{
    LakeError,
    connection::{LAKE, table},
    error::Context,
    schema::{LakeSchema, TableSchema},
    sql::{ident, literal},
};

/// Hosts of a chunk that a look into the lake names one by one.
const MAX_HOSTS_NAMED: usize = 200;
/// The rows of a chunk that the lake holds already, with the values there.
const PRESENT: &str = "import_present";

/// Rows in a temporary table with `ts`, `host` and the columns of `table`.
pub(super) struct Staged {
    pub measurement: Name,
    pub relation: String,
    pub table: TableSchema,
}

impl Importer {
    /// Stores staged rows in one transaction.
    pub(super) fn store(&mut self, staged: &[Staged]) -> Result<Stored, ImportError> {
        let mut total = Stored::default();
        for staged in staged {
            total.add(&self.join_doubles(staged)?);
        }
        if let Some(mut planned) = self.planned.take() {
            let result = self.plan(staged, &mut planned, &mut total);
            self.planned = Some(planned);
            result?;
        } else {
            let (stored, _) = self.lake.retried(ATTEMPTS, || self.store_once(staged))?;
            total.add(&stored);
        }
        Ok(total)
    }

    fn plan(&self, staged: &[Staged], planned: &mut LakeSchema, total: &mut Stored) -> Result<(), ImportError> {
        let present = self.stored_schema()?;
        for staged in staged {
            admit(planned, staged)?;
            total.add(&self.insert(staged, &present, false)?);
        }
        Ok(())
    }

    fn store_once(&self, staged: &[Staged]) -> Result<Stored, ImportError> {
        let connection = &self.lake.connection;
        connection.execute_batch("BEGIN").context("begin an import")?;
        let turn = format!("UPDATE {LAKE}.plimsoll.imports SET transactions = transactions + 1");
        connection.execute_batch(&turn).context("count an import")?;
        let present = LakeSchema::read(connection)?;
        let mut wanted = present.clone();
        for staged in staged {
            admit(&mut wanted, staged)?;
        }
        for statement in wanted.migration(&present) {
            connection.execute_batch(&statement).context("create a table or column")?;
        }
        let mut total = Stored::default();
        for staged in staged {
            total.add(&self.insert(staged, &present, true)?);
        }
        self.lake.commit()?;
        Ok(total)
    }

    /// Joins rows of one series and time, the first value of each field winning.
    fn join_doubles(&self, staged: &Staged) -> Result<Stored, LakeError> {
        let relation = format!("temp.{}", staged.relation);
        let keys = staged.keys().join(", ");
        let sql = format!("SELECT count(*), count(DISTINCT ({keys})) FROM {relation}");
        let (rows, distinct) = self.counts(&sql)?;
        let read = Stored { read: rows, ..Stored::default() };
        if rows == distinct {
            return Ok(read);
        }
        let fields = staged.fields();
        let firsts =
            fields.iter().map(|f| format!(", first({f} ORDER BY rowid) FILTER (WHERE {f} IS NOT NULL) AS {f}"));
        let differs: Vec<String> = fields.iter().map(|field| format!("min({field}) <> max({field})")).collect();
        let differs = differs.join(" OR ");
        let joined = "temp.import_joined";
        let sql = format!(
            "CREATE OR REPLACE TEMP TABLE import_joined AS
             SELECT {keys}{}, coalesce({differs}, false) AS \"differs?\" FROM {relation} GROUP BY {keys} ORDER BY min(rowid)",
            firsts.collect::<String>()
        );
        self.lake.connection.execute_batch(&sql).context("join rows of one time")?;
        let (differing, _) =
            self.counts(&format!("SELECT count(*) FILTER (WHERE \"differs?\"), count(*) FROM {joined}"))?;
        let replace = format!(
            "CREATE OR REPLACE TEMP TABLE {} AS SELECT * EXCLUDE (\"differs?\") FROM {joined}; DROP TABLE {joined}",
            staged.relation
        );
        self.lake.connection.execute_batch(&replace).context("join rows of one time")?;
        Ok(Stored { joined: rows - distinct, differing, ..read })
    }

    /// Inserts what the lake lacks; tells only what that would be where `write` is not set. `present` is the lake before the rows.
    fn insert(&self, staged: &Staged, present: &LakeSchema, write: bool) -> Result<Stored, LakeError> {
        let (rows, _) = self.counts(&format!("SELECT count(*), 0 FROM temp.{}", staged.relation))?;
        let Some(table) = present.table(&staged.measurement).filter(|_| rows > 0) else {
            let columns = staged.keys().into_iter().chain(staged.fields()).collect::<Vec<_>>().join(", ");
            return self.write(staged, &format!("SELECT {columns} FROM temp.{}", staged.relation), rows, write);
        };
        let known: Vec<String> = table
            .fields()
            .filter(|(name, _)| staged.table.column(name).is_some())
            .map(|(name, _)| ident(name))
            .collect();
        self.find_present(staged, table, &known)?;
        let (contained, differing) = self.counts(&format!(
            "SELECT count(*), count(*) FILTER (WHERE {}) FROM temp.{} s JOIN temp.{PRESENT} p ON p.\"row?\" = s.rowid",
            any(&known, |field| format!("s.{field} <> p.{field}")),
            staged.relation
        ))?;
        let lacks = any(&staged.fields(), |field| {
            let absent = if known.contains(field) { format!(" AND p.{field} IS NULL") } else { String::new() };
            format!("(s.{field} IS NOT NULL{absent})")
        });
        let from = format!(
            "FROM temp.{} s LEFT JOIN temp.{PRESENT} p ON p.\"row?\" = s.rowid WHERE p.\"row?\" IS NULL OR {lacks}",
            staged.relation
        );
        let (new, filled) = self.counts(&format!("SELECT count(*), count(p.\"row?\") {from}"))?;
        let keys = staged.keys().iter().map(|key| format!("s.{key}, ")).collect::<String>();
        let fields = staged.fields().into_iter().map(|field| {
            if known.contains(&field) {
                format!("CASE WHEN p.{field} IS NULL THEN s.{field} END AS {field}")
            } else {
                format!("s.{field}")
            }
        });
        let fields = fields.collect::<Vec<_>>().join(", ");
        let stored = self.write(staged, &format!("SELECT {keys}{fields} {from}"), new, write)?;
        Ok(Stored { contained: contained - filled, differing, ..stored })
    }

    fn write(&self, staged: &Staged, select: &str, rows: u64, write: bool) -> Result<Stored, LakeError> {
        if write && rows > 0 {
            let sql = format!("INSERT INTO {} BY NAME {select}", table(&staged.measurement));
            self.lake.connection.execute_batch(&sql).context("insert rows")?;
        }
        Ok(Stored { rows, ..Stored::default() })
    }

    /// Finds the staged rows whose series and time the lake holds, with a value of each field that is there.
    fn find_present(&self, staged: &Staged, table: &TableSchema, known: &[String]) -> Result<(), LakeError> {
        let relation = format!("temp.{}", staged.relation);
        let mut on = vec!["l.ts = s.ts".to_owned(), "l.host = s.host".to_owned()];
        on.extend(table.tags().map(|tag| {
            let column = ident(tag);
            match staged.table.column(tag) {
                Some(_) => format!("l.{column} IS NOT DISTINCT FROM s.{column}"),
                None => format!("l.{column} IS NULL"),
            }
        }));
        let new_tags = staged.table.tags().filter(|tag| table.column(tag).is_none());
        on.extend(new_tags.map(|tag| format!("s.{} IS NULL", ident(tag))));
        let values: String = known.iter().map(|field| format!(", any_value(l.{field}) AS {field}")).collect();
        let sql = format!(
            "CREATE OR REPLACE TEMP TABLE {PRESENT} AS
             SELECT s.rowid AS \"row?\"{values} FROM {relation} s JOIN {} l ON {} WHERE {} GROUP BY s.rowid",
            crate::connection::table(&staged.measurement),
            on.join(" AND "),
            self.bounds(&relation)?,
        );
        self.lake.connection.execute_batch(&sql).context("look for rows that the lake holds")
    }

    /// The times and hosts of the rows as constants: only what the planner sees leaves out files.
    fn bounds(&self, relation: &str) -> Result<String, LakeError> {
        let connection = &self.lake.connection;
        let sql = format!("SELECT min(ts)::VARCHAR, max(ts)::VARCHAR, count(DISTINCT host) FROM {relation}");
        let (first, last, hosts): (String, String, usize) = connection
            .query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .context("read the bounds of a chunk")?;
        let mut bounds = format!("l.ts BETWEEN {}::TIMESTAMP_MS AND {}::TIMESTAMP_MS", literal(&first), literal(&last));
        if hosts <= MAX_HOSTS_NAMED {
            let mut statement = connection
                .prepare(&format!("SELECT DISTINCT host FROM {relation}"))
                .context("read the hosts of a chunk")?;
            let hosts = statement
                .query_map([], |row| row.get::<_, String>(0))
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .context("read the hosts of a chunk")?;
            let hosts: Vec<String> = hosts.iter().map(|host| literal(host)).collect();
            bounds.push_str(&format!(" AND l.host IN ({})", hosts.join(", ")));
        }
        Ok(bounds)
    }

    /// The two counts that a statement yields.
    pub(super) fn counts(&self, sql: &str) -> Result<(u64, u64), LakeError> {
        self.lake.connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).context("count rows")
    }
}

impl Staged {
    fn keys(&self) -> Vec<String> {
        let keys = ["ts".to_owned(), "host".to_owned()];
        keys.into_iter().chain(self.table.tags().map(|tag| ident(tag))).collect()
    }

    fn fields(&self) -> Vec<String> {
        self.table.fields().map(|(field, _)| ident(field)).collect()
    }
}

fn admit(schema: &mut LakeSchema, staged: &Staged) -> Result<(), ImportError> {
    let columns = staged.table.columns().map(|(name, column)| (name, column.role, column.column_type));
    let admitted = schema.admit_columns(&staged.measurement, columns);
    admitted.map(|_| ()).map_err(|reason| ImportError::refused(&staged.measurement, reason))
}

/// Whether a condition holds of any of the columns, as SQL.
fn any(columns: &[String], condition: impl Fn(&String) -> String) -> String {
    let conditions: Vec<String> = columns.iter().map(condition).collect();
    if conditions.is_empty() { "false".to_owned() } else { format!("coalesce({}, false)", conditions.join(" OR ")) }
}
