//! What the worker counts, as Prometheus metrics under `plimsoll_alert_worker`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use plimsoll_nats::{
    PartitionId,
    alert::AlertStatus,
    now_ms,
    report::{Lag, Reached, Values, integer},
};
use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge},
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
    /// Notifications on `NOTIFY`, of all members, when it was last looked.
    pub notifications_waiting: Gauge,
    /// Batches of the measurement `plimsoll` that could not be published.
    pub dropped_reports: Counter,
    reached: Partitions,
    transitions: Family<Labels, Counter>,
    all_transitions: Counter,
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
            "Notifications that are not delivered yet, of all members",
            metrics.notifications_waiting.clone(),
        );
        registry.register("transitions", "Transitions by the status that they lead to", metrics.transitions.clone());
        registry.register("notifications", "Attempts to notify by outcome", metrics.notifications.clone());
        registry.register(
            "dropped_reports",
            "Batches of the measurement `plimsoll` lost because the broker was away",
            metrics.dropped_reports.clone(),
        );
        registry.register_collector(Box::new(metrics.reached.clone()));
        metrics
    }

    /// A partition is read from now on.
    pub(crate) fn partition_started(&self, partition: PartitionId) {
        self.reached.lock().insert(partition, Reached::default());
    }

    /// A partition is not read any more.
    pub(crate) fn partition_stopped(&self, partition: PartitionId) {
        self.reached.lock().remove(&partition);
    }

    /// A message of a partition is evaluated.
    pub(crate) fn evaluated(&self, partition: PartitionId, reached: Reached) {
        self.reached.lock().insert(partition, reached);
    }

    /// The present values of the measurement `plimsoll`: the member's own, and those of each partition that it reads.
    pub(crate) fn values(&self) -> (Values, Vec<(PartitionId, Values)>) {
        let lags = self.reached.lags();
        let notifications =
            |outcome| self.notifications.get(&[("outcome", outcome)]).map_or(0, |counter| integer(counter.get()));
        let mut own = Lag::of_all(lags.values().copied()).values();
        own.integers.extend([
            ("partitions", self.partitions.get()),
            ("queued_messages", self.queue_depth.get()),
            ("messages_total", integer(self.messages.get())),
            ("dropped_reports_total", integer(self.dropped_reports.get())),
            ("evaluated_rows_total", integer(self.rows.get())),
            ("undecodable_messages_total", integer(self.decode_failures.get())),
            ("transitions_total", integer(self.all_transitions.get())),
            ("notifications_waiting", self.notifications_waiting.get()),
            ("notifications_sent_total", notifications("sent")),
            ("notifications_retried_total", notifications("retried")),
            ("notifications_postponed_total", notifications("postponed")),
            ("notifications_failed_total", notifications("failed")),
        ]);
        (own, lags.into_iter().map(|(partition, lag)| (partition, lag.values())).collect())
    }

    /// Transitions to a status.
    pub fn transition(&self, to: AlertStatus) {
        self.transitions.get_or_create(&[("to", to.as_str())]).inc();
        self.all_transitions.inc();
    }

    /// Attempts to notify with an outcome: `sent`, `retried`, `failed` for good, or `postponed` since the target was busy.
    pub fn notification(&self, outcome: &'static str) {
        self.notifications.get_or_create(&[("outcome", outcome)]).inc();
    }
}

/// How far each partition is evaluated that this member reads.
#[derive(Debug, Clone, Default)]
struct Partitions(Arc<Mutex<BTreeMap<PartitionId, Reached>>>);

impl Partitions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Reached>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lags(&self) -> BTreeMap<PartitionId, Lag> {
        let now_ms = now_ms();
        self.lock().iter().map(|(partition, reached)| (*partition, reached.lag(now_ms))).collect()
    }
}

impl Collector for Partitions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let lags = self.lags();
        let help = "Messages of a partition that the stream still holds for this member";
        let mut metric = encoder.encode_descriptor("lag_messages", help, None, MetricType::Gauge)?;
        for (partition, lag) in &lags {
            metric.encode_family(&[("partition", partition.to_string())])?.encode_gauge(&lag.messages)?;
        }
        let help = "Time since the last evaluated message of a partition was stored, while others come after it";
        let mut metric = encoder.encode_descriptor("lag_seconds", help, None, MetricType::Gauge)?;
        for (partition, lag) in &lags {
            metric.encode_family(&[("partition", partition.to_string())])?.encode_gauge(&lag.seconds)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_tells_how_far_it_is_behind() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let [behind, done, left] = [1, 2, 3].map(|number| PartitionId::new(number).expect("exists"));
        [behind, done, left].into_iter().for_each(|partition| metrics.partition_started(partition));
        metrics.evaluated(behind, Reached { stored_ms: now_ms() - 60_000, pending: 7 });
        metrics.evaluated(done, Reached { stored_ms: now_ms() - 60_000, pending: 0 });
        metrics.partition_stopped(left);
        let (own, partitions) = metrics.values();
        assert!(own.integers.contains(&("lag_messages", 7)), "{own:?}");
        assert!(own.floats.iter().any(|(name, value)| *name == "lag_seconds" && *value >= 60.0), "{own:?}");
        let told: Vec<_> = partitions.iter().map(|(partition, values)| (*partition, values.integers[0].1)).collect();
        assert_eq!(told, [(behind, 7), (done, 0)]);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("is text");
        for line in
            ["lag_messages{partition=\"1\"} 7", "lag_messages{partition=\"2\"} 0", "lag_seconds{partition=\"2\"} 0.0"]
        {
            assert!(text.lines().any(|told| told == line), "{line} in {text}");
        }
        assert!(!text.contains("partition=\"3\""), "{text}");
    }
}
