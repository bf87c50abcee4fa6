//! Live evaluation: follows the partitions of this member and the rules, and records what changes.
//!
//! Events are evaluated in the order in which they come. Transitions are recorded before anything is acknowledged and before the
//! next events are taken, so that a broker that is away stops the worker instead of filling its memory. Series fall silent only
//! while the broker is in reach, has been for [`GRACE`], and the partition's messages have been read.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use plimsoll_nats::{
    Client, Incarnation, PartitionId,
    alert::{AlertState, state_key},
    now_ms,
    reader::{ReaderEvent, Start, StartError, StartSource},
    report::Reached,
    subject,
};
use plimsoll_service::ops::Readiness;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use crate::{
    abandoned,
    evaluator::{Evaluator, millis},
    metrics::Metrics,
    partition::Partition,
    recorder::{Record, Recorder, Stopped, Stored},
    rules::{Rules, lookback},
};

/// How many events may wait for the evaluator.
pub(crate) const EVENTS: usize = 4096;
/// How many events are evaluated before their transitions are recorded.
const EVENTS_AT_ONCE: usize = 512;
/// How many series' transitions are recorded at the same time.
const RECORDS_AT_ONCE: usize = 256;
/// How often silence is looked for and the broker is told what has been read.
const TICK: Duration = Duration::from_secs(1);
/// How long agents have to come back after the broker has, before a silent one counts as such.
const GRACE: Duration = Duration::from_secs(5);
/// How much further back than the lookback a reader starts, for the time that making its consumer takes.
const START_MARGIN: Duration = Duration::from_secs(10);

/// Lets readers start where the rules' windows begin, and remembers where that was.
#[derive(Debug, Clone)]
pub(crate) struct Lookback {
    rules: watch::Receiver<Option<Rules>>,
    begun_ms: Arc<Mutex<BTreeMap<PartitionId, i64>>>,
}

impl Lookback {
    pub fn new(rules: watch::Receiver<Option<Rules>>) -> Self {
        Self { rules, begun_ms: Arc::default() }
    }

    /// The time from which on a partition's messages are replayed.
    fn begun_ms(&self, partition: PartitionId) -> i64 {
        let begun = self.begun_ms.lock().unwrap_or_else(PoisonError::into_inner);
        begun.get(&partition).copied().unwrap_or(i64::MIN)
    }
}

impl StartSource for Lookback {
    async fn start(&self, partition: PartitionId, _: Incarnation) -> Result<Start, StartError> {
        let length = self.rules.borrow().as_ref().map(lookback).unwrap_or_default();
        let begun = now_ms().saturating_sub(millis(length));
        self.begun_ms.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, begun);
        Ok(Start::Recent(length + START_MARGIN))
    }
}

/// Evaluates the partitions of this member.
#[derive(Debug)]
pub(crate) struct Worker {
    client: Client,
    recorder: Recorder,
    lookback: Lookback,
    rules: watch::Receiver<Option<Rules>>,
    metrics: Metrics,
    readiness: Readiness,
    partitions: BTreeMap<PartitionId, Partition>,
    /// Transitions that are not recorded yet.
    changes: Vec<(PartitionId, AlertState)>,
    /// The stored states, while they are known to be as the bucket holds them.
    stored: Option<Arc<Vec<Stored>>>,
    connected_since: Option<Instant>,
    looked_for_abandoned: Option<Instant>,
}

impl Worker {
    pub fn new(
        client: &Client,
        recorder: Recorder,
        lookback: Lookback,
        metrics: Metrics,
        readiness: Readiness,
    ) -> Self {
        Self {
            client: client.clone(),
            recorder,
            rules: lookback.rules.clone(),
            lookback,
            metrics,
            readiness,
            partitions: BTreeMap::new(),
            changes: Vec::new(),
            stored: None,
            connected_since: None,
            looked_for_abandoned: None,
        }
    }

    /// Evaluates until `shutdown` or the end of the events, then acknowledges what it has recorded.
    pub async fn run(mut self, mut events: mpsc::Receiver<ReaderEvent>, shutdown: CancellationToken) {
        if self.follow(&mut events, &shutdown).await.is_ok() {
            self.ack_all().await;
        }
    }

