//! Ingest: moves the stream's samples into the lake, each exactly once.
//!
//! One task reads: partitions' readers ([`source`]) yield messages, which are decoded ([`decoder`]) and gathered ([`batcher`])
//! until a batch is due. One task commits ([`committer`]) in turn with other members ([`turn`]): it puts dead messages aside ([`dead`]), commits rows and
//! positions, and then acknowledges. One batch is committed while the next one is gathered; when that is full before, ingest stops
//! reading and the stream keeps the rest.
//!
//! Beside that, one member at a time keeps the lake quick to read ([`maintenance`]), and each publishes a measurement about itself
//! ([`plimsoll_nats::report`]).

pub mod batcher;
pub mod committer;
pub mod config;
pub mod dead;
pub mod decoder;
pub mod error;
pub mod lake_thread;
pub mod maintenance;
pub mod metrics;
pub mod originals;
pub mod replay;
pub mod source;
pub mod turn;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use plimsoll_lake::{LakeError, LakeWriter};
use plimsoll_nats::{
    Client, NatsConfig, PartitionId, batch::BatchDecoder, client::MemberId, dead::chain,
    partition_group::PartitionGroup, reader::ReaderEvent, report::Reporter, streams,
};
use plimsoll_service::ops::{self, Ops, Readiness};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    batcher::{Batcher, Gathered},
    committer::Committer,
    decoder::Arrived,
    lake_thread::{LakeThread, ThreadEnded},
    maintenance::Maintenance,
    metrics::Metrics,
    source::LakeStart,
    turn::Turn,
};
pub use crate::{config::IngestConfig, error::IngestError};

/// The group that ingest members form.
pub const GROUP: &str = "ingest";
/// Messages between the readers and the batcher. Their bytes are bounded besides, by [`plimsoll_nats::reader::YIELDED_BYTES`].
pub const EVENTS_CAPACITY: usize = 1024;
/// Messages taken from there at a time.
const EVENTS_AT_ONCE: usize = 64;
/// Longest time that the end may take, from the shutdown on; the stream keeps what is not committed then.
const DRAIN: Duration = Duration::from_secs(30);

/// Runs ingest with its HTTP endpoints until `shutdown`, then commits what was gathered.
///
/// Fails when the HTTP address is taken, and when a lake or broker can't be used however long one waits.
pub async fn run(config: IngestConfig, shutdown: CancellationToken) -> Result<(), IngestError> {
    let listener = ops::bind(config.http).await?;
    let ops = Ops::default();
    ops.readiness.fail("broker", "connecting");
    let stop_http = CancellationToken::new();
    let http = tokio::spawn(ops::serve(listener, ops.router(), stop_http.clone()));
    let outcome = async {
        let client = match Client::connect(&config.nats, "plimsoll-ingest", &shutdown).await {
            Err(plimsoll_nats::ConnectError::Cancelled) => return Ok(()),
            client => client?,
        };
        run_with(config, client, ops.clone(), shutdown).await
    }
    .await;
    stop_http.cancel();
    http.await.expect("serving HTTP does not panic")?;
    outcome
}

/// Runs ingest on an existing connection, its state shown by `ops`, until `shutdown`; then commits what was gathered.
///
/// Fails when a lake can't be used however long one waits, and when a thread that works on the lake has panicked.
pub async fn run_with(
    config: IngestConfig,
    client: Client,
    ops: Ops,
    shutdown: CancellationToken,
) -> Result<(), IngestError> {
    let metrics = Metrics::register(&ops);
    if !declare(&client, &config.nats, &shutdown).await {
        return Ok(());
    }
    ops.readiness.clear("broker");
    ops.readiness.fail("lake", "opening");
    let tasks = TaskTracker::new();
    let lake = config.own_lake();
    let opened = lake.clone();
    let writer = LakeThread::start(move || LakeWriter::open(&opened), &tasks);
    if !open_lake(&writer, &shutdown).await? {
        return Ok(());
    }
    ops.readiness.clear("lake");

    let member = MemberId::unique();
    tracing::info!(member.id = %member, catalog = config.lake.catalog_kind(), "ingest is running");
    // Cancelled by `shutdown`, and when a thread that works on the lake has ended: the partitions must go to another member.
    let stop = shutdown.child_token();
    let start = LakeStart::new(lake, ops.readiness.clone(), &tasks);
    let watching = tasks.spawn(start.clone().watch(stop.clone()));
    tasks.spawn(watch_broker(client.clone(), ops.readiness.clone(), stop.clone()));
    if config.maintenance.enabled {
        let maintenance = Maintenance::new(&config, &client, &member, metrics.maintenance.clone(), &tasks);
        tasks.spawn(maintenance.run(stop.clone()));
    }
    if config.publish_metrics {
        tasks.spawn(Reporter::new(&client, GROUP, config.http.port(), metrics.clone()).run(stop.clone()));
    }
    let turn = Turn::new(&client, GROUP, &member, shutdown.clone());
    let group = PartitionGroup::new(&client, &config.nats, GROUP, member, start);
    let (sender, events) = mpsc::channel(EVENTS_CAPACITY);
    let reading = tasks.spawn(group.run(sender, stop.clone()));
    let committer =
        Committer::start(writer, client, metrics.clone(), ops.readiness.clone(), turn, shutdown.clone(), &tasks);
    let work = async {
        gather(&config, events, &committer, &metrics).await;
        stop.cancel();
        let committed = committer.finish().await;
        tasks.close();
        tasks.wait().await;
        reading.await.expect("the group does not panic");
        committed.and(watching.await.expect("watching the lake does not panic"))
    };
    tokio::select! {
        ended = work => Ok(ended?),
        () = expired(&stop) => {
            tracing::warn!("catalog, store or broker took too long, ended without them: the stream keeps what is not committed");
            // Otherwise a thread has ended, and a supervisor must start ingest again.
            if shutdown.is_cancelled() { Ok(()) } else { Err(ThreadEnded.into()) }
        }
    }
}

