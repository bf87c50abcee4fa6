//! `plimsoll export`: rows of the lake into files.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use clap::ValueEnum;
use plimsoll_lake::{
    LakeConfig, LakeError, Tier,
    export::{ExportError, ExportFormat, ExportQuery, Exporter, Quantile},
};
use plimsoll_nats::{Name, now_ms};
use plimsoll_query_api::times::{EXPECTED_TIME, parse_time};
use plimsoll_service::launch::CommonArgs;
use tokio_util::sync::CancellationToken;

use crate::{
    place::{self, PlaceArgs, UsageError},
    stop::Stop,
};

/// Flags of `plimsoll export`.
#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
pub struct ExportArgs {
    /// Measurement to export; all, each into a file of the folder --output, where none is named
    #[arg(long, value_name = "NAME")]
    measurement: Option<String>,
    /// Rows from this time on: RFC 3339, Unix seconds or ms, or a time ago such as -7d
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    since: Option<String>,
    /// Rows before this time
    #[arg(long, allow_hyphen_values = true, value_name = "TIME")]
    until: Option<String>,
    /// Globs of hosts, such as web-*
    #[arg(long, value_delimiter = ',', value_name = "GLOB,…")]
    hosts: Vec<String>,
    /// Fields [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    fields: Option<Vec<String>>,
    /// Raw rows, or summaries by minute or hour
    #[arg(long, value_enum, default_value = "raw", value_name = "TIER")]
    tier: TierArg,
    /// Quantiles of summaries, from 0 to 1: 0.95 becomes the column FIELD_p95, within 1 % of the exact value
    #[arg(long, value_delimiter = ',', value_name = "Q,…")]
    quantiles: Vec<String>,
    /// Form of the file [default: by its name, or Parquet]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// File to write, `-` for the standard output, or the folder for all measurements [default: MEASUREMENT.FORMAT]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Compress CSV and JSON lines by zstd; Parquet always is
    #[arg(long)]
    compress: bool,
    /// Replace files that are there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

const NOTES: &str = "\
Rows are sorted by host, tags and time. What ingest has not committed yet, a minute's samples by default, is not among them. A file
appears once it is whole; one that was begun goes when the export is interrupted. See docs/import-export.md.";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TierArg {
    /// As they were sampled
    Raw,
    /// Summaries of minutes
    #[value(name = "1m")]
    Minute,
    /// Summaries of hours
    #[value(name = "1h")]
    Hour,
}

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Parquet, which keeps types and tags
    Parquet,
    /// Values separated by commas, below a line of names
    Csv,
    /// A JSON object a line
    Jsonl,
}

impl Format {
    fn of_lake(self) -> ExportFormat {
        match self {
            Self::Parquet => ExportFormat::Parquet,
            Self::Csv => ExportFormat::Csv,
            Self::Jsonl => ExportFormat::JsonLines,
        }
    }
}

/// What is to be done, checked.
#[derive(Debug)]
pub struct ExportPlan {
    lake: LakeConfig,
    query: ExportQuery,
    output: Output,
    overwrite: bool,
}

#[derive(Debug)]
enum Output {
    Stdout,
    File(PathBuf),
    Folder(PathBuf),
}

/// Why the command line can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] UsageError),
    /// A flag's value is no time.
    #[error("{flag}: expected {EXPECTED_TIME}")]
    Time {
        /// The flag.
        flag: &'static str,
    },
    /// A flag's value is no quantile.
    #[error("--quantiles `{text}`: expected numbers from 0 to 1, each once, such as `0.5,0.95,0.99`")]
    Quantile {
        /// The text.
        text: String,
    },
    /// Raw rows have none.
    #[error("--quantiles are those of summaries, and raw rows have none: add --tier 1m or --tier 1h")]
    RawQuantiles,
    /// All measurements need a folder.
    #[error("name a measurement with --measurement, or a folder for all of them with --output")]
    NoMeasurement,
}

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It was told to.
    #[error("the export was interrupted: no part of a file is left")]
    Interrupted,
    /// The lake or a file failed.
    #[error(transparent)]
    Export(ExportError),
    /// The lake can't be opened.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// A file is there already.
    #[error("`{path}` is there already: name another with --output, or replace it with --overwrite")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file can't be used.
    #[error("failed to write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The thread that exports has ended.
    #[error("the export broke off")]
    Thread(#[from] tokio::task::JoinError),
}

impl From<ExportError> for RunError {
    fn from(error: ExportError) -> Self {
        if error.is_interrupted() { Self::Interrupted } else { Self::Export(error) }
    }
}

