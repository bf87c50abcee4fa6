//! Takes the samples of one collector, tick by tick.

use std::sync::Arc;

use plimsoll_nats::{dead::chain, now_ms};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    buffer::SharedBuffer,
    collectors::{CollectError, Collector, CollectorKind},
    encoder::Encoder,
    rows::{Columns, Rows},
    schedule::{Decision, Schedule},
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
                    if let Some((rows, columns)) = self.collect().await {
                        self.buffer.push(self.encoder.encode(tick_ms, rows, columns));
                    }
                }
            }
        }
    }

    /// Reads once, away from the runtime's threads. Returns how many rows there are, and these; none when reading failed or
    /// there is nothing to tell.
    async fn collect(&mut self) -> Option<(usize, Columns)> {
        let kind = self.kind;
        let state = self.state.take();
        let reading = tokio::task::spawn_blocking(move || {
            let (mut collector, mut rows) = state.unwrap_or_else(|| (kind.open(), Rows::new(kind.spec())));
            let result = collector.collect(&mut rows);
            (collector, rows, result)
        });
        match reading.await {
            Ok((collector, mut rows, result)) => {
                let count = rows.len();
                let columns = rows.take();
                self.state = Some((collector, rows));
                (self.report(result) && count > 0).then_some((count, columns))
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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use plimsoll_nats::{HostId, Name};
    use tokio::time::timeout;
    use ulid::Ulid;

    use super::*;
    use crate::encoder::PayloadLimit;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Panics at the third reading, fails at the sixth, and does well else.
    struct Troubled;

    static READINGS: AtomicU32 = AtomicU32::new(0);

    impl Collector for Troubled {
        fn collect(&mut self, rows: &mut Rows) -> Result<(), CollectError> {
            let reading = READINGS.fetch_add(1, Ordering::SeqCst) + 1;
            assert_ne!(reading, 3, "the collector panics");
            let value = || 1.0.into();
            rows.push(
                &[],
                &[
                    ("load1", value()),
                    ("load5", value()),
                    ("load15", value()),
                    ("runnable_tasks", 1_u64.into()),
                    ("tasks", 1_u64.into()),
                ],
            );
            if reading == 6 {
                return Err(CollectError::Read { path: "/proc".into(), source: io::Error::other("it fails") });
            }
            Ok(())
        }
    }

    fn sampler(kind: CollectorKind, buffer: &Arc<SharedBuffer>) -> Sampler {
        let name = Name::parse(kind.name).unwrap();
        let encoder = Encoder::new(HostId::parse("h").unwrap(), name, Ulid::generate(), PayloadLimit::default());
        Sampler::new(kind, Schedule::new(Duration::from_millis(100)), encoder, Arc::clone(buffer))
    }

    #[tokio::test]
    async fn a_collector_that_fails_or_panics_is_read_again() {
        let buffer = Arc::new(SharedBuffer::new(1024 * 1024));
        let shutdown = CancellationToken::new();
        let kind = CollectorKind { name: "load", open: || Box::new(Troubled) };
        let task = tokio::spawn(sampler(kind, &buffer).run(shutdown.clone()));
        let all = async {
            while buffer.lock().len() < 8 {
                buffer.filled().await;
            }
        };
        timeout(PATIENCE, all).await.expect("samples go on");
        shutdown.cancel();
        task.await.unwrap();
        // The first reading only gives rates their start; a panic and a failure leave no batch and take no number.
        assert!(READINGS.load(Ordering::SeqCst) >= 8 + 3);
        let name = Name::parse("load").unwrap();
        assert!((1..=8).all(|seq| buffer.lock().remove(&name, seq)));
    }
}
