//! What the columns of a file become: a row's time, its host, tags and fields, as SQL, and what is wrong with a row.

use plimsoll_nats::{
    HostId, Name,
    batch::{FieldType, MAX_TAG_BYTES, MAX_TEXT_BYTES},
    catalog,
    names::MAX_HOST_BYTES,
    spelling,
};

use super::{ImportOptions, TableSource};
use crate::{
    schema::{ColumnSchema, MAX_AGE, MAX_AHEAD, Role, TableSchema, sql_type},
    sql::{ident, literal},
};

/// Columns that hold the time where none is named, in the order in which they are looked for.
const TIME_COLUMNS: [&str; 4] = ["ts", "time", "timestamp", "_time"];
/// The first millisecond that the lake takes, of the year 1.
const FIRST_MS: i64 = -62_135_596_800_000;

/// The unit of times that are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 1 ns.
    Nanoseconds,
    /// 1 µs.
    Microseconds,
    /// 1 ms.
    Milliseconds,
    /// 1 s.
    Seconds,
}

impl Precision {
    /// All units with what users call them.
    pub const ALL: [(Self, &str); 4] =
        [(Self::Nanoseconds, "ns"), (Self::Microseconds, "us"), (Self::Milliseconds, "ms"), (Self::Seconds, "s")];

    /// Unix ms of a number, as SQL; null where it is none.
    fn to_ms(self, number: &str) -> String {
        // Six digits are what a float of today's time in seconds holds for certain; what is out of range is no time.
        let number = format!("TRY_CAST({number} AS DECIMAL(29, 6))");
        match self {
            Self::Nanoseconds => format!("TRY_CAST(floor({number})::HUGEINT // 1000000 AS BIGINT)"),
            Self::Microseconds => format!("TRY_CAST(floor({number})::HUGEINT // 1000 AS BIGINT)"),
            Self::Milliseconds => format!("TRY_CAST(floor({number}) AS BIGINT)"),
            Self::Seconds => format!("TRY_CAST(floor({number} * 1000) AS BIGINT)"),
        }
    }
}

/// What the values of a file's column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Integer,
    Bool,
    Text,
    Time,
    /// No value says what they are.
    Nothing,
    Other,
}

impl Kind {
    /// The kind of DuckDB's type.
    pub(super) fn of(data_type: &str) -> Self {
        match data_type {
            "TINYINT" | "SMALLINT" | "INTEGER" | "BIGINT" | "UTINYINT" | "USMALLINT" | "UINTEGER" | "UBIGINT"
            | "HUGEINT" | "UHUGEINT" => Self::Integer,
            "FLOAT" | "DOUBLE" => Self::Float,
            "BOOLEAN" => Self::Bool,
            "VARCHAR" | "UUID" => Self::Text,
            "DATE" => Self::Time,
            other if other.starts_with("TIMESTAMP") => Self::Time,
            other if other.starts_with("DECIMAL") => Self::Float,
            other if other.starts_with("ENUM") && !other.ends_with(']') => Self::Text,
            _ => Self::Other,
        }
    }

    fn field_type(self) -> Option<FieldType> {
        match self {
            Self::Float => Some(FieldType::Float),
            Self::Integer => Some(FieldType::Integer),
            Self::Bool => Some(FieldType::Bool),
            Self::Text => Some(FieldType::Text),
            Self::Time | Self::Nothing | Self::Other => None,
        }
    }
}

/// A column of a file.
#[derive(Debug, Clone)]
pub(super) struct FileColumn {
    pub name: String,
    pub data_type: String,
    pub kind: Kind,
}

/// A tag or field and the file's column that holds it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub source: String,
    pub name: Name,
    pub column: ColumnSchema,
}

/// What each column of a file becomes.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    time: FileColumn,
    host_column: Option<String>,
    host: Option<HostId>,
    pub stored: Vec<Stored>,
    /// Whether all values are text as they stand in the file.
    is_text: bool,
    precision: Option<Precision>,
}

/// What no value of a column may be.
pub(super) struct Check {
    /// The file's column.
    pub column: String,
    /// What was expected.
    pub expected: String,
    condition: String,
}

