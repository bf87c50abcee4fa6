//! What the service says of itself under `/metrics`.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use plimsoll_lake::{LakeError, LakeReader, Tail, query::QueryError};
use plimsoll_nats::{
    PartitionId, now_ms,
    report::{Lag, Reached, Reported, Values, integer},
};
use plimsoll_service::ops::Ops;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// A kind of answered request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route, such as `/api/stats/{host}`; `none` for unknown paths.
    pub route: String,
    /// The method.
    pub method: String,
    /// The status code.
    pub status: u16,
}

/// A kind of query.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryLabels {
    /// `metrics`, `stats` or `measurements`.
    pub query: &'static str,
}

/// The service's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    all_requests: Counter,
    refused: Counter,
    query_seconds: Family<QueryLabels, Histogram>,
    queries: Counter,
    query_seconds_sum: Counter<f64, AtomicU64>,
    cancelled_queries: Counter,
    timed_out_queries: Counter,
    /// Messages that were read into the tail.
    messages: Counter,
    reached: Arc<Mutex<Reached>>,
    /// Bytes that the tail holds, roughly.
    pub tail_bytes: Gauge,
    /// Messages that the tail has dropped for want of memory since the start.
    pub tail_dropped: Gauge,
    /// Messages of the stream that carry no rows to show: they could not be decoded, or their times are off.
    pub tail_unusable: Counter,
    /// Open live connections.
    pub live_subscribers: Gauge,
    /// Batches that were not sent to live connections that are too slow.
    pub live_lagged: Counter,
    /// Times that a live connection was too slow.
    pub slow_subscribers: Counter,
    /// Batches of the measurement `plimsoll` that could not be published.
    pub dropped_reports: Counter,
}

impl Metrics {
    /// Registers the metrics with the service's endpoints.
    #[must_use]
    pub fn register(ops: &Ops, reader: &Arc<LakeReader>) -> Self {
        let metrics = Self {
            requests: Family::default(),
            all_requests: Counter::default(),
            refused: Counter::default(),
            queries: Counter::default(),
            query_seconds_sum: Counter::default(),
            cancelled_queries: Counter::default(),
            timed_out_queries: Counter::default(),
            messages: Counter::default(),
            reached: Arc::default(),
            query_seconds: Family::new_with_constructor(|| {
                Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
            }),
            tail_bytes: Gauge::default(),
            tail_dropped: Gauge::default(),
            tail_unusable: Counter::default(),
            live_subscribers: Gauge::default(),
            live_lagged: Counter::default(),
            slow_subscribers: Counter::default(),
            dropped_reports: Counter::default(),
        };
        let collector = Load { reader: Arc::clone(reader), metrics: metrics.clone() };
        ops.register("plimsoll_query_api", |registry| {
            metrics.add_to(registry);
            registry.register_collector(Box::new(collector));
        });
        metrics
    }

    fn add_to(&self, registry: &mut Registry) {
        registry.register("requests", "Answered requests", self.requests.clone());
        let seconds = self.query_seconds.clone();
        registry.register_with_unit("query", "Time of queries of lake and tail", Unit::Seconds, seconds);
        registry.register_with_unit("tail", "Size of the tail", Unit::Bytes, self.tail_bytes.clone());
        registry.register(
            "tail_dropped",
            "Messages dropped from the tail for want of memory",
            self.tail_dropped.clone(),
        );
        registry.register("tail_unusable", "Messages of the stream without rows to show", self.tail_unusable.clone());
        registry.register("live_subscribers", "Open live connections", self.live_subscribers.clone());
        registry.register("live_lagged", "Batches not sent to slow live connections", self.live_lagged.clone());
        registry.register(
            "slow_subscribers",
            "Times that a live connection was too slow and had batches left out",
            self.slow_subscribers.clone(),
        );
        registry.register(
            "refused_requests",
            "Requests answered by 503, for want of room, memory, lake or broker",
            self.refused.clone(),
        );
        registry.register(
            "cancelled_queries",
            "Queries that nobody waited for any more",
            self.cancelled_queries.clone(),
        );
        registry.register("timed_out_queries", "Queries that took too long", self.timed_out_queries.clone());
        registry.register("messages", "Messages read from the stream", self.messages.clone());
        registry.register(
            "dropped_reports",
            "Batches of the measurement `plimsoll` lost because the broker was away",
            self.dropped_reports.clone(),
        );
    }

