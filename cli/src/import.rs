//! `plimsoll import`: files into the lake.

mod influx;
mod progress;

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use clap::ValueEnum;
use plimsoll_agent::custom::influx::Precision;
use plimsoll_lake::{
    LakeConfig, LakeError,
    import::{self, ImportError, ImportOptions, Importer, Stored, TableFormat, TableSource},
};
use plimsoll_nats::{HostId, Name, now_ms, spelling};
use plimsoll_service::launch::CommonArgs;
use tokio_util::sync::CancellationToken;

use self::{
    influx::{LineSource, Names},
    progress::Progress,
};
use crate::{
    place::{self, PlaceArgs, UsageError},
    stop::Stop,
};

/// Flags of `plimsoll import`.
#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
pub struct ImportArgs {
    /// Files to import; `-` reads CSV, JSON lines or Influx line protocol from the standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Form of the files [default: by each file's name]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// Measurement that the rows go to [default: the file's name up to the first dot; that of each Influx line]
    #[arg(long, value_name = "NAME")]
    measurement: Option<String>,
    /// Put the rows of one Influx measurement into another; can be repeated
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_rename)]
    rename: Vec<(String, Name)>,
    /// Host of rows that name none
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Column of hosts [default: host]
    #[arg(long, value_name = "COLUMN")]
    host_column: Option<String>,
    /// Column of times [default: the first of ts, time, timestamp and _time]
    #[arg(long, value_name = "COLUMN")]
    time_column: Option<String>,
    /// Unit of times that are numbers; other times are RFC 3339 [default for Influx: ns]
    #[arg(long, alias = "time-unit", value_enum, value_name = "UNIT")]
    precision: Option<Unit>,
    /// Columns that are tags [default: those that the lake, the catalog or an export knows as such]
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,…")]
    tags: Option<Vec<String>>,
    /// Columns that are fields [default: all that are nothing else]
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,…")]
    fields: Option<Vec<String>>,
    /// Columns to leave out
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,…")]
    exclude: Vec<String>,
    /// Take rows that are older than two years
    #[arg(long)]
    allow_old: bool,
    /// Leave out lines and rows that can't be stored, and count them, instead of ending at the first
    #[arg(long)]
    skip_bad_lines: bool,
    /// Read and check everything, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Rows that are stored at a time
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..), value_name = "ROWS")]
    chunk_rows: u64,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

const NOTES: &str = "\
Names become those of the lake as custom metrics' names do. A series has one row a time: what the lake holds already stays and is not
stored again, so that importing a file twice changes nothing, and an import that ended goes on when it is run again. It may run while
ingest does. Names of files other than Parquet may end in .gz or .zst. See docs/import-export.md.";

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Parquet
    Parquet,
    /// Values with a separator, below a line of names
    Csv,
    /// A JSON object a line
    Jsonl,
    /// Influx line protocol
    Influx,
}

/// The unit of times that are numbers.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Unit {
    /// Nanoseconds
    Ns,
    /// Microseconds
    Us,
    /// Milliseconds
    Ms,
    /// Seconds
    S,
}

impl Unit {
    fn of_lines(self) -> Precision {
        match self {
            Self::Ns => Precision::Nanoseconds,
            Self::Us => Precision::Microseconds,
            Self::Ms => Precision::Milliseconds,
            Self::S => Precision::Seconds,
        }
    }

    fn of_tables(self) -> import::Precision {
        match self {
            Self::Ns => import::Precision::Nanoseconds,
            Self::Us => import::Precision::Microseconds,
            Self::Ms => import::Precision::Milliseconds,
            Self::S => import::Precision::Seconds,
        }
    }
}

/// What is to be done, checked.
#[derive(Debug)]
pub struct ImportPlan {
    lake: LakeConfig,
    inputs: Vec<Input>,
    options: ImportOptions,
    skip_bad: bool,
    chunk_rows: u64,
}

/// One of the files.
#[derive(Debug)]
enum Input {
    Table(TableSource),
    Lines(LineSource),
}

/// Why the command line can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] UsageError),
    /// A file's form is not known.
    #[error("`{file}`: name its form with --format parquet, csv, jsonl or influx")]
    Format {
        /// The file.
        file: PathBuf,
    },
    /// A file can't be what it should be.
    #[error("`{file}`: {problem}")]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
}

