//! Puts the parts of the worker together and takes them apart again.

use std::time::Duration;

use plimsoll_nats::{
    Client, ConnectError, NatsConfig, client::MemberId, dead::chain, partition_group::PartitionGroup, report::Reporter,
    streams,
};
use plimsoll_service::ops::{self, Ops};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{AlertWorkerConfig, SERVICE},
    error::AlertWorkerError,
    metrics::{Metrics, PREFIX},
    notifier::Notifier,
    recorder::Recorder,
    report::Watched,
    retry::Backoff,
    rules::RuleWatcher,
    worker::{EVENTS, Lookback, Worker},
};

/// The group in which alert workers share the partitions.
pub const GROUP: &str = "alert";
/// How long the parts may take to finish after the shutdown.
const DRAIN: Duration = Duration::from_secs(15);

/// Runs an alert worker with HTTP endpoints of its own until `shutdown`.
///
/// Fails when the address is taken or the configuration of the broker can't be used; a broker that is away is waited for.
pub async fn run(config: AlertWorkerConfig, shutdown: CancellationToken) -> Result<(), AlertWorkerError> {
    let ops = Ops::default();
    ops.readiness.fail("broker", "not connected yet");
    let listener = ops::bind(config.http).await?;
    let stop = shutdown.child_token();
    let endpoints = tokio::spawn(ops::serve(listener, ops.router(), stop.clone()));
    let worked = match Client::connect(&config.nats, "plimsoll-alert-worker", &shutdown).await {
        Ok(client) => run_with(client, config, ops, shutdown).await,
        Err(ConnectError::Cancelled) => Ok(()),
        Err(error) => Err(error.into()),
    };
    stop.cancel();
    match endpoints.await {
        Ok(served) => worked.and(served.map_err(Into::into)),
        Err(_) => worked.and(Err(AlertWorkerError::Ended { part: "HTTP endpoints" })),
    }
}

/// Runs an alert worker on an existing connection until `shutdown`; its metrics and readiness are those of `ops`.
///
/// Fails when the HTTP client for webhooks can't be made; a broker that is away is waited for.
pub async fn run_with(
    client: Client,
    config: AlertWorkerConfig,
    ops: Ops,
    shutdown: CancellationToken,
) -> Result<(), AlertWorkerError> {
    let AlertWorkerConfig { http, publish_metrics, nats } = config;
    let metrics = ops.register(PREFIX, Metrics::register);
    let notifier = Notifier::new(&client, &metrics).map_err(AlertWorkerError::HttpClient)?;
    ops.readiness.fail("broker", "streams and buckets are not declared yet");
    let Some(recorder) = declare(&client, &nats, &metrics, &shutdown).await else { return Ok(()) };
    ops.readiness.clear("broker");

    let rules = RuleWatcher::new(&client);
    let lookback = Lookback::new(rules.subscribe());
    let watched = Watched { client: client.clone(), metrics: metrics.clone() };
    let worker = Worker::new(&client, recorder, lookback.clone(), metrics, ops.readiness);
    let (events, received) = mpsc::channel(EVENTS);
    let parts = Parts::new(&shutdown);
    let mut known = rules.subscribe();
    parts.spawn("watch of the rules", |stop| rules.run(stop));
    parts.spawn("notifier", |stop| notifier.run(stop));
    parts.spawn("evaluation", |stop| worker.run(received, stop));
    if publish_metrics {
        let reporter = Reporter::new(&client, SERVICE, http.port(), watched);
        parts.spawn("reports", |stop| reporter.run(stop));
    } else {
        parts.spawn("watch of the queue", |stop| watched.follow(stop));
    }
    parts.spawn("partition group", |stop| async move {
        // Without its rules a partition would be read in vain, and its states would look abandoned.
        let read = async { known.wait_for(Option::is_some).await.is_ok() };
        if stop.run_until_cancelled(read).await == Some(true) {
            PartitionGroup::new(&client, &nats, GROUP, MemberId::unique(), lookback).run(events, stop).await;
        }
    });
    parts.join(&shutdown).await
}

/// Declares streams and buckets, however long it takes; none when `shutdown` comes first.
async fn declare(
    client: &Client,
    nats: &NatsConfig,
    metrics: &Metrics,
    shutdown: &CancellationToken,
) -> Option<Recorder> {
    let mut backoff = Backoff::default();
    loop {
        let attempt = async {
            streams::declare(client, nats).await?;
            Recorder::open(client, metrics, shutdown).await
        };
        match shutdown.run_until_cancelled(attempt).await? {
            Ok(recorder) => return Some(recorder),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "failed to declare streams and buckets, trying again");
                backoff.pause(shutdown).await;
            }
        }
    }
}

/// The tasks of a worker. When one ends before its time, all do.
struct Parts {
    tasks: TaskTracker,
    stop: CancellationToken,
    ended: mpsc::Sender<&'static str>,
    first: mpsc::Receiver<&'static str>,
}

impl Parts {
    fn new(shutdown: &CancellationToken) -> Self {
        let (ended, first) = mpsc::channel(1);
        Self { tasks: TaskTracker::new(), stop: shutdown.child_token(), ended, first }
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        part: impl FnOnce(CancellationToken) -> F,
    ) {
        let end = End { name, ended: self.ended.clone(), _stop: self.stop.clone().drop_guard() };
        let part = part(self.stop.clone());
        self.tasks.spawn(async move {
            part.await;
            drop(end);
        });
    }

    async fn join(mut self, shutdown: &CancellationToken) -> Result<(), AlertWorkerError> {
        self.stop.cancelled().await;
        let early = !shutdown.is_cancelled();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(limit = ?DRAIN, "left before all parts had finished");
        }
        match self.first.try_recv() {
            Ok(part) if early => Err(AlertWorkerError::Ended { part }),
            _ => Ok(()),
        }
    }
}

/// Tells that a part has ended, also when it panics.
struct End {
    name: &'static str,
    ended: mpsc::Sender<&'static str>,
    _stop: tokio_util::sync::DropGuard,
}

impl Drop for End {
    fn drop(&mut self) {
        // Full when another part was first.
        let _ = self.ended.try_send(self.name);
    }
}
