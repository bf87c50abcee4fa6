//! What a receiver of notifications sees.

use std::collections::BTreeMap;

use plimsoll_alert_worker::{message::message, notifier::webhook::Body};
use plimsoll_nats::{
    HostId, Name,
    alert::{AlertStatus, SeriesKey, Transition},
    rule::{Aggregate, Rule, Severity},
};

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn rule() -> Rule {
    serde_json::from_value(serde_json::json!({
        "name": "cpu_high", "measurement": "cpu", "field": "usage_percent", "aggregate": "avg", "compare": ">",
        "threshold": 90, "description": "The processor is busy",
    }))
    .expect("a rule")
}

fn transition(from: AlertStatus, to: AlertStatus, value: Option<f64>) -> Transition {
    let tags = BTreeMap::from([(name("core"), "total".to_owned())]);
    Transition {
        rule: name("cpu_high"),
        series: SeriesKey { host: HostId::parse("web-1").expect("a host id"), tags },
        measurement: name("cpu"),
        field: name("usage_percent"),
        from,
        to,
        at_ms: 1_790_000_000_000,
        value,
        threshold: 90.0,
        severity: Severity::Critical,
        description: "The processor is busy".to_owned(),
    }
}

#[test]
fn messages_read_well() {
    use AlertStatus::{Firing, Inactive, NoData, Resolved};
    let fires = transition(Inactive, Firing, Some(97.2));
    insta::assert_snapshot!(message(&fires, &rule()), @"cpu_high is firing on web-1 {core=total}: usage_percent avg over 1m is 97.2, above 90");
    let last = Rule { aggregate: Aggregate::Last, ..rule() };
    insta::assert_snapshot!(message(&transition(Firing, Resolved, Some(90.0)), &last), @"cpu_high is resolved on web-1 {core=total}: usage_percent is 90, not above 90");
    insta::assert_snapshot!(message(&transition(Firing, Resolved, None), &rule()), @"cpu_high is resolved on web-1 {core=total}: the rule was removed or no longer watches usage_percent there, it was firing");
    let mut bare = transition(Firing, NoData, None);
    bare.series.tags.clear();
    insta::assert_snapshot!(message(&bare, &rule()), @"cpu_high has no data from web-1: usage_percent silent for more than 1m, it was firing");
}

#[test]
fn the_body_is_the_transition_and_more() {
    let fires = transition(AlertStatus::Inactive, AlertStatus::Firing, Some(97.2));
    let text = message(&fires, &rule());
    insta::assert_json_snapshot!(Body::new(&fires, &text), @r#"
    {
      "event": "alert",
      "message": "cpu_high is firing on web-1 {core=total}: usage_percent avg over 1m is 97.2, above 90",
      "rule": "cpu_high",
      "host": "web-1",
      "tags": {
        "core": "total"
      },
      "measurement": "cpu",
      "field": "usage_percent",
      "from": "inactive",
      "to": "firing",
      "at_ms": 1790000000000,
      "value": 97.2,
      "threshold": 90.0,
      "severity": "critical",
      "description": "The processor is busy"
    }
    "#);
}
