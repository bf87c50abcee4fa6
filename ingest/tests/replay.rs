//! Replays of a real stream into real lakes.

mod support;

use plimsoll_ingest::replay::{self, Progress, ReplayConfig, ReplayError, ReplayLimits, Selection, Summary};
use plimsoll_lake::{Access, Lake, LakeConfig};
use plimsoll_nats::{
    Client, HostId, now_ms, subject,
    testing::{TestServer, eventually},
};
use support::{IngestProcess, LIMIT, TestLake, differences, known_batch, name, publish_all};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const HOSTS: usize = 8;
const ROWS_A_BATCH: i64 = 20;

/// Publishes rows `from..to` of every host.
async fn publish(client: &Client, from: i64, to: i64) {
    let firsts = (from..to).step_by(ROWS_A_BATCH as usize);
    let batches = firsts.flat_map(|first| (0..HOSTS).map(move |host| known_batch(host, first, ROWS_A_BATCH)));
    publish_all(client, batches).await;
}

fn config(lake: &LakeConfig) -> ReplayConfig {
    ReplayConfig {
        lake: lake.clone(),
        is_named: true,
        selection: Selection::parse(&[], &[]).expect("everything"),
        since_ms: now_ms() - 3_600_000,
        until_ms: None,
        restarts: false,
        is_trial: false,
        limits: ReplayLimits { rows: 1500, ..ReplayLimits::default() },
    }
}

fn selected(lake: &LakeConfig, hosts: &[&str], measurements: &[&str]) -> ReplayConfig {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let selection = Selection::parse(&texts(hosts), &texts(measurements)).expect("valid");
    ReplayConfig { selection, ..config(lake) }
}

async fn replay(config: ReplayConfig, client: &Client) -> Result<Summary, ReplayError> {
    let (progress, _watched) = watch::channel(Progress::default());
    replay::run(config, client.clone(), progress, CancellationToken::new()).await
}

/// Replays, and stops as soon as something is stored.
async fn begin(config: ReplayConfig, client: &Client) -> Summary {
    let (progress, mut watched) = watch::channel(Progress::default());
    let stop = CancellationToken::new();
    let stopping = async {
        watched.wait_for(|progress| progress.stored > 0).await.expect("it runs");
        stop.cancel();
    };
    let (summary, ()) = tokio::join!(replay::run(config, client.clone(), progress, stop.clone()), stopping);
    summary.expect("is stopped in order")
}

fn embedded(lake: &TestLake) -> LakeConfig {
    LakeConfig::embedded(lake.dir.path())
}

/// Executes a statement beside ingest, whose commits may be faster than it.
async fn execute(lake: &TestLake, sql: &str) {
    let executed = async || {
        let opened = Lake::open(&embedded(lake), Access::Write).expect("opens");
        let outcome = opened.connection().execute_batch(sql);
        if outcome.as_ref().is_err_and(|error| error.to_string().contains("database is locked")) {
            return None;
        }
        outcome.expect("is a statement");
        Some(())
    };
    eventually("nobody else to write", LIMIT, executed).await;
}

async fn wait_for_rows(lake: &mut TestLake, rows: i64) {
    let stored = async || lake.number("SELECT count(*) FROM lake.known").filter(|stored| *stored >= rows);
    eventually("ingest to store the rows", LIMIT, stored).await;
}

