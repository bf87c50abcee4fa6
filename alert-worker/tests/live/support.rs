//! A fleet of hosts, a webhook that remembers, and workers that can be killed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{Json, Router, http::StatusCode, routing::post};
use futures_util::StreamExt;
use plimsoll_alert_worker::{AlertWorkerConfig, AlertWorkerError};
use plimsoll_nats::{
    Batch, Client, Column, HostId, Name,
    alert::{AlertState, AlertStatus, Notification, SeriesKey, Transition, state_key},
    async_nats::jetstream::consumer::pull,
    rule::{Channel, Rule},
    streams, subject,
    testing::{TestServer, eventually},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

pub fn host(text: &str) -> HostId {
    HostId::parse(text).expect("a host id")
}

pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("not so late")
}

/// A rule that fires at once above 90 and tells the receiver.
pub fn rule(rule_name: &str, receiver: &Receiver) -> Rule {
    let mut rule: Rule = serde_json::from_value(serde_json::json!({
        "name": rule_name, "measurement": "cpu", "field": "usage_percent", "compare": ">", "threshold": 90,
    }))
    .expect("a rule");
    rule.notify = vec![Channel::Webhook { url: receiver.url.clone() }];
    rule
}

/// A transition of a rule over the series that a [`Fleet`] publishes.
pub fn transition(rule: &Rule, host_name: &str, from: AlertStatus, to: AlertStatus, at_ms: i64) -> Transition {
    let tags = BTreeMap::from([(name("core"), "total".to_owned())]);
    Transition {
        rule: rule.name.clone(),
        series: SeriesKey { host: host(host_name), tags },
        measurement: rule.measurement.clone(),
        field: rule.field.clone(),
        from,
        to,
        at_ms,
        value: Some(99.0),
        threshold: rule.threshold,
        severity: rule.severity,
        description: String::new(),
    }
}

/// Publishes samples as agents do, and reads what the worker writes.
pub struct Fleet {
    pub client: Client,
    epoch: Ulid,
    last_ms: AtomicI64,
}

impl Fleet {
    pub fn new(client: Client) -> Self {
        Self { client, epoch: Ulid::generate(), last_ms: AtomicI64::new(0) }
    }

    pub async fn put_rule(&self, rule: &Rule) {
        let rules = streams::bucket(&self.client, streams::RULES).await.expect("the bucket");
        rules.put(&*rule.name, serde_json::to_vec(rule).expect("JSON").into()).await.expect("stored");
    }

    pub async fn put_state(&self, state: &AlertState) {
        let states = streams::bucket(&self.client, streams::ALERT_STATE).await.expect("the bucket");
        let key = state_key(&state.transition.rule, &state.transition.series);
        states.put(key, serde_json::to_vec(state).expect("JSON").into()).await.expect("stored");
    }

    pub async fn state(&self, key: &str) -> Option<AlertState> {
        let states = streams::bucket(&self.client, streams::ALERT_STATE).await.expect("the bucket");
        let value = states.get(key).await.expect("an answer")?;
        Some(serde_json::from_slice(&value).expect("a state"))
    }

    /// Publishes one sample of now, whatever it takes.
    pub async fn sample(&self, host_name: &str, usage: f64) {
        let before = self.last_ms.load(Ordering::Relaxed);
        let time = now_ms().max(before + 1);
        self.last_ms.store(time, Ordering::Relaxed);
        let batch = Batch {
            host: host(host_name),
            measurement: name("cpu"),
            epoch: self.epoch,
            seq: u64::try_from(time).expect("after 1970"),
            times: vec![time],
            tags: BTreeMap::from([(name("core"), vec!["total".to_owned()])]),
            fields: BTreeMap::from([(name("usage_percent"), Column::Float(vec![Some(usage)]))]),
        };
        let subject = subject::metrics(&batch.host, &batch.measurement);
        eventually("a sample to be stored", Duration::from_secs(30), async || {
            let sent = self.client.jetstream.publish(subject.clone(), batch.encode().into()).await.ok()?;
            sent.await.ok()
        })
        .await;
    }

