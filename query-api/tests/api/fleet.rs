//! Questions about many hosts, long times, rates and lines, over HTTP.

use plimsoll_lake::rollup::{SUMMARY_TYPE, key_sql};
use serde_json::{Value, json};

use crate::harness::Harness;

/// Three hosts, of which `web-2` is busiest, a sample a second for two minutes each.
async fn fleet() -> Harness {
    let harness = Harness::start().await;
    for (index, on) in ["web-1", "web-2", "db-1"].into_iter().enumerate() {
        let mut batch = harness.cpu(on, 0);
        let seconds = 0..120_i64;
        let busy = [10.0, 95.0, 50.0][index];
        batch.times = seconds.clone().map(|second| harness.base_ms + second * 1000).collect();
        batch.tags.values_mut().for_each(|cores| *cores = vec!["0".to_owned(); 120]);
        for (field, column) in &mut batch.fields {
            use plimsoll_nats::Column;
            *column = match &**field {
                "usage_percent" => {
                    Column::Float(seconds.clone().map(|second| Some(busy + (second / 60) as f64)).collect())
                }
                "switches_total" => {
                    // Starts anew at second 90.
                    Column::Integer(
                        seconds
                            .clone()
                            .map(|second| Some(if second < 90 { second * 5 } else { (second - 89) * 5 }))
                            .collect(),
                    )
                }
                _ => Column::Text(vec![None; 120]),
            };
        }
        batch.fields.retain(|field, _| &**field != "state");
        harness.publish(&batch).await;
    }
    harness.counted(120).await;
    harness
}

fn span(harness: &Harness) -> String {
    format!("from={}&to={}", harness.base_ms, harness.base_ms + 120_000)
}

