//! Waits until ingest has been given everything that the agent has sent.

use std::time::Duration;

use plimsoll_ingest::GROUP;
use plimsoll_nats::{
    Client, PartitionId,
    async_nats::jetstream::{
        context::ConsumerInfoErrorKind,
        stream::{RawMessageErrorKind, Stream},
    },
    reader::consumer_name,
    streams, subject,
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
            // A partition that was never read has no consumer: ingest may be about to start with it.
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound && is_empty(&stream, partition).await => {}
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

async fn is_empty<T>(stream: &Stream<T>, partition: PartitionId) -> bool {
    let filter = subject::partition_filter(partition);
    let first = stream.raw_message_builder().sequence(1).next_by_subject(&filter).send().await;
    first.is_err_and(|error| error.kind() == RawMessageErrorKind::NoMessageFound)
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{HostId, Name, testing::TestServer};

    use super::*;

    #[tokio::test]
    async fn only_an_empty_partition_may_lack_a_consumer() {
        let server = TestServer::start().await;
        let client = server.client().await;
        assert!(is_delivered(&client).await, "nothing was ever sent");
        let host = HostId::parse("h").expect("valid");
        let metrics = subject::metrics(&host, &Name::parse("cpu").expect("valid"));
        client.jetstream.publish(metrics, "a batch".into()).await.expect("is sent").await.expect("is stored");
        assert!(!is_delivered(&client).await, "what was sent was never read");
        client.jetstream.delete_stream(streams::METRICS).await.expect("is deleted");
        assert!(!is_delivered(&client).await, "another error tells nothing about the samples");
    }
}
