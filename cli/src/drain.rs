//! Waits until ingest has been given everything that the agent has sent.

use std::time::Duration;

use plimsoll_ingest::GROUP;
use plimsoll_nats::{
    Client, PartitionId, async_nats::jetstream::context::ConsumerInfoErrorKind, reader::consumer_name, streams,
};

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
        match stream.consumer_info(consumer_name(GROUP, partition)).await {
            Ok(consumer) if consumer.num_pending == 0 => {}
            // A partition that was never read has no consumer.
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::testing::TestServer;

    use super::*;

    #[tokio::test]
    async fn only_a_missing_consumer_counts_as_never_read() {
        let server = TestServer::start().await;
        let client = server.client().await;
        assert!(is_delivered(&client).await, "nothing was ever read");
        client.jetstream.delete_stream(streams::METRICS).await.expect("is deleted");
        assert!(!is_delivered(&client).await, "another error tells nothing about the samples");
    }
}
