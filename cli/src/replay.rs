//! `plimsoll replay`: rebuilds or fills a lake from the stream.

use std::{process::ExitCode, time::Duration};

use plimsoll_ingest::replay::{self, Progress, ReplayConfig, ReplayError, ReplayLimits, Selection, Summary};
use plimsoll_nats::{Client, ConnectError, now_ms};
use plimsoll_query_api::times::{parse_duration, parse_time, rfc3339};
use plimsoll_service::{EXIT_INTERRUPTED, launch, launch::CommonArgs};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    display::{Display, Shown, count, span, tell},
    place::{self, Place, PlaceArgs, UsageError},
};

/// How often the display changes.
const TICK: Duration = Duration::from_millis(250);

/// Flags of `plimsoll replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
pub struct ReplayArgs {
    /// Read what the broker has stored since then: how long ago, such as 6h or 7d, or a time such as 2026-11-21T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: String,
    /// Read what it has stored before then [default: everything until now]
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only these hosts: names or patterns such as web-*, separated by commas
    #[arg(long, value_name = "HOSTS", value_delimiter = ',')]
    hosts: Vec<String>,
    /// Only these measurements: names or patterns such as mem*, separated by commas
    #[arg(long, value_name = "MEASUREMENTS", value_delimiter = ',')]
    measurements: Vec<String>,
    /// Another lake than the configured one: a folder, or postgres:<connection string>; an embedded one is created where it is missing
    #[arg(long, value_name = "LAKE")]
    into: Option<String>,
    /// Address of the broker [default: nats://127.0.0.1:4222]
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,
    /// Begin anew though the same replay was interrupted
    #[arg(long)]
    restart: bool,
    /// Read and count only
    #[arg(long)]
    dry_run: bool,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

const NOTES: &str = "\
Safe while ingest runs, and as often as you like: rows that the lake has are left out, and what ingest has yet to store is left to it.
Into a lake that nothing was ever ingested into, everything is stored, and ingest goes on right after it. Interrupted (Ctrl-C, a crash),
the same command goes on where it was. Exit codes: 0 done, 64 wrong usage, 70 failed, 130 interrupted.";

/// Why a replay did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayCommandError {
    /// The broker is away.
    #[error("failed to connect to the broker at {url}: name it with --nats-url, or in [nats]")]
    Connect {
        /// Its address.
        url: String,
        /// Why.
        source: ConnectError,
    },
    /// There is no lake.
    #[error(
        "there is no lake at {place} yet: ingest creates it when it first starts; name another or a new one with --into"
    )]
    NoLake {
        /// Where.
        place: String,
    },
    /// The replay failed.
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

/// What a command line asks for.
#[derive(Debug)]
pub struct ReplayCommand {
    place: Place,
    config: ReplayConfig,
    is_quiet: bool,
}

/// Reads flags and configuration. Fails on anything wrong.
pub fn configure(args: &ReplayArgs) -> Result<ReplayCommand, UsageError> {
    let mut place = place::configure(&args.place, args.common.config.as_deref(), args.into.as_deref())?;
    if let Some(url) = &args.nats_url {
        place.nats.url.clone_from(url);
    }
    let now_ms = now_ms();
    let since_ms = time("since", &args.since, now_ms)?;
    let until_ms = args.until.as_deref().map(|text| time("until", text, now_ms)).transpose()?;
    if since_ms >= until_ms.unwrap_or(now_ms).min(now_ms) {
        return Err(UsageError::Interval);
    }
    let wrong = |flag| move |source| UsageError::Selection { flag, source };
    Selection::parse(&args.hosts, &[]).map_err(wrong("hosts"))?;
    let selection = Selection::parse(&args.hosts, &args.measurements).map_err(wrong("measurements"))?;
    let config = ReplayConfig {
        lake: place.lake.clone(),
        is_named: args.into.is_some(),
        selection,
        since_ms,
        until_ms,
        restarts: args.restart,
        is_trial: args.dry_run,
        limits: ReplayLimits::default(),
    };
    Ok(ReplayCommand { place, config, is_quiet: args.quiet })
}

