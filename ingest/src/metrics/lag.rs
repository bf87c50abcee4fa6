//! How long what was read waits until it is committed, by partition.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use plimsoll_nats::{PartitionId, now_ms, report::integer};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

/// What is read and not committed, on its way: gathered, and handed over to be committed in the same order.
#[derive(Debug, Clone, Default)]
pub(super) struct Uncommitted(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    gathered: Gathered,
    handed_over: VecDeque<Gathered>,
    /// The partitions that are read.
    owned: BTreeSet<PartitionId>,
}

#[derive(Debug, Default)]
struct Gathered {
    /// When the broker stored the first message of each partition, Unix ms.
    oldest_ms: BTreeMap<PartitionId, i64>,
    bytes: u64,
}

impl Uncommitted {
    pub(super) fn started(&self, partition: PartitionId) {
        let mut state = self.lock();
        state.owned.insert(partition);
        // What is gathered of it comes again.
        state.gathered.oldest_ms.remove(&partition);
    }

    pub(super) fn stopped(&self, partition: PartitionId) {
        self.lock().owned.remove(&partition);
    }

    pub(super) fn read(&self, partition: PartitionId, stored_ms: i64, bytes: usize) {
        let mut state = self.lock();
        state.gathered.oldest_ms.entry(partition).or_insert(stored_ms);
        state.gathered.bytes += bytes as u64;
    }

    pub(super) fn handed_over(&self) {
        let mut state = self.lock();
        let gathered = std::mem::take(&mut state.gathered);
        state.handed_over.push_back(gathered);
    }

    /// Takes what was handed over first as committed; returns its bytes.
    pub(super) fn committed(&self) -> u64 {
        self.lock().handed_over.pop_front().map_or(0, |gathered| gathered.bytes)
    }

    /// Bytes gathered for the next commit.
    pub(super) fn pending_bytes(&self) -> u64 {
        self.lock().gathered.bytes
    }

    /// For each partition that is read, or of which something waits, the seconds since its oldest message was stored; 0 where
    /// nothing waits.
    pub(super) fn seconds(&self, now_ms: i64) -> BTreeMap<PartitionId, f64> {
        let state = self.lock();
        let mut seconds: BTreeMap<PartitionId, f64> = state.owned.iter().map(|partition| (*partition, 0.0)).collect();
        for (partition, stored_ms) in state.handed_over.iter().chain([&state.gathered]).flat_map(|set| &set.oldest_ms) {
            let age = now_ms.saturating_sub(*stored_ms).max(0) as f64 / 1000.0;
            let longest = seconds.entry(*partition).or_default();
            *longest = longest.max(age);
        }
        seconds
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Uncommitted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Age of the oldest message of a partition that was read and is not committed, from its storing by the broker";
        let mut metric = encoder.encode_descriptor("lag_seconds", help, None, MetricType::Gauge)?;
        for (partition, seconds) in self.seconds(now_ms()) {
            metric.encode_family(&[("partition", partition.to_string())])?.encode_gauge(&seconds)?;
        }
        let mut metric = encoder.encode_descriptor(
            "pending_bytes",
            "Payload gathered for the next commit",
            None,
            MetricType::Gauge,
        )?;
        metric.encode_gauge(&integer(self.pending_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(number: u16) -> PartitionId {
        PartitionId::new(number).expect("exists")
    }

    #[test]
    fn the_oldest_message_on_its_way_counts_until_its_commit() {
        let lag = Uncommitted::default();
        let seconds = |now_ms| lag.seconds(now_ms).into_values().collect::<Vec<_>>();
        [1, 2].into_iter().for_each(|number| lag.started(partition(number)));
        assert_eq!(seconds(9000), [0.0, 0.0]);
        lag.read(partition(1), 1000, 10);
        lag.read(partition(1), 5000, 20);
        lag.handed_over();
        lag.read(partition(1), 6000, 5);
        lag.read(partition(2), 8000, 5);
        assert_eq!((seconds(9000), lag.pending_bytes()), (vec![8.0, 1.0], 10));
        assert_eq!(lag.committed(), 30);
        assert_eq!(seconds(9000), [3.0, 1.0]);
        lag.started(partition(1));
        assert_eq!(seconds(9000), [0.0, 1.0], "what is read again counts from then on");
        lag.stopped(partition(2));
        assert_eq!(seconds(9000), [0.0, 1.0], "it is still to be committed");
        lag.handed_over();
        lag.committed();
        assert_eq!((seconds(9000), lag.committed()), (vec![0.0], 0));
    }
}
