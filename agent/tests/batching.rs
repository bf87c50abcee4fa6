//! Gathering samples into fewer messages, against a real broker.

use std::time::Duration;

use plimsoll_agent::{AgentConfig, config::BatchConfig};
use plimsoll_nats::{
    Batch, Client, streams,
    subject::MetricSubject,
    testing::{TestServer, eventually},
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// Every stored batch, decoded.
async fn stored(client: &Client) -> Vec<Batch> {
    let Ok((stream, _)) = streams::metrics(client).await else {
        return Vec::new();
    };
    let state = stream.cached_info().state.clone();
    let mut batches = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.direct_get(sequence).await.expect("stored messages can be read");
        let subject = MetricSubject::parse(&message.subject).expect("a subject of the contract");
        let batch = Batch::decode(&subject.host, &subject.measurement, Some(&message.headers), &message.payload);
        batches.push(batch.expect("a valid batch"));
    }
    batches
}

fn distinct_times(batch: &Batch) -> usize {
    let mut times = batch.times.clone();
    assert!(times.is_sorted(), "rows are in the order of their times");
    times.dedup();
    times.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn gathered_samples_come_together_and_the_rest_at_the_end() {
    let server = TestServer::start().await;
    let state = tempfile::tempdir().expect("a temporary folder");
    let config = AgentConfig {
        host: Some("test-host".to_owned()),
        interval: Some(Duration::from_millis(100)),
        batch: BatchConfig { interval: Some(Duration::from_secs(1)) },
        state_dir: Some(state.path().to_owned()),
        nats: server.config(),
        ..AgentConfig::default()
    };
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(plimsoll_agent::run(config, shutdown.clone()));
    let client = server.client().await;
    let of_load = async || -> Vec<Batch> {
        stored(&client).await.into_iter().filter(|batch| &*batch.measurement == "load").collect()
    };
    let first = eventually("two messages of `load`", PATIENCE, async || {
        let batches = of_load().await;
        (batches.len() >= 2).then_some(batches)
    })
    .await;
    assert!(first.iter().all(|batch| distinct_times(batch) >= 2), "samples are not gathered");

    // Until some more must have been taken that only the end can send.
    let last = first.last().and_then(|batch| batch.times.last().copied()).expect("a row");
    eventually("the next ticks", PATIENCE, async || (plimsoll_nats::now_ms() > last + 300).then_some(())).await;
    shutdown.cancel();
    task.await.expect("the agent does not panic").expect("the agent ends well");
    let all = of_load().await;
    let seqs: Vec<u64> = all.iter().map(|batch| batch.seq).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    let end = all.last().and_then(|batch| batch.times.last().copied()).expect("a row");
    assert!(all.len() > first.len() && end > last, "what was gathered last is lost");
}
