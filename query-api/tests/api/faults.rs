//! What breaks, and how the service goes on.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use plimsoll_lake::{LakeConfig, LakeReader, Tail, query::ReaderLimits};
use plimsoll_nats::{
    NatsConfig, streams,
    testing::{TestServer, eventually},
};
use plimsoll_query_api::{
    QueryApiConfig, QueryApiError,
    feed::{Feed, FeedState},
    metrics::Metrics,
};
use plimsoll_service::ops::Ops;
use reqwest::Method;
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, PATIENCE, problem};

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_may_restart() {
    let mut harness = Harness::start().await;
    for second in 0..3 {
        harness.publish(&harness.cpu("web-1", second)).await;
    }
    harness.counted(3).await;
    harness.broker.kill();
    eventually("answers that say so", PATIENCE, async || {
        let stats = harness.json("/api/stats/web-1?measurement=cpu").await;
        assert_eq!(stats["series"][0]["count"], 3, "what is known stays known");
        (stats["complete"] == false).then_some(())
    })
    .await;
    eventually("readiness to be lost", PATIENCE, async || {
        (harness.get("/readyz").await.status().as_u16() == 503).then_some(())
    })
    .await;
    let response = harness.request(Method::GET, "/api/rules").send().await.expect("an answer");
    assert_eq!(response.headers()["retry-after"], "2");
    problem(response, 503).await;
    harness.broker.start_again().await;
    eventually("complete answers", PATIENCE, async || {
        let stats = harness.json("/api/stats/web-1?measurement=cpu").await;
        assert_eq!(stats["series"][0]["count"], 3, "nothing vanishes while it catches up");
        (stats["complete"] == true).then_some(())
    })
    .await;
    harness.ready().await;
    harness.client = harness.broker.client().await;
    harness.publish(&harness.cpu("web-1", 3)).await;
    harness.counted(4).await;
    harness.commit().await;
    harness.counted(4).await;
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_broker_begins_another_life() {
    let mut harness = Harness::start().await;
    for second in 0..3 {
        harness.publish(&harness.cpu("web-1", second)).await;
    }
    harness.commit().await;
    harness.counted(3).await;
    harness.broker.wipe();
    harness.broker.start_again().await;
    harness.client = harness.broker.client().await;
    harness.publish(&harness.cpu("web-1", 10)).await;
    harness.counted(4).await;
    harness.commit().await;
    harness.counted(4).await;
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_is_read_anew_when_positions_go_back() {
    let broker = TestServer::start().await;
    let client = broker.client().await;
    streams::declare(&client, &broker.config()).await.expect("declared");
    let dir = tempfile::TempDir::new().expect("a folder");
    let limits = ReaderLimits { connections: NonZeroUsize::MIN, timeout: PATIENCE };
    let reader = Arc::new(LakeReader::new(&LakeConfig::embedded(dir.path()), limits).expect("opens"));
    let (tail, state) = (Arc::new(Tail::new(usize::MAX)), Arc::new(FeedState::default()));
    let metrics = Metrics::register(&Ops::default(), &reader);
    let feed = Feed::new(client, reader, tail, Arc::clone(&state), metrics);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(feed.run(shutdown.clone()));
    let current = async || eventually("the feed", PATIENCE, async || state.is_current().then_some(())).await;
    current().await;
    state.rewind();
    assert!(!state.is_current());
    current().await;
    shutdown.cancel();
    running.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_vanishes_is_a_503_and_comes_back() {
    let harness = Harness::start().await;
    // So many that they are in a file and not in the catalog; nobody has read them from there before it vanishes.
    for second in 0..12 {
        harness.publish(&harness.cpu("web-1", second)).await;
    }
    harness.counted(12).await;
    harness.commit().await;
    let data = std::path::PathBuf::from(&harness.lake.data_path);
    let aside = data.with_extension("aside");
    std::fs::rename(&data, &aside).expect("renamed");
    let told = harness.problem("/api/stats/web-1?measurement=cpu", 503).await;
    assert_eq!(told["type"], "urn:plimsoll:problem:lake");
    std::fs::rename(&aside, &data).expect("renamed back");
    harness.counted(12).await;
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_takes_too_long_is_504() {
    let harness = Harness::hasty(Duration::from_millis(1)).await;
    harness.publish(&harness.cpu("web-1", 0)).await;
    let told = harness.problem("/api/stats/web-1?measurement=cpu", 504).await;
    assert_eq!(told["type"], "urn:plimsoll:problem:timeout");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_address_is_said_in_one_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let http = taken.local_addr().expect("bound");
    let config = QueryApiConfig { http, ..QueryApiConfig::default() };
    let error = plimsoll_query_api::run(config, CancellationToken::new()).await.expect_err("the address is taken");
    assert_eq!(error.to_string(), format!("failed to listen on {http}: is another program using it?"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_the_service_waits_and_says_so() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let nats = NatsConfig { url: "nats://127.0.0.1:9".to_owned(), ..NatsConfig::default() };
    let config = QueryApiConfig { http: port, nats, ..QueryApiConfig::default() };
    let shutdown = CancellationToken::new();
    let service = tokio::spawn(plimsoll_query_api::run(config, shutdown.clone()));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ready =
        eventually("an answer", PATIENCE, async || reqwest::get(format!("http://{port}/readyz")).await.ok()).await;
    assert_eq!(ready.status().as_u16(), 503);
    problem(reqwest::get(format!("http://{port}/api/clients")).await.expect("an answer"), 503).await;
    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), service).await.expect("in time").expect("no panic");
    assert!(matches!(ended, Ok::<(), QueryApiError>(())));
}
