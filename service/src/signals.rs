//! Signals that end a service.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What the signals ask for.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Cancelled at the first SIGINT or SIGTERM: drain and end.
    pub shutdown: CancellationToken,
    /// Cancelled at a SIGINT after that: end without draining.
    pub at_once: CancellationToken,
}

/// Takes the signals from now on. Fails when the runtime cannot take them.
pub fn listen() -> std::io::Result<Signals> {
    let signals = Signals::default();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let Signals { shutdown, at_once } = signals.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping, a second Ctrl-C stops without draining");
        shutdown.cancel();
        interrupt.recv().await;
        at_once.cancel();
    });
    Ok(signals)
}
