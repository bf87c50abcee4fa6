//! A collector that may wait, on a thread of its own.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Alive,
    source::{self, Source},
};
use crate::outlet::Outlet;

/// How long one reading may take before it is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread of one collector, told its ticks. One that comes while the collector is still reading is left out, so that there
/// is one thread however long it hangs.
#[derive(Debug)]
pub struct SlowThread {
    name: &'static str,
    ticks: SyncSender<i64>,
    /// Since when it has been found reading; none when it last took its tick.
    busy_since: Option<Instant>,
    told: bool,
}

impl SlowThread {
    /// Starts the thread, which reads once at once. It ends with this value, when it does not hang. Fails when there is no thread.
    pub fn start(mut source: Source, outlet: Arc<Outlet>, alive: Alive) -> io::Result<Self> {
        let name = source.kind().name;
        // Without room: a tick is taken by a thread that waits for one, or by none.
        let (ticks, due) = sync_channel(0);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            work(&mut source, &outlet, &due);
            drop(alive);
        })?;
        Ok(Self { name, ticks, busy_since: None, told: false })
    }

    /// Tells the thread to read for a tick, in Unix ms.
    pub fn take(&mut self, tick_ms: i64) {
        match self.ticks.try_send(tick_ms) {
            Ok(()) => self.answers(),
            Err(TrySendError::Full(_)) => self.hangs(),
            Err(TrySendError::Disconnected(_)) => self.is_gone(),
        }
    }

    fn answers(&mut self) {
        self.busy_since = None;
        if std::mem::take(&mut self.told) {
            tracing::info!(collector = self.name, "collector answers again");
        }
    }

    fn hangs(&mut self) {
        let busy_since = *self.busy_since.get_or_insert_with(Instant::now);
        if !self.told && busy_since.elapsed() >= PATIENCE {
            self.told = true;
            tracing::warn!(collector = self.name, "collector does not answer, it is left out until it does");
        }
    }

    fn is_gone(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::error!(collector = self.name, "collector's thread has ended and its samples are missing");
        }
    }
}

fn work(source: &mut Source, outlet: &Outlet, due: &Receiver<i64>) {
    source.warm_up();
    while let Ok(tick_ms) = due.recv() {
        source.take(tick_ms);
        source::send(std::iter::once(&mut *source), outlet);
    }
}
