//! A real ingest process on a real broker and lake, and rows of known content.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use plimsoll_lake::{Access, Lake, LakeConfig, LakeError};
use plimsoll_nats::{Batch, Client, Column, HostId, Name, subject, testing::eventually};
use tempfile::TempDir;
use ulid::Ulid;

/// Patience for what takes a takeover or two.
pub const LIMIT: Duration = Duration::from_secs(60);

/// An ingest process. Dropping it kills it.
pub struct IngestProcess(Child);

impl IngestProcess {
    /// Starts ingest with small, frequent commits, so that a kill at a random moment often hits one.
    pub fn start(broker: &str, folder: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_plimsoll-ingest"))
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
            .env("PLIMSOLL_LOG", std::env::var("PLIMSOLL_LOG").unwrap_or_else(|_| "error".to_owned()))
            .stdin(Stdio::null())
            .spawn()
            .expect("the ingest binary starts");
        Self(child)
    }

    /// SIGKILL: no handler runs, no file is closed in order.
    pub fn kill(mut self) {
        self.0.kill().expect("is killed");
        self.0.wait().expect("is gone");
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("is told to stop");
        let status = eventually("ingest to drain", LIMIT, async || self.0.try_wait().expect("a child")).await;
        assert!(status.success(), "{status}");
    }
}

impl Drop for IngestProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A lake in a temporary folder.
pub struct TestLake {
    pub dir: TempDir,
    reader: Option<Lake>,
    /// Why there was no number the last time, to be seen where a test waits for one in vain.
    why_none: String,
}

impl TestLake {
    pub fn new() -> Self {
        Self { dir: TempDir::new().expect("a folder"), reader: None, why_none: String::new() }
    }

    /// The one value that `sql` yields; none while the lake or a table does not exist yet.
    pub fn number(&mut self, sql: &str) -> Option<i64> {
        if self.reader.is_none() {
            match Lake::open(&LakeConfig::embedded(self.dir.path()), Access::Read) {
                Ok(lake) => self.reader = Some(lake),
                Err(LakeError::NotCreated | LakeError::Conflict(_) | LakeError::Database { .. }) => return None,
                Err(error) => panic!("the lake can't be opened: {error}"),
            }
        }
        let lake = self.reader.as_ref().expect("opened above");
        let number = lake.connection().query_row(sql, [], |row| row.get(0)).map_err(|error| error.to_string());
        if let Err(error) = &number
            && *error != self.why_none
        {
            println!("{sql}: {error}");
            self.why_none.clone_from(error);
        }
        number.ok()
    }
}

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

/// Rows `first..first + rows` of a host, told apart by the field `n`; `value` follows from it.
pub fn known_batch(host: usize, first: i64, rows: i64) -> Batch {
    let numbers = first..first + rows;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let now = i64::try_from(now).expect("before the year 292 million");
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

/// SQL for how many rows differ from what was published: missing, wrong or doubled.
pub fn differences(hosts: usize, rows: i64) -> String {
    let expected = format!(
        "SELECT 'h' || h AS host, n, n / 4.0 AS value, (n % 2)::VARCHAR AS parity
         FROM range({hosts}) hosts(h), range({rows}) numbers(n)"
    );
    let stored = "SELECT host, n, value, parity FROM lake.known";
    format!(
        "SELECT (SELECT count(*) FROM ({expected} EXCEPT ALL {stored})) + (SELECT count(*) FROM ({stored} EXCEPT ALL {expected}))"
    )
}
