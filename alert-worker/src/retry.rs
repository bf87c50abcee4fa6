//! Pauses that grow while the broker is away.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The next pause: 100 ms at first, twice as long each time, at most 5 s.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(5);

    /// Pauses, or returns at once when `shutdown` comes.
    pub async fn pause(&mut self, shutdown: &CancellationToken) {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}
