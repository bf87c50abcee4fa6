//! JSON lines: an object a line, whose names are columns.
//!
//! The lines are read into a temporary table at first, and their values into another one, where each stays the text that it is in
//! JSON, a string without its quotes: so a value that can't be stored is told with what stands there, as in CSV. What a column is
//! follows from the values that all lines have of it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::Arc,
};

use duckdb::arrow::{
    array::{Int64Builder, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, Schema},
};

use super::{
    ImportError, Importer,
    columns::{FileColumn, Kind},
    table::{BAD_ROWS_TOLD, BadRow, Described, LINE, RAW},
};
use crate::{
    LakeError,
    error::Context,
    sql::{ident, literal},
};

/// The name of the lines as they stand in the file.
const LINES: &str = "import_lines";
/// Longest line.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of lines that are handed to DuckDB at a time.
const STAGED_BYTES: usize = 4 * 1024 * 1024;
/// Most names in a file: far more than a measurement can have, and few enough to be told apart in no time.
const MAX_NAMES: usize = 2000;

/// Whether a line is an object that has each of its names once, as SQL.
const IS_OBJECT: &str = "CASE WHEN json_valid(text) AND json_type(text) = 'OBJECT' \
                         THEN len(json_keys(text)) = list_unique(json_keys(text)) ELSE false END";

impl Importer {
    /// Reads a file of JSON lines into a temporary table. Returns its columns and the lines that are no objects.
    pub(super) fn read_json_lines(&self, path: &Path) -> Result<Described, ImportError> {
        let read_error = |error: LakeError| ImportError::Read { file: path.to_owned(), source: error };
        let problem = |problem: String| ImportError::Columns { file: path.to_owned(), problem };
        let mut bad = self.stage_lines(path).map_err(read_error)?;
        let (count, objects) = self.bad_objects().map_err(read_error)?;
        let bad_count = bad.len() as u64 + count;
        bad.extend(objects);
        bad.sort_by_key(|bad| bad.line);
        bad.truncate(BAD_ROWS_TOLD);
        let names = self.names().map_err(read_error)?;
        if names.is_empty() && bad.is_empty() {
            return Err(problem("expected a JSON object a line, found nothing".to_owned()));
        }
        check_names(&names).map_err(problem)?;
        let columns = self.json_columns(&names).map_err(read_error)?;
        self.lay_out(&names).map_err(read_error)?;
        Ok(Described { columns, tags: Vec::new(), bad, bad_count })
    }