    /// Counts an answer.
    pub fn answered(&self, labels: &RequestLabels) {
        self.requests.get_or_create(labels).inc();
        self.all_requests.inc();
        // An answer that says that the service is not ready is no refusal.
        if labels.status == StatusCode::SERVICE_UNAVAILABLE.as_u16() && labels.route != "/readyz" {
            self.refused.inc();
        }
    }

    /// Notes a message that was read into the tail.
    pub fn read(&self, reached: Reached) {
        self.messages.inc();
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = reached;
    }

    /// Begins to measure a query; one that is not ended was cancelled.
    #[must_use]
    pub fn query(&self, query: &'static str) -> RunningQuery<'_> {
        RunningQuery { metrics: self, query, started: Instant::now(), has_ended: false }
    }

    fn lag(&self) -> Lag {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).lag(now_ms())
    }
}

/// A query that is being answered.
#[derive(Debug)]
pub struct RunningQuery<'a> {
    metrics: &'a Metrics,
    query: &'static str,
    started: Instant,
    has_ended: bool,
}

impl RunningQuery<'_> {
    /// The query has ended.
    pub fn end<T>(mut self, outcome: &Result<T, QueryError>) {
        self.has_ended = true;
        if matches!(outcome, Err(QueryError::Lake(LakeError::Interrupted))) {
            self.metrics.timed_out_queries.inc();
        }
    }
}

impl Drop for RunningQuery<'_> {
    fn drop(&mut self) {
        let took: Duration = self.started.elapsed();
        self.metrics.queries.inc();
        self.metrics.query_seconds_sum.inc_by(took.as_secs_f64());
        if self.has_ended {
            let labels = QueryLabels { query: self.query };
            self.metrics.query_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        } else {
            self.metrics.cancelled_queries.inc();
        }
    }
}

/// What is asked for when the metrics are.
#[derive(Debug)]
struct Load {
    reader: Arc<LakeReader>,
    metrics: Metrics,
}

impl Collector for Load {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (load, lag) = (self.reader.load(), self.metrics.lag());
        let mut gauge = |name, help, value: f64| {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
        };
        gauge("queries_running", "Queries that run", load.running as f64)?;
        gauge("queries_waiting", "Queries that wait for a connection", load.waiting as f64)?;
        gauge("lag_messages", "Messages of the stream that the tail has not read", lag.messages as f64)?;
        gauge(
            "lag_seconds",
            "Time since the last message of the tail was stored, while others come after it",
            lag.seconds,
        )
    }
}

/// What the measurement `plimsoll` tells of the service.
#[derive(Debug)]
pub struct Watched {
    /// The metrics.
    pub metrics: Metrics,
    /// The reader whose queries are counted.
    pub reader: Arc<LakeReader>,
    /// The tail whose size is told.
    pub tail: Arc<Tail>,
}

impl Reported for Watched {
    fn values(&self) -> (Values, Vec<(PartitionId, Values)>) {
        let (metrics, load, (tail_bytes, tail_dropped)) = (&self.metrics, self.reader.load(), self.tail.usage());
        let mut own = metrics.lag().values();
        own.integers.extend([
            ("messages_total", integer(metrics.messages.get())),
            ("dropped_reports_total", integer(metrics.dropped_reports.get())),
            ("requests_total", integer(metrics.all_requests.get())),
            ("refused_requests_total", integer(metrics.refused.get())),
            ("queries_running", integer(load.running as u64)),
            ("queries_waiting", integer(load.waiting as u64)),
            ("queries_total", integer(metrics.queries.get())),
            ("cancelled_queries_total", integer(metrics.cancelled_queries.get())),
            ("timed_out_queries_total", integer(metrics.timed_out_queries.get())),
            ("tail_bytes", integer(tail_bytes as u64)),
            ("tail_dropped_messages_total", integer(tail_dropped)),
            ("tail_unusable_messages_total", integer(metrics.tail_unusable.get())),
            ("live_subscribers", metrics.live_subscribers.get()),
            ("slow_subscribers_total", integer(metrics.slow_subscribers.get())),
            ("live_lagged_batches_total", integer(metrics.live_lagged.get())),
        ]);
        own.floats.push(("query_seconds_total", metrics.query_seconds_sum.get()));
        (own, Vec::new())
    }

    fn dropped(&self) {
        self.metrics.dropped_reports.inc();
    }
}
