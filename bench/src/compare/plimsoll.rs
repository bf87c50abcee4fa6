//! Plimsoll: a broker, ingest from the broker to committed Parquet, and the lake.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use plimsoll_lake::{Access, Lake, LakeConfig, LakeStatus, LakeWriter, rollup::RollupLimits};
use plimsoll_nats::{
    NatsConfig,
    server::{Server, ServerConfig},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    CompareError,
    dataset::Dataset,
    process::{Process, Usage, folder_bytes, free_port},
};
use crate::{FleetConfig, publish::Publisher, recording::RecordingReader};

/// How long nothing may happen in ingest.
const STALLED: Duration = Duration::from_secs(60);

/// What came of a data set that went through a broker.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ingested {
    pub(super) usage: Usage,
    pub(super) wall: Duration,
    /// What the broker took to store the messages, and to hand them to ingest.
    pub(super) broker_storing: Duration,
    pub(super) broker_giving: Duration,
    pub(super) broker_peak_bytes: u64,
    pub(super) broker_bytes: u64,
}

/// Puts recorded messages into a broker, and then measures ingest alone: until the lake contains all of them.
pub(super) async fn ingest(
    recording: &Path,
    messages: u64,
    points: u64,
    folder: &Path,
) -> Result<Ingested, CompareError> {
    let server = ServerConfig {
        port: None,
        store_dir: folder.join("broker"),
        run_dir: folder.join("broker-run"),
        // Others acknowledge what is in memory.
        sync_always: false,
    };
    let broker = Server::start(&server).await?;
    let broker_usage = || {
        let pid = broker.pid().unwrap_or_default();
        Usage::of(pid).map_err(|source| CompareError::Ended { name: "nats-server", words: String::new(), source })
    };
    store(recording, broker.url()).await?;
    let stored = broker_usage()?;
    let http = free_port()?;
    let mut process = start_ingest(broker.url(), http, folder)?;
    let (started, client) = (Instant::now(), reqwest::Client::builder().no_proxy().build()?);
    let (mut committed, mut since) = ((0, 0), Instant::now());
    while committed.0 < messages {
        tokio::time::sleep(Duration::from_millis(20)).await;
        process.check()?;
        let now = counters(&client, http).await.unwrap_or(committed);
        if now != committed {
            (committed, since) = (now, Instant::now());
        } else if since.elapsed() > STALLED {
            return Err(CompareError::Stalled { committed: committed.0, messages });
        }
    }
    let wall = started.elapsed();
    let usage = process.usage()?;
    let given = broker_usage()?;
    if committed != (messages, points) {
        return Err(CompareError::Count { name: "Plimsoll", expected: points, found: committed.1 });
    }
    process.stop().await?;
    broker.stop().await;
    Ok(Ingested {
        usage,
        wall,
        broker_storing: stored.cpu,
        broker_giving: given.cpu.saturating_sub(stored.cpu),
        broker_peak_bytes: given.peak_bytes,
        broker_bytes: folder_bytes(&server.store_dir),
    })
}

async fn store(recording: &Path, url: &str) -> Result<(), CompareError> {
    let config = NatsConfig { url: url.to_owned(), ..NatsConfig::default() };
    let mut publisher = Publisher::connect(&config).await?;
    for record in RecordingReader::open(recording)? {
        publisher.send_recorded(record?).await?;
    }
    publisher.finish().await?;
    Ok(())
}

fn start_ingest(broker: &str, http: u16, folder: &Path) -> Result<Process, CompareError> {
    let lake = LakeConfig::embedded(&folder.join("lake"));
    let variables = [
        ("PLIMSOLL_NATS__URL", broker.to_owned()),
        ("PLIMSOLL_INGEST__HTTP", format!("127.0.0.1:{http}")),
        // Its samples of itself would count as points, and maintenance is measured by itself.
        ("PLIMSOLL_INGEST__PUBLISH_METRICS", "false".to_owned()),
        ("PLIMSOLL_INGEST__MAINTENANCE__ENABLED", "false".to_owned()),
        // The last commit need not wait for more that never comes; all others are due by their rows.
        ("PLIMSOLL_INGEST__COMMIT_INTERVAL", "2s".to_owned()),
        ("PLIMSOLL_LAKE__CATALOG", lake.catalog),
        ("PLIMSOLL_LAKE__DATA_PATH", lake.data_path),
    ];
    Process::start("plimsoll-ingest", &beside("plimsoll-ingest")?, [""; 0], &variables, &folder.join("ingest.log"))
}

/// Messages and points that ingest has committed.
async fn counters(client: &reqwest::Client, http: u16) -> Option<(u64, u64)> {
    let text = client.get(format!("http://127.0.0.1:{http}/metrics")).send().await.ok()?.text().await.ok()?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line?.rsplit(' ').next()?.parse().ok()
    };
    Some((value("plimsoll_ingest_committed_messages_total")?, value("plimsoll_ingest_committed_points_total")?))
}

/// How many points a lake holds that has no summaries, as its catalog counts them.
pub(super) fn points(folder: &Path) -> Result<u64, CompareError> {
    let status = LakeStatus::read(&LakeConfig::embedded(&folder.join("lake")), false)?;
    Ok(status.total.points)
}

