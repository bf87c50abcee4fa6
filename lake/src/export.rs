//! Exports: a measurement's rows into a file.
//!
//! Rows are sorted by host, tags and time. Sorting spills to disk what memory does not hold. The file is written under a temporary
//! name beside the wanted one and renamed once it is whole, so that no half of one is ever there; one that was begun is removed
//! when the export fails or is interrupted.
//!
//! A Parquet file notes under the key `plimsoll.tags` which columns are tags, so that an import knows them.

mod summaries;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use plimsoll_nats::{Name, batch::FieldType};

pub use self::summaries::Quantile;
use self::summaries::Summaries;
use crate::{
    Access, Lake, LakeConfig, LakeError, Tier,
    connection::{MEASUREMENTS_SCHEMA, has_table},
    error::Context,
    import::Interrupt,
    rollup::sketch::is_summarized,
    schema::{LakeSchema, TableSchema},
    sql::{ident, literal},
};

/// The key of a Parquet file's metadata that names the tags, separated by commas.
pub const TAGS_KEY: &str = "plimsoll.tags";

/// The form of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// Parquet, compressed by zstd.
    Parquet,
    /// Values separated by commas, below a line of names.
    Csv,
    /// A JSON object a line.
    JsonLines,
}

impl ExportFormat {
    /// What a file's name ends in.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::JsonLines => "jsonl",
        }
    }
}

/// What to export.
#[derive(Debug, Clone)]
pub struct ExportQuery {
    /// The measurement.
    pub measurement: Name,
    /// Raw rows or summaries.
    pub tier: Tier,
    /// Quantiles from 0 to 1 that summaries have beside their counts, sums and extremes; none of raw rows.
    pub quantiles: Vec<Quantile>,
    /// Unix ms from which on, inclusive; none takes all from the oldest row on.
    pub from_ms: Option<i64>,
    /// Unix ms up to which, exclusive; none takes all up to the newest row.
    pub to_ms: Option<i64>,
    /// Globs of hosts, such as `web-*`; none takes all.
    pub hosts: Vec<String>,
    /// The fields; none takes all.
    pub fields: Option<Vec<Name>>,
    /// The form of the file.
    pub format: ExportFormat,
    /// Whether CSV and JSON lines are compressed by zstd.
    pub compress: bool,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportReport {
    /// Rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The lake failed.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The lake has no such measurement.
    #[error("the lake has no measurement `{measurement}`: it has {}", list(.known))]
    UnknownMeasurement {
        /// What was asked for.
        measurement: Name,
        /// What there is.
        known: Vec<Name>,
    },
    /// The measurement has no such field.
    #[error("measurement `{measurement}` has no field `{field}`: it has {}", list(.known))]
    UnknownField {
        /// The measurement.
        measurement: Name,
        /// What was asked for.
        field: Name,
        /// What there is.
        known: Vec<Name>,
    },
    /// There are no summaries of that length yet.
    #[error("the lake has no summaries of `{measurement}` in that tier yet: export the tier `raw`")]
    NoTier {
        /// The measurement.
        measurement: Name,
    },
    /// Raw rows have none.
    #[error("raw rows have no quantiles, summaries have: export the tier `1m` or `1h`")]
    RawQuantiles,
    /// The file can't be written.
    #[error("failed to write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ExportError {
    /// Whether the export was told to end.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Lake(LakeError::Interrupted))
    }
}

fn list(names: &[Name]) -> String {
    const SHOWN: usize = 40;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    if shown.is_empty() { "none".to_owned() } else { format!("{}{more}", shown.join(", ")) }
}

/// Writes files of rows. Blocks; give it a thread of its own.
#[derive(Debug)]
pub struct Exporter {
    lake: Lake,
}

impl Exporter {
    /// Opens the lake for reading.
    pub fn open(config: &LakeConfig) -> Result<Self, LakeError> {
        let lake = Lake::open(config, Access::Read)?;
        lake.connection.execute_batch("SET TimeZone = 'UTC'").context("set the time zone")?;
        Ok(Self { lake })
    }

    /// What ends the present statement.
    #[must_use]
    pub fn interrupt(&self) -> Interrupt {
        Interrupt::of(&self.lake)
    }

    /// All measurements by name.
    pub fn measurements(&self) -> Result<Vec<Name>, LakeError> {
        Ok(LakeSchema::read(&self.lake.connection)?.tables().map(|(name, _)| name.clone()).collect())
    }

    /// Writes a measurement's rows to a file, in place of one that is there.
    ///
    /// Fails on an unknown measurement or field, when the lake can't be read or the file not be written.
    pub fn export(&self, query: &ExportQuery, path: &Path) -> Result<ExportReport, ExportError> {
        let schema = LakeSchema::read(&self.lake.connection)?;
        let table = schema.table(&query.measurement).ok_or_else(|| ExportError::UnknownMeasurement {
            measurement: query.measurement.clone(),
            known: schema.tables().map(|(name, _)| name.clone()).collect(),
        })?;
        let select = self.select(query, table)?;
        let partial = Partial::beside(path)?;
        let sql =
            format!("COPY ({select}) TO {} ({})", literal(&partial.path.to_string_lossy()), options(query, table));
        let rows = self.lake.connection.execute(&sql, []).context("write the rows")?;
        let bytes = partial.finish(path)?;
        Ok(ExportReport { rows: rows as u64, bytes })
    }

