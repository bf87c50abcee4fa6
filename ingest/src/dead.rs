//! Puts messages aside on `DEAD`, with the reason.

use std::error::Error;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use plimsoll_nats::{
    Client,
    async_nats::{HeaderMap, jetstream::context::PublishError},
    dead,
};

use crate::{GROUP, decoder::Original};

/// Header with the length of the payload, where only its start could be kept.
const TRUNCATED_HEADER: &str = "Plimsoll-Truncated";
/// Room for the headers within the broker's largest message.
const HEADER_ROOM: usize = 16 * 1024;
/// Publishes under way at a time.
const IN_FLIGHT: usize = 64;

/// Stores the messages on `DEAD`; returns when the broker has acknowledged each. Storing one again changes nothing within the
/// duplicate window.
pub async fn put_aside<R: Error + 'static>(
    client: &Client,
    messages: impl IntoIterator<Item = (&Original, &R)>,
) -> Result<(), PublishError> {
    let limit = client.nats.server_info().max_payload.saturating_sub(HEADER_ROOM);
    let dead: Vec<_> = messages.into_iter().map(|(original, reason)| dead_message(original, reason, limit)).collect();
    stream::iter(dead)
        .map(|(headers, payload)| store(client.clone(), headers, payload))
        .buffer_unordered(IN_FLIGHT)
        .try_collect()
        .await
}

fn dead_message<R: Error + 'static>(original: &Original, reason: &R, limit: usize) -> (HeaderMap, Bytes) {
    let (incarnation, sequence, subject) = (original.incarnation, original.sequence, &original.subject);
    let mut headers = dead::headers(GROUP, incarnation, sequence, subject, original.headers.as_ref(), reason);
    let mut payload = original.payload.clone();
    if payload.len() > limit {
        headers.insert(TRUNCATED_HEADER, payload.len().to_string().as_str());
        payload.truncate(limit);
    }
    (headers, payload)
}

async fn store(client: Client, headers: HeaderMap, payload: Bytes) -> Result<(), PublishError> {
    client.jetstream.publish_with_headers(dead::subject(GROUP), headers, payload).await?.await?;
    Ok(())
}
