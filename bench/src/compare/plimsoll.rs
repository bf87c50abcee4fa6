//! Plimsoll: a broker, ingest from the broker to committed Parquet, and the lake.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use plimsoll_lake::{Access, Lake, LakeConfig};
use plimsoll_nats::{
    NatsConfig,
    server::{Server, ServerConfig},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    CompareError,
    dataset::Dataset,
    process::{Process, Usage, folder_bytes, free_port},
    queries::{Answer, Query},
};
use crate::{FleetConfig, publish::Publisher, recording::RecordingReader};

/// How long nothing may happen in ingest.
const STALLED: Duration = Duration::from_secs(60);
/// How often the same query is asked once everything is warm.
pub(super) const REPEATS: usize = 5;

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

/// A binary of the same build.
fn beside(name: &'static str) -> Result<PathBuf, CompareError> {
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

/// What bringing the lake into the form in which it is kept has taken.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Settled {
    pub(super) cpu: Duration,
    pub(super) peak_bytes: u64,
}

/// Merges the lake's files and removes what is left over; returns what that took and the bytes of files and catalog.
pub(super) async fn settle(folder: &Path) -> Result<(Settled, u64), CompareError> {
    let lake = folder.join("lake");
    let settled = told(&["settle", "--lake", &lake.to_string_lossy()]).await?;
    Ok((settled, folder_bytes(&lake)))
}

/// The work of the hidden command `settle`.
pub(super) fn settle_here(lake: &Path) -> Result<Settled, CompareError> {
    {
        let lake = Lake::open(&LakeConfig::embedded(lake), Access::Write)?;
        let statements = "CALL ducklake_merge_adjacent_files('lake');
             CALL ducklake_expire_snapshots('lake', older_than => now());
             CALL ducklake_cleanup_old_files('lake', cleanup_all => true);";
        lake.connection().execute_batch(statements).map_err(|error| CompareError::Sql(error.into()))?;
    }
    let usage = own_usage()?;
    Ok(Settled { cpu: usage.cpu, peak_bytes: usage.peak_bytes })
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

/// A query's answer and times, of a process that was started for it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    columns: Vec<String>,
    rows: Vec<(String, Vec<Option<f64>>)>,
    opening: Duration,
    first: Duration,
    warm: Vec<Duration>,
    peak_bytes: u64,
}

/// Times of a query.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    /// In a process that has just started.
    pub(super) first: Duration,
    /// Median of those after it.
    pub(super) warm: Duration,
    pub(super) peak_bytes: u64,
}

/// Asks a query of a lake in a new process.
pub(super) async fn ask(folder: &Path, query: &Query) -> Result<(Answer, Times), CompareError> {
    let lake = folder.join("lake");
    let asked: Asked = told(&["ask", "--lake", &lake.to_string_lossy(), "--sql", &query.sql]).await?;
    let answer = query.promql.answer_of_rows(&asked.columns, &asked.rows);
    Ok((answer, Times { first: asked.first, warm: median(asked.warm), peak_bytes: asked.peak_bytes }))
}

pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The work of the hidden command `ask`.
pub(super) fn ask_here(lake: &Path, sql: &str) -> Result<Asked, CompareError> {
    let started = Instant::now();
    let lake = Lake::open(&LakeConfig::embedded(lake), Access::Read)?;
    let opening = started.elapsed();
    let mut times = Vec::new();
    let (mut columns, mut rows) = (Vec::new(), Vec::new());
    for _ in 0..=REPEATS {
        let started = Instant::now();
        (columns, rows) = read(&lake, sql)?;
        times.push(started.elapsed());
    }
    let warm = times.split_off(1);
    Ok(Asked { columns, rows, opening, first: times[0], warm, peak_bytes: own_usage()?.peak_bytes })
}

type Rows = Vec<(String, Vec<Option<f64>>)>;

/// The value columns' names, and the rows: a key, empty where a value is all there is, and values.
fn read(lake: &Lake, sql: &str) -> Result<(Vec<String>, Rows), CompareError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| CompareError::Sql(error);
    let mut statement = lake.connection().prepare(sql).map_err(|error| failed(error.into()))?;
    let mut found = statement.query([]).map_err(|error| failed(error.into()))?;
    let mut columns = found.as_ref().map(|statement| statement.column_names()).unwrap_or_default();
    let keys = usize::from(columns.len() > 1);
    columns.drain(..keys);
    let mut rows = Vec::new();
    while let Some(row) = found.next().map_err(|error| failed(error.into()))? {
        let key = match keys {
            0 => String::new(),
            _ => match row.get::<_, i64>(0) {
                Ok(number) => number.to_string(),
                Err(_) => row.get(0).map_err(|error| failed(error.into()))?,
            },
        };
        let values = (keys..keys + columns.len()).map(|index| row.get(index));
        rows.push((key, values.collect::<Result<_, _>>().map_err(|error| failed(Box::from(error)))?));
    }
    Ok((columns, rows))
}