impl Layout {
    /// Lays out a file's columns. `tags` are those that the file itself names as such. Fails with what is wrong and what to do.
    pub(super) fn new(
        columns: &[FileColumn],
        source: &TableSource,
        tags: &[String],
        known: Option<&TableSchema>,
    ) -> Result<Self, String> {
        let is_text = source.format.is_text();
        let find = |wanted: &str| columns.iter().find(|column| column.name.eq_ignore_ascii_case(wanted));
        let listed = || columns.iter().map(|column| format!("`{}`", column.name)).collect::<Vec<_>>().join(", ");
        let missing = |what: &str| format!("there is no column {what}: it has {}", listed());
        let time = match &source.time_column {
            Some(wanted) => find(wanted).ok_or_else(|| missing(&format!("`{wanted}`")))?,
            None => TIME_COLUMNS.iter().find_map(|name| find(name)).ok_or_else(|| {
                missing("`ts`, `time`, `timestamp` or `_time`; name the one of the times with --time-column")
            })?,
        };
        let host_column = match &source.host_column {
            Some(wanted) => Some(find(wanted).ok_or_else(|| missing(&format!("`{wanted}`")))?),
            None => find("host"),
        };
        if host_column.is_none() && source.host.is_none() {
            return Err(missing("`host`; name one with --host-column, or the host of all rows with --host"));
        }
        for wanted in source.tags.iter().flatten().chain(source.fields.iter().flatten()).chain(&source.exclude) {
            find(wanted).ok_or_else(|| missing(&format!("`{wanted}`")))?;
        }
        let mut layout = Self {
            time: time.clone(),
            host_column: host_column.map(|column| column.name.clone()),
            host: source.host.clone(),
            stored: Vec::new(),
            is_text,
            precision: source.precision,
        };
        for column in columns {
            if column.name != time.name && host_column.is_none_or(|host| host.name != column.name) {
                layout.add(column, source, tags, known)?;
            }
        }
        if !layout.stored.iter().any(|stored| stored.column.role == Role::Field) {
            return Err(format!("no column is left to be a field: it has {}", listed()));
        }
        Ok(layout)
    }