/// Why an import ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It was told to.
    #[error("the import was interrupted: run it again to go on, what is stored is left out")]
    Interrupted,
    /// Rows can't be stored.
    #[error(transparent)]
    Import(Box<ImportError>),
    /// A row or line can't be stored.
    #[error(
        "the import ended at what can't be stored, and nothing of its chunk is: mend it and run the import again, what is stored is left out; or leave such out with --skip-bad-lines"
    )]
    Bad(#[source] Box<ImportError>),
    /// The lake can't be opened.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A file can't be read.
    #[error("failed to read `{file}`")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread that imports has ended.
    #[error("the import broke off")]
    Thread(#[from] tokio::task::JoinError),
}

impl From<ImportError> for RunError {
    fn from(error: ImportError) -> Self {
        match error {
            error if error.is_interrupted() => Self::Interrupted,
            ImportError::BadLine { .. } | ImportError::BadRow { .. } => Self::Bad(Box::new(error)),
            error => Self::Import(Box::new(error)),
        }
    }
}

fn parse_rename(text: &str) -> Result<(String, Name), String> {
    let (old, new) = text.split_once('=').ok_or("expected OLD=NEW")?;
    Ok((old.to_owned(), Name::parse(new).map_err(|error| error.to_string())?))
}

/// Reads flags and configuration. Fails on anything wrong, before the lake is opened.
pub fn configure(args: &ImportArgs) -> Result<ImportPlan, PlanError> {
    let lake = place::configure(&args.place, args.common.config.as_deref(), None)?.lake;
    let host = place::name("--host", args.host.as_deref(), HostId::parse)?;
    let measurement = place::name("--measurement", args.measurement.as_deref(), Name::parse)?;
    let now_ms = now_ms();
    let names = Names {
        measurement: measurement.clone(),
        rename: args.rename.iter().cloned().collect::<HashMap<_, _>>(),
        host: host.clone(),
    };
    let options = ImportOptions { now_ms, allow_old: args.allow_old, dry_run: args.dry_run };
    let input = |path: &PathBuf| {
        let is_stdin = path.as_os_str() == "-";
        let format = args.format.or_else(|| format_of(path)).ok_or_else(|| PlanError::Format { file: path.clone() })?;
        let problem = |problem| PlanError::File { file: path.clone(), problem };
        let format = match format {
            Format::Influx => {
                let precision = args.precision.map_or(Precision::Nanoseconds, Unit::of_lines);
                return Ok(Input::Lines(LineSource { path: path.clone(), precision, names: names.clone(), options }));
            }
            Format::Parquet if is_stdin => {
                return Err(problem("Parquet can't be read from the standard input: name a file"));
            }
            Format::Parquet => TableFormat::Parquet,
            Format::Csv => TableFormat::Csv,
            Format::Jsonl => TableFormat::JsonLines,
        };
        let measurement = match &measurement {
            Some(measurement) => measurement.clone(),
            None if is_stdin => return Err(problem("name the measurement with --measurement")),
            None => spelling::normalise(stem(path)),
        };
        Ok(Input::Table(TableSource {
            path: path.clone(),
            format,
            measurement,
            host: host.clone(),
            host_column: args.host_column.clone(),
            time_column: args.time_column.clone(),
            precision: args.precision.map(Unit::of_tables),
            tags: args.tags.clone(),
            fields: args.fields.clone(),
            exclude: args.exclude.clone(),
            skip_bad: args.skip_bad_lines,
            chunk_rows: args.chunk_rows,
        }))
    };
    let inputs = args.files.iter().map(input).collect::<Result<_, _>>()?;
    Ok(ImportPlan { lake, inputs, options, skip_bad: args.skip_bad_lines, chunk_rows: args.chunk_rows })
}

/// A file's name up to the first dot.
fn stem(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next()).unwrap_or_default()
}

fn format_of(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "csv" | "tsv" => Some(Format::Csv),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        "parquet" | "pq" => Some(Format::Parquet),
        "lp" | "influx" | "line" => Some(Format::Influx),
        _ => None,
    }
}

/// Imports everything, or until `shutdown`.
pub async fn run(plan: ImportPlan, shutdown: CancellationToken) -> Result<(), RunError> {
    let stop = Arc::new(Stop::default());
    let work = {
        let stop = Arc::clone(&stop);
        tokio::task::spawn_blocking(move || import(plan, &stop))
    };
    stop.until_done(work, &shutdown).await?
}

fn import(plan: ImportPlan, stop: &Stop) -> Result<(), RunError> {
    let mut importer = Importer::open(&plan.lake, plan.options)?;
    stop.by(importer.interrupt());
    let mut total = Stored::default();
    let (started, files) = (Instant::now(), plan.inputs.len());
    let mut outcome = Ok(());
    for input in plan.inputs {
        outcome = match input {
            Input::Table(source) => import_table(&mut importer, source, &mut total, stop),
            Input::Lines(source) => {
                influx::import(&mut importer, source, plan.skip_bad, plan.chunk_rows, &mut total, stop)
            }
        };
        if outcome.is_err() {
            break;
        }
    }
    progress::summary(&total, files, started.elapsed(), plan.options.dry_run);
    outcome
}

fn import_table(
    importer: &mut Importer,
    mut source: TableSource,
    total: &mut Stored,
    stop: &Stop,
) -> Result<(), RunError> {
    let path = source.path.clone();
    let spooled = Spooled::of_stdin(&path).map_err(|source| RunError::Read { file: path.clone(), source })?;
    if let Some(spooled) = &spooled {
        source.path.clone_from(&spooled.0);
    }
    let progress = Progress::begin(&path, &source.measurement);
    let mut file = importer.open_table(source)?;
    progress.rows(file.rows());
    while let Some(chunk) = importer.next_chunk(&mut file)? {
        total.add(&chunk.stored);
        chunk.bad.iter().for_each(|bad| progress.left_out(&path, bad));
        progress.at(chunk.done);
        if stop.is_asked() {
            return Err(RunError::Interrupted);
        }
    }
    Ok(())
}

/// A file that holds what came by the standard input; dropping it removes it.
struct Spooled(PathBuf);

impl Spooled {
    fn of_stdin(path: &Path) -> io::Result<Option<Self>> {
        if path.as_os_str() != "-" {
            return Ok(None);
        }
        let spooled = Self(std::env::temp_dir().join(format!("plimsoll-import-{}", std::process::id())));
        io::copy(&mut io::stdin().lock(), &mut File::create_new(&spooled.0)?)?;
        Ok(Some(spooled))
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // What stays lies in the folder for temporary files.
        let _ = std::fs::remove_file(&self.0);
    }
}