/// Waits until the time for an orderly end is over.
async fn expired(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

/// Keeps the readiness of the broker until `stop`.
async fn watch_broker(client: Client, readiness: Readiness, stop: CancellationToken) {
    loop {
        if client.is_connected() {
            readiness.clear("broker");
        } else {
            readiness.fail("broker", "disconnected, connecting again");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(config::RETRY) => {}
        }
    }
}

/// Declares streams and buckets, waiting for the broker. Returns whether that was done before `shutdown`.
async fn declare(client: &Client, config: &NatsConfig, shutdown: &CancellationToken) -> bool {
    loop {
        match streams::declare(client, config).await {
            Ok(()) => return true,
            Err(error) => tracing::warn!(error = %chain(&error), "streams can't be declared yet, trying again"),
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(config::RETRY) => {}
        }
    }
}

/// Opens the lake, waiting for catalog and data. Returns whether that was done before `shutdown`, fails when waiting can't help.
async fn open_lake(writer: &LakeThread<LakeWriter>, shutdown: &CancellationToken) -> Result<bool, IngestError> {
    loop {
        let opened = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(false),
            opened = writer.run(|lake| lake.with(|_| Ok(()))) => opened?,
        };
        match opened {
            Ok(()) => return Ok(true),
            Err(error @ (LakeError::ExtensionMissing { .. } | LakeError::File { .. })) => return Err(error.into()),
            Err(error) => tracing::warn!(error = %chain(&error), "the lake can't be opened yet, trying again"),
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(false),
            () = tokio::time::sleep(config::RETRY) => {}
        }
    }
}

/// Gathers what the readers yield and hands it over whenever it is due; returns when the readers have ended and all is handed over,
/// or when the committer has ended.
async fn gather(
    config: &IngestConfig,
    mut events: mpsc::Receiver<ReaderEvent>,
    committer: &Committer,
    metrics: &Metrics,
) {
    let mut gatherer = Gatherer::new(config, metrics.clone());
    let mut waiting = VecDeque::with_capacity(EVENTS_AT_ONCE);
    let mut received = Vec::with_capacity(EVENTS_AT_ONCE);
    loop {
        let (due, full) = (gatherer.batcher.due(), gatherer.batcher.is_full());
        tokio::select! {
            biased;
            // Hands over first: a full batch must not grow, and the slot is free again when the commit before has ended.
            slot = committer.reserve(), if gatherer.batcher.is_due(Instant::now()) => match slot {
                Some(slot) => slot.send(gatherer.take(committer.spare())),
                None => return,
            },
            () = committer.ended() => return,
            count = events.recv_many(&mut received, EVENTS_AT_ONCE), if waiting.is_empty() && !full => match count {
                0 => break,
                _ => waiting.extend(received.drain(..)),
            },
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some_and(|due| due > Instant::now()) => {}
        }
        while !gatherer.batcher.is_full()
            && let Some(event) = waiting.pop_front()
        {
            if gatherer.batcher.must_commit_before(&event) {
                committer.hand_over(gatherer.take(committer.spare())).await;
            }
            gatherer.accept(event);
        }
        gatherer.tell();
        metrics.queued_messages.set(i64::try_from(events.len() + waiting.len()).unwrap_or(i64::MAX));
    }
    if !gatherer.batcher.is_empty() {
        committer.hand_over(gatherer.take(committer.spare())).await;
    }
}

/// Decodes events into the batcher.
struct Gatherer {
    batcher: Batcher,
    decoder: BatchDecoder,
    metrics: Metrics,
    /// Messages read since the metrics were told, and what each partition still has.
    read: u64,
    pending: BTreeMap<PartitionId, u64>,
}

impl Gatherer {
    fn new(config: &IngestConfig, metrics: Metrics) -> Self {
        let (batcher, decoder) = (Batcher::new(config.limits()), BatchDecoder::default());
        Self { batcher, decoder, metrics, read: 0, pending: BTreeMap::new() }
    }

    fn accept(&mut self, event: ReaderEvent) {
        match event {
            ReaderEvent::Started { partition, .. } => {
                self.metrics.partition_started(partition);
                self.batcher.start(partition);
            }
            ReaderEvent::Message(message) => {
                self.read += 1;
                self.pending.insert(message.partition, message.pending);
                self.metrics.message(&message);
                let arrived = Arrived::from(&message);
                if self.batcher.push(&arrived, arrived.decode(&mut self.decoder)) {
                    self.batcher.acknowledge_with(message.partition, message.into_acker());
                } else {
                    self.metrics.repeated.inc();
                }
            }
            ReaderEvent::Stopped { partition } => {
                self.pending.remove(&partition);
                self.metrics.partition_stopped(partition);
                self.batcher.stop(partition);
            }
        }
    }

    /// Takes what is gathered, to be handed over.
    fn take(&mut self, spare: Gathered) -> Gathered {
        self.metrics.handed_over();
        self.batcher.take(spare)
    }

    fn tell(&mut self) {
        self.metrics.read(std::mem::take(&mut self.read), &self.pending);
        self.pending.clear();
        self.metrics.pending_rows.set(i64::try_from(self.batcher.rows()).unwrap_or(i64::MAX));
    }
}
