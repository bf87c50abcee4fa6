//! Rows in the lake, in the tail, and in both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use plimsoll_nats::{
    Batch,
    host::{HostRecord, Inventory},
    now_ms, streams,
    testing::eventually,
};
use plimsoll_query_api::QueryApiConfig;
use plimsoll_service::ops::Ops;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, PATIENCE, commit, host, name, publish};

fn span(harness: &Harness) -> String {
    format!("measurement=cpu&from={}&to={}", harness.base_ms, harness.base_ms + 100_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_and_points_are_the_same_from_tail_and_lake() {
    let harness = Harness::start().await;
    for second in 0..5 {
        harness.publish(&harness.cpu("web-1", second)).await;
    }
    harness.counted(5).await;
    let span = span(&harness);
    let stats = harness.json(&format!("/api/stats/web-1?{span}")).await;
    let points = harness.json(&format!("/api/metrics/web-1?{span}&limit=2")).await;
    let buckets = harness.json(&format!("/api/metrics/web-1?{span}&step=2s&field=usage_percent,state")).await;
    insta::assert_json_snapshot!("stats", harness.settled(stats.clone()));
    insta::assert_json_snapshot!("points", harness.settled(points.clone()));
    insta::assert_json_snapshot!("buckets", harness.settled(buckets.clone()));
    harness.commit().await;
    assert_eq!(harness.json(&format!("/api/stats/web-1?{span}")).await, stats);
    assert_eq!(harness.json(&format!("/api/metrics/web-1?{span}&limit=2")).await, points);
    assert_eq!(harness.json(&format!("/api/metrics/web-1?{span}&step=2s&field=usage_percent,state")).await, buckets);
    let tagged = harness.json(&format!("/api/stats/web-1?{span}&tag.core=1")).await;
    assert_eq!(tagged["series"], json!([]));
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_starts_late_answers_from_the_lake() {
    let mut harness = Harness::without_lake().await;
    harness.create_lake().await;
    for second in 0..3 {
        harness.publish(&harness.cpu("web-1", second)).await;
    }
    harness.commit().await;
    harness.publish(&harness.cpu("web-1", 3)).await;
    harness.ready().await;
    harness.counted(4).await;
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_service_does_not_read_what_the_lake_contains() {
    use plimsoll_nats::async_nats::jetstream::consumer::DeliverPolicy;
    let harness = Harness::start().await;
    for second in 0..20 {
        harness.publish(&harness.cpu("web-1", second)).await;
    }
    harness.counted(20).await;
    harness.commit().await;
    harness.publish(&harness.cpu("web-1", 20)).await;
    let config = QueryApiConfig {
        publish_metrics: false,
        nats: harness.broker.config(),
        lake: harness.lake.clone(),
        ..QueryApiConfig::default()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (client, shutdown) = (harness.broker.client().await, CancellationToken::new());
    let second = plimsoll_query_api::run_with(config, client, Ops::default(), listener, shutdown.clone());
    let second = tokio::spawn(second);
    let (stream, _) = streams::metrics(&harness.client).await.expect("there");
    eventually("a tail that begins with the one message that is new", PATIENCE, async || {
        let mut consumers = std::pin::pin!(stream.consumers());
        while let Some(Ok(info)) = futures_util::StreamExt::next(&mut consumers).await {
            if info.config.deliver_policy == (DeliverPolicy::ByStartSequence { start_sequence: 21 }) {
                return Some(());
            }
        }
        None
    })
    .await;
    shutdown.cancel();
    second.await.expect("no panic").expect("ends in order");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_answers_before_there_is_a_lake() {
    let mut harness = Harness::without_lake().await;
    harness.publish(&harness.cpu("web-1", 0)).await;
    harness.counted(1).await;
    let span = span(&harness);
    assert_eq!(harness.json(&format!("/api/stats/web-1?{span}")).await["complete"], true);
    assert_eq!(harness.get("/readyz").await.status().as_u16(), 503);
    harness.create_lake().await;
    harness.ready().await;
    harness.counted(1).await;
    harness.commit().await;
    harness.counted(1).await;
    harness.stop().await;
}

/// While one side commits what another publishes, each answer counts every sample once: never fewer than the answer before, never
/// more than were published.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counts_neither_dip_nor_double_while_commits_move() {
    const SAMPLES: i64 = 300;
    let harness = Arc::new(Harness::start().await);
    let (sent, stored) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let publishing = {
        let (harness, sent, stored) = (Arc::clone(&harness), Arc::clone(&sent), Arc::clone(&stored));
        async move {
            for second in 0..SAMPLES {
                sent.fetch_add(1, Ordering::SeqCst);
                publish(&harness.client, &harness.cpu("web-1", second)).await;
                stored.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        }
    };
    let committing = {
        let (harness, done) = (Arc::clone(&harness), Arc::clone(&done));
        tokio::spawn(async move {
            let mut commits = 0;
            while !done.load(Ordering::SeqCst) {
                commit(&harness.client, &harness.writer()).await;
                commits += 1;
            }
            commits
        })
    };
    let polling = (0..3).map(|_| {
        let (harness, sent, done) = (Arc::clone(&harness), Arc::clone(&sent), Arc::clone(&done));
        tokio::spawn(async move {
            let (mut before, mut polls) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                let count = harness.count().await;
                let most = sent.load(Ordering::SeqCst);
                assert!(count >= before, "{count} samples after {before}");
                assert!(count <= most, "{count} samples of {most}");
                before = count;
                polls += 1;
            }
            polls
        })
    });
    let polling: Vec<_> = polling.collect();
    publishing.await;
    harness.counted(stored.load(Ordering::SeqCst)).await;
    done.store(true, Ordering::SeqCst);
    let commits = committing.await.expect("commits go on");
    assert!(commits > 5, "{commits} commits are too few to tell");
    for polls in polling {
        assert!(polls.await.expect("counts hold") > 10);
    }
    Arc::into_inner(harness).expect("all others have ended").stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_rejected_is_not_shown_and_bad_messages_harm_nobody() {
    let harness = Harness::start().await;
    harness.publish(&harness.cpu("web-1", 0)).await;
    let ahead = Batch { times: vec![now_ms() + 3_600_000], ..harness.cpu("web-1", 1) };
    harness.publish(&ahead).await;
    let publish = harness.client.jetstream.publish("plimsoll.metrics.web-1.cpu", "nonsense".into()).await;
    publish.expect("sent").await.expect("stored");
    harness.publish(&harness.cpu("web-1", 2)).await;
    harness.counted(2).await;
    let text = harness.get("/metrics").await.text().await.expect("text");
    assert!(text.contains("plimsoll_query_api_tail_unusable_total 2"), "{text}");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_come_from_records_and_from_samples() {
    let harness = Harness::start().await;
    let record = HostRecord {
        host: host("db-1"),
        last_seen_ms: harness.base_ms - 10_000_000,
        heartbeat_ms: 30_000,
        agent_version: "0.1.0".to_owned(),
        inventory: Inventory { cpu_count: Some(4), ..Inventory::default() },
    };
    let store = streams::bucket(&harness.client, streams::HOSTS).await.expect("a bucket");
    let value = serde_json::to_vec(&record).expect("JSON");
    store.put("db-1", value.into()).await.expect("stored");
    let fresh = Batch { times: vec![now_ms()], ..harness.cpu("web-1", 0) };
    harness.publish(&fresh).await;
    let clients = eventually("two hosts", PATIENCE, async || {
        let clients = harness.json("/api/clients").await["clients"].clone();
        (clients.as_array().expect("a list").len() == 2).then_some(clients)
    })
    .await;
    assert_eq!((&clients[0]["host"], &clients[0]["online"]), (&json!("db-1"), &json!(false)));
    assert_eq!(clients[0]["inventory"]["cpu_count"], 4);
    assert_eq!((&clients[1]["host"], &clients[1]["online"]), (&json!("web-1"), &json!(true)));
    assert_eq!(clients[1]["last_seen_ms"], fresh.times[0]);
    let empty = harness.json("/api/stats/db-1?measurement=cpu").await;
    assert_eq!(empty["series"], json!([]), "a host with a record is known");
    store.delete("db-1").await.expect("deleted");
    eventually("one host", PATIENCE, async || {
        (harness.json("/api/clients").await["clients"].as_array().expect("a list").len() == 1).then_some(())
    })
    .await;
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn measurements_are_built_in_or_stored() {
    let harness = Harness::start().await;
    let before = harness.json("/api/measurements").await;
    assert_eq!(before["measurements"][0]["stored"], false);
    let own = Batch { measurement: name("own_thing"), ..harness.cpu("web-1", 0) };
    harness.publish(&own).await;
    let found = async |rows: u64| {
        eventually("the measurement", PATIENCE, async || {
            let all = harness.json("/api/measurements").await;
            let all = all["measurements"].as_array().expect("a list").clone();
            all.into_iter().find(|found| found["name"] == "own_thing" && found["rows"] == rows)
        })
        .await
    };
    let in_tail = found(1).await;
    insta::assert_json_snapshot!("measurement", in_tail);
    harness.commit().await;
    assert_eq!(found(1).await, in_tail);
    harness.stop().await;
}
