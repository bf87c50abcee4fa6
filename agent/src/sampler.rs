//! Takes the samples of one collector, tick by tick.

use std::sync::Arc;

use plimsoll_nats::{Name, dead::chain, now_ms};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    collectors::{CollectError, Collector, CollectorKind},
    context::Context,
    outlet::Outlet,
    rows::{Columns, Tables},
    schedule::{Decision, Schedule},
};

/// One collector with its schedule, on a task of its own: a slow one delays no other.
pub struct Sampler {
    kind: CollectorKind,
    schedule: Schedule,
    context: Context,
    outlet: Arc<Outlet>,
    /// None after the collector has panicked, until it is opened anew.
    state: Option<(Box<dyn Collector>, Tables)>,
    failing: bool,
}

impl Sampler {
    /// Samples a collector on a schedule into the outlet.
    #[must_use]
    pub fn new(kind: CollectorKind, schedule: Schedule, context: Context, outlet: Arc<Outlet>) -> Self {
        Self { kind, schedule, context, outlet, state: None, failing: false }
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
                    for (measurement, rows, columns) in self.collect().await {
                        self.outlet.push(&measurement, tick_ms, rows, columns);
                    }
                }
            }
        }
    }

    /// Reads once, away from the runtime's threads. Returns each measurement with how many rows there are, and these; nothing
    /// when reading failed.
    async fn collect(&mut self) -> Vec<(Name, usize, Columns)> {
        let (kind, context) = (self.kind, self.context.clone());
        let state = self.state.take();
        let reading = tokio::task::spawn_blocking(move || {
            let (mut collector, mut tables) = state.unwrap_or_else(|| (kind.open(&context), kind.tables()));
            let result = collector.collect(&mut tables);
            (collector, tables, result)
        });
        match reading.await {
            Ok((collector, mut tables, result)) => {
                let taken = tables.iter_mut().map(|rows| (rows.measurement(), rows.len(), rows.take())).collect();
                self.state = Some((collector, tables));
                if self.report(result) { taken } else { Vec::new() }
            }
            Err(error) => {
                tracing::error!(collector = kind.name, %error, "collector broke off and is opened anew");
                Vec::new()
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

    use plimsoll_nats::HostId;
    use tokio::time::timeout;
    use ulid::Ulid;

    use super::*;
    use crate::{buffer::SharedBuffer, collectors::Pace, encoder::PayloadLimit};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Panics at the third reading, fails at the sixth, and does well else.
    struct Troubled;

    static READINGS: AtomicU32 = AtomicU32::new(0);

    impl Collector for Troubled {
        fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
            let rows = tables.only();
            let reading = READINGS.fetch_add(1, Ordering::SeqCst) + 1;
            assert_ne!(reading, 3, "the collector panics");
            let value = || crate::rows::Value::from(1.0);
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
        let host = HostId::parse("h").unwrap();
        let outlet = Outlet::new(host, Ulid::generate(), PayloadLimit::default(), Arc::clone(buffer));
        Sampler::new(kind, Schedule::new(Duration::from_millis(100)), Context::default(), Arc::new(outlet))
    }

    #[tokio::test]
    async fn a_collector_that_fails_or_panics_is_read_again() {
        let buffer = Arc::new(SharedBuffer::new(1024 * 1024));
        let shutdown = CancellationToken::new();
        let kind = CollectorKind {
            name: "load",
            measurements: &["load"],
            pace: Pace::Hot,
            interval: None,
            open: |_| Box::new(Troubled),
        };
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
