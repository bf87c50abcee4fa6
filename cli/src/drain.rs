//! Waits until ingest has been given everything that the agent has sent.

use std::time::Duration;

use plimsoll_ingest::GROUP;
use plimsoll_nats::{Client, PartitionId, async_nats::jetstream::consumer::pull, reader::consumer_name, streams};

/// Longest wait; what is not committed then is read from the stream at the next start.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(20);

/// Waits until no partition's consumer has a message left to deliver, or patience ends.
pub async fn delivered(client: &Client) {
    if tokio::time::timeout(PATIENCE, all_delivered(client)).await.is_err() {
        tracing::warn!("the last samples stay in the stream until the next start");
    }
}

async fn all_delivered(client: &Client) {
    while !is_delivered(client).await {
        tokio::time::sleep(AGAIN).await;
    }
}

async fn is_delivered(client: &Client) -> bool {
    let Ok(stream) = client.jetstream.get_stream_no_info(streams::METRICS).await else { return false };
    for partition in PartitionId::all() {
        let name = consumer_name(GROUP, partition);
        // A partition that was never read has no consumer.
        if let Ok(consumer) = stream.get_consumer::<pull::Config>(&name).await
            && consumer.cached_info().num_pending > 0
        {
            return false;
        }
    }
    true
}
