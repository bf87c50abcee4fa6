//! `plimsoll replay`, `backup` and `restore` as a user runs them.

mod support;

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use plimsoll_lake::{Access, Lake, LakeConfig};
use plimsoll_nats::{
    Batch, Client, Column, HostId, Name, now_ms, subject,
    testing::{TestServer, eventually},
};
use support::{LIMIT, Process, Up, plimsoll};
use tempfile::TempDir;

const MESSAGES: i64 = 150;
const ROWS_A_MESSAGE: i64 = 8000;

/// Publishes rows that are told apart by the field `n`, for several transactions of a replay.
async fn publish(client: &Client) {
    let start = now_ms() - 600_000;
    for message in 0..MESSAGES {
        let numbers = || message * ROWS_A_MESSAGE..(message + 1) * ROWS_A_MESSAGE;
        let batch = Batch {
            host: HostId::parse(&format!("h{}", message % 5)).expect("host"),
            measurement: Name::parse("known").expect("name"),
            epoch: ulid::Ulid::nil(),
            seq: u64::try_from(message).expect("positive") + 1,
            times: numbers().map(|n| start + n % 600_000).collect(),
            tags: [].into(),
            fields: [(Name::parse("n").expect("name"), Column::Integer(numbers().map(Some).collect()))].into(),
        };
        let subject = subject::metrics(&batch.host, &batch.measurement);
        client.jetstream.publish(subject, batch.encode().into()).await.expect("is sent").await.expect("is stored");
    }
}

fn number(folder: &Path, sql: &str) -> Option<i64> {
    let lake = Lake::open(&LakeConfig::embedded(folder), Access::Read).ok()?;
    lake.connection().query_row(sql, [], |row| row.get(0)).ok()
}

