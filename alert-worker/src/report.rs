//! What the measurement `plimsoll` tells of the worker.

use std::time::Duration;

use plimsoll_nats::{
    Client, PartitionId,
    dead::chain,
    report::{Reported, Values, integer},
    streams,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How often the queue of notifications is looked at where nothing is published.
const LOOK: Duration = Duration::from_secs(10);
/// Longest wait for the broker.
const PATIENCE: Duration = Duration::from_secs(5);

/// A worker, and the queue that all workers share.
#[derive(Debug)]
pub(crate) struct Watched {
    pub client: Client,
    pub metrics: Metrics,
}

impl Watched {
    /// Looks at the queue until `stop`, for `/metrics` alone.
    pub async fn follow(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let look = async {
            loop {
                tick.tick().await;
                self.refresh().await;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(look).await;
    }
}

impl Reported for Watched {
    async fn refresh(&self) {
        if !self.client.is_connected() {
            return;
        }
        let look = tokio::time::timeout(PATIENCE, self.client.jetstream.get_stream(streams::NOTIFY));
        match look.await {
            Ok(Ok(stream)) => {
                let waiting = integer(stream.cached_info().state.messages);
                self.metrics.notifications_waiting.set(waiting);
            }
            Ok(Err(error)) => tracing::debug!(error = %chain(&error), "failed to look at the queue of notifications"),
            Err(_) => tracing::debug!("no answer about the queue of notifications"),
        }
    }

    fn values(&self) -> (Values, Vec<(PartitionId, Values)>) {
        self.metrics.values()
    }

    fn dropped(&self) {
        self.metrics.dropped_reports.inc();
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{
        report::{Reporter, differences},
        testing::TestServer,
    };

    use super::*;

    #[tokio::test]
    async fn a_batch_says_what_the_catalog_describes() {
        let server = TestServer::start().await;
        let client = server.client().await;
        let watched = Watched { client: client.clone(), metrics: Metrics::default() };
        let batch = Reporter::new(&client, crate::config::SERVICE, 9302, watched).batch();
        assert_eq!(differences(&batch, crate::config::SERVICE), Vec::<String>::new());
    }
}
