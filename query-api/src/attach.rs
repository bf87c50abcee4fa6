//! Attaches the lake as soon as there is one, watches its positions, and says whether the service is ready.

use std::{sync::Arc, time::Duration};

use plimsoll_lake::{LakeError, LakeReader, Positions, Tail, query::Attachment};
use plimsoll_nats::{Client, PartitionId, dead::chain};
use plimsoll_service::ops::Readiness;
use tokio_util::sync::CancellationToken;

use crate::{feed::FeedState, metrics::Metrics};

/// Pause between two tries to attach the lake.
const ATTACH_RETRY: Duration = Duration::from_millis(500);
/// Pause between two looks at the lake's positions.
const WATCH: Duration = Duration::from_secs(1);

/// Keeps lake, tail and readiness together.
#[derive(Debug)]
pub struct LakeWatch {
    /// The broker's connection.
    pub client: Client,
    /// The reader to attach.
    pub reader: Arc<LakeReader>,
    /// What forgets the rows that the lake contains.
    pub tail: Arc<Tail>,
    /// What fills the tail.
    pub feed: Arc<FeedState>,
    /// Where the outcome is told.
    pub readiness: Readiness,
    /// Where the tail's size is told.
    pub metrics: Metrics,
}

impl LakeWatch {
    /// Tries once to attach the lake. What it yields is for the log only.
    pub async fn attach(&self) -> Result<(), LakeError> {
        let reader = Arc::clone(&self.reader);
        let outcome = tokio::task::spawn_blocking(move || reader.attach()).await;
        let outcome = outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        match &outcome {
            Ok(()) => self.readiness.clear("lake"),
            Err(error) => self.readiness.fail("lake", chain(error)),
        }
        outcome
    }

    /// Attaches and watches until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut last = None;
        let mut told = false;
        let mut caught_up = false;
        loop {
            let pause = if self.reader.attachment() == Attachment::Attached { WATCH } else { ATTACH_RETRY };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let outcome = match self.attach().await {
                Ok(()) => self.follow(&mut last).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) if told => {
                    told = false;
                    tracing::info!("the lake is read again");
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(error = %chain(&error), "the lake cannot be read yet, trying again");
                }
                _ => {}
            }
            caught_up |= self.feed.is_current();
            self.tell(caught_up);
        }
    }

    /// Lets the tail forget what the lake contains.
    async fn follow(&self, last: &mut Option<Positions>) -> Result<(), LakeError> {
        let positions = match self.reader.positions().await {
            Ok(positions) => positions,
            Err(error) => {
                self.readiness.fail("lake", chain(&error));
                return Err(error);
            }
        };
        if last.as_ref() == Some(&positions) {
            return Ok(());
        }
        if last.as_ref().is_some_and(|last| gone_back(last, &positions)) {
            tracing::warn!("the lake's positions have gone back, reading the stream anew from there");
            self.feed.rewind();
        }
        self.tail.forget(&positions);
        *last = Some(positions);
        Ok(())
    }

    fn tell(&self, caught_up: bool) {
        let (bytes, dropped) = self.tail.usage();
        self.metrics.tail_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.metrics.tail_dropped.set(i64::try_from(dropped).unwrap_or(i64::MAX));
        if self.client.is_connected() {
            self.readiness.clear("broker");
        } else {
            self.readiness.fail("broker", "not connected");
        }
        if caught_up {
            self.readiness.clear("tail");
        }
    }
}

/// Whether a partition's position is lower than before in the same life of the stream, as after a restored backup.
fn gone_back(last: &Positions, now: &Positions) -> bool {
    PartitionId::all().any(|partition| match (last.stored(partition), now.stored(partition)) {
        (Some(last), Some(now)) => last.incarnation == now.incarnation && now.sequence < last.sequence,
        _ => false,
    })
}
