//! What the worker counts, as Prometheus metrics under `plimsoll_alert_worker`.

use plimsoll_nats::alert::AlertStatus;
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// The metrics' prefix.
pub const PREFIX: &str = "plimsoll_alert_worker";

type Labels = [(&'static str, &'static str); 1];

/// The counters and gauges. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Messages read from the stream.
    pub messages: Counter,
    /// Rows evaluated.
    pub rows: Counter,
    /// Messages that are no batch; ingest reports them to `DEAD`.
    pub decode_failures: Counter,
    /// Messages read and not evaluated yet.
    pub queue_depth: Gauge,
    /// Partitions that this member reads.
    pub partitions: Gauge,
    /// Notifications waiting on `NOTIFY` when one was last delivered.
    pub notifications_waiting: Gauge,
    transitions: Family<Labels, Counter>,
    notifications: Family<Labels, Counter>,
}

impl Metrics {
    /// Adds the metrics to a registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("messages", "Messages read from the stream", metrics.messages.clone());
        registry.register("rows", "Rows evaluated", metrics.rows.clone());
        registry.register("decode_failures", "Messages that are no batch", metrics.decode_failures.clone());
        registry.register("queue_depth", "Messages read and not evaluated yet", metrics.queue_depth.clone());
        registry.register("partitions", "Partitions that this member reads", metrics.partitions.clone());
        registry.register(
            "notifications_waiting",
            "Notifications waiting when one was last delivered",
            metrics.notifications_waiting.clone(),
        );
        registry.register("transitions", "Transitions by the status that they lead to", metrics.transitions.clone());
        registry.register("notifications", "Attempts to notify by outcome", metrics.notifications.clone());
        metrics
    }

    /// Transitions to a status.
    pub fn transition(&self, to: AlertStatus) {
        self.transitions.get_or_create(&[("to", to.as_str())]).inc();
    }

    /// Attempts to notify with an outcome: `sent`, `retried`, `failed` for good, or `postponed` since the target was busy.
    pub fn notification(&self, outcome: &'static str) {
        self.notifications.get_or_create(&[("outcome", outcome)]).inc();
    }
}
