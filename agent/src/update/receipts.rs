//! What the broker has acknowledged of this run.

use std::sync::Arc;

use tokio::sync::watch;

/// Counts what the broker acknowledges. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Receipts(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    heartbeats: watch::Sender<u64>,
    samples: watch::Sender<u64>,
}

impl Receipts {
    /// The host's record was written.
    pub fn heartbeat(&self) {
        self.0.heartbeats.send_modify(|count| *count += 1);
    }

    /// The stream has stored a batch of samples.
    pub fn samples(&self) {
        self.0.samples.send_modify(|count| *count += 1);
    }

    /// Completes once the host's record is written anew.
    pub async fn next_heartbeat(&self) {
        // The sender lives as long as this value.
        let _ = self.0.heartbeats.subscribe().changed().await;
    }

    /// Completes once the host's record has been written, and where `samples` are due, once some of these have been stored too.
    pub async fn reported(&self, samples: bool) {
        let _ = self.0.heartbeats.subscribe().wait_for(|count| *count > 0).await;
        if samples {
            let _ = self.0.samples.subscribe().wait_for(|count| *count > 0).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_report_is_a_heartbeat_and_the_samples_that_are_due() {
        let receipts = Receipts::default();
        let reported = |samples: bool| receipts.reported(samples).now_or_never().is_some();
        assert!(!reported(false));
        receipts.clone().heartbeat();
        assert!(reported(false) && !reported(true));
        receipts.samples();
        assert!(reported(true));
    }

    #[test]
    fn the_next_heartbeat_is_not_one_before() {
        let receipts = Receipts::default();
        receipts.heartbeat();
        let mut next = std::pin::pin!(receipts.next_heartbeat());
        assert!(next.as_mut().now_or_never().is_none());
        receipts.heartbeat();
        assert!(next.as_mut().now_or_never().is_some());
    }
}
