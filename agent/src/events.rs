//! What happened to this host, from whoever notices it to whoever publishes it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use plimsoll_nats::{
    HostId,
    event::{EventKind, HostEvent},
    now_ms,
};
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{
    buffer::SharedBuffer,
    message::{Message, Topic},
};

/// Most events that wait to be published; beyond it the oldest go.
const CAPACITY: usize = 1024;

/// Something that happened, not numbered yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Unix time in ms at which it was noticed.
    pub time_ms: i64,
    /// What kind of thing happened.
    pub kind: EventKind,
    /// What it happened to, such as a device or an interface; empty when it is the host itself.
    pub subject: String,
    /// One sentence for people.
    pub message: String,
    /// Further facts.
    pub attributes: BTreeMap<String, Value>,
}

impl Event {
    /// An event that is noticed now.
    #[must_use]
    pub fn new(kind: EventKind, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { time_ms: now_ms(), kind, subject: subject.into(), message: message.into(), attributes: BTreeMap::new() }
    }

    /// The same with a further fact.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.attributes.insert(name.to_owned(), value.into());
        self
    }
}

/// Takes events from collectors. Clones share one queue; it never blocks.
#[derive(Debug, Clone, Default)]
pub struct EventSink(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    events: Mutex<VecDeque<Event>>,
    filled: Notify,
    dropped: AtomicU64,
}

impl EventSink {
    /// Hands over an event. Whoever calls makes sure that it is told once.
    pub fn emit(&self, event: Event) {
        tracing::info!(event.kind = %event.kind, event.subject = event.subject, "{}", event.message);
        let mut events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == CAPACITY {
            events.pop_front();
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::error!("too many events wait, the oldest is lost");
        }
        events.push_back(event);
        drop(events);
        self.0.filled.notify_one();
    }

    /// Takes out what was handed over since the last call, oldest first.
    #[must_use]
    pub fn take(&self) -> Vec<Event> {
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Completes once events have come since the last call.
    pub async fn filled(&self) {
        self.0.filled.notified().await;
    }

    /// How many events were lost since the start because too many waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

/// Numbers events and hands them to the buffer of the stream `EVENTS`. One a run of the agent.
#[derive(Debug)]
pub struct EventOutlet {
    host: HostId,
    epoch: Ulid,
    last_seq: Mutex<u64>,
    buffer: Arc<SharedBuffer>,
}

impl EventOutlet {
    /// Numbers under `epoch`, the id of this run of the agent, and fills `buffer`.
    #[must_use]
    pub fn new(host: HostId, epoch: Ulid, buffer: Arc<SharedBuffer>) -> Self {
        Self { host, epoch, last_seq: Mutex::new(0), buffer }
    }

    /// Hands over what the sink has. Where the broker is away it is on disk when this returns.
    pub fn pump(&self, sink: &EventSink) {
        let mut last_seq = self.last_seq.lock().unwrap_or_else(PoisonError::into_inner);
        for event in sink.take() {
            *last_seq += 1;
            match self.encode(event, *last_seq) {
                Ok(message) => self.buffer.push(vec![message]),
                Err(error) => {
                    *last_seq -= 1;
                    tracing::error!(%error, "an event has no JSON form and is lost");
                }
            }
        }
    }

    /// Hands over what comes until `shutdown`.
    pub async fn run(&self, sink: &EventSink, shutdown: &CancellationToken) {
        while shutdown.run_until_cancelled(sink.filled()).await.is_some() {
            self.pump(sink);
        }
    }

    fn encode(&self, event: Event, seq: u64) -> Result<Message, serde_json::Error> {
        let Event { time_ms, kind, subject, message, attributes } = event;
        let (host, epoch) = (self.host.clone(), self.epoch);
        let event = HostEvent { host, time_ms, kind, subject, message, attributes, epoch, seq };
        let payload = serde_json::to_vec(&event)?.into();
        Ok(Message { host: event.host, topic: Topic::Event(kind), epoch, seq, compressed: false, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_in_order_and_the_oldest_go() {
        let sink = EventSink::default();
        for number in 0..CAPACITY + 3 {
            sink.emit(Event::new(EventKind::OomKill, number.to_string(), "killed").with("pid", number));
        }
        assert_eq!(sink.dropped(), 3);
        let buffer = Arc::new(SharedBuffer::new(1024 * 1024));
        let outlet = EventOutlet::new(HostId::parse("h").unwrap(), Ulid::generate(), Arc::clone(&buffer));
        outlet.pump(&sink);
        sink.emit(Event::new(EventKind::Reboot, "", "booted"));
        outlet.pump(&sink);
        let events: Vec<HostEvent> = std::iter::from_fn(|| buffer.lock().pop_oldest())
            .map(|entry| serde_json::from_slice(&entry.message.payload).unwrap())
            .collect();
        assert!(events.iter().map(|event| event.seq).eq(1..=CAPACITY as u64 + 1));
        assert_eq!((events[0].subject.as_str(), events[0].attributes["pid"].as_u64()), ("3", Some(3)));
        assert_eq!(events[CAPACITY].kind, EventKind::Reboot);
        assert!(events.iter().all(|event| event.epoch == outlet.epoch && event.time_ms > 0));
    }
}
