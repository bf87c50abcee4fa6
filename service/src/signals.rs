//! Signals that end a service.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels the returned token at the first SIGINT or SIGTERM. A second SIGINT ends the process at once.
///
/// Fails when the runtime cannot take signals.
pub fn shutdown_token() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping, a second Ctrl-C stops without draining");
        cancelled.cancel();
        interrupt.recv().await;
        #[expect(clippy::exit, reason = "the user asked a second time not to wait")]
        std::process::exit(130);
    });
    Ok(token)
}