    fn select(&self, query: &ExportQuery, table: &TableSchema) -> Result<String, ExportError> {
        let fields = fields(query, table)?;
        let relation = query.tier.table(&query.measurement);
        if query.tier == Tier::Raw && !query.quantiles.is_empty() {
            return Err(ExportError::RawQuantiles);
        }
        let table_name = query.tier.table_name(&query.measurement);
        if query.tier != Tier::Raw && !has_table(&self.lake.connection, MEASUREMENTS_SCHEMA, &table_name)? {
            return Err(ExportError::NoTier { measurement: query.measurement.clone() });
        }
        let ts = match query.format {
            ExportFormat::Parquet => "rows.ts".to_owned(),
            ExportFormat::Csv | ExportFormat::JsonLines => {
                "strftime(rows.ts, '%Y-%m-%dT%H:%M:%S.%gZ') AS ts".to_owned()
            }
        };
        let series: Vec<String> = ["host".to_owned()].into_iter().chain(table.tags().map(|tag| ident(tag))).collect();
        let condition = condition(query);
        let (columns, from) = if query.tier == Tier::Raw {
            let columns = fields.iter().map(|(field, _)| format!(", {}", ident(field))).collect();
            (columns, format!("{relation} AS rows WHERE {condition}"))
        } else {
            let relation = format!("(SELECT * FROM {relation} WHERE {condition})");
            let numbers = fields.into_iter().filter(|(_, kind)| is_summarized(*kind)).map(|(field, _)| field).collect();
            let summaries =
                Summaries { relation, series: series.clone(), fields: numbers, quantiles: &query.quantiles };
            (summaries.columns(), summaries.rows())
        };
        let series: Vec<String> = series.iter().map(|key| format!("rows.{key}")).collect();
        let series = series.join(", ");
        // By the column of that name and not by the text that is made of it.
        Ok(format!("SELECT {ts}, {series}{columns} FROM {from} ORDER BY {series}, rows.ts"))
    }
}

fn fields(query: &ExportQuery, table: &TableSchema) -> Result<Vec<(Name, FieldType)>, ExportError> {
    let all: Vec<(Name, FieldType)> = table.fields().map(|(name, kind)| (name.clone(), kind)).collect();
    let Some(wanted) = &query.fields else { return Ok(all) };
    let find = |field: &Name| {
        all.iter().find(|(name, _)| name == field).cloned().ok_or_else(|| ExportError::UnknownField {
            measurement: query.measurement.clone(),
            field: field.clone(),
            known: all.iter().map(|(name, _)| name.clone()).collect(),
        })
    };
    wanted.iter().map(find).collect()
}

fn condition(query: &ExportQuery) -> String {
    let time = |unix_ms: i64| format!("epoch_ms({unix_ms}::BIGINT)::TIMESTAMP_MS");
    let mut conditions = vec!["true".to_owned()];
    conditions.extend(query.from_ms.map(|from| format!("ts >= {}", time(from))));
    conditions.extend(query.to_ms.map(|to| format!("ts < {}", time(to))));
    if !query.hosts.is_empty() {
        let hosts: Vec<String> = query.hosts.iter().map(|glob| format!("host GLOB {}", literal(glob))).collect();
        conditions.push(format!("({})", hosts.join(" OR ")));
    }
    conditions.join(" AND ")
}

fn options(query: &ExportQuery, table: &TableSchema) -> String {
    let compression = if query.compress { ", COMPRESSION zstd" } else { "" };
    match query.format {
        ExportFormat::Parquet => {
            let tags: Vec<String> = table.tags().map(ToString::to_string).collect();
            let tags = literal(&tags.join(","));
            format!("FORMAT parquet, COMPRESSION zstd, PARQUET_VERSION v2, KV_METADATA {{{}: {tags}}}", ident(TAGS_KEY))
        }
        ExportFormat::Csv => format!("FORMAT csv, HEADER true{compression}"),
        ExportFormat::JsonLines => format!("FORMAT json, ARRAY false{compression}"),
    }
}

/// A file that is not whole yet; dropping it removes it.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn beside(path: &Path) -> Result<Self, ExportError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        // Made here, so that a folder that does not exist is told before anything is read.
        match File::create(&partial) {
            Ok(_) => Ok(Self { path: partial }),
            Err(source) => Err(ExportError::Write { path: path.to_owned(), source }),
        }
    }

    /// Gives the file its name once its bytes are on disk; returns how many they are.
    fn finish(self, path: &Path) -> Result<u64, ExportError> {
        let finish = || {
            let file = File::open(&self.path)?;
            file.sync_all()?;
            fs::rename(&self.path, path)?;
            Ok(file.metadata()?.len())
        };
        finish().map_err(|source| ExportError::Write { path: path.to_owned(), source })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already where it was given its name.
        let _ = fs::remove_file(&self.path);
    }
}
