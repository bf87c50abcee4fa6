//! `plimsoll backup` and `plimsoll restore`.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use plimsoll_lake::backup::{self, BackupError, BackupReport, RestoreReport, Step};
use plimsoll_query_api::times::rfc3339;
use plimsoll_service::{EXIT_INTERRUPTED, launch, launch::CommonArgs};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    data_dir::DataDirError,
    display::{Display, Shown, count, size, span},
    place::{self, Place, PlaceArgs, UsageError},
};

/// How often the display changes.
const TICK: Duration = Duration::from_millis(250);

/// Flags of `plimsoll backup`.
#[derive(Debug, clap::Args)]
#[command(after_help = BACKUP_NOTES)]
pub struct BackupArgs {
    /// Folder of the backup: new, empty, or with an earlier backup of the same lake, which then takes only what is new
    folder: PathBuf,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

const BACKUP_NOTES: &str = "\
Safe while ingest and maintenance run. The backup is the lake as of one snapshot: a SQLite catalog and the Parquet files, which any DuckDB
client can attach, whatever the lake's own catalog and store are. On the same file system the files are hard links; keep a backup on
another disk. The broker's streams are no part of it. Exit codes: 0 done, 64 wrong usage, 70 failed, 130 interrupted.";

/// Flags of `plimsoll restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = RESTORE_NOTES)]
pub struct RestoreArgs {
    /// Folder of the backup
    folder: PathBuf,
    /// Another lake than the configured one: a folder, or postgres:<connection string> with an empty database
    #[arg(long, value_name = "LAKE")]
    into: Option<String>,
    /// Move an embedded lake aside that is there already
    #[arg(long)]
    force: bool,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

const RESTORE_NOTES: &str = "\
Stop everything that uses the lake first. The backup is checked as a whole before anything is written. When ingest starts again, it goes on
at the backup's positions and stores what the stream still holds since then. Exit codes: 0 done, 64 wrong usage, 70 failed,
130 interrupted.";

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupCommandError {
    /// The lake is in use.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// It failed.
    #[error(transparent)]
    Backup(#[from] BackupError),
}

/// Makes a backup and says what it holds.
pub fn backup(args: BackupArgs) -> Result<ExitCode, UsageError> {
    let place = place::configure(&args.place, args.common.config.as_deref(), None)?;
    Ok(run(args.quiet, move |observe| {
        let report = backup::backup(&place.lake, &args.folder, observe)?;
        Ok(Box::new(move || print_backup(&report)))
    }))
}

/// Restores a backup and says where.
pub fn restore(args: RestoreArgs) -> Result<ExitCode, UsageError> {
    let place = place::configure(&args.place, args.common.config.as_deref(), args.into.as_deref())?;
    Ok(run(args.quiet, move |observe| {
        let _lock = place.lock()?;
        let report = backup::restore(&args.folder, &place.lake, args.force, observe)?;
        Ok(Box::new(move || print_restore(&report, &place)))
    }))
}

type Work = Result<Box<dyn FnOnce() + Send>, BackupCommandError>;

/// Runs blocking work until its end or a signal; then prints what it says.
fn run(
    is_quiet: bool,
    work: impl FnOnce(&mut dyn FnMut(&Step) -> ControlFlow<()>) -> Work + Send + 'static,
) -> ExitCode {
    let mut is_interrupted = false;
    let code = launch::block_on(async |shutdown| {
        let outcome = watched(is_quiet, work, shutdown).await;
        is_interrupted = matches!(outcome, Err(BackupCommandError::Backup(BackupError::Interrupted { .. })));
        outcome.map(|print| print())
    });
    if is_interrupted { ExitCode::from(EXIT_INTERRUPTED) } else { code }
}

async fn watched(
    is_quiet: bool,
    work: impl FnOnce(&mut dyn FnMut(&Step) -> ControlFlow<()>) -> Work + Send + 'static,
    shutdown: CancellationToken,
) -> Work {
    let (steps, step) = watch::channel(Step::default());
    let mut work = tokio::task::spawn_blocking(move || {
        work(&mut |step: &Step| {
            steps.send_replace(step.clone());
            if shutdown.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    });
    let mut display = Display::new(is_quiet);
    let started = Instant::now();
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut work => break outcome.expect("backups do not panic"),
            () = tokio::time::sleep(TICK) => display.show(&shown(&step.borrow(), started.elapsed())),
        }
    };
    display.clear();
    outcome
}

fn shown(step: &Step, elapsed: Duration) -> Shown {
    let rate = step.bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let text = format!(
        "{} {} of {} files, {} of {}, {}/s",
        step.doing,
        step.files,
        step.total_files,
        size(step.bytes),
        size(step.total_bytes),
        size(rate as u64)
    );
    Shown { done: step.bytes, total: step.total_bytes, text }
}

fn print_backup(report: &BackupReport) {
    let files = report.files as u64;
    let new = files - report.kept as u64;
    println!(
        "backed up snapshot {}: {} files, {} in {} ({} new, {} of them hard links; {} removed)",
        report.snapshot,
        count(files),
        size(report.bytes),
        span(report.duration),
        count(new),
        count(report.linked as u64),
        count(report.removed as u64)
    );
}

fn print_restore(report: &RestoreReport, place: &Place) {
    println!(
        "restored snapshot {} of {} into {}: {} files, {} in {}",
        report.snapshot,
        rfc3339(report.created_ms).unwrap_or_default(),
        place.shown(),
        count(report.files as u64),
        size(report.bytes),
        span(report.duration)
    );
    if let Some(aside) = &report.aside {
        println!("the lake that was there is at `{}` now", aside.display());
    }
    println!("ingest goes on at the restored positions and stores what the stream still holds since then");
}
