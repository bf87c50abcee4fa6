//! A broker, a lake, the service between them, and what plays agent and ingest.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use plimsoll_lake::{CommitOutcome, LakeConfig, LakeWriter, PendingMessage, writer::CommitSet};
use plimsoll_nats::{
    Batch, Client, Column, HostId, Name, Position, Sequence, now_ms, streams,
    subject::{self, MetricSubject},
    testing::{TestServer, eventually},
};
use plimsoll_query_api::{QueryApiConfig, QueryApiError};
use plimsoll_service::ops::Ops;
use reqwest::{Response, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

pub fn host(text: &str) -> HostId {
    HostId::parse(text).expect("valid host")
}

pub struct Harness {
    pub broker: TestServer,
    pub client: Client,
    pub lake: LakeConfig,
    pub url: String,
    /// A time that tests count from, about five minutes ago and on a whole minute, so that buckets fall alike.
    pub base_ms: i64,
    pub service: JoinHandle<Result<(), QueryApiError>>,
    pub shutdown: CancellationToken,
    http: reqwest::Client,
    writer: Option<Arc<Mutex<LakeWriter>>>,
    _dir: TempDir,
}

impl Harness {
    /// A service beside an empty lake.
    pub async fn start() -> Self {
        let mut harness = Self::without_lake().await;
        harness.create_lake().await;
        harness.ready().await;
        harness
    }

    /// A service whose queries may take no longer than this.
    pub async fn hasty(query_timeout: Duration) -> Self {
        let config = QueryApiConfig { query_timeout, ..QueryApiConfig::default() };
        let mut harness = Self::configured(config).await;
        harness.create_lake().await;
        harness.ready().await;
        harness
    }

    /// A service that no lake was created for yet.
    pub async fn without_lake() -> Self {
        Self::configured(QueryApiConfig::default()).await
    }

    /// A service that publishes what it tells of itself.
    pub async fn reporting() -> Self {
        Self::reporting_with(QueryApiConfig::default()).await
    }

    /// The same with further settings.
    pub async fn reporting_with(config: QueryApiConfig) -> Self {
        let mut harness = Self::launched(config).await;
        harness.create_lake().await;
        harness.ready().await;
        harness
    }

    async fn configured(config: QueryApiConfig) -> Self {
        Self::launched(QueryApiConfig { publish_metrics: false, ..config }).await
    }

    async fn launched(config: QueryApiConfig) -> Self {
        // Fails where another test was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let broker = TestServer::start().await;
        let client = broker.client().await;
        let dir = TempDir::new().expect("a folder");
        let lake = LakeConfig::embedded(dir.path());
        let config = QueryApiConfig { nats: broker.config(), lake: lake.clone(), ..config };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let shutdown = CancellationToken::new();
        let own = broker.client().await;
        let service =
            tokio::spawn(plimsoll_query_api::run_with(config, own, Ops::default(), listener, shutdown.clone()));
        let base_ms = (now_ms() / 60_000 - 5) * 60_000;
        let http = reqwest::Client::new();
        Self { broker, client, lake, url, base_ms, service, shutdown, http, writer: None, _dir: dir }
    }

    pub async fn create_lake(&mut self) {
        let config = self.lake.clone();
        let opened = tokio::task::spawn_blocking(move || LakeWriter::open(&config).expect("opens")).await;
        self.writer = Some(Arc::new(Mutex::new(opened.expect("no panic"))));
    }

    pub async fn ready(&self) {
        eventually("readiness", PATIENCE, async || {
            (self.get("/readyz").await.status() == StatusCode::OK).then_some(())
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> Response {
        self.http.get(format!("{}{path}", self.url)).send().await.expect("an answer")
    }

    /// The JSON of a path that answers 200.
    pub async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        let status = response.status();
        let body = response.text().await.expect("a body");
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// The problem of a path that answers with this status.
    pub async fn problem(&self, path: &str, status: u16) -> Value {
        problem(self.get(path).await, status).await
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// A sample of `cpu` at so many seconds after the base.
    pub fn cpu(&self, on: &str, second: i64) -> Batch {
        let fields = [
            ("usage_percent", Column::Float(vec![Some(second as f64)])),
            ("switches_total", Column::Integer(vec![Some(9_007_199_254_740_993 + second)])),
            ("state", Column::Text(vec![Some(format!("s{second}"))])),
        ];
        Batch {
            host: host(on),
            measurement: name("cpu"),
            epoch: ulid::Ulid::nil(),
            seq: second.unsigned_abs(),
            times: vec![self.base_ms + second * 1000],
            tags: BTreeMap::from([(name("core"), vec!["0".to_owned()])]),
            fields: fields.into_iter().map(|(field, column)| (name(field), column)).collect(),
        }
    }

    /// Publishes as an agent does, and waits until the stream has it.
    pub async fn publish(&self, batch: &Batch) {
        publish(&self.client, batch).await;
    }

    /// Commits what the stream holds, as ingest does; returns up to where.
    pub async fn commit(&self) -> u64 {
        commit(&self.client, self.writer.as_ref().expect("the lake was created")).await
    }

    pub fn writer(&self) -> Arc<Mutex<LakeWriter>> {
        Arc::clone(self.writer.as_ref().expect("the lake was created"))
    }

    /// The `count` of `cpu`'s `usage_percent`; 0 where there is none.
    pub async fn count(&self) -> u64 {
        let path = "/api/stats/web-1?measurement=cpu&field=usage_percent&from=-1d";
        let response = self.get(path).await;
        if response.status() == StatusCode::NOT_FOUND {
            return 0;
        }
        // An error is no count, and must not be taken for none.
        let (status, body) = (response.status(), response.text().await.expect("a body"));
        assert_eq!(status, StatusCode::OK, "{body}");
        let stats: Value = serde_json::from_str(&body).expect("JSON");
        stats["series"][0]["count"].as_u64().unwrap_or(0)
    }

    /// Waits until queries count so many samples.
    pub async fn counted(&self, expected: u64) {
        eventually("the samples to be counted", PATIENCE, async || (self.count().await == expected).then_some(()))
            .await;
    }

    /// Stops the service and waits for its end.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.service.await.expect("no panic").expect("ends in order");
    }

    /// The document with times near the base as seconds after it, for snapshots.
    pub fn settled(&self, mut document: Value) -> Value {
        settle(&mut document, self.base_ms);
        document
    }
}

fn settle(value: &mut Value, base_ms: i64) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| settle(item, base_ms)),
        Value::Object(entries) => {
            for (key, item) in entries {
                if matches!(key.as_str(), "last_time" | "last_seen") {
                    *item = "RFC 3339".into();
                }
                settle(item, base_ms);
            }
        }
        Value::Number(number) => {
            if let Some(near) = number.as_i64().filter(|n| (n - base_ms).abs() < 100_000_000) {
                *value = format!("base + {} ms", near - base_ms).into();
            }
        }
        _ => {}
    }
}

pub async fn problem(response: Response, status: u16) -> Value {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = response.json().await.expect("JSON");
    assert_eq!(problem["status"], status);
    problem
}

pub async fn publish(client: &Client, batch: &Batch) {
    let subject = subject::metrics(&batch.host, &batch.measurement);
    let ack = client.jetstream.publish(subject, batch.encode().into()).await.expect("sent");
    ack.await.expect("stored");
}

pub async fn commit(client: &Client, writer: &Arc<Mutex<LakeWriter>>) -> u64 {
    let (stream, incarnation) = streams::metrics(client).await.expect("a stream");
    let last = stream.cached_info().state.last_sequence;
    let positions = {
        let writer = Arc::clone(writer);
        let read = tokio::task::spawn_blocking(move || writer.lock().expect("no panic").positions().expect("reads"));
        read.await.expect("no panic")
    };
    let mut set = CommitSet::default();
    for sequence in 1..=last {
        let stored = stream.direct_get(sequence).await.expect("stored");
        let subject = MetricSubject::parse(&stored.subject).expect("a metric");
        if Sequence(sequence) <= positions.of(subject.partition, incarnation).sequence {
            continue;
        }
        set.reached.insert(subject.partition, Position { incarnation, sequence: Sequence(sequence) });
        let Ok(batch) = Batch::decode(&subject.host, &subject.measurement, Some(&stored.headers), &stored.payload)
        else {
            continue;
        };
        let stored_ms = i64::try_from(stored.time.unix_timestamp_nanos() / 1_000_000).expect("a time");
        set.messages.push(PendingMessage {
            partition: subject.partition,
            sequence: Sequence(sequence),
            stored_ms,
            batch,
        });
    }
    let writer = Arc::clone(writer);
    let commit = move || writer.lock().expect("no panic").commit(&set).expect("commits");
    let outcome = tokio::task::spawn_blocking(commit).await.expect("no panic");
    assert!(matches!(outcome, CommitOutcome::Committed(_)), "{outcome:?}");
    last
}
