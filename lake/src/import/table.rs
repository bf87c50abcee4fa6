//! CSV and Parquet files and JSON lines, chunk by chunk.
//!
//! A CSV file is read into a temporary table at first, where every value stays the text that it is: so a row that can't be stored is
//! told with what stands there. What memory does not hold of it spills to disk. So are JSON lines. A Parquet file is read where it is.

use std::{fmt, path::PathBuf};

use plimsoll_nats::{HostId, Name, batch::FieldType};

use super::{
    ImportError, Importer, Precision, Stored,
    columns::{Check, FileColumn, Kind, Layout, is_integer},
    store::Staged,
};
use crate::{
    LakeError,
    error::Context,
    export::TAGS_KEY,
    sql::{ident, literal},
};

/// The name of the rows of a file of text.
pub(super) const RAW: &str = "import_raw";
/// The column of the lines that rows of JSON stand on, as SQL.
pub(super) const LINE: &str = "\"line?\"";
/// The name of a chunk's rows.
const ROWS: &str = "import_rows";
/// Bad rows of a chunk that are told one by one.
pub(super) const BAD_ROWS_TOLD: usize = 10;

/// The form of a file of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Values with a separator, below a line of names; `.gz` and `.zst` are unpacked.
    Csv,
    /// A JSON object a line; `.gz` and `.zst` are unpacked.
    JsonLines,
    /// Parquet.
    Parquet,
}

impl TableFormat {
    pub(super) fn is_text(self) -> bool {
        self != Self::Parquet
    }
}

/// A file of rows, and what its columns mean.
#[derive(Debug, Clone)]
pub struct TableSource {
    /// The file.
    pub path: PathBuf,
    /// Its form.
    pub format: TableFormat,
    /// What was measured.
    pub measurement: Name,
    /// The host of rows that name none.
    pub host: Option<HostId>,
    /// The column of hosts; else `host` where there is one.
    pub host_column: Option<String>,
    /// The column of times; else `ts`, `time`, `timestamp` or `_time`.
    pub time_column: Option<String>,
    /// The unit of times that are numbers.
    pub precision: Option<Precision>,
    /// The columns that are tags; else those of the lake, of the catalog, or that an export has noted.
    pub tags: Option<Vec<String>>,
    /// The columns that are fields; else all that are nothing else.
    pub fields: Option<Vec<String>>,
    /// Columns to leave out.
    pub exclude: Vec<String>,
    /// Whether to leave out rows that can't be stored.
    pub skip_bad: bool,
    /// Rows that are stored at a time.
    pub chunk_rows: u64,
}

/// A row that can't be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// The row, from 1, the line of names not counted; 0 where only the line is known.
    pub row: u64,
    /// The line, of JSON lines, and where the row is none at all.
    pub line: Option<u64>,
    /// The file's column.
    pub column: Option<String>,
    /// What stands there.
    pub value: Option<String>,
    /// What was expected, or what is wrong.
    pub expected: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}")?,
            None => write!(f, "row {}", self.row)?,
        }
        if let Some(column) = &self.column {
            write!(f, ", column `{column}`")?;
        }
        write!(f, ": expected {}", self.expected)?;
        match &self.value {
            Some(value) => {
                let shown: String = value.chars().take(80).flat_map(char::escape_default).collect();
                write!(f, ", found `{shown}`")
            }
            None if self.column.is_some() => f.write_str(", found nothing"),
            None => Ok(()),
        }
    }
}

/// A file that is being imported.
#[derive(Debug)]
pub struct TableFile {
    source: TableSource,
    layout: Layout,
    rows: u64,
    next: u64,
    /// Lines that are no rows, not yet told.
    bad_lines: Vec<BadRow>,
    bad_line_count: u64,
}

