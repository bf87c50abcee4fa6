//! Takes the samples of one collector, tick by tick.

use std::sync::Arc;

use plimsoll_nats::dead::chain;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    buffer::SharedBuffer,
    collectors::{CollectError, Collector, CollectorKind},
    encoder::Encoder,
    rows::Rows,
    schedule::{Decision, Schedule, now_ms},
};

/// One collector with its schedule, on a task of its own: a slow one delays no other.
pub struct Sampler {
    kind: CollectorKind,
    schedule: Schedule,
    encoder: Encoder,
    buffer: Arc<SharedBuffer>,
    /// None after the collector has panicked, until it is opened anew.
    state: Option<(Box<dyn Collector>, Rows)>,
    failing: bool,
}

impl Sampler {
    /// Samples a collector on a schedule into the buffer.
    #[must_use]
    pub fn new(kind: CollectorKind, schedule: Schedule, encoder: Encoder, buffer: Arc<SharedBuffer>) -> Self {
        Self { kind, schedule, encoder, buffer, state: None, failing: false }
    }

    /// Takes samples until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = self.sample() => {}
        }
    }

    async fn sample(&mut self) {
        // Rates need a reading to start from, so that the first tick already has rows.
        self.collect().await;
        loop {
            match self.schedule.decide(now_ms()) {
                Decision::Sleep(pause) => sleep(pause).await,
                Decision::Take(tick_ms) => {
                    if let Some(mut rows) = self.collect().await {
                        let count = rows.len();
                        self.buffer.push(self.encoder.encode(tick_ms, count, rows.take()));
                    }
                }
            }
        }
    }

    /// Reads once, away from the runtime's threads; none when that failed or there is nothing to tell.
    async fn collect(&mut self) -> Option<Rows> {
        let kind = self.kind;
        let state = self.state.take();
        let reading = tokio::task::spawn_blocking(move || {
            let (mut collector, mut rows) = state.unwrap_or_else(|| (kind.open(), Rows::new(kind.spec())));
            let result = collector.collect(&mut rows);
            (collector, rows, result)
        });
        match reading.await {
            Ok((collector, mut rows, result)) => {
                let fresh = Rows::new(kind.spec());
                let taken = std::mem::replace(&mut rows, fresh);
                self.state = Some((collector, rows));
                self.report(result).then_some(taken).filter(|rows| !rows.is_empty())
            }
            Err(error) => {
                tracing::error!(collector = kind.name, %error, "collector broke off and is opened anew");
                None
            }
        }
    }

    /// Logs when the collector begins or ceases to fail. Returns whether it succeeded.
    fn report(&mut self, result: Result<(), CollectError>) -> bool {
        let failed = result.is_err();
        match result {
            Err(error) if !self.failing => {
                tracing::warn!(collector = self.kind.name, error = %chain(&error), "collector fails, others go on");
            }
            Ok(()) if self.failing => tracing::info!(collector = self.kind.name, "collector works again"),
            _ => {}
        }
        self.failing = failed;
        !failed
    }
}
