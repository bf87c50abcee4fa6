//! Stores that are fed and asked over HTTP: VictoriaMetrics and Prometheus.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Client, RequestBuilder, Url};
use serde_json::Value;

use super::{
    CompareError,
    dataset::{Layout, Requests},
    peers::Peer,
    process::{Process, Usage, folder_bytes, free_port},
    queries::{Answer, Promql},
};

/// Longest wait until a store serves, which may have to read its log first.
const READY: Duration = Duration::from_secs(300);

/// Longest wait until a store has merged what it has.
const SETTLED: Duration = Duration::from_secs(600);
/// Longest wait until a store's counters tell of all that it has taken in.
const COUNTED: Duration = Duration::from_secs(10);
/// What VictoriaMetrics logs when all parts are merged.
const MERGED: &str = "forced merge for partition_prefix=\"\" has been successfully finished";

/// Which store, and how it is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    VictoriaMetrics,
    Prometheus,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::VictoriaMetrics => "VictoriaMetrics",
            Self::Prometheus => "Prometheus",
        }
    }

    /// Requests at a time. Prometheus wants each series in the order of time.
    fn senders(self) -> usize {
        match self {
            Self::VictoriaMetrics => 2,
            Self::Prometheus => 1,
        }
    }

    fn arguments(self, data: &Path, port: u16) -> Vec<String> {
        let data = data.display();
        match self {
            Self::VictoriaMetrics => vec![
                format!("-storageDataPath={data}"),
                format!("-httpListenAddr=127.0.0.1:{port}"),
                "-retentionPeriod=10y".to_owned(),
                "-search.maxQueryDuration=5m".to_owned(),
            ],
            Self::Prometheus => vec![
                format!("--storage.tsdb.path={data}"),
                format!("--web.listen-address=127.0.0.1:{port}"),
                format!("--config.file={data}.yml"),
                "--storage.tsdb.retention.time=10y".to_owned(),
                "--web.enable-remote-write-receiver".to_owned(),
                "--web.enable-admin-api".to_owned(),
                "--query.timeout=5m".to_owned(),
                "--log.level=warn".to_owned(),
            ],
        }
    }

    fn ready_path(self) -> &'static str {
        match self {
            Self::VictoriaMetrics => "/health",
            Self::Prometheus => "/-/ready",
        }
    }

    /// The counter of points that were taken in.
    fn taken_metric(self) -> &'static str {
        match self {
            Self::VictoriaMetrics => "vm_rows_inserted_total",
            Self::Prometheus => "prometheus_tsdb_head_samples_appended_total",
        }
    }
}

/// A running store.
pub(super) struct Store {
    kind: Kind,
    process: Process,
    client: Client,
    base: String,
    data: PathBuf,
}