    /// Puts the lines, without empty ones, into a temporary table. Returns those that can't be any text.
    fn stage_lines(&self, path: &Path) -> Result<Vec<BadRow>, LakeError> {
        let unreadable = |source| LakeError::File { path: path.to_owned(), source };
        let connection = &self.lake.connection;
        connection
            .execute_batch(&format!("CREATE OR REPLACE TEMP TABLE {LINES} (number BIGINT, text VARCHAR)"))
            .context("create a staging table")?;
        let mut lines = Lines::open(path).map_err(unreadable)?;
        let mut appender =
            connection.appender_to_catalog_and_db(LINES, "temp", "main").context("open the staging table")?;
        loop {
            let (mut numbers, mut texts) = (Int64Builder::new(), StringBuilder::new());
            while texts.values_slice().len() < STAGED_BYTES
                && let Some((number, text)) = lines.next().map_err(unreadable)?
            {
                numbers.append_value(number);
                texts.append_value(text);
            }
            let (numbers, texts) = (Arc::new(numbers.finish()), Arc::new(texts.finish()));
            let fields = vec![Field::new("number", DataType::Int64, false), Field::new("text", DataType::Utf8, false)];
            let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), vec![numbers, texts])
                .map_err(|source| LakeError::Columns { table: LINES.to_owned(), source })?;
            if rows.num_rows() == 0 {
                break;
            }
            appender.append_record_batch(rows).context("stage lines")?;
        }
        appender.flush().context("stage lines")?;
        Ok(lines.bad)
    }

    /// How many lines are no objects, and the first of them.
    fn bad_objects(&self) -> Result<(u64, Vec<BadRow>), LakeError> {
        let sql = format!("ALTER TABLE {LINES} ADD COLUMN good BOOLEAN; UPDATE {LINES} SET good = ({IS_OBJECT})");
        self.lake.connection.execute_batch(&sql).context("check lines")?;
        let (count, _) = self.counts(&format!("SELECT count(*), 0 FROM {LINES} WHERE NOT good"))?;
        let sql = format!("SELECT number, text FROM {LINES} WHERE NOT good ORDER BY number LIMIT {BAD_ROWS_TOLD}");
        let mut statement = self.lake.connection.prepare(&sql).context("read the bad lines")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?)));
        let rows = rows.and_then(Iterator::collect::<Result<Vec<_>, _>>).context("read the bad lines")?;
        Ok((count, rows.into_iter().map(|(line, text)| bad_line(line, expected(&text), Some(text))).collect()))
    }

    /// The names of all objects, in the order in which the lines bring them.
    fn names(&self) -> Result<Vec<String>, LakeError> {
        let sql = format!(
            "SELECT name FROM (SELECT number, generate_subscripts(json_keys(text), 1) AS place, unnest(json_keys(text)) AS name
                               FROM {LINES} WHERE good)
             GROUP BY name ORDER BY min((number, place)) LIMIT {}",
            MAX_NAMES + 1
        );
        let mut statement = self.lake.connection.prepare(&sql).context("find out the columns")?;
        let names = statement.query_map([], |row| row.get(0)).and_then(Iterator::collect);
        names.context("find out the columns")
    }

    /// What the values of each name are.
    fn json_columns(&self, names: &[String]) -> Result<Vec<FileColumn>, LakeError> {
        let sql = format!(
            "SELECT place, string_agg(DISTINCT type, ',')
             FROM (SELECT generate_subscripts(types, 1) AS place, unnest(types) AS type
                   FROM (SELECT json_type(text, {}) AS types FROM {LINES} WHERE good))
             WHERE type IS NOT NULL GROUP BY place",
            pointers(names)
        );
        let mut columns: Vec<FileColumn> = names.iter().map(|name| column(name, "")).collect();
        let mut statement = self.lake.connection.prepare(&sql).context("find out the columns")?;
        let types = statement.query_map([], |row| Ok((row.get::<_, usize>(0)?, row.get::<_, String>(1)?)));
        for (place, types) in types.and_then(Iterator::collect::<Result<Vec<_>, _>>).context("find out the columns")? {
            columns[place - 1] = column(&names[place - 1], &types);
        }
        Ok(columns)
    }

    /// Lays the values of all objects out as rows of texts.
    fn lay_out(&self, names: &[String]) -> Result<(), LakeError> {
        let values: String = names
            .iter()
            .enumerate()
            .map(|(place, name)| format!(", texts[{}] AS {}", place + 1, ident(name)))
            .collect();
        let sql = format!(
            "CREATE OR REPLACE TEMP TABLE {RAW} AS
             SELECT row_number() OVER (ORDER BY number) - 1 AS \"row?\", number AS {LINE}{values}
             FROM (SELECT number, json_extract_string(text, {}) AS texts FROM {LINES} WHERE good);
             DROP TABLE {LINES}",
            pointers(names)
        );
        self.lake.connection.execute_batch(&sql).context("read the rows")
    }
}

