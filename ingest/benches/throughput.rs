//! From the broker to committed Parquet: points a second, and points a CPU second of the ingest process.
//!
//! A real broker is filled with samples of all built-in measurements of 50 hosts, once with a message a row and once with ten rows a
//! message. Then the `plimsoll-ingest` binary starts beside an empty lake, and time counts from its readiness to the last commit.
//!
//! Run with `cargo bench -p plimsoll-ingest --bench throughput`; `-- <rows a message> <messages>` measures one case. `cargo test` runs it
//! with few messages, to see that as many are counted as were published.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use plimsoll_nats::{
    Batch, Client, Column, HostId, Name, NatsConfig,
    batch::FieldType,
    catalog::{FieldKind, FieldSpec, MEASUREMENTS, MeasurementSpec},
    now_ms, streams, subject,
    testing::{TestServer, eventually},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

const HOSTS: usize = 50;
const METRICS_MAX_BYTES: i64 = 8 * 1024 * 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(600);
/// What `cargo bench` passes to a benchmark, and `cargo test` does not.
const MEASURED: &str = "--bench";

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let cases = match numbers[..] {
        [rows, messages] => vec![(rows, messages)],
        _ if arguments.iter().any(|argument| argument == MEASURED) => vec![(1, 440_000), (10, 220_000)],
        _ => vec![(10, 2_200)],
    };
    for (rows, messages) in cases {
        measure(rows, messages).await;
    }
}

async fn measure(rows: usize, messages: usize) {
    let broker = TestServer::start().await;
    let config = NatsConfig { metrics_max_bytes: Some(METRICS_MAX_BYTES), ..broker.config() };
    let client = Client::connect(&config, "bench", &CancellationToken::new()).await.expect("connects");
    streams::declare(&client, &config).await.expect("declares");
    let points = publish(&client, rows, messages).await;

    let dir = TempDir::new().expect("a folder");
    let ingest = Ingest::start(&broker.url(), &dir).await;
    let (begun, cpu_before) = (Instant::now(), ingest.cpu_seconds());
    let stored = |committed: &Committed| committed.messages >= messages as u64;
    let committed = eventually("all to be committed", LIMIT, async || ingest.committed().await.filter(stored)).await;
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), ingest.cpu_seconds() - cpu_before);
    let counted = (committed.messages, committed.points);
    assert_eq!(counted, (messages as u64, points), "as many messages and values are stored as were published");
    println!(
        "{rows:>2} rows a message: {:.2} M points in {wall:.2} s, {cpu:.2} CPU s: {:.2} M points/s, {:.2} M points/CPU s, \
         {:.2} µs CPU a message; {} commits of {:.2} s together; peak RSS {} MB",
        points as f64 / 1e6,
        points as f64 / 1e6 / wall,
        points as f64 / 1e6 / cpu,
        cpu * 1e6 / messages as f64,
        committed.commits,
        committed.seconds,
        ingest.peak_megabytes(),
    );
}

/// Publishes so many messages, each with its id, and waits until the broker has stored them; returns how many values they hold.
async fn publish(client: &Client, rows: usize, messages: usize) -> u64 {
    const UNDER_WAY: usize = 4000;
    let mut random = StdRng::seed_from_u64(1);
    let ticks = messages.div_ceil(HOSTS * MEASUREMENTS.len());
    let begin_ms = now_ms() - i64::try_from(ticks * rows).expect("few") * 1000;
    let series = (0..ticks).flat_map(|tick| (0..HOSTS).map(move |host| (tick, host)));
    let mut batches = series.flat_map(|(tick, host)| MEASUREMENTS.iter().map(move |spec| (tick, host, spec)));
    let (mut points, mut left) = (0, messages);
    while left > 0 {
        let mut acks = Vec::new();
        for (tick, host, spec) in batches.by_ref().take(left.min(UNDER_WAY)) {
            let batch = batch(spec, host, tick, rows, begin_ms, &mut random);
            points += (batch.fields.values().map(present)).sum::<usize>() as u64;
            let mut headers = plimsoll_nats::async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", batch.message_id().as_str());
            let subject = subject::metrics(&batch.host, &batch.measurement);
            let sent = client.jetstream.publish_with_headers(subject, headers, batch.encode().into()).await;
            acks.push(sent.expect("sent"));
        }
        left -= acks.len();
        for ack in acks {
            ack.await.expect("stored");
        }
    }
    points
}

