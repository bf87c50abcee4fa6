//! The counters of queries that came to nothing, each made to count by what it is for.

use std::time::Duration;

use plimsoll_nats::testing::eventually;
use plimsoll_query_api::QueryApiConfig;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    harness::{Harness, PATIENCE},
    report::{integer, next, reports},
};

/// In this order in all that follows.
const COUNTERS: [&str; 3] = ["cancelled_queries_total", "timed_out_queries_total", "refused_requests_total"];

/// The counters, as `/metrics` tells them.
async fn counters(harness: &Harness) -> [i64; 3] {
    let text = harness.get("/metrics").await.text().await.expect("text");
    COUNTERS.map(|counter| {
        let value = |line: &str| line.strip_prefix("plimsoll_query_api_")?.strip_prefix(counter)?.trim().parse().ok();
        text.lines().find_map(value).unwrap_or_else(|| panic!("no {counter} in {text}"))
    })
}

/// Waits until the measurement `plimsoll` tells what `/metrics` does, which is not nothing.
async fn reported(harness: &Harness) {
    let mut reports = reports(harness).await;
    let told = async {
        loop {
            let report = next(&mut reports).await;
            let told = COUNTERS.map(|counter| integer(&report, counter));
            if told != [0; 3] && told == counters(harness).await {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("a report of the counts");
}

/// A service with one sample that nobody has asked for anything yet.
async fn start(config: QueryApiConfig) -> Harness {
    let harness = Harness::reporting_with(config).await;
    harness.publish(&harness.cpu("web-1", 0)).await;
    assert_eq!(counters(&harness).await, [0; 3]);
    harness
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_client_has_left_is_cancelled() {
    let harness = start(QueryApiConfig::default()).await;
    let address = harness.url.trim_start_matches("http://");
    let request = format!("GET /api/stats/web-1?measurement=cpu HTTP/1.1\r\nHost: {address}\r\n\r\n");
    // Again where the answer was there before the service has noticed.
    let [_, timed_out, refused] = eventually("a query to be cancelled", PATIENCE, async || {
        let mut socket = TcpStream::connect(address).await.expect("connects");
        socket.write_all(request.as_bytes()).await.expect("is sent");
        drop(socket);
        Some(counters(&harness).await).filter(|[cancelled, ..]| *cancelled > 0)
    })
    .await;
    assert_eq!((timed_out, refused), (0, 0));
    eventually("the query to end", PATIENCE, async || {
        let text = harness.get("/metrics").await.text().await.expect("text");
        text.contains("plimsoll_query_api_queries_running 0.0").then_some(())
    })
    .await;
    reported(&harness).await;
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_beyond_its_time_is_timed_out() {
    let harness = start(QueryApiConfig { query_timeout: Duration::from_millis(1), ..QueryApiConfig::default() }).await;
    harness.problem("/api/stats/web-1?measurement=cpu", 504).await;
    assert_eq!(counters(&harness).await, [0, 1, 0]);
    reported(&harness).await;
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_of_a_lake_whose_files_are_away_is_refused() {
    let harness = start(QueryApiConfig::default()).await;
    harness.commit().await;
    let data = std::path::PathBuf::from(&harness.lake.data_path);
    std::fs::rename(&data, data.with_extension("aside")).expect("renamed");
    harness.problem("/api/stats/web-1?measurement=cpu", 503).await;
    assert_eq!(counters(&harness).await, [0, 0, 1]);
    reported(&harness).await;
    harness.stop().await;
}
