//! A backtest of one rule over 30 days of one host at one row a second, for each aggregate: at most 1 s each.
//!
//! Run with `cargo bench -p plimsoll-alert-worker`. Reading the rows from the lake is not part of it.

use std::time::{Duration, Instant};

use plimsoll_alert_worker::{backtest::backtest, evaluator::Row};
use plimsoll_nats::{HostId, Name, rule::Rule};

const ROWS: i64 = 30 * 24 * 3600;

fn main() {
    for aggregate in ["last", "avg", "min", "max"] {
        let (elapsed, transitions) = measure(aggregate);
        let nanos = elapsed.as_nanos() / u128::from(ROWS.unsigned_abs());
        println!("{aggregate:>4} over 5m: {ROWS} rows in {elapsed:.2?}, {nanos} ns a row, {transitions} transitions");
    }
}

fn measure(aggregate: &str) -> (Duration, usize) {
    let rule: Rule = serde_json::from_value(serde_json::json!({
        "name": "cpu_high", "measurement": "cpu", "field": "usage_percent", "aggregate": aggregate, "window": "5m",
        "compare": ">", "threshold": 80, "for": "1m", "tags": {"core": "total"}, "hosts": "web-*",
    }))
    .expect("a rule");
    let host = HostId::parse("web-1").expect("a host id");
    let (measurement, field, tag) = (name("cpu"), name("usage_percent"), name("core"));
    let fields: Vec<_> = (0..ROWS).map(|second| [(&field, usage(second))]).collect();
    let tags = [(&tag, "total")];
    let rows = fields.iter().zip(0..).map(|(fields, second)| Row {
        host: &host,
        measurement: &measurement,
        time_ms: second * 1000,
        arrived_ms: None,
        tags: &tags,
        fields,
    });
    let begun = Instant::now();
    let transitions = backtest(rule, rows, ROWS * 1000).len();
    (begun.elapsed(), transitions)
}

/// A day's wave with noise on it, in percent.
fn usage(second: i64) -> f64 {
    let wave = (second as f64 * std::f64::consts::TAU / 86_400.0).sin();
    let noise = (second.wrapping_mul(2_654_435_761) & 0xffff) as f64 / 65_536.0;
    50.0 + 30.0 * wave + 20.0 * noise
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}