    fn add(
        &mut self,
        column: &FileColumn,
        source: &TableSource,
        tags: &[String],
        known: Option<&TableSchema>,
    ) -> Result<(), String> {
        let among = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case(&column.name));
        if among(&source.exclude) {
            return Ok(());
        }
        let mut name = spelling::column(&column.name);
        if self.stored.iter().any(|stored| stored.name == name) {
            name = spelling::distinct(&column.name);
        }
        let stored = known.and_then(|table| table.column(&name));
        let built_in = catalog::measurement(&source.measurement);
        let is_tag = match &source.tags {
            Some(tags) => among(tags),
            None => {
                among(tags)
                    || stored.is_some_and(|stored| stored.role == Role::Tag)
                    || built_in.is_some_and(|spec| spec.tags.iter().any(|tag| *tag.name == *name))
            }
        };
        let unfit = || {
            let (name, data_type) = (&column.name, &column.data_type);
            format!("column `{name}` is of type {data_type}, which no field has: leave it out with --exclude {name}")
        };
        let column_type = if is_tag {
            if column.kind == Kind::Other {
                return Err(unfit());
            }
            FieldType::Text
        } else if source.fields.as_ref().is_some_and(|fields| !among(fields)) {
            return Ok(());
        } else {
            let of_lake = stored.filter(|stored| stored.role == Role::Field).map(|stored| stored.column_type);
            let of_catalog = built_in.and_then(|spec| spec.fields.iter().find(|field| *field.name == *name));
            let settled = of_lake.or(of_catalog.map(|field| field.field_type));
            // A column without any value becomes one when there is a value.
            let found = if column.kind == Kind::Nothing { settled } else { column.kind.field_type() };
            let found = match found {
                None if column.kind == Kind::Nothing => return Ok(()),
                found => found.ok_or_else(unfit)?,
            };
            match (settled, found) {
                // As text, it can be read as whatever the lake has.
                (Some(settled), _) if self.is_text => settled,
                (Some(FieldType::Float), FieldType::Integer) => FieldType::Float,
                _ => found,
            }
        };
        let role = if is_tag { Role::Tag } else { Role::Field };
        let column_schema = ColumnSchema { role, column_type };
        self.stored.push(Stored { source: column.name.clone(), name, column: column_schema });
        Ok(())
    }

    /// The columns as a table has them.
    pub(super) fn table(&self) -> TableSchema {
        self.stored.iter().map(|stored| (stored.name.clone(), stored.column)).collect()
    }

    /// Why the times can't be read, once it is known what one looks like.
    pub(super) fn time_problem(&self, example: Option<&str>, now_ms: i64) -> Option<String> {
        let is_number = match self.time.kind {
            Kind::Integer | Kind::Float => true,
            Kind::Text => self.is_text && example.is_some_and(|text| text.trim().parse::<f64>().is_ok()),
            Kind::Other => {
                return Some(format!(
                    "column `{}` is of type {}, which is no time",
                    self.time.name, self.time.data_type
                ));
            }
            Kind::Time | Kind::Bool | Kind::Nothing => false,
        };
        let example = example.filter(|_| is_number && self.precision.is_none())?;
        let number: f64 = example.trim().parse().ok()?;
        // The unit in which the time is nearest to the present.
        let off = |factor: f64| (number * factor - now_ms as f64).abs();
        let units = [(1e-6, "ns"), (1e-3, "us"), (1.0, "ms"), (1e3, "s")];
        let (_, likely) = units.into_iter().min_by(|a, b| off(a.0).total_cmp(&off(b.0))).expect("there are units");
        Some(format!(
            "column `{}` holds numbers such as {example}: tell their unit by --precision ns, us, ms or s (most likely {likely})",
            self.time.name
        ))
    }

    /// The file's column of the times.
    pub(super) fn time_column(&self) -> &str {
        &self.time.name
    }

    /// The fields that are integers so far and are read from text.
    pub(super) fn integers_of_text(&mut self) -> Vec<&mut Stored> {
        let is_text = self.is_text;
        let integers = self.stored.iter_mut().filter(|stored| stored.column.column_type == FieldType::Integer);
        integers.filter(|_| is_text).collect()
    }

    /// The columns of the staged rows, as SQL: `ts`, `host` and what is stored.
    pub(super) fn select(&self) -> String {
        let stored = self.stored.iter().map(|stored| format!(", {} AS {}", self.value(stored), ident(&stored.name)));
        format!(
            "epoch_ms({})::TIMESTAMP_MS AS ts, {} AS host{}",
            self.safe_time(),
            self.host(),
            stored.collect::<String>()
        )
    }

    /// The time in Unix ms; null where there is none.
    fn time(&self) -> String {
        let column = ident(&self.time.name);
        match (self.time.kind, self.precision) {
            (Kind::Time, _) if self.time.data_type.ends_with("TIME ZONE") => format!("epoch_ms({column})"),
            (Kind::Time, _) => format!("epoch_ms({column}::TIMESTAMP)"),
            (_, Some(precision)) => precision.to_ms(&column),
            (_, None) => format!("epoch_ms(TRY_CAST({column} AS TIMESTAMPTZ))"),
        }
    }

    /// The same, where it is within what can be cast at all.
    fn safe_time(&self) -> String {
        let time = self.time();
        format!("(CASE WHEN {time} BETWEEN {FIRST_MS} AND 253402300799999 THEN {time} END)")
    }

    fn host(&self) -> String {
        let fallback = self.host.as_ref().map_or("NULL".to_owned(), |host| literal(host));
        match &self.host_column {
            Some(column) => format!(
                "coalesce(regexp_replace(left(nullif({}::VARCHAR, ''), {MAX_HOST_BYTES}), '[^A-Za-z0-9_-]', '-', 'g'), {fallback})",
                ident(column)
            ),
            None => fallback,
        }
    }

    /// A tag's or field's value; null where there is none.
    fn value(&self, stored: &Stored) -> String {
        let column = ident(&stored.source);
        let number = format!("nullif(trim({column}), '')");
        match (stored.column.column_type, self.is_text) {
            (FieldType::Text, _) => format!("{column}::VARCHAR"),
            (FieldType::Float, true) => finite(&format!("TRY_CAST({number} AS DOUBLE)")),
            (FieldType::Float, false) => finite(&format!("{column}::DOUBLE")),
            (FieldType::Integer, true) => {
                format!("CASE WHEN {} THEN TRY_CAST({number} AS BIGINT) END", is_integer(&number))
            }
            (other, true) => format!("TRY_CAST({number} AS {})", sql_type(other)),
            (other, false) => format!("TRY_CAST({column} AS {})", sql_type(other)),
        }
    }

    /// What can be wrong with a row, in the order in which it is told.
    pub(super) fn checks(&self, options: &ImportOptions) -> Vec<Check> {
        let time = self.time();
        let check = |column: &str, expected: String, condition: String| Check {
            column: column.to_owned(),
            expected,
            condition,
        };
        let time_check = |expected: &str, condition| check(&self.time.name, expected.to_owned(), condition);
        let latest = options.now_ms + millis(MAX_AHEAD);
        let expected = match self.precision {
            Some(_) => "a number",
            None => "a time such as 2026-11-21T12:00:00Z",
        };
        let mut checks = vec![
            time_check(expected, format!("{time} IS NULL")),
            time_check("a time of at most ten minutes ahead", format!("{time} > {latest}")),
        ];
        if options.allow_old {
            checks.push(time_check("a time of the year 1 or later", format!("{time} < {FIRST_MS}")));
        } else {
            let earliest = options.now_ms - millis(MAX_AGE);
            checks.push(time_check("a time of the last two years, or --allow-old", format!("{time} < {earliest}")));
        }
        if let Some(column) = &self.host_column {
            checks.push(check(
                column,
                "a host, or --host for rows without one".to_owned(),
                format!("{} IS NULL", self.host()),
            ));
        }
        for stored in &self.stored {
            checks.extend(self.check(stored).map(|(expected, condition)| check(&stored.source, expected, condition)));
        }
        checks
    }

    fn check(&self, stored: &Stored) -> Option<(String, String)> {
        let column = ident(&stored.source);
        let number = format!("nullif(trim({column}), '')");
        let unread = |value: &str| format!("{value} IS NOT NULL AND {} IS NULL", self.value(stored));
        match (stored.column.role, stored.column.column_type) {
            (Role::Tag, _) => {
                let condition = format!("strlen({column}::VARCHAR) > {MAX_TAG_BYTES}");
                Some((format!("a tag of at most {MAX_TAG_BYTES} bytes"), condition))
            }
            (Role::Field, FieldType::Text) => {
                let condition = format!("strlen({column}::VARCHAR) > {MAX_TEXT_BYTES}");
                Some((format!("a text of at most {MAX_TEXT_BYTES} bytes"), condition))
            }
            (Role::Field, FieldType::Float) if self.is_text => {
                let nan = format!("isnan(TRY_CAST({number} AS DOUBLE))");
                Some(("a number".to_owned(), format!("{} AND {nan} IS NOT TRUE", unread(&number))))
            }
            (Role::Field, FieldType::Float) => Some(("a finite number".to_owned(), format!("isinf({column}::DOUBLE)"))),
            (Role::Field, FieldType::Integer) => {
                let given = if self.is_text { &number } else { &column };
                Some(("an integer of 64 bits with sign".to_owned(), unread(given)))
            }
            (Role::Field, FieldType::Bool) => {
                let given = if self.is_text { &number } else { &column };
                Some(("true or false".to_owned(), unread(given)))
            }
        }
    }
}

impl Check {
    /// The number of the first of the checks that a row fails, as SQL; null for a good row.
    pub(super) fn first_failed(checks: &[Self]) -> String {
        let cases = checks.iter().enumerate().map(|(number, check)| format!(" WHEN {} THEN {number}", check.condition));
        format!("CASE{} END", cases.collect::<String>())
    }
}

/// Whether a text is an integer, as SQL: DuckDB itself rounds decimals.
pub(super) fn is_integer(text: &str) -> String {
    format!("regexp_full_match({text}, '[+-]?[0-9]+')")
}

/// A float that is not a number is no value, as data frames mark one that is missing.
fn finite(float: &str) -> String {
    format!("(CASE WHEN isfinite({float}) THEN {float} END)")
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).expect("the limits are a few years at most")
}