#[tokio::test]
async fn a_lake_is_rebuilt_through_interruptions_and_ingest_goes_on_after_it() {
    const ROWS: i64 = 1000;
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    publish(&client, 0, ROWS).await;
    // Many small transactions, so that each of the first two replays is stopped long before its end.
    let small =
        || ReplayConfig { limits: ReplayLimits { rows: 200, ..ReplayLimits::default() }, ..config(&embedded(&lake)) };
    let first = begin(small(), &client).await;
    assert!(!first.is_complete && first.rebuilt && first.resumed_after.is_none(), "{first:?}");
    let second = begin(small(), &client).await;
    assert!(!second.is_complete && second.resumed_after.is_some(), "{second:?}");
    let last = replay(config(&embedded(&lake)), &client).await.expect("comes to its end");
    assert!(last.is_complete && last.resumed_after > second.resumed_after, "{last:?}");
    let stored = [&first, &second, &last].map(|summary| summary.progress.stored).iter().sum::<u64>();
    assert_eq!(stored, ROWS as u64 * HOSTS as u64, "no part was read twice");
    assert_eq!(last.progress.messages, last.progress.total);
    assert_eq!(lake.number(&differences(HOSTS, ROWS)), Some(0));
    let ingest = IngestProcess::start(&server.url(), lake.dir.path());
    publish(&client, ROWS, ROWS + 100).await;
    wait_for_rows(&mut lake, (ROWS + 100) * HOSTS as i64).await;
    ingest.stop().await;
    assert_eq!(lake.number(&differences(HOSTS, ROWS + 100)), Some(0));
}

#[tokio::test]
async fn what_was_lost_is_filled_while_ingest_stores_more() {
    const ROWS: i64 = 1000;
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    let ingest = IngestProcess::start(&server.url(), lake.dir.path());
    publish(&client, 0, ROWS).await;
    wait_for_rows(&mut lake, ROWS * HOSTS as i64).await;
    execute(&lake, "DELETE FROM lake.known WHERE n BETWEEN 300 AND 700 OR host = 'h3'").await;
    let more = publish(&client, ROWS, 2 * ROWS);
    let (filled, ()) = tokio::join!(replay(config(&embedded(&lake)), &client), more);
    let filled = filled.expect("comes to its end").progress;
    assert_eq!(filled.stored, 401 * (HOSTS as u64 - 1) + ROWS as u64);
    wait_for_rows(&mut lake, 2 * ROWS * HOSTS as i64).await;
    assert_eq!(lake.number(&differences(HOSTS, 2 * ROWS)), Some(0));
    let again = replay(config(&embedded(&lake)), &client).await.expect("comes to its end").progress;
    assert_eq!((again.stored, again.present, again.left), (0, 2 * ROWS as u64 * HOSTS as u64, 0));
    ingest.stop().await;
    assert_eq!(lake.number(&differences(HOSTS, 2 * ROWS)), Some(0));
}

#[tokio::test]
async fn hosts_measurements_and_times_are_selected() {
    let server = TestServer::start().await;
    let client = server.client().await;
    publish(&client, 0, 100).await;
    let mut other = known_batch(1, 0, 10);
    other.measurement = name("other");
    publish_all(&client, std::iter::once(other)).await;
    let between_ms = now_ms() + 1;
    eventually("the clock to move on", LIMIT, async || (now_ms() > between_ms).then_some(())).await;
    publish(&client, 100, 200).await;
    for (hosts, measurements, expected) in [
        (&["h1", "h2"][..], &["known"][..], 400),
        (&["h[0-3]"], &["kn*"], 800),
        (&["h1"], &[], 210),
        (&[], &["other"], 10),
    ] {
        let mut lake = TestLake::new();
        let summary = replay(selected(&embedded(&lake), hosts, measurements), &client).await.expect("comes to its end");
        assert_eq!(summary.progress.stored, expected, "{hosts:?} {measurements:?}");
        let tables =
            ["known", "other"].map(|table| lake.number(&format!("SELECT count(*) FROM lake.{table}")).unwrap_or(0));
        assert_eq!(tables.iter().sum::<i64>(), expected.cast_signed());
    }
    let mut lake = TestLake::new();
    let before = ReplayConfig { until_ms: Some(between_ms), ..config(&embedded(&lake)) };
    let before = replay(before, &client).await.expect("comes to its end").progress;
    assert_eq!((before.stored, before.total), (100 * HOSTS as u64 + 10, 5 * HOSTS as u64 + 1));
    assert_eq!(lake.number("SELECT max(n) FROM lake.known"), Some(99));
    let after = ReplayConfig { since_ms: between_ms, ..config(&embedded(&lake)) };
    let after = replay(after, &client).await.expect("comes to its end").progress;
    assert_eq!((after.stored, after.present), (100 * HOSTS as u64, 0), "nobody else stores there, so that it goes on");
    assert_eq!(lake.number(&differences(HOSTS, 200)), Some(0));
}