impl TableFile {
    /// How many rows the file has.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

/// What is known of a file once it was looked through.
pub(super) struct Described {
    pub columns: Vec<FileColumn>,
    /// The columns that it names as tags itself.
    pub tags: Vec<String>,
    /// The first of the lines that are no rows, and how many they are.
    pub bad: Vec<BadRow>,
    pub bad_count: u64,
}

/// What came of a chunk.
#[derive(Debug)]
pub struct Chunk {
    /// Rows of the file that are done.
    pub done: u64,
    /// What came of the chunk's rows.
    pub stored: Stored,
    /// The first of the rows that were left out.
    pub bad: Vec<BadRow>,
}

impl Importer {
    /// Opens a file and finds out what its columns are. Fails on one that can't be read or whose columns can't be stored.
    pub fn open_table(&self, source: TableSource) -> Result<TableFile, ImportError> {
        let read_error = |error: LakeError| ImportError::Read { file: source.path.clone(), source: error };
        let problem = |problem: String| ImportError::Columns { file: source.path.clone(), problem };
        let Described { columns, tags, bad, bad_count } = match source.format {
            TableFormat::Csv => self.read_csv(&source)?,
            TableFormat::JsonLines => self.read_json_lines(&source.path)?,
            TableFormat::Parquet => self.describe_parquet(&source).map_err(read_error)?,
        };
        if let (Some(bad), false) = (bad.first(), source.skip_bad) {
            return Err(ImportError::BadRow { file: source.path.clone(), row: Box::new(bad.clone()) });
        }
        let schema = self.schema()?;
        let layout = Layout::new(&columns, &source, &tags, schema.table(&source.measurement)).map_err(problem)?;
        let relation = relation(&source);
        let (rows, _) = self.counts(&format!("SELECT count(*), 0 FROM {relation}")).map_err(read_error)?;
        let example = self.first_value(&relation, layout.time_column()).map_err(read_error)?;
        if let Some(text) = layout.time_problem(example.as_deref(), self.options.now_ms) {
            return Err(problem(text));
        }
        Ok(TableFile { source, layout, rows, next: 0, bad_lines: bad, bad_line_count: bad_count })
    }

    /// Stores the next rows of a file; none when it is done. Fails at the first bad row unless these are left out; nothing of its
    /// chunk is stored then.
    pub fn next_chunk(&mut self, file: &mut TableFile) -> Result<Option<Chunk>, ImportError> {
        if file.next >= file.rows {
            self.drop_table(RAW)?;
            let count = std::mem::take(&mut file.bad_line_count);
            let stored = Stored { read: count, bad: count, ..Stored::default() };
            return Ok((count > 0).then(|| Chunk {
                done: file.rows,
                stored,
                bad: std::mem::take(&mut file.bad_lines),
            }));
        }
        let (first, end) = (file.next, (file.next + file.source.chunk_rows).min(file.rows));
        let read_error = |error: LakeError| ImportError::Read { file: file.source.path.clone(), source: error };
        let relation = chunk_relation(&file.source, first, end);
        self.widen(&mut file.layout, &relation).map_err(read_error)?;
        let checks = file.layout.checks(&self.options);
        let bad = self.bad_rows(&file.source, &relation, &checks).map_err(read_error)?;
        if let (Some(row), false) = (bad.first(), file.source.skip_bad) {
            return Err(ImportError::BadRow { file: file.source.path.clone(), row: Box::new(row.clone()) });
        }
        let good =
            if bad.is_empty() { String::new() } else { format!(" WHERE {} IS NULL", Check::first_failed(&checks)) };
        let sql =
            format!("CREATE OR REPLACE TEMP TABLE {ROWS} AS SELECT {} FROM {relation}{good}", file.layout.select());
        self.lake.connection.execute_batch(&sql).context("read rows").map_err(read_error)?;
        let staged = Staged {
            measurement: file.source.measurement.clone(),
            relation: ROWS.to_owned(),
            table: file.layout.table(),
        };
        let mut stored = self.store(&[staged])?;
        self.drop_table(ROWS)?;
        let read = end - first;
        stored.bad = read - stored.read;
        stored.read = read;
        file.next = end;
        Ok(Some(Chunk { done: end, stored, bad }))
    }

