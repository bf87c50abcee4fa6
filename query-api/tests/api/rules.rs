//! Alert rules and alerts.

use std::collections::BTreeMap;

use plimsoll_nats::{
    alert::{AlertState, AlertStatus, SeriesKey, Transition, state_key},
    rule::Severity,
    streams,
    testing::eventually,
};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::harness::{Harness, PATIENCE, host, name, problem};

fn rule(threshold: f64) -> Value {
    json!({ "name": "busy", "measurement": "cpu", "field": "usage_percent", "compare": ">", "threshold": threshold })
}

async fn send(harness: &Harness, method: Method, path: &str, if_match: Option<&str>, body: Option<&Value>) -> Response {
    let mut request = harness.request(method, path);
    if let Some(etag) = if_match {
        request = request.header("if-match", etag);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    request.send().await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_created_read_replaced_and_deleted() {
    let harness = Harness::start().await;
    let created = send(&harness, Method::POST, "/api/rules", None, Some(&rule(90.0))).await;
    assert_eq!(
        (created.status().as_u16(), &created.headers()["location"]),
        (201, &"/api/rules/busy".parse().expect("text"))
    );
    let again = send(&harness, Method::POST, "/api/rules", None, Some(&rule(90.0))).await;
    problem(again, 409).await;

    let read = harness.get("/api/rules/busy").await;
    let etag = read.headers()["etag"].to_str().expect("text").to_owned();
    insta::assert_json_snapshot!("rule", read.json::<Value>().await.expect("JSON"));
    assert_eq!(harness.json("/api/rules").await["rules"].as_array().expect("a list").len(), 1);

    let replaced = send(&harness, Method::PUT, "/api/rules/busy", Some(&etag), Some(&rule(80.0))).await;
    assert_eq!(replaced.status().as_u16(), 200);
    problem(send(&harness, Method::PUT, "/api/rules/busy", Some(&etag), Some(&rule(70.0))).await, 412).await;
    problem(send(&harness, Method::DELETE, "/api/rules/busy", Some(&etag), None).await, 412).await;
    problem(send(&harness, Method::PUT, "/api/rules/busy", Some("x"), Some(&rule(70.0))).await, 400).await;
    assert_eq!(harness.json("/api/rules/busy").await["threshold"], 80.0);
    let other = problem(send(&harness, Method::PUT, "/api/rules/other", None, Some(&rule(1.0))).await, 400).await;
    assert_eq!(other["errors"][0]["parameter"], "name");

    assert_eq!(send(&harness, Method::DELETE, "/api/rules/busy", None, None).await.status().as_u16(), 204);
    problem(send(&harness, Method::DELETE, "/api/rules/busy", None, None).await, 404).await;
    problem(harness.get("/api/rules/busy").await, 404).await;
    assert_eq!(harness.json("/api/rules").await["rules"], json!([]));
    let anew = send(&harness, Method::PUT, "/api/rules/busy", None, Some(&rule(1.0))).await;
    assert_eq!(anew.status().as_u16(), 201, "a deleted rule can be created again");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_delete_a_rule_one_is_told_that_it_was_slower() {
    let harness = Harness::start().await;
    for _ in 0..10 {
        let created = send(&harness, Method::POST, "/api/rules", None, Some(&rule(90.0))).await;
        let etag = created.headers()["etag"].to_str().expect("text").to_owned();
        let delete =
            || async { send(&harness, Method::DELETE, "/api/rules/busy", Some(&etag), None).await.status().as_u16() };
        let mut told: Vec<u16> = futures_util::future::join_all((0..8).map(|_| delete())).await;
        told.sort_unstable();
        assert_eq!(told[0], 204);
        assert!(told[1..].iter().all(|status| matches!(status, 404 | 412)), "{told:?}");
    }
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_problem_of_a_rule_is_told_at_once() {
    let harness = Harness::start().await;
    let mut bad = rule(90.0);
    bad["hosts"] = "[".into();
    bad["window"] = "0s".into();
    bad["notify"] = json!([{ "type": "webhook", "url": "ftp://x" }]);
    let told = problem(send(&harness, Method::POST, "/api/rules", None, Some(&bad)).await, 400).await;
    let names: Vec<_> = told["errors"].as_array().expect("errors").iter().map(|error| &error["parameter"]).collect();
    assert_eq!(names, ["hosts", "window", "notify"]);
    bad["treshold"] = 1.into();
    let told = problem(send(&harness, Method::POST, "/api/rules", None, Some(&bad)).await, 400).await;
    assert_eq!(told["errors"][0]["parameter"], "treshold");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_found_by_status_host_and_rule() {
    let harness = Harness::start().await;
    let store = streams::bucket(&harness.client, streams::ALERT_STATE).await.expect("a bucket");
    for (on, to) in [("web-1", AlertStatus::Firing), ("web-2", AlertStatus::NoData)] {
        let series = SeriesKey { host: host(on), tags: BTreeMap::new() };
        let key = state_key(&name("busy"), &series);
        let transition = Transition {
            rule: name("busy"),
            series,
            measurement: name("cpu"),
            field: name("usage_percent"),
            from: AlertStatus::Pending,
            to,
            at_ms: 1_790_000_000_000,
            value: Some(97.5),
            threshold: 90.0,
            severity: Severity::Critical,
            description: String::new(),
        };
        let state = AlertState { transition, since_ms: Some(1_789_999_970_000), open: true, announced: true };
        store.put(key, serde_json::to_vec(&state).expect("JSON").into()).await.expect("stored");
    }
    let all = eventually("both alerts", PATIENCE, async || {
        let alerts = harness.json("/api/alerts").await["alerts"].clone();
        (alerts.as_array().expect("a list").len() == 2).then_some(alerts)
    })
    .await;
    insta::assert_json_snapshot!("alerts", all);
    for (query, count) in
        [("status=firing", 1), ("host=web-2&rule=busy", 1), ("rule=other", 0), ("status=no_data&host=web-1", 0)]
    {
        let alerts = harness.json(&format!("/api/alerts?{query}")).await;
        assert_eq!(alerts["alerts"].as_array().expect("a list").len(), count, "{query}");
    }
    harness.stop().await;
}