/// A column whose values are of these types of JSON, separated by commas.
fn column(name: &str, types: &str) -> FileColumn {
    let all = |of: &[&str]| types.split(',').filter(|found| *found != "NULL").all(|found| of.contains(&found));
    let has = |wanted: &str| types.split(',').any(|found| found == wanted);
    let (kind, data_type) = if has("OBJECT") {
        (Kind::Other, "object")
    } else if has("ARRAY") {
        (Kind::Other, "array")
    } else if all(&[""]) {
        (Kind::Nothing, "null")
    } else if all(&["BIGINT", "UBIGINT"]) {
        (Kind::Integer, "integer")
    } else if all(&["BIGINT", "UBIGINT", "DOUBLE"]) {
        (Kind::Float, "number")
    } else if all(&["BOOLEAN"]) {
        (Kind::Bool, "bool")
    } else {
        (Kind::Text, "string")
    };
    FileColumn { name: name.to_owned(), data_type: data_type.to_owned(), kind }
}

/// Fails with what is wrong with the names of a file, and what to do.
fn check_names(names: &[String]) -> Result<(), String> {
    if names.len() > MAX_NAMES {
        return Err(format!("the objects have more than {MAX_NAMES} names: expected one for each column"));
    }
    if names.iter().any(String::is_empty) {
        return Err("an object has a value without a name: give it one".to_owned());
    }
    let alike = names.iter().enumerate().find_map(|(index, name)| {
        let other = names[..index].iter().find(|other| other.eq_ignore_ascii_case(name))?;
        Some(format!("`{other}` and `{name}` differ in nothing but capitals: give one of them another name"))
    });
    alike.map_or(Ok(()), Err)
}

/// The values' places in an object, as SQL.
fn pointers(names: &[String]) -> String {
    // A list of one would not yield a list where it was a constant of another type.
    let list: Vec<String> =
        names.iter().map(|name| literal(&format!("/{}", name.replace('~', "~0").replace('/', "~1")))).collect();
    format!("[{}]::VARCHAR[]", list.join(", "))
}

fn bad_line(line: u64, expected: String, value: Option<String>) -> BadRow {
    BadRow { row: 0, line: Some(line), column: None, value, expected }
}

/// What was expected of a line that is no object.
fn expected(text: &str) -> String {
    const OBJECT: &str = "a JSON object";
    match serde_json::from_str::<serde_json::Value>(text) {
        Err(error) => {
            let told = error.to_string();
            let told = told.split(" at line ").next().unwrap_or_default();
            format!("{OBJECT} (at column {}: {told})", error.column())
        }
        Ok(serde_json::Value::Object(_)) => format!("{OBJECT} that has each name once"),
        Ok(_) => OBJECT.to_owned(),
    }
}

/// The lines of a file that are not empty, with their numbers.
struct Lines {
    input: Box<dyn BufRead>,
    line: Vec<u8>,
    number: i64,
    /// Lines that can't be any text.
    bad: Vec<BadRow>,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let input: Box<dyn BufRead> = match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file))),
            Some("zst") => Box::new(BufReader::new(zstd::Decoder::new(file)?)),
            _ => Box::new(BufReader::new(file)),
        };
        Ok(Self { input, line: Vec::new(), number: 0, bad: Vec::new() })
    }

    /// The next line; none at the end.
    fn next(&mut self) -> io::Result<Option<(i64, &str)>> {
        const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
        loop {
            self.line.clear();
            if (&mut self.input).take(MAX_LINE_BYTES).read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.line.len() as u64 == MAX_LINE_BYTES && self.line.last() != Some(&b'\n') {
                self.input.skip_until(b'\n')?;
                self.refuse(format!("a line of less than {MAX_LINE_BYTES} bytes"));
                continue;
            }
            if self.number == 1 && self.line.starts_with(BYTE_ORDER_MARK) {
                self.line.drain(..BYTE_ORDER_MARK.len());
            }
            if self.line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if std::str::from_utf8(&self.line).is_err() {
                self.refuse("text in UTF-8".to_owned());
                continue;
            }
            break;
        }
        let text = std::str::from_utf8(&self.line).expect("was looked at before");
        Ok(Some((self.number, text.trim_ascii())))
    }

    fn refuse(&mut self, expected: String) {
        self.bad.push(bad_line(self.number.unsigned_abs(), expected, None));
    }
}
