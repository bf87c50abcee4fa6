//! The agent's ways to the broker: for each of its two streams a buffer with a spool, and the publishers that empty them.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use plimsoll_nats::{Client, NatsConfig, dead::chain};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    boot::ToldBoots,
    buffer::{BufferStats, SharedBuffer, Side},
    config::SpoolConfig,
    encoder::PayloadLimit,
    message::{Message, Stream},
    publisher::{Declarer, Publisher},
    spool::Spool,
    state::StateDir,
    update::Receipts,
};

/// The part of memory and disk that events have; samples have the rest.
const EVENTS_PART: u64 = 16;
/// How often the spools are synced.
const KEEP: Duration = Duration::from_secs(1);
/// After how many times of that lost messages are told again.
const TELL_EVERY: u32 = 10;

/// The buffers of both streams.
#[derive(Debug, Clone)]
pub struct Delivery {
    metrics: Arc<SharedBuffer>,
    events: Arc<SharedBuffer>,
}

impl Delivery {
    /// Opens the spools in the state folder, where there is one and they are wanted; else there is only memory, which is logged.
    ///
    /// Returns also which boots of the host were told in events that still wait. Blocks while it reads through what waits on disk.
    #[must_use]
    pub fn open(buffer_bytes: usize, config: &SpoolConfig, state: Option<&StateDir>) -> (Self, ToldBoots) {
        let mut told = ToldBoots::default();
        let events_bytes = config.max_bytes / EVENTS_PART;
        let state = state.filter(|_| config.enabled);
        let open = |stream: Stream, memory: usize, disk: u64, visit: &mut dyn FnMut(&Message)| {
            let spool = state.and_then(|state| open_spool(state, stream, disk, visit));
            Arc::new(match spool {
                Some(spool) => SharedBuffer::spooled(memory, spool),
                None => SharedBuffer::new(memory),
            })
        };
        let metrics = open(Stream::Metrics, buffer_bytes, config.max_bytes - events_bytes, &mut |_| {});
        let events_memory = buffer_bytes / usize::try_from(EVENTS_PART).unwrap_or(1);
        let events = open(Stream::Events, events_memory, events_bytes, &mut |message| told.visit(message));
        (Self { metrics, events }, told)
    }

    /// Takes samples.
    #[must_use]
    pub fn metrics(&self) -> &Arc<SharedBuffer> {
        &self.metrics
    }

    /// Takes events.
    #[must_use]
    pub fn events(&self) -> &Arc<SharedBuffer> {
        &self.events
    }

    /// Figures of both streams together.
    #[must_use]
    pub fn stats(&self) -> BufferStats {
        self.metrics.stats() + self.events.stats()
    }

    /// What sends both buffers over this connection, and tells `receipts` what the broker acknowledges.
    #[must_use]
    pub fn publishers(
        &self,
        client: Client,
        config: &NatsConfig,
        limit: &PayloadLimit,
        receipts: &Receipts,
    ) -> Publishers {
        let declarer = Declarer::new(client, config);
        let publisher = |stream, side, buffer: &Arc<SharedBuffer>| {
            let publisher = Publisher::new(declarer.clone(), (stream, side), Arc::clone(buffer), limit.clone());
            publisher.telling(receipts.clone())
        };
        Publishers([
            publisher(Stream::Metrics, Side::Live, &self.metrics),
            publisher(Stream::Metrics, Side::Backlog, &self.metrics),
            publisher(Stream::Events, Side::Live, &self.events),
            publisher(Stream::Events, Side::Backlog, &self.events),
        ])
    }

    /// Keeps the spools safe and tells what was lost, until `shutdown`.
    pub async fn keep(self, shutdown: CancellationToken) {
        let mut rounds = 0;
        while shutdown.run_until_cancelled(sleep(KEEP)).await.is_some() {
            for buffer in [&self.metrics, &self.events] {
                if buffer.needs_keeping() {
                    let buffer = Arc::clone(buffer);
                    // It ends with the runtime, which waits for it.
                    let _ = tokio::task::spawn_blocking(move || buffer.keep()).await;
                }
            }
            rounds += 1;
            if rounds % TELL_EVERY == 0 {
                self.tell_lost(0, "spool or buffer is full, the oldest batches are lost");
            }
        }
    }

    /// Puts on disk what is left, and tells what is lost.
    pub async fn close(self) {
        let buffers = self.clone();
        let closed = tokio::task::spawn_blocking(move || buffers.metrics.close() + buffers.events.close()).await;
        self.tell_lost(closed.unwrap_or(0), "agent ends, batches that the broker did not take are lost");
        let waiting = self.stats().spool.batches;
        if waiting > 0 {
            tracing::info!(batches = waiting, "agent ends, what the broker did not take waits on disk");
        }
    }

    fn tell_lost(&self, left: usize, why: &str) {
        let batches = left as u64 + self.metrics.take_dropped() + self.events.take_dropped();
        if batches > 0 {
            tracing::error!(batches, "{why}");
        }
    }
}

/// None where the folder cannot be used, which is logged.
fn open_spool(state: &StateDir, stream: Stream, max_bytes: u64, visit: &mut dyn FnMut(&Message)) -> Option<Spool> {
    let folder = state.spool(&stream.name().to_ascii_lowercase());
    match Spool::open(&folder, max_bytes, visit) {
        Ok(spool) => {
            let batches = spool.stats().batches;
            if batches > 0 {
                tracing::info!(stream = stream.name(), batches, "what an earlier run left on disk will be sent");
            }
            Some(spool)
        }
        Err(error) => {
            let error = chain(&error);
            tracing::error!(stream = stream.name(), error, "the spool cannot be used: samples wait in memory alone");
            None
        }
    }
}

/// The publishers of both streams.
pub struct Publishers([Publisher; 4]);

impl Publishers {
    /// Publishes until `shutdown`.
    pub async fn run(&mut self, shutdown: &CancellationToken) {
        join_all(self.0.iter_mut().map(|publisher| publisher.run(shutdown))).await;
    }

    /// Publishes what is left, for at most five seconds.
    pub async fn flush(&mut self) {
        join_all(self.0.iter_mut().map(Publisher::flush)).await;
    }
}