fn batch(spec: &MeasurementSpec, host: usize, tick: usize, rows: usize, begin_ms: i64, random: &mut StdRng) -> Batch {
    let first = i64::try_from(tick * rows).expect("few");
    let seconds = first..first + i64::try_from(rows).expect("few");
    let tags = spec.tags.iter().map(|tag| (name(tag.name), vec![format!("{}-{}", tag.name, tick % 4); rows]));
    let fields = spec.fields.iter().map(|field| (name(field.name), column(field, first, rows, random)));
    Batch {
        host: HostId::parse(&format!("web-{host}")).expect("a host"),
        measurement: name(spec.name),
        epoch: ulid::Ulid::from_parts(1_790_000_000_000, host as u128),
        seq: tick as u64,
        times: seconds.map(|second| begin_ms + second * 1000).collect(),
        tags: tags.collect(),
        fields: fields.collect::<BTreeMap<_, _>>(),
    }
}

/// Counters rise by a bit, gauges wander within a percent of a level, flags and texts stay.
fn column(field: &FieldSpec, first: i64, rows: usize, random: &mut StdRng) -> Column {
    let seconds = || first..first + i64::try_from(rows).expect("few");
    let mut noise = || random.random_range(0..1000_i64);
    match (field.field_type, field.kind) {
        (FieldType::Float, _) => Column::Float(seconds().map(|_| Some(noise() as f64 / 100.0)).collect()),
        (FieldType::Integer, FieldKind::Counter) => {
            Column::Integer(seconds().map(|second| Some(second * 4096 + noise())).collect())
        }
        (FieldType::Integer, FieldKind::Gauge) => {
            Column::Integer(seconds().map(|_| Some(8_000_000_000 + 4096 * noise())).collect())
        }
        (FieldType::Bool, _) => Column::Bool(vec![Some(false); rows]),
        (FieldType::Text, _) => Column::Text(vec![Some(format!("{} of a host", field.name)); rows]),
    }
}

fn present(column: &Column) -> usize {
    (0..column.len()).filter(|row| !column.json(*row).is_null()).count()
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// The ingest process. Dropping it kills it.
struct Ingest {
    child: Child,
    http: String,
}

#[derive(Debug)]
struct Committed {
    messages: u64,
    points: u64,
    commits: u64,
    seconds: f64,
}

impl Ingest {
    /// Starts ingest and waits until it is ready.
    async fn start(broker: &str, dir: &TempDir) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let http = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let child = Command::new(env!("CARGO_BIN_EXE_plimsoll-ingest"))
            .env("PLIMSOLL_NATS__URL", broker)
            .env("PLIMSOLL_NATS__METRICS_MAX_BYTES", METRICS_MAX_BYTES.to_string())
            .env("PLIMSOLL_LAKE__CATALOG", format!("sqlite:{}", dir.path().join("catalog.sqlite").display()))
            .env("PLIMSOLL_LAKE__DATA_PATH", dir.path().join("data"))
            .env("PLIMSOLL_INGEST__HTTP", &http)
            // Its samples of itself would count as points, and maintenance is measured elsewhere.
            .env("PLIMSOLL_INGEST__PUBLISH_METRICS", "false")
            .env("PLIMSOLL_INGEST__MAINTENANCE__ENABLED", "false")
            // The rest is committed soon after the last message has come.
            .env("PLIMSOLL_INGEST__COMMIT_INTERVAL", "3s")
            .env("PLIMSOLL_LOG", std::env::var("PLIMSOLL_LOG").unwrap_or_else(|_| "error".to_owned()))
            .stdin(Stdio::null())
            .spawn()
            .expect("the ingest binary starts");
        let ingest = Self { child, http };
        eventually("ingest to be ready", LIMIT, async || {
            ingest.get("/readyz").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")).then_some(())
        })
        .await;
        ingest
    }

    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.http).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// What `/metrics` tells of the commits.
    async fn committed(&self) -> Option<Committed> {
        // Asking must cost little.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let answer = self.get("/metrics").await?;
        let number = |metric: &str| -> Option<f64> {
            let line = answer.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '))?;
            line.trim().parse().ok()
        };
        Some(Committed {
            messages: number("plimsoll_ingest_committed_messages_total")? as u64,
            points: number("plimsoll_ingest_committed_points_total")? as u64,
            commits: number("plimsoll_ingest_commits_total")? as u64,
            seconds: number("plimsoll_ingest_commit_seconds_sum")?,
        })
    }

    /// Processor time so far, of all threads.
    fn cpu_seconds(&self) -> f64 {
        // Linux counts it in hundredths of a second, whatever the kernel's own clock.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("runs");
        let after_name = stat.rsplit(')').next().expect("has a name");
        let ticks = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number"));
        ticks.sum::<f64>() / 100.0
    }

    fn peak_megabytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
        peak.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") / 1024
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
