//! The whole worker against a real broker and a real webhook.

#[path = "live/support.rs"]
mod support;

use std::time::Duration;

use futures_util::StreamExt;
use plimsoll_alert_worker::{
    metrics::Metrics,
    notifier::{Notifier, webhook},
};
use plimsoll_nats::{
    Batch, Column,
    alert::{AlertState, AlertStatus, Transition, state_key},
    report::{MEASUREMENT, differences},
    rule::Rule,
    streams, subject,
    testing::{TestServer, eventually},
};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use support::{Fleet, Receiver, RunningWorker, rule};

use AlertStatus::{Firing, Inactive, NoData, Pending, Resolved};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_fires_once_and_is_resolved() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    let worker = RunningWorker::start(&server);
    fleet.put_rule(&rule("hot", &receiver)).await;
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 1).await;
    for _ in 0..20 {
        fleet.sample("web-1", 99.0).await;
    }
    fleet.feed_until("web-1", 10.0, async || receiver.statuses().len() == 2).await;
    assert_eq!(receiver.statuses(), ["firing", "resolved"]);
    let message = receiver.bodies()[0]["message"].as_str().unwrap().to_owned();
    assert_eq!(message, "hot is firing on web-1 {core=total}: usage_percent is 99, above 90");
    assert_eq!(receiver.bodies()[0]["event"], "alert");

    let alerts = fleet.alerts().await;
    let steps: Vec<_> = alerts.iter().map(|transition| (transition.from, transition.to)).collect();
    assert_eq!(steps, [(Inactive, Firing), (Firing, Resolved)]);
    let key = state_key(&alerts[1].rule, &alerts[1].series);
    let state = fleet.state(&key).await.unwrap();
    assert_eq!((state.transition, state.open, state.since_ms), (alerts[1].clone(), false, None));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_publishes_what_it_does() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    let mut reports = fleet.client.nats.subscribe("plimsoll.metrics.*.plimsoll").await.expect("subscribes");
    let worker = RunningWorker::reporting(&server, true);
    let rule = rule("hot", &receiver);
    fleet.put_rule(&rule).await;
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 1).await;
    // Nobody listens there.
    let waiting = support::transition(&rule, "web-2", Inactive, Firing, support::now_ms());
    fleet.notify(&waiting, "http://127.0.0.1:9/").await;
    let next = async {
        loop {
            let message = reports.next().await.expect("a report");
            let host = support::host(message.subject.split('.').nth(2).expect("a host"));
            let measurement = support::name(MEASUREMENT);
            let batch = Batch::decode(&host, &measurement, message.headers.as_ref(), &message.payload);
            let batch = batch.expect("a batch");
            if integers(&batch, "notifications_retried_total")[0] >= Some(1) {
                return batch;
            }
        }
    };
    let told = tokio::time::timeout(LIMIT, next).await.expect("a report of what was done");
    assert_eq!(differences(&told, "alert_worker"), Vec::<String>::new());
    let own = |field: &str| integers(&told, field)[0].expect("a value");
    assert!(own("evaluated_rows_total") >= 1 && own("messages_total") >= own("evaluated_rows_total"), "{told:?}");
    assert_eq!((own("notifications_waiting"), own("notifications_sent_total"), own("transitions_total")), (1, 1, 1));
    let (lags, partitions) = (integers(&told, "lag_messages"), integers(&told, "partitions"));
    assert!(own("partitions") >= 1, "the one of web-1 is read: {told:?}");
    assert_eq!(lags.len() as i64, own("partitions") + 1, "a row of each partition, and one of the worker");
    assert!(lags.iter().all(Option::is_some) && partitions[1..].iter().all(Option::is_none), "{told:?}");
    worker.stop().await;
}