fn time(flag: &'static str, text: &str, now_ms: i64) -> Result<i64, UsageError> {
    let ago = parse_duration(text).and_then(|ago| now_ms.checked_sub(i64::try_from(ago.as_millis()).ok()?));
    ago.or_else(|| parse_time(text, now_ms))
        .ok_or_else(|| UsageError::Time { flag, text: text.chars().take(80).collect() })
}

/// Runs it until its end or a signal, and says what was done.
pub fn run(command: ReplayCommand) -> ExitCode {
    let mut is_interrupted = false;
    let code = launch::block_on(async |shutdown| {
        let summary = replay(command, shutdown).await?;
        print(&summary);
        is_interrupted = !summary.is_complete;
        Ok::<_, ReplayCommandError>(())
    });
    if is_interrupted {
        tell("interrupted: what is stored stays, and the same command goes on from there");
        return ExitCode::from(EXIT_INTERRUPTED);
    }
    code
}

async fn replay(command: ReplayCommand, shutdown: CancellationToken) -> Result<Summary, ReplayCommandError> {
    let ReplayCommand { place, config, is_quiet } = command;
    let is_missing = place.catalog_file().is_some_and(|file| !file.exists());
    if is_missing && !config.is_named && !config.is_trial {
        return Err(ReplayCommandError::NoLake { place: place.shown() });
    }
    let client = Client::connect_once(&place.nats, "plimsoll-replay").await;
    let client = client.map_err(|source| ReplayCommandError::Connect { url: place.nats.shown_url(), source })?;
    let (sender, progress) = watch::channel(Progress::default());
    let mut display = Display::new(is_quiet);
    let started = std::time::Instant::now();
    let running = replay::run(config, client, sender, shutdown);
    tokio::pin!(running);
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut running => break outcome,
            () = tokio::time::sleep(TICK) => display.show(&shown(&progress.borrow(), started.elapsed())),
        }
    };
    display.clear();
    Ok(outcome?)
}

fn shown(progress: &Progress, elapsed: Duration) -> Shown {
    let rate = progress.points as f64 / elapsed.as_secs_f64().max(0.001);
    let text = format!(
        "{} of {} messages, {} rows, {} stored, {} points/s",
        count(progress.messages),
        count(progress.total),
        count(progress.rows),
        count(progress.stored),
        count(rate as u64)
    );
    Shown { done: progress.messages, total: progress.total, text }
}

fn print(summary: &Summary) {
    let Progress { messages, rows, points, stored, present, left, refused, .. } = &summary.progress;
    let rate = *points as f64 / summary.duration.as_secs_f64().max(0.001);
    if let Some(held) = summary.held_since_ms {
        let held = rfc3339(held).unwrap_or_else(|| held.to_string());
        tell(&format!("the stream holds nothing older than {held}, so that the replay began there"));
    }
    if let Some(after) = summary.resumed_after {
        println!("went on after message {} of the stream", count(after.0));
    }
    println!(
        "read {} messages: {} rows, {} points in {} ({} points/s)",
        count(*messages),
        count(*rows),
        count(*points),
        span(summary.duration),
        count(rate as u64)
    );
    println!("stored {} rows; {} were there already", count(*stored), count(*present));
    if *left > 0 {
        println!("left {} messages to ingest, which has yet to store them", count(*left));
    }
    if summary.rebuilt && summary.is_complete {
        println!("nothing was ingested into this lake before: ingest goes on right after what was replayed");
    }
    let total: u64 = refused.values().sum();
    if total > 0 {
        println!("refused {} messages:", count(total));
        refused.iter().for_each(|(reason, messages)| println!("  {} × {reason}", count(*messages)));
    }
}
