//! What happened to hosts, as their agents publish it.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_nats::{
    event::{EventKind, HostEvent},
    subject,
    testing::eventually,
};
use serde_json::{Value, json};

use crate::harness::{Harness, PATIENCE, host};

impl Harness {
    /// An event at so many seconds after the base.
    fn event(&self, on: &str, kind: EventKind, second: i64) -> HostEvent {
        HostEvent {
            host: host(on),
            time_ms: self.base_ms + second * 1000,
            kind,
            subject: String::new(),
            message: format!("it happened at second {second}"),
            attributes: BTreeMap::new(),
            epoch: ulid::Ulid::nil(),
            seq: 1,
        }
    }

    async fn publish_event(&self, event: &HostEvent) {
        let payload = serde_json::to_vec(event).expect("JSON");
        self.publish_raw(&subject::event(&event.host, event.kind), payload).await;
    }

    async fn publish_raw(&self, subject: &str, payload: Vec<u8>) {
        let ack = self.client.jetstream.publish(subject.to_owned(), payload.into()).await.expect("sent");
        ack.await.expect("stored");
    }

    /// The seconds after the base of the events that a path answers with, in its order.
    async fn seconds(&self, path: &str) -> Vec<i64> {
        let answer = self.json(path).await;
        let events = answer["events"].as_array().expect("events");
        events.iter().map(|event| (event["time_ms"].as_i64().expect("a time") - self.base_ms) / 1000).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_told_newest_first_and_by_host_kind_and_time() {
    let harness = Harness::start().await;
    assert_eq!(harness.json("/api/events").await["events"], json!([]));
    // The last one waited while its broker was away, and is stored out of order.
    for (on, kind, second) in [
        ("web-1", EventKind::AgentStarted, 0),
        ("web-2", EventKind::AgentStarted, 20),
        ("web-1", EventKind::OomKill, 40),
        ("web-2", EventKind::OomKill, 30),
        ("web-1", EventKind::OomKill, 10),
    ] {
        harness.publish_event(&harness.event(on, kind, second)).await;
    }
    let at = |second: i64| harness.base_ms + second * 1000;
    for (path, expected) in [
        ("/api/events".to_owned(), &[40, 30, 20, 10, 0][..]),
        ("/api/events?host=web-1".to_owned(), &[40, 10, 0]),
        ("/api/events?kind=oom_kill".to_owned(), &[40, 30, 10]),
        ("/api/events?host=web-2&kind=oom_kill".to_owned(), &[30]),
        ("/api/events?host=web-9".to_owned(), &[]),
        (format!("/api/events?from={}&to={}", at(10), at(30)), &[20, 10]),
        (format!("/api/events?to={}", at(0)), &[]),
        ("/api/events?limit=2".to_owned(), &[40, 30]),
        ("/api/events?limit=5".to_owned(), &[40, 30, 20, 10, 0]),
    ] {
        assert_eq!(harness.seconds(&path).await, expected, "{path}");
    }
    assert_eq!(harness.json("/api/events?limit=4").await["truncated"], true);
    assert_eq!(harness.json("/api/events?limit=5").await["truncated"], false);
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_told_whole_and_what_is_none_is_left_out() {
    let harness = Harness::start().await;
    let event = HostEvent {
        subject: "/data".to_owned(),
        attributes: BTreeMap::from([("device".to_owned(), Value::from("/dev/sdb1"))]),
        ..harness.event("web-1", EventKind::FilesystemReadOnly, 3)
    };
    harness.publish_event(&event).await;
    harness.publish_raw("plimsoll.events.web-1.oom_kill", b"not JSON".to_vec()).await;
    // Under the subject of another host.
    harness.publish_raw("plimsoll.events.web-2.filesystem_read_only", serde_json::to_vec(&event).expect("JSON")).await;
    let answer = harness.json("/api/events").await;
    let mut expected = serde_json::to_value(&event).expect("JSON");
    expected["time"] = answer["events"][0]["time"].clone();
    assert!(expected["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{answer}");
    assert_eq!(answer["events"], json!([expected]));
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_events_leaves_no_consumer_behind() {
    let harness = Harness::start().await;
    harness.publish_event(&harness.event("web-1", EventKind::Reboot, 0)).await;
    for _ in 0..5 {
        assert_eq!(harness.seconds("/api/events").await, [0]);
    }
    let mut stream = harness.client.jetstream.get_stream("EVENTS").await.expect("the stream");
    assert_eq!(stream.info().await.expect("known").state.consumer_count, 0);
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_broker_the_service_says_so() {
    let mut harness = Harness::start().await;
    harness.publish_event(&harness.event("web-1", EventKind::Reboot, 0)).await;
    harness.broker.kill();
    let problem = harness.problem("/api/events", 503).await;
    assert_eq!(problem["type"], "urn:plimsoll:problem:broker");
    harness.broker.start_again().await;
    eventually("events again", PATIENCE, async || {
        let response = harness.get("/api/events").await;
        (response.status().as_u16() == 200).then_some(())
    })
    .await;
    assert_eq!(harness.seconds("/api/events").await, [0]);
    tokio::time::timeout(Duration::from_secs(20), harness.stop()).await.expect("it ends");
}
