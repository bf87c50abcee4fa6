//! Answers queries: HTTP and WebSocket, from the lake and from what the stream holds beyond it.
//!
//! There is no authentication yet, which is why the service listens on loopback unless told otherwise.

pub mod app;
pub mod attach;
pub mod config;
pub mod error;
pub mod events;
pub mod feed;
pub mod guard;
pub mod handlers;
pub mod live;
pub mod metrics;
pub mod mirror;
pub mod params;
pub mod problem;
pub mod router;
pub mod times;

use std::{sync::Arc, time::Duration};

use plimsoll_lake::{LakeReader, Tail, query::ReaderLimits};
use plimsoll_nats::{Client, report::Reporter, streams};
use plimsoll_service::ops::{self, Ops};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::App,
    attach::LakeWatch,
    feed::{Feed, FeedState},
    guard::AllowedHosts,
    live::LiveHub,
    metrics::{Metrics, Watched},
    mirror::Mirror,
};
pub use crate::{config::QueryApiConfig, error::QueryApiError};

/// What the service is called in the measurement `plimsoll`.
pub const SERVICE: &str = "query_api";
/// How long live connections and background tasks may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause before the streams are declared again.
const DECLARE_RETRY: Duration = Duration::from_millis(500);

/// Binds `config.http`, waits for the broker, and answers queries until `shutdown`.
///
/// Fails when the address is taken, when the broker's address or secret is wrong, and when DuckDB cannot be opened.
pub async fn run(config: QueryApiConfig, shutdown: CancellationToken) -> Result<(), QueryApiError> {
    let listener = ops::bind(config.http).await?;
    let ops = Ops::default();
    ops.readiness.fail("broker", "not connected yet");
    let connected = CancellationToken::new();
    let meanwhile = ops.router().fallback(async || problem::ApiError::broker_away());
    let waiting = ops::serve(share(&listener)?, meanwhile, connected.clone());
    let connect = async {
        let client = Client::connect(&config.nats, "plimsoll-query-api", &shutdown).await;
        connected.cancel();
        client
    };
    let (client, waited) = tokio::join!(connect, waiting);
    let client = match client {
        Err(plimsoll_nats::ConnectError::Cancelled) => return Ok(()),
        client => client?,
    };
    waited?;
    run_with(config, client, ops, listener, shutdown).await
}

/// A second handle to the same listener.
fn share(listener: &TcpListener) -> Result<TcpListener, QueryApiError> {
    use std::os::fd::AsFd;
    let shared = listener.as_fd().try_clone_to_owned().map_err(QueryApiError::Listener)?;
    TcpListener::from_std(shared.into()).map_err(QueryApiError::Listener)
}

/// Answers queries on `listener` until `shutdown`, with a connection and endpoints that the caller made.
///
/// Fails when the broker refuses streams and buckets although it is connected, and when DuckDB cannot be opened.
pub async fn run_with(
    config: QueryApiConfig,
    client: Client,
    ops: Ops,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), QueryApiError> {
    let readiness = &ops.readiness;
    readiness.fail("tail", "has not caught up with the stream yet");
    readiness.fail("lake", "not attached yet");
    declare(&client, &config, &shutdown).await?;
    let limits = ReaderLimits { connections: config.connections, timeout: config.query_timeout };
    let reader = Arc::new(LakeReader::new(&config.lake, limits)?);
    let app = App {
        client,
        metrics: Metrics::register(&ops, &reader),
        reader,
        tail: Arc::new(Tail::new(config.tail_max_bytes)),
        feed: Arc::new(FeedState::default()),
        hosts: Arc::new(Mirror::new(streams::HOSTS)),
        alerts: Arc::new(Mirror::new(streams::ALERT_STATE)),
        live: Arc::new(LiveHub::default()),
        shutdown: shutdown.child_token(),
        connections: TaskTracker::new(),
    };
    let tasks = TaskTracker::new();
    start(&app, &config, &ops, &tasks);
    tracing::info!(address = %listener.local_addr().map(|a| a.to_string()).unwrap_or_default(), "answering queries");
    let router = router::router(app.clone(), &ops, AllowedHosts::new(&config.allowed_hosts));
    let outcome = ops::serve(listener, router, shutdown).await;
    // Where serving broke off, nobody else tells the tasks to end.
    app.shutdown.cancel();
    app.connections.close();
    tasks.close();
    let drained = async { tokio::join!(app.connections.wait(), tasks.wait()) };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("live connections or tasks did not end within {} s, leaving them", DRAIN.as_secs());
    }
    Ok(outcome?)
}

/// Declares streams and buckets, waiting while the broker is away.
async fn declare(client: &Client, config: &QueryApiConfig, shutdown: &CancellationToken) -> Result<(), QueryApiError> {
    loop {
        let error = match streams::declare(client, &config.nats).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.is_refusal() {
            return Err(error.into());
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(DECLARE_RETRY) => {}
        }
    }
}

/// Starts everything that runs beside the requests.
fn start(app: &App, config: &QueryApiConfig, ops: &Ops, tasks: &TaskTracker) {
    let App { client, reader, tail, feed, metrics, shutdown, .. } = app.clone();
    let watch = LakeWatch {
        client: client.clone(),
        reader: Arc::clone(&reader),
        tail: Arc::clone(&tail),
        feed: Arc::clone(&feed),
        readiness: ops.readiness.clone(),
        metrics: metrics.clone(),
    };
    if config.publish_metrics {
        let watched = Watched { metrics: metrics.clone(), reader: Arc::clone(&reader), tail: Arc::clone(&tail) };
        tasks.spawn(Reporter::new(&client, SERVICE, config.http.port(), watched).run(shutdown.clone()));
    }
    let tail_feed = Feed::new(client.clone(), reader, tail, feed, metrics);
    let stop = shutdown.clone();
    let following = tasks.clone();
    tasks.spawn(async move {
        // Where there is a lake, the feed begins at the first message that it lacks instead of at the stream's first.
        let _ = watch.attach().await;
        following.spawn(tail_feed.run(stop.clone()));
        watch.run(stop).await;
    });
    tasks.spawn(Arc::clone(&app.hosts).run(client.clone(), config.nats.clone(), shutdown.clone()));
    tasks.spawn(Arc::clone(&app.alerts).run(client.clone(), config.nats.clone(), shutdown.clone()));
    tasks.spawn(Arc::clone(&app.live).run(client, shutdown));
}