/// Reads flags and configuration. Fails on anything wrong, before the lake is opened.
pub fn configure(args: &ExportArgs) -> Result<ExportPlan, PlanError> {
    let lake = place::configure(&args.place, args.common.config.as_deref(), None)?.lake;
    let measurement = place::name("--measurement", args.measurement.as_deref(), Name::parse)?;
    let names = |fields: &Vec<String>| fields.iter().map(|field| Name::parse(field)).collect::<Result<Vec<_>, _>>();
    let fields = args.fields.as_ref().map(names).transpose();
    let fields = fields.map_err(|source| UsageError::Name { flag: "--fields", source })?;
    let now_ms = now_ms();
    let time = |flag: &'static str, text: &Option<String>| match text {
        Some(text) => parse_time(text, now_ms).map(Some).ok_or(PlanError::Time { flag }),
        None => Ok(None),
    };
    let format = args.format.or_else(|| format_of(args.output.as_deref()?)).unwrap_or(Format::Parquet).of_lake();
    let query = ExportQuery {
        measurement: measurement.clone().unwrap_or_else(|| Name::parse("all").expect("a name")),
        tier: match args.tier {
            TierArg::Raw => Tier::Raw,
            TierArg::Minute => Tier::Minute,
            TierArg::Hour => Tier::Hour,
        },
        quantiles: quantiles(args)?,
        from_ms: time("--since", &args.since)?,
        to_ms: time("--until", &args.until)?,
        hosts: args.hosts.clone(),
        fields,
        format,
        compress: args.compress
            || args.output.as_deref().is_some_and(|path| path.extension().is_some_and(|e| e == "zst")),
    };
    let output = match (&args.output, &measurement) {
        (Some(path), Some(_)) if path.as_os_str() == "-" => Output::Stdout,
        (Some(path), Some(_)) => Output::File(path.clone()),
        (Some(path), None) if path.as_os_str() != "-" => Output::Folder(path.clone()),
        (None, Some(measurement)) => Output::File(file_name(measurement, &query).into()),
        (_, None) => return Err(PlanError::NoMeasurement),
    };
    Ok(ExportPlan { lake, query, output, overwrite: args.overwrite })
}

fn quantiles(args: &ExportArgs) -> Result<Vec<Quantile>, PlanError> {
    if matches!(args.tier, TierArg::Raw) && !args.quantiles.is_empty() {
        return Err(PlanError::RawQuantiles);
    }
    let mut quantiles = Vec::new();
    for text in &args.quantiles {
        let quantile = Quantile::parse(text).filter(|quantile| !quantiles.contains(quantile));
        quantiles.push(quantile.ok_or_else(|| PlanError::Quantile { text: text.clone() })?);
    }
    Ok(quantiles)
}

fn format_of(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?;
    match name.strip_suffix(".zst").unwrap_or(name).rsplit_once('.')?.1 {
        "parquet" => Some(Format::Parquet),
        "csv" => Some(Format::Csv),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        _ => None,
    }
}

fn file_name(measurement: &Name, query: &ExportQuery) -> String {
    let compressed = if query.compress && query.format != ExportFormat::Parquet { ".zst" } else { "" };
    format!("{measurement}{}.{}{compressed}", query.tier.suffix(), query.format.extension())
}

/// Exports everything, or until `shutdown`.
pub async fn run(plan: ExportPlan, shutdown: CancellationToken) -> Result<(), RunError> {
    let stop = Arc::new(Stop::default());
    let work = {
        let stop = Arc::clone(&stop);
        tokio::task::spawn_blocking(move || export(&plan, &stop))
    };
    stop.until_done(work, &shutdown).await?
}

fn export(plan: &ExportPlan, stop: &Stop) -> Result<(), RunError> {
    let exporter = Exporter::open(&plan.lake)?;
    stop.by(exporter.interrupt());
    match &plan.output {
        Output::File(path) => write(&exporter, &plan.query, path, plan.overwrite),
        Output::Stdout => to_stdout(&exporter, &plan.query),
        Output::Folder(folder) => {
            fs::create_dir_all(folder).map_err(|source| RunError::Write { path: folder.clone(), source })?;
            for measurement in exporter.measurements()? {
                if stop.is_asked() {
                    return Err(RunError::Interrupted);
                }
                let path = folder.join(file_name(&measurement, &plan.query));
                write(&exporter, &ExportQuery { measurement, ..plan.query.clone() }, &path, plan.overwrite)?;
            }
            Ok(())
        }
    }
}

fn write(exporter: &Exporter, query: &ExportQuery, path: &Path, overwrite: bool) -> Result<(), RunError> {
    if !overwrite && path.exists() {
        return Err(RunError::Exists { path: path.to_owned() });
    }
    let started = Instant::now();
    let report = exporter.export(query, path)?;
    tell(&path.display().to_string(), report.rows, report.bytes, started);
    Ok(())
}

/// Writes a temporary file and then its bytes: Parquet's end tells where its beginning is.
fn to_stdout(exporter: &Exporter, query: &ExportQuery) -> Result<(), RunError> {
    let path = std::env::temp_dir().join(format!("plimsoll-export-{}", std::process::id()));
    let started = Instant::now();
    let report = exporter.export(query, &path)?;
    let copied = File::open(&path).and_then(|mut file| {
        // Its bytes stay until it is closed, and are gone however this ends.
        fs::remove_file(&path)?;
        io::copy(&mut file, &mut io::stdout().lock())
    });
    match copied {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        copied => copied.map_err(|source| RunError::Write { path: "-".into(), source })?,
    };
    tell("the standard output", report.rows, report.bytes, started);
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the outcome, for the one who started it")]
fn tell(what: &str, rows: u64, bytes: u64, started: Instant) {
    eprintln!("exported {rows} rows, {bytes} bytes to {what} in {:.1} s", started.elapsed().as_secs_f64());
}
