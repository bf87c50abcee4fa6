//! Reads the stream `EVENTS`.
//!
//! The stream keeps the order in which events were stored. One that waited on its host while the broker was away is stored late,
//! so that all that was stored since the interval's start is looked at, and the events' own times decide.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, pull},
};
use futures_util::StreamExt;
use plimsoll_nats::{
    Client, HostId,
    dead::chain,
    event::{EventKind, HostEvent},
    streams, subject,
};

/// How far a host's clock may be ahead of the broker's: its events are stored that much before their own time.
const MAX_AHEAD_MS: i64 = 600_000;
/// Messages asked for in one pull.
const PULL_MESSAGES: usize = 500;
/// Expiry of one pull.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// The broker says so often that it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the broker keeps the consumer of a reader that has vanished.
const INACTIVE: Duration = Duration::from_secs(30);

/// Which events are asked for.
#[derive(Debug, Clone)]
pub struct EventsQuery {
    /// Only those of this host.
    pub host: Option<HostId>,
    /// Only those of this kind.
    pub kind: Option<EventKind>,
    /// Unix ms from which on they happened.
    pub from_ms: i64,
    /// Unix ms before which they happened; none is up to the newest.
    pub to_ms: Option<i64>,
    /// Most of them; the newest are given.
    pub limit: usize,
}

/// The events of a query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FoundEvents {
    /// Newest first.
    pub events: Vec<HostEvent>,
    /// Whether older ones were left out.
    pub truncated: bool,
}

/// Why events could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The broker refused or did not answer.
    #[error("failed to read stream `{}`", streams::EVENTS)]
    Broker {
        /// Why.
        source: async_nats::Error,
    },
    /// A message was lost on its way, as when the connection breaks.
    #[error("a message of stream `{}` got lost on its way", streams::EVENTS)]
    Gap,
}

fn broker(source: impl Into<async_nats::Error>) -> EventsError {
    EventsError::Broker { source: source.into() }
}

/// Reads the newest events of a query. Messages that are no events are left out.
///
/// Fails when the broker is away, or goes away meanwhile.
pub async fn read(client: &Client, query: &EventsQuery) -> Result<FoundEvents, EventsError> {
    let stream = client.jetstream.get_stream_no_info(streams::EVENTS).await.map_err(broker)?;
    let consumer = stream.create_consumer(config(query)?).await.map_err(broker)?;
    let found = collect(&consumer, query).await;
    // It vanishes by itself too, only later.
    let _ = stream.delete_consumer(&consumer.cached_info().name).await;
    found
}

fn config(query: &EventsQuery) -> Result<pull::Config, EventsError> {
    let start_ms = query.from_ms.saturating_sub(MAX_AHEAD_MS).max(0);
    let start_time = async_nats::datetime::from_nanos(i128::from(start_ms) * 1_000_000).map_err(broker)?;
    Ok(pull::Config {
        description: Some("events asked for over HTTP".to_owned()),
        deliver_policy: DeliverPolicy::ByStartTime { start_time },
        ack_policy: AckPolicy::None,
        filter_subject: subject::event_filter(query.host.as_ref(), query.kind),
        inactive_threshold: INACTIVE,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    })
}

/// Reads what the stream held when the consumer was made.
async fn collect(
    consumer: &jetstream::consumer::Consumer<pull::Config>,
    query: &EventsQuery,
) -> Result<FoundEvents, EventsError> {
    let mut newest = Newest::new(query.limit);
    let pending = consumer.cached_info().num_pending;
    if pending == 0 {
        return Ok(newest.into_found());
    }
    let stream = consumer.stream().max_messages_per_batch(PULL_MESSAGES).expires(PULL_EXPIRES).heartbeat(HEARTBEAT);
    let mut messages = stream.messages().await.map_err(broker)?;
    for delivered in 1..=pending {
        let message = messages.next().await.ok_or(EventsError::Gap)?.map_err(broker)?;
        let info = message.info().map_err(broker)?;
        if info.consumer_sequence != delivered {
            return Err(EventsError::Gap);
        }
        let (sequence, left) = (info.stream_sequence, info.pending);
        match serde_json::from_slice::<HostEvent>(&message.payload) {
            Ok(event) if query.asks_for(&event, &message.subject) => newest.push(sequence, event),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(stream.seq = sequence, error = %chain(&error), "a message is no event, leaving it out");
            }
        }
        // The oldest may have been removed since they were counted.
        if left == 0 {
            break;
        }
    }
    Ok(newest.into_found())
}

impl EventsQuery {
    /// Whether an event lies in the interval, and under the subject that it should.
    fn asks_for(&self, event: &HostEvent, under: &str) -> bool {
        event.time_ms >= self.from_ms
            && self.to_ms.is_none_or(|to| event.time_ms < to)
            && under == subject::event(&event.host, event.kind)
    }
}

/// The newest events by time, of one time by their place in the stream.
struct Newest {
    limit: usize,
    events: BTreeMap<(i64, u64), HostEvent>,
    truncated: bool,
}

impl Newest {
    fn new(limit: usize) -> Self {
        Self { limit, events: BTreeMap::new(), truncated: false }
    }

    fn push(&mut self, sequence: u64, event: HostEvent) {
        self.events.insert((event.time_ms, sequence), event);
        if self.events.len() > self.limit {
            self.events.pop_first();
            self.truncated = true;
        }
    }

    fn into_found(self) -> FoundEvents {
        FoundEvents { events: self.events.into_values().rev().collect(), truncated: self.truncated }
    }
}