    /// Publishes samples of one value until a condition holds.
    pub async fn feed_until(&self, host_name: &str, usage: f64, condition: impl AsyncFn() -> bool) {
        eventually("the condition", Duration::from_secs(40), async || {
            self.sample(host_name, usage).await;
            condition().await.then_some(())
        })
        .await;
    }

    /// All transitions on `ALERTS` so far.
    pub async fn alerts(&self) -> Vec<Transition> {
        let mut stream = self.client.jetstream.get_stream(streams::ALERTS).await.expect("the stream");
        let count = stream.info().await.expect("an answer").state.messages;
        let consumer = stream.create_consumer(pull::Config::default()).await.expect("a consumer");
        let messages = consumer.messages().await.expect("messages").take(usize::try_from(count).expect("few"));
        let parse = |payload: &[u8]| serde_json::from_slice(payload).expect("a transition");
        messages.map(|message| parse(&message.expect("a message").payload)).collect().await
    }

    /// Queues a notification.
    pub async fn notify(&self, transition: &Transition, url: &str) {
        let channel = Channel::Webhook { url: url.to_owned() };
        let notification = Notification { transition: transition.clone(), channel, message: String::new() };
        let body = serde_json::to_vec(&notification).expect("JSON");
        let sent = self.client.jetstream.publish(subject::notify("webhook"), body.into()).await.expect("sent");
        sent.await.expect("stored");
    }

    /// How many notifications wait.
    pub async fn queued(&self) -> u64 {
        let mut stream = self.client.jetstream.get_stream(streams::NOTIFY).await.expect("the stream");
        stream.info().await.expect("an answer").state.messages
    }
}

/// A webhook that remembers what it has taken, and can be told to fail first.
pub struct Receiver {
    pub url: String,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    calls: usize,
    bodies: Vec<Value>,
    answers: VecDeque<u16>,
}

impl Receiver {
    pub async fn start() -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let handler = {
            let seen = Arc::clone(&seen);
            async move |Json(body): Json<Value>| {
                let mut seen = seen.lock().expect("no panic");
                seen.calls += 1;
                match seen.answers.pop_front() {
                    Some(status) => StatusCode::from_u16(status).expect("a status"),
                    None => {
                        seen.bodies.push(body);
                        StatusCode::NO_CONTENT
                    }
                }
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        tokio::spawn(axum::serve(listener, Router::new().route("/hook", post(handler))).into_future());
        Self { url, seen }
    }

    pub fn answer(&self, statuses: impl IntoIterator<Item = u16>) {
        self.seen.lock().expect("no panic").answers.extend(statuses);
    }

    pub fn calls(&self) -> usize {
        self.seen.lock().expect("no panic").calls
    }

    pub fn bodies(&self) -> Vec<Value> {
        self.seen.lock().expect("no panic").bodies.clone()
    }

    pub fn statuses(&self) -> Vec<String> {
        self.bodies().iter().map(|body| body["to"].as_str().expect("a status").to_owned()).collect()
    }

    pub fn statuses_of(&self, host_name: &str) -> Vec<String> {
        let of_host = self.bodies().into_iter().filter(|body| body["host"] == host_name);
        of_host.map(|body| body["to"].as_str().expect("a status").to_owned()).collect()
    }
}

/// A worker on a runtime of its own, so that it can die as a process does.
pub struct RunningWorker {
    runtime: tokio::runtime::Runtime,
    task: tokio::task::JoinHandle<Result<(), AlertWorkerError>>,
    shutdown: CancellationToken,
}

impl RunningWorker {
    pub fn start(server: &TestServer) -> Self {
        Self::reporting(server, false)
    }

    /// The same, where it may publish the measurement about itself.
    pub fn reporting(server: &TestServer, publish_metrics: bool) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let shutdown = CancellationToken::new();
        let config = AlertWorkerConfig { http: ([127, 0, 0, 1], 0).into(), publish_metrics, nats: server.config() };
        let task = runtime.spawn(plimsoll_alert_worker::run(config, shutdown.clone()));
        Self { runtime, task, shutdown }
    }

    /// Stops the worker as a signal does.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("no panic").expect("a clean end");
        self.runtime.shutdown_background();
    }

    /// Ends the worker between two instructions.
    pub fn kill(self) {
        self.runtime.shutdown_background();
    }
}
