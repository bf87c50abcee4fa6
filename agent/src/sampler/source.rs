//! A collector as it is read again and again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use plimsoll_nats::dead::chain;

use crate::{
    collectors::{CollectError, Collector, CollectorKind},
    context::Context,
    outlet::Outlet,
    rows::{Rows, Tables},
};

/// Reads one collector. A panic costs that reading alone, and a failure is told once when it begins and once when it ends.
pub struct Source {
    kind: CollectorKind,
    context: Context,
    /// None until it is opened: before the first reading, and after a panic.
    state: Option<(Box<dyn Collector>, Tables)>,
    /// The tick of the rows that wait to be sent.
    taken: Option<i64>,
    failing: bool,
}

impl Source {
    /// A collector that has not been opened.
    #[must_use]
    pub fn new(kind: CollectorKind, context: Context) -> Self {
        Self { kind, context, state: None, taken: None, failing: false }
    }

    /// The collector.
    #[must_use]
    pub fn kind(&self) -> &CollectorKind {
        &self.kind
    }

    /// Reads for nothing but rates, which need a reading to start from, so that the first tick already has rows.
    pub fn warm_up(&mut self) {
        self.read();
    }

    /// Reads the rows of a tick, in Unix ms. After a failure there are none.
    pub fn take(&mut self, tick_ms: i64) {
        self.taken = self.read().then_some(tick_ms);
    }

    /// The rows that were taken since the last call, with their tick.
    pub fn taken(&mut self) -> impl Iterator<Item = (i64, &Rows)> {
        let tables = self.state.as_ref().map(|(_, tables)| tables);
        let taken = self.taken.take().zip(tables);
        taken.into_iter().flat_map(|(tick_ms, tables)| tables.iter().map(move |rows| (tick_ms, rows)))
    }

    fn read(&mut self) -> bool {
        let (kind, context, state) = (&self.kind, &self.context, &mut self.state);
        // What a panic leaves behind is thrown away with the collector.
        let reading = catch_unwind(AssertUnwindSafe(|| {
            let (collector, tables) = state.get_or_insert_with(|| (kind.open(context), kind.tables()));
            tables.clear();
            collector.collect(tables)
        }));
        match reading {
            Ok(result) => self.report(result),
            Err(_) => {
                self.state = None;
                tracing::error!(collector = self.kind.name, "collector broke off and is opened anew");
                false
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

/// Sends what the sources have taken. Sampling goes on when that breaks off, which only a fault of this program does.
pub fn send<'a>(sources: impl Iterator<Item = &'a mut Source>, outlet: &Outlet) {
    let samples = sources.flat_map(Source::taken);
    if catch_unwind(AssertUnwindSafe(|| outlet.push_rows(samples))).is_err() {
        tracing::error!("samples of a tick could not be sent and are lost");
    }
}