#[tokio::test]
async fn a_trial_reads_and_counts_only_and_what_does_not_fit_is_told_by_reason() {
    let server = TestServer::start().await;
    let client = server.client().await;
    publish(&client, 0, 20).await;
    let mut misfit = known_batch(0, 20, 1);
    misfit.fields.insert(name("n"), plimsoll_nats::Column::Text(vec![Some("x".to_owned())]));
    publish_all(&client, std::iter::once(misfit)).await;
    for _ in 0..2 {
        let garbage = subject::metrics(&HostId::parse("h0").expect("host"), &name("known"));
        client.jetstream.publish(garbage, "garbage".into()).await.expect("is sent").await.expect("is stored");
    }
    let lake = TestLake::new();
    let trial = ReplayConfig { is_trial: true, ..config(&embedded(&lake)) };
    let trial = replay(trial, &client).await.expect("comes to its end").progress;
    assert_eq!((trial.messages, trial.rows, trial.stored), (HOSTS as u64 + 3, 20 * HOSTS as u64 + 1, 0));
    assert_eq!(trial.points, 2 * trial.rows);
    assert!(!lake.dir.path().join("catalog.sqlite").exists(), "a trial leaves no trace");
    let summary = replay(config(&embedded(&lake)), &client).await.expect("comes to its end").progress;
    assert_eq!(summary.stored, 20 * HOSTS as u64);
    let refused: Vec<_> = summary.refused.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused.iter().any(|(reason, count)| reason.starts_with("failed to read the batch") && *count == 2),
        "{refused:?}"
    );
    assert!(refused.iter().any(|(reason, count)| reason.contains("field `n` is") && *count == 1), "{refused:?}");
    let dead = client.jetstream.get_stream(plimsoll_nats::streams::DEAD).await.expect("there");
    assert_eq!(dead.cached_info().state.messages, 0, "a replay puts nothing aside");
}

#[tokio::test]
async fn what_can_not_be_replayed_is_said_with_the_reason() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let lake = TestLake::new();
    let empty = replay(config(&embedded(&lake)), &client).await.expect_err("nothing there");
    assert!(matches!(empty, ReplayError::Empty), "{empty}");
    publish(&client, 0, 20).await;
    let nobody =
        replay(selected(&embedded(&lake), &["h99"], &[]), &client).await.expect_err("no such host").to_string();
    assert!(nobody.contains("hosts h99 and measurements *"), "{nobody}");
    let since_ms = now_ms() - 7_200_000;
    let gone = ReplayConfig { since_ms, until_ms: Some(since_ms + 1000), ..config(&embedded(&lake)) };
    let gone = replay(gone, &client).await.expect_err("long ago").to_string();
    assert!(gone.contains("its oldest sample was stored at 20"), "{gone}");
    let summary = replay(config(&embedded(&lake)), &client).await.expect("comes to its end");
    assert!(summary.held_since_ms.is_some_and(|held| held > since_ms), "more was asked for than there is: {summary:?}");
    let unnamed = ReplayConfig { is_named: false, ..selected(&embedded(&TestLake::new()), &["h1"], &[]) };
    let refused = replay(unnamed, &client).await.expect_err("ingest may be about to begin");
    assert!(refused.to_string().contains("--into"), "{refused}");
}

#[tokio::test]
async fn a_broker_that_goes_away_for_a_while_is_waited_for() {
    const ROWS: i64 = 1200;
    let mut server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    publish(&client, 0, ROWS).await;
    let (progress, mut watched) = watch::channel(Progress::default());
    let running =
        tokio::spawn(replay::run(config(&embedded(&lake)), client.clone(), progress, CancellationToken::new()));
    watched.wait_for(|progress| progress.stored > 0).await.expect("it runs");
    server.kill();
    server.start_again().await;
    let summary = running.await.expect("no panic").expect("comes to its end");
    assert!(summary.is_complete);
    assert_eq!(summary.progress.stored, ROWS as u64 * HOSTS as u64);
    assert_eq!(lake.number(&differences(HOSTS, ROWS)), Some(0));
}
