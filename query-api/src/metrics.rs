//! What the service says of itself under `/metrics`.

use plimsoll_service::ops::Ops;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
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
    /// Answered requests.
    pub requests: Family<RequestLabels, Counter>,
    /// Time of queries of lake and tail.
    pub query_seconds: Family<QueryLabels, Histogram>,
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
}

impl Metrics {
    /// Registers the metrics with the service's endpoints.
    #[must_use]
    pub fn register(ops: &Ops) -> Self {
        let metrics = Self {
            requests: Family::default(),
            query_seconds: Family::new_with_constructor(|| {
                Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
            }),
            tail_bytes: Gauge::default(),
            tail_dropped: Gauge::default(),
            tail_unusable: Counter::default(),
            live_subscribers: Gauge::default(),
            live_lagged: Counter::default(),
        };
        ops.register("plimsoll_query_api", |registry| metrics.add_to(registry));
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
    }
}