/// Asks until the three hosts' samples have all arrived.
async fn all_arrived(harness: &Harness) {
    let path = format!("/api/fleet/cpu?field=usage_percent&agg=count&{}", span(harness));
    plimsoll_nats::testing::eventually("all samples", crate::harness::PATIENCE, async || {
        (harness.json(&path).await["groups"][0]["points"][0][1] == json!(360.0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fleets_are_averaged_ranked_and_counted() {
    let harness = fleet().await;
    all_arrived(&harness).await;
    let base = harness.base_ms;
    for place in ["the tail", "the lake"] {
        let ask = async |query: &str| {
            harness.json(&format!("/api/fleet/cpu?field=usage_percent&{}&{query}", span(&harness))).await
        };
        let by_minute = ask("agg=avg&step=1m").await;
        let mean = (10.0 + 95.0 + 50.0) / 3.0;
        let points = json!([[base, mean], [base + 60_000, mean + 1.0]]);
        assert_eq!(by_minute["groups"], json!([{"tags": {}, "points": points, "gaps": []}]), "{place}");
        assert_eq!(
            (&by_minute["step_ms"], &by_minute["tier"], &by_minute["complete"]),
            (&json!(60_000), &json!("raw"), &json!(true))
        );
        assert_eq!(by_minute["unit"], "percent");
        let top = ask("agg=last&by=host&top=2").await;
        let hosts: Vec<&Value> = top["groups"].as_array().expect("a list").iter().map(|group| &group["host"]).collect();
        assert_eq!(hosts, ["web-2", "db-1"], "{place}");
        assert_eq!(top["groups"][0]["points"], json!([[base, 96.0]]));
        let above = ask("agg=avg&by=host&step=1m&above=50").await;
        assert_eq!(above["columns"], json!(["time_ms", "groups", "of"]));
        assert_eq!(above["points"], json!([[base, 1, 3], [base + 60_000, 2, 3]]), "{place}");
        let some = ask("agg=max&by=host,core&hosts=web-*&tag.core=0").await;
        assert_eq!(some["groups"].as_array().expect("a list").len(), 2, "{place}");
        assert_eq!(some["groups"][0]["tags"], json!({"core": "0"}));
        assert_eq!(ask("agg=p50").await["groups"][0]["points"][0][1], 50.5, "{place}");
        harness.commit().await;
    }
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_questions_about_fleets_are_explained() {
    let harness = fleet().await;
    let wrong = |document: &Value| -> Vec<String> {
        let errors = document["errors"].as_array().expect("errors");
        errors.iter().map(|error| error["parameter"].as_str().expect("a name").to_owned()).collect()
    };
    for (query, parameters) in [
        ("agg=mode&by=Host&top=0&hosts=a/b&tier=2m", &["agg", "by", "field", "hosts", "tier", "top"][..]),
        ("field=usage_percent&above=5", &["by"]),
        ("field=usage_percent&rate=true", &["rate"]),
        ("field=usage_percent&by=host&top=3&above=1", &["top"]),
        ("field=usage_percent&by=disk", &["tag.disk"]),
        ("field=nothing", &["field"]),
        ("field=usage_percent&step=1ms&from=-30d", &["step"]),
    ] {
        let mut found = wrong(&harness.problem(&format!("/api/fleet/cpu?{query}"), 400).await);
        found.sort();
        assert_eq!(found, parameters, "{query}");
    }
    harness.problem("/api/fleet/nothing_known?field=v", 404).await;
    let empty = harness.json("/api/fleet/memory?field=used_bytes&agg=last&by=host&top=10").await;
    assert_eq!(empty["groups"], json!([]), "built in, and nobody has sent it");
    for (query, parameter) in [
        ("points=10&step=1s", "points"),
        ("quantile=p95", "quantile"),
        ("quantile=95&step=1m", "quantile"),
        ("points=2", "points"),
    ] {
        let document = harness.problem(&format!("/api/metrics/web-1?measurement=cpu&{query}"), 400).await;
        assert_eq!(wrong(&document), [parameter], "{query}");
    }
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_lines_and_quantiles() {
    let harness = fleet().await;
    let ask = async |query: &str| {
        harness.json(&format!("/api/metrics/web-1?measurement=cpu&{}&{query}", span(&harness))).await
    };
    let rates = ask("field=switches_total,usage_percent&rate=true&step=1m").await;
    let counter = &rates["series"][0];
    assert_eq!((&counter["field"], &counter["rate"]), (&json!("switches_total"), &json!(true)));
    let minute = |index: usize| counter["points"][index][1].as_f64().expect("a number");
    assert_eq!((minute(0), minute(1)), (5.0, 5.0), "also across the reset");
    assert_eq!((&rates["series"][1]["field"], &rates["series"][1]["rate"]), (&json!("usage_percent"), &json!(false)));
    let line = ask("field=usage_percent&points=10").await;
    let points = line["series"][0]["points"].as_array().expect("a list");
    assert_eq!((points.len(), &line["series"][0]["columns"]), (10, &json!(["time_ms", "value"])));
    assert_eq!((&points[0][0], &points[9][0]), (&json!(harness.base_ms), &json!(harness.base_ms + 119_000)));
    let quantiles = ask("field=usage_percent&step=2m&quantile=p50,p99.9").await;
    assert_eq!(quantiles["series"][0]["columns"], json!(["time_ms", "avg", "min", "max", "count", "p50", "p99.9"]));
    harness.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn minutes_answer_where_raw_rows_are_gone() {
    let harness = fleet().await;
    all_arrived(&harness).await;
    harness.commit().await;
    let writer = harness.writer();
    tokio::task::spawn_blocking(move || roll_up_and_remove(&writer.lock().expect("not poisoned")))
        .await
        .expect("no panic");
    let span = span(&harness);
    let points = harness.json(&format!("/api/metrics/web-2?measurement=cpu&field=usage_percent&{span}")).await;
    assert_eq!((&points["tier"], &points["step_ms"]), (&json!("1m"), &json!(60_000)));
    let minutes = json!([[harness.base_ms, 95.0, 95.0, 95.0, 60], [harness.base_ms + 60_000, 96.0, 96.0, 96.0, 60]]);
    assert_eq!(points["series"][0]["points"], minutes);
    let stats = harness.json(&format!("/api/stats/web-2?measurement=cpu&field=usage_percent&{span}")).await;
    let series = &stats["series"][0];
    assert_eq!((&stats["tier"], &series["count"], &series["last"]), (&json!("1m"), &json!(120), &json!(null)));
    assert_eq!(series["last_time_ms"], harness.base_ms + 60_000);
    let p95 = series["p95"].as_f64().expect("a number");
    assert!((p95 - 96.0).abs() < 0.96, "{p95}");
    let fleet = harness.json(&format!("/api/fleet/cpu?field=usage_percent&agg=count&{span}")).await;
    assert_eq!((&fleet["tier"], &fleet["groups"][0]["points"][0][1]), (&json!("1m"), &json!(360.0)));
    // What comes later is added, from the tail and from the lake.
    for _ in 0..2 {
        let more = harness.json(&format!("/api/fleet/cpu?field=usage_percent&agg=count&{span}")).await;
        assert_eq!(more["groups"][0]["points"][0][1], json!(360.0));
    }
    let late = harness.cpu("web-2", 30);
    harness.publish(&late).await;
    let path = format!("/api/fleet/cpu?field=usage_percent&agg=count&{span}");
    for place in ["the tail", "the lake"] {
        plimsoll_nats::testing::eventually("the late sample", crate::harness::PATIENCE, async || {
            let count = harness.json(&path).await["groups"][0]["points"][0][1].clone();
            assert!(count == json!(360.0) || count == json!(361.0), "{count} from {place}");
            (count == json!(361.0)).then_some(())
        })
        .await;
        harness.commit().await;
    }
    harness.stop().await;
}

/// Makes minutes of `cpu`, as the contract of rollups says, and removes its rows.
fn roll_up_and_remove(writer: &plimsoll_lake::LakeWriter) {
    let connection = writer.lake().connection();
    let snapshot: i64 =
        connection.query_row("SELECT id FROM lake.current_snapshot()", [], |row| row.get(0)).expect("a snapshot");
    let value = "usage_percent";
    let summary = format!(
        "{{'count': count({value})::UBIGINT, 'sum': sum({value}), 'min': min({value}), 'max': max({value}), 'sketch': histogram({})}}",
        key_sql(value)
    );
    let sql = format!(
        "BEGIN;
         CREATE TABLE lake.plimsoll.rollups (measurement VARCHAR, tier VARCHAR, snapshot BIGINT, rolled_at TIMESTAMP_MS);
         CREATE TABLE lake.main.cpu_1m (ts TIMESTAMP_MS, host VARCHAR, core VARCHAR, {value} {SUMMARY_TYPE});
         INSERT INTO lake.main.cpu_1m SELECT date_trunc('minute', ts)::TIMESTAMP_MS, host, core, {summary} FROM lake.main.cpu GROUP BY ALL;
         INSERT INTO lake.plimsoll.rollups VALUES ('cpu', '1m', {snapshot}, NULL);
         DELETE FROM lake.main.cpu;
         CREATE TABLE lake.plimsoll.removed (measurement VARCHAR, tier VARCHAR, before TIMESTAMP_MS);
         INSERT INTO lake.plimsoll.removed VALUES ('cpu', 'raw', TIMESTAMP '2100-01-01');
         COMMIT"
    );
    connection.execute_batch(&sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
}
