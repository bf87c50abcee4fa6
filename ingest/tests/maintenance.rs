//! Maintenance beside ingest: by one member at a time, without a row lost or doubled, and told of.

mod support;

use std::time::Duration;

use plimsoll_ingest::{IngestConfig, config::MaintenanceConfig};
use plimsoll_lake::LakeConfig;
use plimsoll_nats::{
    Client, HostId,
    subject::partition_of,
    testing::{TestServer, eventually},
};
use plimsoll_service::ops::Ops;
use support::{LIMIT, TestLake, differences, known_batch, publish_all};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A member in this process.
struct Member {
    ops: Ops,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Member {
    async fn start(server: &TestServer, lake: &TestLake, port: u16, publish_metrics: bool) -> Self {
        let (ops, shutdown) = (Ops::default(), CancellationToken::new());
        let config = IngestConfig {
            http: ([127, 0, 0, 1], port).into(),
            commit_interval: Duration::from_millis(150),
            publish_metrics,
            maintenance: MaintenanceConfig { interval: Duration::from_secs(1), ..MaintenanceConfig::default() },
            nats: server.config(),
            lake: LakeConfig::embedded(lake.dir.path()),
            ..IngestConfig::default()
        };
        let run = plimsoll_ingest::run_with(config, server.client().await, ops.clone(), shutdown.clone());
        Self { ops, shutdown, task: tokio::spawn(async move { run.await.expect("ends in order") }) }
    }

    /// The value of a metric on `/metrics`, the first of that name and labels; none where it is not told.
    async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.ops.metrics_text().expect("is text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic");
    }
}

const ROWS: i64 = 600;

/// Publishes the rows of a host in batches, each after the one before was committed, so that each makes a file.
async fn publish(client: &Client, lake: &mut TestLake) {
    for first in (0..ROWS).step_by(50) {
        publish_all(client, [known_batch(0, first, 50)].into_iter()).await;
        let rows = "SELECT count(*) FROM lake.known";
        eventually("the commit", LIMIT, async || (lake.number(rows)? >= first + 50).then_some(())).await;
    }
}

#[tokio::test]
async fn files_are_merged_while_rows_come_in_and_one_member_does_it() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    let members = [Member::start(&server, &lake, 1, false).await, Member::start(&server, &lake, 2, false).await];
    publish(&client, &mut lake).await;
    let merged = "plimsoll_ingest_maintenance_merged_files_total";
    eventually("files to be merged", LIMIT, async || {
        let counts = [members[0].metric(merged).await?, members[1].metric(merged).await?];
        (counts[0] + counts[1] >= 8.0).then_some(())
    })
    .await;
    assert_eq!(lake.number(&differences(1, ROWS)), Some(0));
    let leases = async |members: &[Member]| {
        let mut held = Vec::new();
        for member in members {
            held.push(member.metric("plimsoll_ingest_maintenance_lease").await.unwrap_or_default());
        }
        held
    };
    let held = leases(&members).await;
    assert_eq!(held.iter().sum::<f64>(), 1.0, "{held:?}");

    // The one that maintains leaves, and the other one takes over.
    let [first, second] = members;
    let (leaving, staying) = if held[0] > 0.5 { (first, second) } else { (second, first) };
    assert!(leaving.metric("plimsoll_ingest_maintenance_last_success_timestamp_seconds").await.expect("told") > 1.7e9);
    assert!(leaving.metric("plimsoll_ingest_lake_tables{tier=\"raw\"}").await.expect("told") >= 1.0);
    leaving.stop().await;
    let runs = "plimsoll_ingest_maintenance_runs_total";
    eventually("the other member to maintain", LIMIT, async || (staying.metric(runs).await? >= 1.0).then_some(()))
        .await;
    staying.stop().await;
    assert_eq!(lake.number(&differences(1, ROWS)), Some(0));
}

#[tokio::test]
async fn the_pipeline_tells_of_itself_as_a_measurement_and_on_metrics() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    let member = Member::start(&server, &lake, 9301, true).await;
    publish_all(&client, (0..5).map(|batch| known_batch(3, batch * 10, 10))).await;
    let told = "SELECT count(*) FROM lake.plimsoll WHERE service = 'ingest' AND member = '9301' AND partition = 'total'
                AND committed_rows_total >= 50 AND commits_total >= 1 AND commit_seconds_total > 0
                AND committed_bytes_total > 0 AND partitions >= 1 AND dead_messages_total = 0";
    eventually("rows about ingest", LIMIT, async || lake.number(told).filter(|rows| *rows >= 1)).await;
    let partitions =
        "SELECT count(*) FROM lake.plimsoll WHERE partition <> 'total' AND lag_seconds >= 0 AND lag_messages >= 0
                      AND commits_total IS NULL";
    assert!(lake.number(partitions) >= Some(1), "a row of each partition that is read");
    let partition = partition_of(&HostId::parse("h3").expect("host"));
    let lag = format!("plimsoll_ingest_lag_seconds{{partition=\"{partition}\"}}");
    for (metric, least) in [
        ("plimsoll_ingest_commit_rows_sum", 50.0),
        ("plimsoll_ingest_commit_bytes_sum", 500.0),
        ("plimsoll_ingest_commit_seconds_count", 1.0),
        (lag.as_str(), 0.0),
        ("plimsoll_ingest_pending_bytes", 0.0),
        ("plimsoll_ingest_queued_messages", 0.0),
        ("plimsoll_ingest_dropped_reports_total", 0.0),
    ] {
        let value = member.metric(metric).await;
        assert!(value.is_some_and(|value| value >= least), "{metric}: {value:?}");
    }
    member.stop().await;
}

#[tokio::test]
async fn reports_are_dropped_and_counted_while_the_broker_is_away() {
    let mut server = TestServer::start().await;
    let lake = TestLake::new();
    let member = Member::start(&server, &lake, 9301, true).await;
    let commits = "plimsoll_ingest_commits_total";
    eventually("a first report", LIMIT, async || (member.metric(commits).await? >= 1.0).then_some(())).await;
    server.kill();
    let dropped = "plimsoll_ingest_dropped_reports_total";
    eventually("a dropped report", LIMIT, async || (member.metric(dropped).await? >= 1.0).then_some(())).await;
    server.start_again().await;
    member.stop().await;
}