impl Store {
    /// Starts the store on a folder, and waits until it serves.
    pub(super) async fn start(kind: Kind, peer: &Peer, data: &Path) -> Result<Self, CompareError> {
        fs::create_dir_all(data).map_err(|source| CompareError::File { path: data.to_owned(), source })?;
        if kind == Kind::Prometheus {
            let path = PathBuf::from(format!("{}.yml", data.display()));
            fs::write(&path, "global: {}\n").map_err(|source| CompareError::File { path, source })?;
        }
        let port = free_port()?;
        let log = PathBuf::from(format!("{}.log", data.display()));
        let process = Process::start(kind.name(), &peer.binary, kind.arguments(data, port), &[], &log)?;
        let client = Client::builder().no_proxy().build()?;
        let base = format!("http://127.0.0.1:{port}");
        let mut store = Self { kind, process, client, base, data: data.to_owned() };
        let started = Instant::now();
        while store.text(kind.ready_path()).await.is_err() {
            store.process.check()?;
            if started.elapsed() > READY {
                return Err(CompareError::NotReady { name: kind.name() });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(store)
    }

    pub(super) fn usage(&self) -> Result<Usage, CompareError> {
        self.process.usage()
    }

    /// Sends all requests of a file, and waits until all is searchable.
    pub(super) async fn feed(&self, layout: Layout, file: &Path) -> Result<(), CompareError> {
        let requests = stream::iter(Requests::open(file)?);
        let sent = requests.map(|body| async { self.send(layout, body?).await });
        sent.buffered(self.kind.senders()).try_collect::<()>().await?;
        if self.kind == Kind::VictoriaMetrics {
            self.text("/internal/force_flush").await?;
        }
        Ok(())
    }

    async fn send(&self, layout: Layout, body: Vec<u8>) -> Result<(), CompareError> {
        let post = |path: &str| self.client.post(format!("{}{path}", self.base));
        let request = match layout {
            Layout::RemoteWrite => post("/api/v1/write")
                .header("Content-Encoding", "snappy")
                .header("Content-Type", "application/x-protobuf")
                .header("X-Prometheus-Remote-Write-Version", "0.1.0"),
            Layout::Lines | Layout::Messages => post("/write?precision=ms"),
        };
        self.answer(request.body(body)).await.map(drop)
    }

    /// Fails unless so many points were taken in since the start.
    pub(super) async fn check_points(&self, expected: u64) -> Result<(), CompareError> {
        let started = Instant::now();
        loop {
            let found = self.points().await?;
            // VictoriaMetrics shows its counters as they were up to a second ago.
            if found == expected {
                return Ok(());
            }
            if started.elapsed() > COUNTED {
                return Err(CompareError::Count { name: self.kind.name(), expected, found });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn points(&self) -> Result<u64, CompareError> {
        let text = self.text("/metrics").await?;
        let lines = text.lines().filter(|line| line.starts_with(self.kind.taken_metric()));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum::<f64>() as u64)
    }

    /// Brings the data into the form in which it is kept, and tells where that is and its bytes: VictoriaMetrics merges all
    /// parts, Prometheus writes all that it has in memory into blocks of a snapshot.
    pub(super) async fn settle(&self) -> Result<(PathBuf, u64), CompareError> {
        match self.kind {
            Kind::VictoriaMetrics => {
                self.text("/internal/force_merge").await?;
                // The log tells the end at once, the metrics up to a second later.
                let started = Instant::now();
                while !self.process.log().contains(MERGED) {
                    if started.elapsed() > SETTLED {
                        return Err(CompareError::NotSettled { name: self.kind.name() });
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // The cache is what a restart begins with, and no data.
                let bytes = folder_bytes(&self.data) - folder_bytes(&self.data.join("cache"));
                Ok((self.data.clone(), bytes))
            }
            Kind::Prometheus => {
                let post = self.client.post(format!("{}/api/v1/admin/tsdb/snapshot", self.base));
                let answer: Value = serde_json::from_str(&self.answer(post).await?).map_err(CompareError::Answer)?;
                let name = answer["data"]["name"].as_str().unwrap_or_default();
                let snapshot = self.data.join("snapshots").join(name);
                let bytes = folder_bytes(&snapshot);
                Ok((snapshot, bytes))
            }
        }
    }

    /// Asks a query; returns the answer and the time until its last byte was there.
    pub(super) async fn ask(&self, query: &Promql) -> Result<(Answer, Duration), CompareError> {
        let seconds = |ms: i64| format!("{}.{:03}", ms / 1000, ms % 1000);
        let mut parameters = vec![("query", query.text.clone()), ("nocache", "1".to_owned())];
        let path = match query.from_ms {
            Some(from_ms) => {
                let times = [("start", seconds(from_ms)), ("end", seconds(query.at_ms)), ("step", "60".to_owned())];
                parameters.extend(times);
                "/api/v1/query_range"
            }
            None => {
                parameters.push(("time", seconds(query.at_ms)));
                "/api/v1/query"
            }
        };
        let url = Url::parse_with_params(&format!("{}{path}", self.base), &parameters).expect("the address is valid");
        let request = self.client.get(url);
        let started = Instant::now();
        let text = self.answer(request).await?;
        let took = started.elapsed();
        let answer: Value = serde_json::from_str(&text).map_err(CompareError::Answer)?;
        Ok((query.answer(&answer["data"]), took))
    }

    async fn text(&self, path: &str) -> Result<String, CompareError> {
        self.answer(self.client.get(format!("{}{path}", self.base))).await
    }

    async fn answer(&self, request: RequestBuilder) -> Result<String, CompareError> {
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        if status.is_success() {
            return Ok(text);
        }
        let said = text.chars().take(300).collect();
        Err(CompareError::Refused { name: self.kind.name(), status: status.as_u16(), said })
    }

    pub(super) async fn stop(self) -> Result<(), CompareError> {
        self.process.stop().await
    }
}
