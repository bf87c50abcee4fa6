//! A real ingest process on a real broker and lake, and rows of known content.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use plimsoll_lake::LakeConfig;
use plimsoll_nats::{Batch, Client, Column, HostId, Name, now_ms, subject};
use plimsoll_testkit::{LakeView, Process};
use rustix::process::Signal;
use tempfile::TempDir;
use ulid::Ulid;

/// Patience for what takes a takeover or two.
pub const LIMIT: Duration = Duration::from_secs(60);

/// An ingest process. Dropping it kills it.
pub struct IngestProcess(Process);

impl IngestProcess {
    /// Starts ingest with small, frequent commits, so that a kill at a random moment often hits one.
    pub fn start(broker: &str, folder: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-ingest"));
        command
            .env("PLIMSOLL_NATS__URL", broker)
            .env("PLIMSOLL_NATS__METRICS_MAX_BYTES", (512 * 1024 * 1024).to_string())
            .env("PLIMSOLL_LAKE__CATALOG", format!("sqlite:{}", folder.join("catalog.sqlite").display()))
            .env("PLIMSOLL_LAKE__DATA_PATH", folder.join("data"))
            .env("PLIMSOLL_INGEST__HTTP", "127.0.0.1:0")
            .env("PLIMSOLL_INGEST__COMMIT_INTERVAL", "200ms")
            .env("PLIMSOLL_INGEST__COMMIT_ROWS", "2000")
            .env("PLIMSOLL_INGEST__MAINTENANCE__INTERVAL", "1s")
            // Rows as old as arrival allows are counted, too.
            .env("PLIMSOLL_INGEST__MAINTENANCE__RETENTION__RAW", "forever")
            // Rows of its own would be counted among those that a test sends.
            .env("PLIMSOLL_INGEST__PUBLISH_METRICS", "false")
            .env("PLIMSOLL_LOG", std::env::var("PLIMSOLL_LOG").unwrap_or_else(|_| "error".to_owned()));
        Self(Process::spawn(&mut command))
    }

    /// SIGKILL: no handler runs, no file is closed in order.
    pub fn kill(self) {
        self.0.kill();
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn stop(self) {
        let status = self.0.end_by(Signal::TERM, LIMIT).await;
        assert!(status.success(), "{status}");
    }
}

/// A lake in a temporary folder.
pub struct TestLake {
    pub dir: TempDir,
    view: LakeView,
}

impl TestLake {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let view = LakeView::new(LakeConfig::embedded(dir.path()));
        Self { dir, view }
    }

    /// As [`LakeView::number`] does.
    pub fn number(&mut self, sql: &str) -> Option<i64> {
        self.view.number(sql)
    }
}

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

/// Rows `first..first + rows` of a host, told apart by the field `n`; `value` follows from it.
pub fn known_batch(host: usize, first: i64, rows: i64) -> Batch {
    let numbers = first..first + rows;
    let now = now_ms();
    Batch {
        host: HostId::parse(&format!("h{host}")).expect("host"),
        measurement: name("known"),
        epoch: Ulid::nil(),
        seq: first.cast_unsigned() + 1,
        times: numbers.clone().map(|n| now - 100_000 + n).collect(),
        tags: BTreeMap::from([(name("parity"), numbers.clone().map(|n| (n % 2).to_string()).collect())]),
        fields: BTreeMap::from([
            (name("n"), Column::Integer(numbers.clone().map(Some).collect())),
            (name("value"), Column::Float(numbers.map(|n| Some(n as f64 / 4.0)).collect())),
        ]),
    }
}

/// Publishes batches with their message ids, and returns once the broker has stored every one.
pub async fn publish_all(client: &Client, batches: impl Iterator<Item = Batch>) {
    let mut acks = Vec::new();
    for batch in batches {
        let mut headers = plimsoll_nats::async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", batch.message_id().as_str());
        let subject = subject::metrics(&batch.host, &batch.measurement);
        let sent = client.jetstream.publish_with_headers(subject, headers, batch.encode().into()).await;
        acks.push(sent.expect("sent"));
    }
    for ack in acks {
        ack.await.expect("stored");
    }
}

/// SQL for the rows `0..rows` of so many hosts, as they were published.
pub fn known_rows(hosts: usize, rows: i64) -> String {
    format!(
        "SELECT 'h' || h AS host, n, n / 4.0 AS value, (n % 2)::VARCHAR AS parity
         FROM range({hosts}) hosts(h), range({rows}) numbers(n)"
    )
}

/// SQL for those that the lake holds.
pub const STORED_ROWS: &str = "SELECT host, n, value, parity FROM lake.known";

/// SQL for how many rows differ from what was published: missing, wrong or doubled.
pub fn differences(hosts: usize, rows: i64) -> String {
    let expected = known_rows(hosts, rows);
    format!(
        "SELECT (SELECT count(*) FROM ({expected} EXCEPT ALL {STORED_ROWS})) + (SELECT count(*) FROM ({STORED_ROWS} EXCEPT ALL {expected}))"
    )
}
