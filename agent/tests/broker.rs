//! The agent against a real broker: what is published, and that each batch is stored exactly once whatever happens.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_agent::{AgentConfig, AgentError};
use plimsoll_nats::{
    Batch, Client, NatsConfig,
    host::HostRecord,
    streams,
    subject::MetricSubject,
    testing::{Proxy, Swallow, TestServer, eventually},
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that runs in this process.
struct Agent {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
    _state: TempDir,
}

impl Agent {
    fn start(server: &TestServer, interval: Duration) -> Self {
        Self::start_at(server.config(), interval)
    }

    fn start_at(nats: NatsConfig, interval: Duration) -> Self {
        let state = TempDir::new().expect("a folder");
        let config = AgentConfig {
            host: Some("test-host".to_owned()),
            interval: Some(interval),
            state_dir: Some(state.path().to_owned()),
            nats,
            ..AgentConfig::default()
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(plimsoll_agent::run(config, shutdown.clone()));
        Self { shutdown, task, _state: state }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("the agent does not panic").expect("the agent ends well");
    }
}

/// Every stored batch in the stream's order, decoded.
async fn stored(client: &Client) -> Vec<Batch> {
    let (stream, _) = streams::metrics(client).await.expect("the stream is there");
    let state = stream.cached_info().state.clone();
    let mut batches = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.direct_get(sequence).await.expect("stored messages can be read");
        let subject = MetricSubject::parse(&message.subject).expect("stored under a subject of the contract");
        let batch = Batch::decode(&subject.host, &subject.measurement, Some(&message.headers), &message.payload);
        let batch = batch.expect("a valid batch");
        let id = message.headers.get("Nats-Msg-Id").expect("a message id");
        assert_eq!(id.as_str(), batch.message_id());
        batches.push(batch);
    }
    batches
}

fn by_measurement(batches: &[Batch]) -> BTreeMap<String, Vec<&Batch>> {
    let mut sorted: BTreeMap<String, Vec<&Batch>> = BTreeMap::new();
    for batch in batches {
        sorted.entry(batch.measurement.to_string()).or_default().push(batch);
    }
    sorted
}

/// Each measurement's numbers are 1, 2, 3 … and each is stored once, with times that rise with them.
///
/// Not always in that order: what is sampled after an outage does not wait for what the outage has left.
fn assert_exactly_once(batches: &[Batch]) {
    assert!(!batches.is_empty());
    for (measurement, mut batches) in by_measurement(batches) {
        batches.sort_by_key(|batch| batch.seq);
        assert_in_order(&measurement, &batches);
    }
}

fn assert_in_order(measurement: &str, batches: &[&Batch]) {
    let seqs: Vec<u64> = batches.iter().map(|batch| batch.seq).collect();
    let expected: Vec<u64> = (1..=seqs.len() as u64).collect();
    assert_eq!(seqs, expected, "{measurement}");
    assert!(batches.windows(2).all(|pair| pair[0].times[0] < pair[1].times[0]), "times of {measurement}");
    assert!(batches.iter().all(|batch| batch.epoch == batches[0].epoch));
}

async fn last_sequence(client: &Client) -> Option<u64> {
    let (stream, _) = streams::metrics(client).await.ok()?;
    Some(stream.cached_info().state.last_sequence)
}

/// Waits until so many batches have come since `from`.
async fn more_stored(client: &Client, from: u64, count: u64) -> u64 {
    eventually("more batches", PATIENCE, async || last_sequence(client).await.filter(|last| *last >= from + count))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_publishes_what_the_contract_says_and_its_host_record() {
    let server = TestServer::start().await;
    // Nothing is declared: the agent may be the first to come.
    let agent = Agent::start(&server, Duration::from_secs(1));
    let client = Client::connect(&server.config(), "test", &CancellationToken::new()).await.expect("connects");
    let record = eventually("the host record", PATIENCE, async || {
        let bucket = streams::bucket(&client, streams::HOSTS).await.ok()?;
        bucket.get("test-host").await.ok()?
    })
    .await;
    let record: HostRecord = serde_json::from_slice(&record).expect("a host record");
    assert_eq!((&*record.host, record.heartbeat_ms), ("test-host", 10_000));
    assert!(record.inventory.cpu_count.is_some());

    more_stored(&client, 0, 12).await;
    agent.stop().await;
    let batches = stored(&client).await;
    by_measurement(&batches).iter().for_each(|(measurement, batches)| assert_in_order(measurement, batches));
    assert!(batches.iter().all(|batch| &*batch.host == "test-host"));
    assert!(batches.iter().flat_map(|batch| &batch.times).all(|ts| ts % 1_000 == 0));
    let measurements = by_measurement(&batches);
    for certain in ["cpu", "memory", "load", "filesystem"] {
        assert!(measurements.contains_key(certain), "{certain} is missing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_seconds_loses_and_doubles_nothing() {
    let mut server = TestServer::start().await;
    let agent = Agent::start(&server, Duration::from_millis(100));
    let client = server.client().await;
    let before = more_stored(&client, 0, 40).await;
    server.kill();
    // The outage itself: long enough that each measurement must catch up with pipelined publishes.
    tokio::time::sleep(Duration::from_secs(4)).await;
    server.start_again().await;
    more_stored(&client, before, 4 * 40).await;
    agent.stop().await;
    assert_exactly_once(&stored(&client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_at_the_start_gets_everything_later() {
    let mut server = TestServer::start().await;
    server.kill();
    let agent = Agent::start(&server, Duration::from_millis(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.start_again().await;
    let client = server.client().await;
    more_stored(&client, 0, 100).await;
    agent.stop().await;
    assert_exactly_once(&stored(&client).await);
}

/// Leaves a window so short that it protects from no double.
async fn narrow_duplicate_window(client: &Client) {
    let (stream, _) = streams::metrics(client).await.expect("the stream is there");
    let mut config = stream.cached_info().config.clone();
    config.duplicate_window = Duration::from_millis(100);
    client.jetstream.update_stream(config).await.expect("the window can be narrowed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_with_publishes_in_flight_stores_each_once() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    narrow_duplicate_window(&client).await;
    let agent = Agent::start(&server, Duration::from_millis(100));
    let mut last = more_stored(&client, 0, 20).await;
    for _ in 0..5 {
        server.kill();
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.start_again().await;
        // The backlog is sent at once; killing the broker meanwhile catches publishes in flight.
        last = more_stored(&client, last, 3).await;
    }
    more_stored(&client, last, 40).await;
    agent.stop().await;
    assert_exactly_once(&stored(&client).await);
}

/// With a duplicate window of 100 ms only asking the stream keeps a batch from being stored twice when its ack is lost.
#[tokio::test(flavor = "multi_thread")]
async fn lost_acks_double_nothing_even_without_the_duplicate_window() {
    let server = TestServer::start().await;
    let client = server.client().await;
    narrow_duplicate_window(&client).await;
    let proxy = Proxy::start(server.url()).await;
    let agent = Agent::start_at(NatsConfig { url: proxy.url.clone(), ..server.config() }, Duration::from_millis(100));
    let mut last = more_stored(&client, 0, 20).await;
    for _ in 0..4 {
        // Publishes go on to arrive, their acks do not.
        proxy.swallow(Swallow::Answers);
        more_stored(&client, last, 1).await;
        // Past the duplicate window, so that a batch sent again would be taken as new.
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.cut();
        last = caught_up(&client).await;
    }
    agent.stop().await;
    assert_exactly_once(&stored(&client).await);
}

/// Waits until so many batches have come from now on that a connection must stand again.
async fn caught_up(client: &Client) -> u64 {
    let now = last_sequence(client).await.expect("the broker answers");
    more_stored(client, now, 60).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_publishes_are_sent_again() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let proxy = Proxy::start(server.url()).await;
    let agent = Agent::start_at(NatsConfig { url: proxy.url.clone(), ..server.config() }, Duration::from_millis(100));
    more_stored(&client, 0, 20).await;
    for _ in 0..4 {
        proxy.swallow(Swallow::Requests);
        // Several ticks are published, and none arrives.
        tokio::time::sleep(Duration::from_millis(500)).await;
        proxy.cut();
        caught_up(&client).await;
    }
    agent.stop().await;
    assert_exactly_once(&stored(&client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_gets_what_it_has_not() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    let agent = Agent::start(&server, Duration::from_millis(100));
    more_stored(&client, 0, 40).await;
    server.wipe();
    server.start_again().await;
    more_stored(&client, 0, 40).await;
    agent.stop().await;
    for (measurement, batches) in by_measurement(&stored(&client).await) {
        let seqs: Vec<u64> = batches.iter().map(|batch| batch.seq).collect();
        assert!(seqs.windows(2).all(|pair| pair[1] == pair[0] + 1), "{measurement}: {seqs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_broker_ends_when_told() {
    let mut server = TestServer::start().await;
    server.kill();
    let agent = Agent::start(&server, Duration::from_millis(100));
    tokio::time::sleep(Duration::from_millis(300)).await;
    tokio::time::timeout(Duration::from_secs(5), agent.stop()).await.expect("it ends at once");
}
