//! Puts messages aside on `DEAD`, with the reason.

use std::error::Error;

use bytes::Bytes;
use futures_util::future::try_join_all;
use plimsoll_nats::{
    Client,
    async_nats::{HeaderMap, jetstream::context::PublishError},
    dead,
};

use crate::{GROUP, originals::Original};

/// Header with the length of the payload, where only its start could be kept.
const TRUNCATED_HEADER: &str = "Plimsoll-Truncated";
/// Publishes under way at a time.
const IN_FLIGHT: usize = 64;

/// Stores the messages on `DEAD`; returns when the broker has acknowledged each. Storing one again changes nothing within the
/// duplicate window.
pub async fn put_aside<'a, R: Error + 'static>(
    client: &Client,
    mut messages: impl Iterator<Item = (Original<'a>, &'a R)> + Send,
) -> Result<(), PublishError> {
    let limit = client.nats.server_info().max_payload;
    loop {
        // Copied a few at a time: all of them may be as large as what is gathered.
        let few = messages.by_ref().take(IN_FLIGHT);
        let dead: Vec<_> = few.map(|(original, reason)| dead_message(original, reason, limit)).collect();
        if dead.is_empty() {
            return Ok(());
        }
        let stored = dead.into_iter().map(|(headers, payload)| store(client.clone(), headers, payload));
        try_join_all(stored).await?;
    }
}

/// The message as `DEAD` stores it: headers and payload together take `limit` bytes at most.
fn dead_message<R: Error + 'static>(original: Original<'_>, reason: &R, limit: usize) -> (HeaderMap, Bytes) {
    let Original { incarnation, sequence, subject, encoding, .. } = original;
    let mut headers = dead::headers(GROUP, incarnation, sequence, subject, encoding, reason);
    let mut payload = Bytes::copy_from_slice(original.payload);
    if wire_length(&headers) + payload.len() > limit {
        headers.insert(TRUNCATED_HEADER, payload.len().to_string().as_str());
        payload.truncate(limit.saturating_sub(wire_length(&headers)));
    }
    (headers, payload)
}

/// Bytes of the headers on the wire: a line with the version, one for each value, and an empty one.
fn wire_length(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| format!("{name}: {}\r\n", value.as_str()).len())
    });
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
}

async fn store(client: Client, headers: HeaderMap, payload: Bytes) -> Result<(), PublishError> {
    client.jetstream.publish_with_headers(dead::subject(GROUP), headers, payload).await?.await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{Incarnation, PartitionId, Sequence, subject::SubjectError};

    use super::*;

    #[test]
    fn headers_and_payload_together_fill_the_largest_message() {
        let original = Original {
            partition: PartitionId::new(0).expect("exists"),
            incarnation: Incarnation(1),
            sequence: Sequence(1),
            subject: &"s".repeat(10_000),
            encoding: None,
            payload: &[0; 20_000],
        };
        let (headers, payload) = dead_message(original, &SubjectError::Shape, 20_000);
        assert_eq!(wire_length(&headers) + payload.len(), 20_000);
        assert_eq!(headers.get(TRUNCATED_HEADER).map(ToString::to_string).as_deref(), Some("20000"));
        let (headers, payload) = dead_message(original, &SubjectError::Shape, 30_000);
        assert_eq!((headers.get(TRUNCATED_HEADER), payload.len()), (None, 20_000));
    }
}