/// Fails unless Plimsoll holds as many points as there must be.
pub(super) fn same_points(expected: u64, found: u64) -> Result<(), CompareError> {
    if found == expected { Ok(()) } else { Err(CompareError::Count { name: "Plimsoll", expected, found }) }
}

/// A binary of the same build.
pub(super) fn beside(name: &'static str) -> Result<PathBuf, CompareError> {
    let found = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name))).filter(|path| path.is_file());
    found.ok_or(CompareError::NotBuilt { name })
}

/// Runs this binary anew, in a process whose time and memory are its own; returns what it prints.
async fn run(arguments: Vec<String>) -> Result<Vec<u8>, CompareError> {
    const NAME: &str = "plimsoll-bench";
    let started = |source| CompareError::Start { name: NAME, source };
    let mut command = Command::new(env::current_exe().map_err(started)?);
    command.args(arguments).stdin(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output()).await.expect("waiting does not panic");
    let output = ran.map_err(started)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr).lines().collect::<Vec<_>>().join(" | ");
    Err(CompareError::Ended { name: NAME, words, source: io::Error::other(output.status.to_string()) })
}

async fn told<T: DeserializeOwned>(arguments: &[&str]) -> Result<T, CompareError> {
    let printed = run(arguments.iter().map(|&argument| argument.to_owned()).collect()).await?;
    serde_json::from_slice(&printed).map_err(CompareError::Answer)
}

/// A step of what brings a lake into the form in which it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Settling {
    /// Small files become large ones, and what is left over is removed.
    Merge,
    /// Summaries of minutes and hours are made.
    RollUp,
}

impl Settling {
    fn name(self) -> &'static str {
        match self {
            Self::Merge => "merge",
            Self::RollUp => "roll-up",
        }
    }
}

/// What a step has taken, and what stands there after it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Settled {
    pub(super) cpu: Duration,
    pub(super) peak_bytes: u64,
    /// Of files and catalog.
    #[serde(default)]
    pub(super) stored_bytes: u64,
}

/// Takes a step in a process of its own.
pub(super) async fn settle(folder: &Path, step: Settling) -> Result<Settled, CompareError> {
    let lake = folder.join("lake");
    let settled: Settled = told(&["settle", "--lake", &lake.to_string_lossy(), "--step", step.name()]).await?;
    Ok(Settled { stored_bytes: folder_bytes(&lake), ..settled })
}

/// The work of the hidden command `settle`.
pub(super) fn settle_here(lake: &Path, step: Settling) -> Result<Settled, CompareError> {
    // As ingest's maintenance opens it.
    let config = LakeConfig { threads: Some(1), ..LakeConfig::embedded(lake) };
    match step {
        Settling::Merge => merge(&config)?,
        Settling::RollUp => {
            let limits =
                RollupLimits { minute_every: Duration::ZERO, hour_every: Duration::ZERO, ..RollupLimits::default() };
            let report = LakeWriter::open(&config)?.roll_up(&limits, || true)?;
            if let Some(failure) = report.failures.into_iter().next() {
                return Err(failure.error.into());
            }
            merge(&config)?;
        }
    }
    let usage = own_usage()?;
    Ok(Settled { cpu: usage.cpu, peak_bytes: usage.peak_bytes, stored_bytes: 0 })
}

fn merge(config: &LakeConfig) -> Result<(), CompareError> {
    let lake = Lake::open(config, Access::Write)?;
    let statements = "CALL ducklake_merge_adjacent_files('lake');
         CALL ducklake_expire_snapshots('lake', older_than => now());
         CALL ducklake_cleanup_old_files('lake', cleanup_all => true);";
    lake.connection().execute_batch(statements).map_err(|error| CompareError::Sql(error.into()))
}

fn own_usage() -> Result<Usage, CompareError> {
    Usage::of(std::process::id()).map_err(|source| CompareError::File { path: "/proc".into(), source })
}

/// Fills a lake with a data set, without a broker.
pub(super) async fn fill(dataset: &Dataset, folder: &Path) -> Result<(), CompareError> {
    let FleetConfig { hosts, prefix, seed, start_ms, interval, measurements, only_total_cpu, reboots_a_day, .. } =
        &dataset.fleet;
    let start = jiff::Timestamp::from_millisecond(*start_ms).expect("a time of this century");
    let seconds = interval.as_secs_f64() * dataset.ticks as f64;
    let lake = folder.join("lake");
    let mut arguments = vec!["fill".to_owned(), format!("--lake={}", lake.display())];
    arguments.extend([
        format!("--hosts={hosts}"),
        format!("--prefix={prefix}"),
        format!("--seed={seed}"),
        format!("--start={start}"),
        format!("--interval={}", interval.as_secs_f64()),
        format!("--seconds={seconds}"),
        format!("--measurements={}", measurements.join(",")),
        format!("--reboots-a-day={reboots_a_day}"),
        format!("--samples-a-message={}", dataset.fleet.samples_a_batch),
    ]);
    arguments.extend(only_total_cpu.then(|| "--only-total-cpu".to_owned()));
    run(arguments).await.map(drop)
}