    async fn follow(
        &mut self,
        events: &mut mpsc::Receiver<ReaderEvent>,
        shutdown: &CancellationToken,
    ) -> Result<(), Stopped> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut received = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                changed = self.rules.changed() => match changed {
                    Ok(()) => self.apply_rules().await?,
                    Err(_) => return Ok(()),
                },
                _ = tick.tick() => {
                    self.advance().await?;
                    self.record().await?;
                    self.ack_all().await;
                }
                count = events.recv_many(&mut received, EVENTS_AT_ONCE) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.metrics.queue_depth.set(i64::try_from(events.len()).unwrap_or(i64::MAX));
                    self.take(received.drain(..)).await?;
                }
            }
        }
    }

    async fn take(&mut self, events: impl Iterator<Item = ReaderEvent>) -> Result<(), Stopped> {
        for event in events {
            match event {
                ReaderEvent::Started { partition, .. } => self.start(partition).await?,
                ReaderEvent::Stopped { partition } => {
                    self.record().await?;
                    self.partitions.remove(&partition);
                    self.metrics.partition_stopped(partition);
                }
                ReaderEvent::Message(message) => {
                    let id = message.partition;
                    let Some(partition) = self.partitions.get_mut(&id) else { continue };
                    let reached = Reached { stored_ms: message.stored_ms, pending: message.pending };
                    let mut changes = Vec::new();
                    partition.push(message, &self.metrics, &mut changes);
                    self.changes.extend(changes.into_iter().map(|state| (id, state)));
                    self.metrics.evaluated(id, reached);
                }
            }
        }
        self.record().await?;
        self.stored = None;
        self.metrics.partitions.set(i64::try_from(self.partitions.len()).unwrap_or(i64::MAX));
        for partition in self.partitions.values_mut().filter(|partition| partition.wants_ack()) {
            partition.ack().await;
        }
        Ok(())
    }

    /// Begins a partition with the stored states of its hosts; windows fill from the replay that follows.
    async fn start(&mut self, id: PartitionId) -> Result<(), Stopped> {
        self.record().await?;
        let stored = match &self.stored {
            Some(stored) => Arc::clone(stored),
            None => Arc::new(self.recorder.load().await?),
        };
        self.stored = Some(Arc::clone(&stored));
        let rules = self.rules.borrow().clone().unwrap_or_default();
        let mut evaluator = Evaluator::new(rules.values().cloned()).covered_after(self.lookback.begun_ms(id));
        let (now, mut revisions) = (now_ms(), HashMap::new());
        for stored in stored.iter().filter(|stored| subject::partition_of(&stored.state.transition.series.host) == id) {
            if !evaluator.restore(&stored.state, now) {
                self.forget(stored, &rules).await?;
                continue;
            }
            let mut revision = stored.revision;
            if !stored.state.announced {
                let rule = rules.get(&stored.state.transition.rule).map(|rule| &**rule);
                self.recorder.announce(&stored.key, &mut revision, stored.state.clone(), rule).await?;
            }
            revisions.insert(stored.key.clone(), revision);
        }
        tracing::info!(partition.id = %id, states = revisions.len(), "partition taken over");
        self.partitions.insert(id, Partition::new(evaluator, revisions));
        self.metrics.partition_started(id);
        Ok(())
    }

    /// Takes away a state that no rule accounts for.
    async fn forget(&self, stored: &Stored, rules: &Rules) -> Result<(), Stopped> {
        let transition = &stored.state.transition;
        // A rule that is not known here may be one that another member has already seen.
        if rules.contains_key(&transition.rule) || !self.recorder.rule_exists(&transition.rule).await? {
            let rule = rules.get(&transition.rule).map(|rule| &**rule);
            self.recorder.remove(&stored.key, rule, now_ms()).await?;
        }
        Ok(())
    }

    async fn apply_rules(&mut self) -> Result<(), Stopped> {
        let rules = self.rules.borrow_and_update().clone().unwrap_or_default();
        let mut removed = Vec::new();
        for partition in self.partitions.values_mut() {
            for dropped in partition.evaluator.set_rules(rules.values().cloned()) {
                let key = state_key(&dropped.rule.name, &dropped.series);
                partition.revisions.remove(&key);
                removed.push((key, dropped.rule));
            }
        }
        let (recorder, at_ms) = (&self.recorder, now_ms());
        let removals = removed.iter().map(|(key, rule)| recorder.remove(key, Some(rule), at_ms));
        stream::iter(removals).map(Ok).try_for_each_concurrent(RECORDS_AT_ONCE, |removal| removal).await
    }

    /// Looks for series that have fallen silent, where it can be known.
    async fn advance(&mut self) -> Result<(), Stopped> {
        let connected = self.client.is_connected();
        if connected {
            self.readiness.clear("broker");
        } else {
            self.readiness.fail("broker", "the broker is away");
        }
        self.connected_since = connected.then(|| self.connected_since.unwrap_or_else(Instant::now));
        if self.connected_since.is_none_or(|since| since.elapsed() < GRACE) {
            return Ok(());
        }
        let now = now_ms();
        for (id, partition) in self.partitions.iter_mut().filter(|(_, partition)| partition.is_current(now)) {
            let mut changes = Vec::new();
            partition.evaluator.advance(now, &mut changes);
            self.changes.extend(changes.into_iter().map(|state| (*id, state)));
        }
        if self.looked_for_abandoned.is_none_or(|looked| looked.elapsed() >= abandoned::EVERY) {
            self.looked_for_abandoned = Some(Instant::now());
            let rules = self.rules.borrow().clone().unwrap_or_default();
            self.changes.extend(abandoned::silent(&self.recorder, &rules, &self.partitions, now).await?);
        }
        Ok(())
    }

    /// Records the transitions at hand: those of a series in order, different series at the same time.
    async fn record(&mut self) -> Result<(), Stopped> {
        if self.changes.is_empty() {
            return Ok(());
        }
        self.stored = None;
        let rules = self.rules.borrow().clone().unwrap_or_default();
        let mut records: BTreeMap<String, Record> = BTreeMap::new();
        for (partition, state) in self.changes.drain(..) {
            let key = state_key(&state.transition.rule, &state.transition.series);
            let record = records.entry(key).or_insert_with_key(|key| {
                let revisions = self.partitions.get(&partition).map(|partition| &partition.revisions);
                let revision = revisions.and_then(|revisions| revisions.get(key)).copied().unwrap_or(0);
                let rule = rules.get(&state.transition.rule).cloned();
                Record { partition, key: key.clone(), revision, states: Vec::new(), rule }
            });
            record.states.push(state);
        }
        let recorded: Vec<_> = stream::iter(records.into_values().map(|record| self.recorder.clone().record(record)))
            .buffer_unordered(RECORDS_AT_ONCE)
            .collect()
            .await;
        for recorded in recorded {
            let (partition, key, revision) = recorded?;
            if let Some(partition) = self.partitions.get_mut(&partition) {
                partition.revisions.insert(key, revision);
            }
        }
        Ok(())
    }

    async fn ack_all(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.ack().await;
        }
    }
}