    /// Makes float fields of those integer fields of a text that hold a decimal.
    fn widen(&self, layout: &mut Layout, relation: &str) -> Result<(), LakeError> {
        for stored in layout.integers_of_text() {
            let value = format!("nullif(trim({}), '')", ident(&stored.source));
            let sql = format!(
                "SELECT count(*) FILTER (WHERE NOT {} AND isfinite(TRY_CAST({value} AS DOUBLE))), 0 FROM {relation}",
                is_integer(&value)
            );
            if self.counts(&sql)?.0 > 0 {
                stored.column.column_type = FieldType::Float;
            }
        }
        Ok(())
    }

    /// The first rows that fail a check.
    fn bad_rows(&self, source: &TableSource, relation: &str, checks: &[Check]) -> Result<Vec<BadRow>, LakeError> {
        let line = if source.format == TableFormat::JsonLines { LINE } else { "NULL" };
        let connection = &self.lake.connection;
        let sql = format!(
            "SELECT \"row?\", failed FROM (SELECT \"row?\", {} AS failed FROM {relation})
             WHERE failed IS NOT NULL ORDER BY ALL LIMIT {BAD_ROWS_TOLD}",
            Check::first_failed(checks)
        );
        let mut statement = connection.prepare(&sql).context("check rows")?;
        let failed = statement
            .query_map([], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, usize>(1)?)))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .context("check rows")?;
        let told = |(number, check): (u64, usize)| {
            let check = &checks[check];
            let column = ident(&check.column);
            let sql = format!("SELECT {column}::VARCHAR, {line}::UBIGINT FROM {relation} WHERE \"row?\" = {number}");
            let read = |row: &duckdb::Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let (value, line) = connection.query_row(&sql, [], read).context("read a bad row")?;
            let (column, expected) = (Some(check.column.clone()), check.expected.clone());
            Ok(BadRow { row: number + 1, line, column, value, expected })
        };
        failed.into_iter().map(told).collect()
    }

    /// Reads a CSV file into a temporary table. Returns its columns, no tags, and the lines that are no rows.
    fn read_csv(&self, source: &TableSource) -> Result<Described, ImportError> {
        let read_error = |error: LakeError| ImportError::Read { file: source.path.clone(), source: error };
        let connection = &self.lake.connection;
        let path = literal(&source.path.to_string_lossy());
        let sql = format!(
            "SELECT Delimiter, Quote, \"Escape\", SkipRows, [c.name FOR c IN Columns], [c.type FOR c IN Columns]
             FROM sniff_csv({path}, header = true, sample_size = 200000, strict_mode = true, ignore_errors = true)"
        );
        let sql = format!("SELECT d, q, e, s, unnest(names), unnest(types) FROM ({sql}) t(d, q, e, s, names, types)");
        let mut statement = connection.prepare(&sql).context("find out the columns").map_err(read_error)?;
        let mut dialect = None;
        let mut columns = Vec::new();
        let mut rows = statement.query([]).context("find out the columns").map_err(read_error)?;
        while let Some(row) = rows.next().context("find out the columns").map_err(read_error)? {
            let text = |index: usize| row.get::<_, String>(index).context("find out the columns").map_err(read_error);
            let skip: u32 = row.get(3).context("find out the columns").map_err(read_error)?;
            dialect.get_or_insert((text(0)?, text(1)?, text(2)?, skip));
            let (name, data_type) = (text(4)?, text(5)?);
            columns.push(FileColumn { name, kind: text_kind(&data_type), data_type });
        }
        drop(rows);
        let problem = |problem: &str| ImportError::Columns { file: source.path.clone(), problem: problem.to_owned() };
        let (delimiter, quote, escape, skip) = dialect.ok_or_else(|| problem("expected a line of names"))?;
        let none = |text: &str| if text == "(empty)" { String::new() } else { text.to_owned() };
        let names: Vec<String> = columns.iter().map(|c| format!("{}: 'VARCHAR'", literal(&c.name))).collect();
        let read = format!(
            "DROP TABLE IF EXISTS import_rejects; DROP TABLE IF EXISTS import_scans;
             CREATE OR REPLACE TEMP TABLE {RAW} AS SELECT row_number() OVER () - 1 AS \"row?\", * FROM read_csv({path}, auto_detect = false, header = true, skip = {skip},
                 delim = {}, quote = {}, escape = {}, columns = {{{}}}, allow_quoted_nulls = false, strict_mode = true,
                 store_rejects = true, rejects_table = 'import_rejects', rejects_scan = 'import_scans')",
            literal(&none(&delimiter)),
            literal(&none(&quote)),
            literal(&none(&escape)),
            names.join(", "),
        );
        connection.execute_batch(&read).context("read the rows").map_err(read_error)?;
        let bad = self.bad_lines().map_err(read_error)?;
        Ok(Described { columns, tags: Vec::new(), bad_count: bad.len() as u64, bad })
    }

    fn bad_lines(&self) -> Result<Vec<BadRow>, LakeError> {
        let sql = "SELECT line, first(error_message ORDER BY ALL) FROM import_rejects GROUP BY line ORDER BY line";
        let mut statement = self.lake.connection.prepare(sql).context("read the bad lines")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?)));
        let rows = rows.and_then(Iterator::collect::<Result<Vec<_>, _>>).context("read the bad lines")?;
        let bad = |(line, message): (u64, String)| {
            let expected =
                format!("a row of the columns of the first line ({})", message.lines().next().unwrap_or_default());
            BadRow { row: 0, line: Some(line), column: None, value: None, expected }
        };
        Ok(rows.into_iter().map(bad).collect())
    }

    /// A Parquet file's columns, and the tags that an export has noted.
    fn describe_parquet(&self, source: &TableSource) -> Result<Described, LakeError> {
        let connection = &self.lake.connection;
        let path = literal(&source.path.to_string_lossy());
        let sql = format!("SELECT column_name, column_type FROM (DESCRIBE FROM read_parquet({path}))");
        let mut statement = connection.prepare(&sql).context("find out the columns")?;
        let columns = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .context("find out the columns")?;
        let columns =
            columns.into_iter().map(|(name, data_type)| FileColumn { name, kind: Kind::of(&data_type), data_type });
        let sql = format!(
            "SELECT string_agg(decode(value), ',') FROM parquet_kv_metadata({path}) WHERE decode(key) = {}",
            literal(TAGS_KEY)
        );
        let tags: Option<String> = connection.query_row(&sql, [], |row| row.get(0)).context("read the tags")?;
        let tags = tags.unwrap_or_default().split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
        Ok(Described { columns: columns.collect(), tags, bad: Vec::new(), bad_count: 0 })
    }

    fn first_value(&self, relation: &str, column: &str) -> Result<Option<String>, LakeError> {
        let column = ident(column);
        let sql = format!(
            "SELECT min(v) FROM (SELECT {column}::VARCHAR AS v FROM {relation} WHERE {column} IS NOT NULL LIMIT 1)"
        );
        self.lake.connection.query_row(&sql, [], |row| row.get(0)).context("read a time")
    }
}

/// The kind of a column that the sniffer takes for one of a type; dates in fields stay text.
fn text_kind(data_type: &str) -> Kind {
    match Kind::of(data_type) {
        kind @ (Kind::Integer | Kind::Float | Kind::Bool) => kind,
        _ => Kind::Text,
    }
}

fn relation(source: &TableSource) -> String {
    match source.format {
        TableFormat::Csv | TableFormat::JsonLines => format!("temp.{RAW}"),
        TableFormat::Parquet => {
            format!("read_parquet({}, file_row_number = true)", literal(&source.path.to_string_lossy()))
        }
    }
}

/// The rows `[first, end)` of a file, with their numbers.
fn chunk_relation(source: &TableSource, first: u64, end: u64) -> String {
    let relation = relation(source);
    match source.format {
        TableFormat::Csv | TableFormat::JsonLines => {
            format!("(FROM {relation} WHERE \"row?\" >= {first} AND \"row?\" < {end})")
        }
        TableFormat::Parquet => format!(
            "(SELECT *, file_row_number AS \"row?\" FROM {relation} WHERE file_row_number >= {first} AND file_row_number < {end})"
        ),
    }
}