fn integers(batch: &Batch, field: &str) -> Vec<Option<i64>> {
    match batch.fields.get(field) {
        Some(Column::Integer(values)) => values.clone(),
        other => panic!("{field}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transition_is_kept_and_only_some_are_told() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    let mut rule = rule("hot", &receiver);
    rule.hold = Duration::from_secs(3600);
    fleet.put_rule(&rule).await;
    let worker = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || !fleet.alerts().await.is_empty()).await;
    fleet.feed_until("web-1", 10.0, async || fleet.alerts().await.len() == 2).await;
    rule.hold = Duration::ZERO;
    fleet.put_rule(&rule).await;
    fleet.feed_until("web-1", 99.0, async || !receiver.statuses().is_empty()).await;
    let steps: Vec<_> = fleet.alerts().await.iter().map(|alert| alert.to).collect();
    // Whether the rule's change came before the rows decides about one more round.
    assert_eq!((steps[0], steps[1], steps[steps.len() - 1]), (Pending, Inactive, Firing));
    assert_eq!(receiver.statuses(), ["firing"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_of_a_killed_worker_repeats_and_forgets_nothing() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    fleet.put_rule(&rule("hot", &receiver)).await;
    let first = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 1).await;
    first.kill();
    let second = RunningWorker::start(&server);
    // A second host says when the successor is at work.
    let woken = async || receiver.bodies().iter().any(|body| body["host"] == "web-2");
    let both = async || {
        fleet.sample("web-1", 99.0).await;
        woken().await
    };
    fleet.feed_until("web-2", 99.0, both).await;
    fleet.feed_until("web-1", 10.0, async || receiver.statuses_of("web-1").len() >= 2).await;
    assert_eq!(receiver.statuses_of("web-1"), ["firing", "resolved"]);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_and_not_announced_is_told_by_the_successor() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    let rule = rule("hot", &receiver);
    fleet.put_rule(&rule).await;
    // As if a worker had died between storing the state and telling of it.
    let at_ms = support::now_ms();
    let state = AlertState {
        transition: support::transition(&rule, "web-1", Inactive, Firing, at_ms),
        since_ms: Some(at_ms),
        open: true,
        announced: false,
    };
    fleet.put_state(&state).await;
    let worker = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || !receiver.statuses().is_empty()).await;
    let key = state_key(&state.transition.rule, &state.transition.series);
    eventually("the mark", LIMIT, async || fleet.state(&key).await.filter(|state| state.announced)).await;
    fleet.feed_until("web-1", 10.0, async || receiver.statuses().len() == 2).await;
    assert_eq!(receiver.statuses(), ["firing", "resolved"]);
    assert_eq!(receiver.bodies()[0]["at_ms"], at_ms);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_series_is_no_data() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    let mut rule = rule("hot", &receiver);
    rule.no_data_after = Duration::from_secs(2);
    fleet.put_rule(&rule).await;
    let worker = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 1).await;
    eventually("no data", LIMIT, async || (receiver.statuses().len() == 2).then_some(())).await;
    assert_eq!(receiver.statuses(), ["firing", "no_data"]);
    fleet.feed_until("web-1", 10.0, async || receiver.statuses().len() == 3).await;
    assert_eq!(receiver.statuses()[2], "resolved");
    assert_eq!(fleet.alerts().await.iter().filter(|alert| alert.to == NoData).count(), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_whose_partition_is_never_read_again_is_no_data() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    let rule = rule("hot", &receiver);
    fleet.put_rule(&rule).await;
    let at_ms = support::now_ms() - 600_000;
    let state = AlertState {
        transition: support::transition(&rule, "web-1", Inactive, Firing, at_ms),
        since_ms: Some(at_ms),
        open: true,
        announced: true,
    };
    fleet.put_state(&state).await;
    let worker = RunningWorker::start(&server);
    eventually("no data", LIMIT, async || (!receiver.statuses().is_empty()).then_some(())).await;
    assert_eq!(receiver.statuses(), ["no_data"]);
    assert_eq!(receiver.bodies()[0]["at_ms"], at_ms + 60_000);
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 2).await;
    assert_eq!(receiver.statuses()[1], "firing");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_at_first_is_tried_again() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    receiver.answer([500, 500]);
    fleet.put_rule(&rule("hot", &receiver)).await;
    let worker = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 1).await;
    assert_eq!(receiver.calls(), 3);
    eventually("an empty queue", LIMIT, async || (fleet.queued().await == 0).then_some(())).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_that_is_refused_is_given_up() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    receiver.answer([404]);
    fleet.put_rule(&rule("hot", &receiver)).await;
    let worker = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || receiver.calls() == 1).await;
    eventually("an empty queue", LIMIT, async || (fleet.queued().await == 0).then_some(())).await;
    fleet.feed_until("web-1", 10.0, async || receiver.calls() == 2).await;
    assert_eq!(receiver.statuses(), ["resolved"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_hangs_keeps_nobody_else_waiting() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    let hanging = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", hanging.local_addr().unwrap());
    let transition = support::transition(&rule("hot", &receiver), "web-1", Inactive, Firing, support::now_ms());
    for _ in 0..300 {
        fleet.notify(&transition, &url).await;
    }
    fleet.notify(&transition, &receiver.url).await;

    let (notifier, shutdown) = (Notifier::new(&fleet.client, &Metrics::default()).unwrap(), CancellationToken::new());
    let running = tokio::spawn(notifier.run(shutdown.clone()));
    eventually("the notification", webhook::TIMEOUT / 2, async || (receiver.calls() == 1).then_some(())).await;
    eventually("its end", LIMIT, async || (fleet.queued().await == 300).then_some(())).await;
    shutdown.cancel();
    drop(hanging);
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_rule_takes_its_states_with_it() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    fleet.put_rule(&rule("hot", &receiver)).await;
    fleet.put_rule(&rule("warm", &receiver)).await;
    let worker = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 2).await;
    let key = |alert: &Transition| state_key(&alert.rule, &alert.series);
    let alerts = fleet.alerts().await;
    let hot = alerts.iter().find(|alert| &*alert.rule == "hot").map(key).unwrap();
    let warm = alerts.iter().find(|alert| &*alert.rule == "warm").map(key).unwrap();
    let rules = streams::bucket(&fleet.client, streams::RULES).await.unwrap();
    rules.put("broken", "no rule".into()).await.unwrap();
    rules.delete("hot").await.unwrap();
    eventually("the state to go", LIMIT, async || fleet.state(&hot).await.is_none().then_some(())).await;
    assert!(fleet.state(&warm).await.is_some());
    worker.stop().await;

    // Nobody was there to see this one go; the next worker does.
    rules.delete("warm").await.unwrap();
    let next = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || fleet.state(&warm).await.is_none()).await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_loses_its_rule_is_resolved() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    let names = ["deleted", "disabled", "narrowed", "later"];
    for name in names {
        fleet.put_rule(&rule(name, &receiver)).await;
    }
    let worker = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == names.len()).await;
    let keys: Vec<_> = fleet.alerts().await.iter().map(|alert| state_key(&alert.rule, &alert.series)).collect();

    let rules = streams::bucket(&fleet.client, streams::RULES).await.unwrap();
    rules.delete("deleted").await.unwrap();
    let muted = |name| Rule { notify: Vec::new(), ..rule(name, &receiver) };
    fleet.put_rule(&Rule { enabled: false, ..muted("disabled") }).await;
    fleet.put_rule(&Rule { hosts: "db-*".to_owned(), ..muted("narrowed") }).await;
    eventually("the ends", LIMIT, async || (receiver.statuses().len() == names.len() + 3).then_some(())).await;
    worker.stop().await;

    // No worker sees this change; the next one finds the state.
    fleet.put_rule(&Rule { enabled: false, ..rule("later", &receiver) }).await;
    let next = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == names.len() * 2).await;
    for key in keys {
        eventually("the state to go", LIMIT, async || fleet.state(&key).await.is_none().then_some(())).await;
    }
    let ends = receiver.bodies().split_off(names.len());
    let mut ended: Vec<_> = ends.iter().map(|body| body["rule"].as_str().unwrap()).collect();
    ended.sort_unstable();
    assert_eq!(ended, ["deleted", "disabled", "later", "narrowed"]);
    for body in &ends {
        assert_eq!((&body["from"], &body["to"], &body["value"]), (&"firing".into(), &"resolved".into(), &Value::Null));
        assert!(body["message"].as_str().unwrap().contains("the rule was removed or no longer watches"), "{body}");
    }
    assert_eq!(fleet.alerts().await.iter().filter(|alert| alert.to == Resolved).count(), names.len());
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_away_is_waited_for() {
    let mut server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    fleet.put_rule(&rule("hot", &receiver)).await;
    let worker = RunningWorker::start(&server);
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 1).await;
    server.kill();
    server.start_again().await;
    fleet.feed_until("web-1", 10.0, async || receiver.statuses().len() >= 2).await;
    assert_eq!(receiver.statuses(), ["firing", "resolved"]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_no_batch_are_passed_over() {
    let server = TestServer::start().await;
    let (receiver, fleet) = (Receiver::start().await, Fleet::new(server.client().await));
    fleet.put_rule(&rule("hot", &receiver)).await;
    let worker = RunningWorker::start(&server);
    let hostile = subject::metrics(&support::host("web-1"), &support::name("cpu"));
    fleet.client.jetstream.publish(hostile, "hostile".into()).await.unwrap().await.unwrap();
    fleet.feed_until("web-1", 99.0, async || receiver.statuses().len() == 1).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_partitions_hosts_as_the_contract_says() {
    let server = TestServer::start().await;
    let fleet = Fleet::new(server.client().await);
    for n in 0..40 {
        let host = support::host(&format!("Web_{n}-{}", n * n));
        fleet.sample(&host, 1.0).await;
        let stored = subject::stored(&host, &support::name("cpu"));
        let stream = fleet.client.jetstream.get_stream(streams::METRICS).await.unwrap();
        stream.direct_get_last_for_subject(stored).await.unwrap();
    }
}
