//! Wrong requests: each is told what was expected.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Harness, problem};

fn wrong(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().expect("errors");
    errors.iter().map(|error| error["parameter"].as_str().expect("a name")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_parameters_are_named_with_what_was_expected() {
    let harness = Harness::start().await;
    harness.publish(&harness.cpu("web-1", 0)).await;
    harness.counted(1).await;
    for (path, parameters) in [
        ("/api/stats/web-1", &["measurement"][..]),
        ("/api/metrics/web-1?measurement=CPU", &["measurement"]),
        ("/api/metrics/web-1?measurement=cpu&from=yesterday", &["from"]),
        ("/api/metrics/web-1?measurement=cpu&to=12:00", &["to"]),
        ("/api/metrics/web-1?measurement=cpu&from=now&to=-1h", &["from"]),
        ("/api/metrics/web-1?measurement=cpu&step=0s", &["step"]),
        ("/api/metrics/web-1?measurement=cpu&step=1ms", &["step"]),
        ("/api/metrics/web-1?measurement=cpu&limit=0", &["limit"]),
        ("/api/metrics/web-1?measurement=cpu&limit=1000001", &["limit"]),
        ("/api/metrics/web-1?measurement=cpu&field=", &["field"]),
        ("/api/metrics/web-1?measurement=cpu&field=nothing", &["field"]),
        ("/api/stats/web-1?measurement=memory&field=nothing", &["field"]),
        ("/api/stats/web-1?measurement=cpu&tag.nothing=1", &["tag.nothing"]),
        ("/api/stats/web-1?measurement=cpu&tag.Core=1", &["tag.Core"]),
        ("/api/stats/web-1?measurement=cpu&tag.tag.core=0", &["tag.tag.core"]),
        ("/api/stats/web-1?measurement=cpu&measurement=cpu", &["measurement"]),
        ("/api/stats/web-1?measurement=cpu&step=1s&form=-1h", &["form", "step"]),
        ("/api/stats/web-1?from=x&to=y", &["measurement", "to", "from"]),
        ("/api/clients?host=web-1", &["host"]),
        ("/api/measurements?x=1", &["x"]),
        ("/api/rules?x=1", &["x"]),
        ("/api/alerts?status=red&host=a.b&rule=X", &["status", "host", "rule"]),
        ("/api/events?host=a.b&kind=boom&limit=0&since=-1h", &["host", "kind", "limit", "since"]),
        ("/api/events?limit=10001", &["limit"]),
        ("/api/events?from=now&to=-1h", &["from"]),
        ("/ws/live?hosts=&measurements=[", &["hosts", "measurements"]),
    ] {
        let problem = harness.problem(path, 400).await;
        assert_eq!(wrong(&problem), parameters, "{path}: {problem}");
    }
    insta::assert_json_snapshot!("wrong_parameters", harness.problem("/api/stats/web-1?from=x&stop=1", 400).await);
    insta::assert_json_snapshot!(
        "wrong_field",
        harness.problem("/api/stats/web-1?measurement=cpu&field=nothing", 400).await
    );
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_404() {
    let harness = Harness::start().await;
    harness.publish(&harness.cpu("web-1", 0)).await;
    harness.counted(1).await;
    for (path, kind) in [
        ("/api/stats/web-2?measurement=cpu", "unknown-host"),
        ("/api/metrics/web-2?measurement=cpu", "unknown-host"),
        ("/api/metrics/web-2?measurement=memory", "unknown-host"),
        ("/api/metrics/a.b?measurement=cpu", "unknown-host"),
        ("/api/stats/web-1?measurement=nothing", "unknown-measurement"),
        ("/api/metrics/web-1?measurement=nothing", "unknown-measurement"),
        ("/api/rules/nothing", "unknown-rule"),
        ("/api/rules/NOT-A-NAME", "unknown-rule"),
        ("/api/nothing", "unknown-path"),
        ("/api/stats/%ff?measurement=cpu", "unknown-path"),
    ] {
        let problem = harness.problem(path, 404).await;
        assert_eq!(problem["type"], format!("urn:plimsoll:problem:{kind}"), "{path}");
    }
    let empty = harness.json("/api/stats/web-1?measurement=memory").await;
    assert_eq!((&empty["series"], &empty["complete"]), (&json!([]), &json!(true)), "built in, and not sent yet");
    harness.commit().await;
    let problem = harness.problem("/api/stats/web-2?measurement=cpu", 404).await;
    assert_eq!(problem["type"], "urn:plimsoll:problem:unknown-host");
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_methods_and_bodies_are_problems_too() {
    let harness = Harness::start().await;
    let response = harness.request(Method::POST, "/api/clients").send().await.expect("an answer");
    assert_eq!(response.headers()["allow"], "GET,HEAD");
    problem(response, 405).await;
    harness.problem("/ws/live", 426).await;
    let plain = harness.request(Method::POST, "/api/rules").body("{}").send().await.expect("an answer");
    problem(plain, 415).await;
    let large = harness
        .request(Method::POST, "/api/rules")
        .header("content-type", "application/json")
        .body("x".repeat(100_000))
        .send()
        .await
        .expect("an answer");
    problem(large, 413).await;
    let index = harness.get("/").await;
    assert!(index.headers()["content-type"].to_str().expect("text").starts_with("text/html"));
    assert!(index.text().await.expect("text").contains("/ws/live"));
    assert_eq!(harness.get("/healthz").await.status().as_u16(), 200);
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_others_are_refused_on_every_path() {
    let harness = Harness::start().await;
    let ask = async |path: &str, header: &str, value: &str| {
        harness.request(Method::GET, path).header(header, value).send().await.expect("an answer")
    };
    for path in ["/", "/api/clients", "/api/rules", "/ws/live", "/nothing"] {
        let told = problem(ask(path, "host", "elsewhere.example").await, 403).await;
        assert_eq!(told["type"], "urn:plimsoll:problem:host", "{path}");
        let told = problem(ask(path, "origin", "http://elsewhere.example").await, 403).await;
        assert_eq!(told["type"], "urn:plimsoll:problem:origin", "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ask(path, "host", "elsewhere.example").await.status().as_u16(), 200, "{path}");
    }
    assert_eq!(ask("/api/clients", "host", "localhost:8080").await.status().as_u16(), 200);
    harness.stop().await;
}