async fn run(arguments: &[&str]) -> (i32, String) {
    let mut command = plimsoll();
    command.args(arguments);
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("no panic");
    (status.code().expect("no signal"), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

#[tokio::test]
async fn a_replay_that_is_killed_or_interrupted_goes_on_and_stores_each_row_once() {
    let server = TestServer::start().await;
    publish(&server.client().await).await;
    let dir = TempDir::new().expect("a folder");
    let lake = dir.path().join("rebuilt");
    let (url, into) = (server.url(), lake.display().to_string());
    let arguments = ["replay", "--since", "1h", "--into", &into, "--nats-url", &url];
    let stored = || number(&lake, "SELECT count(*) FROM lake.known").unwrap_or(0);
    let start =
        || Process(plimsoll().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"));
    let killed = start();
    eventually("something to be stored", LIMIT, async || (stored() > 0).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..300))).await;
    drop(killed);
    let before = stored();
    assert_eq!(number(&lake, "SELECT count(*) - count(DISTINCT n) FROM lake.known"), Some(0));
    let mut interrupted = start();
    eventually("more to be stored", LIMIT, async || {
        (stored() > before || before == MESSAGES * ROWS_A_MESSAGE).then_some(())
    })
    .await;
    interrupted.signal(rustix::process::Signal::INT);
    let status = eventually("the end", LIMIT, async || interrupted.0.try_wait().expect("a child")).await;
    // Done is what it may be when the signal came late.
    assert!(matches!(status.code(), Some(130 | 0)), "{status}");
    let (code, told) = run(&arguments).await;
    assert_eq!(code, 0, "{told}");
    assert!(
        told.contains("read ") && told.contains("points/s") && told.contains("ingest goes on right after"),
        "{told}"
    );
    let total = MESSAGES * ROWS_A_MESSAGE;
    assert_eq!(number(&lake, "SELECT count(*) FROM lake.known"), Some(total));
    assert_eq!(number(&lake, "SELECT count(DISTINCT n) FROM lake.known"), Some(total));
    let (code, told) = run(&[&arguments[..], &["--dry-run"]].concat()).await;
    assert!(code == 0 && told.contains("1,200,000 rows") && told.contains("stored 0 rows"), "{told}");
}

#[tokio::test]
async fn a_lake_at_work_is_backed_up_and_replaces_itself_later() {
    let dir = TempDir::new().expect("a folder");
    let data = dir.path().join("data");
    let (backup, copy) = (dir.path().join("backup").display().to_string(), dir.path().join("copy"));
    let (data_dir, into) = (data.display().to_string(), copy.display().to_string());
    let fast = [("PLIMSOLL_INGEST__COMMIT_INTERVAL", "300ms")];
    let up = Up::start(&data, &[], &fast).await;
    let rows = |folder: &Path| number(folder, "SELECT count(*) FROM lake.cpu").unwrap_or(0);
    eventually("samples in the lake", LIMIT, async || (rows(&data.join("lake")) > 0).then_some(())).await;
    let (code, told) = run(&["backup", &backup, "--data-dir", &data_dir]).await;
    assert!(code == 0 && told.contains("backed up snapshot "), "{told}");
    let (code, told) = run(&["restore", &backup, "--data-dir", &data_dir]).await;
    assert!(code == 70 && told.contains("in use by another `plimsoll up`"), "{told}");
    let (code, told) = run(&["restore", &backup, "--into", &into]).await;
    assert!(code == 0 && told.contains("restored snapshot "), "{told}");
    let saved = rows(&copy);
    eventually("more samples", LIMIT, async || (rows(&data.join("lake")) > saved).then_some(())).await;
    up.process.stop().await;
    let lost = rows(&data.join("lake"));
    let (code, told) = run(&["restore", &backup, "--data-dir", &data_dir]).await;
    assert!(code == 70 && told.contains("--force"), "{told}");
    let (code, told) = run(&["restore", &backup, "--data-dir", &data_dir, "--force"]).await;
    assert!(code == 0 && told.contains("lake.replaced-"), "{told}");
    assert_eq!(rows(&data.join("lake")), saved);
    let up = Up::start(&data, &["--no-agent"], &fast).await;
    eventually("ingest to bring back what came since", LIMIT, async || {
        (rows(&data.join("lake")) >= lost).then_some(())
    })
    .await;
    up.process.stop().await;
    assert_eq!(rows(&data.join("lake")), lost, "each sample once");
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let server = TestServer::start().await;
    let url = server.url();
    let dir = TempDir::new().expect("a folder");
    let (empty, new) = (dir.path().display().to_string(), dir.path().join("new").display().to_string());
    let replay = ["replay", "--nats-url", &url, "--data-dir", &empty];
    for (arguments, code, words) in [
        (&["--since", "yesterday"][..], 64, "expected how long ago"),
        (&["--since", "1h", "--until", "2h"], 64, "must be later"),
        (&["--since", "1h", "--hosts", "a.b"], 64, "--hosts is wrong"),
        (&["--since", "1h", "--measurements", "Cpu"], 64, "--measurements is wrong"),
        (&["--since", "1h", "--into", "s3://bucket"], 64, "expected a folder"),
        (&["--since", "1h", "--into", "postgres:dbname=x"], 64, "PLIMSOLL_LAKE__DATA_PATH"),
        (&["--since", "1h"], 70, "name another or a new one with --into"),
        (&["--since", "1h", "--into", &new], 70, "does the broker hold samples"),
    ] {
        let (ended, told) = run(&[&replay[..], arguments].concat()).await;
        assert_eq!(ended, code, "{arguments:?}: {told}");
        assert!(told.contains(words), "{arguments:?}: {told}");
    }
    let away = ["replay", "--since", "1h", "--nats-url", "nats://127.0.0.1:1", "--into", &new];
    let (code, told) = run(&away).await;
    assert!(code == 70 && told.contains("127.0.0.1:1") && told.contains("--nats-url"), "{told}");
    let (code, told) = run(&["backup", &new, "--data-dir", &empty]).await;
    assert!(code == 70 && told.contains("does not exist yet"), "{told}");
    let (code, told) = run(&["restore", &new, "--data-dir", &empty]).await;
    assert!(code == 70 && told.contains("no finished backup"), "{told}");
}
