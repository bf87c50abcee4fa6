//! What happened to this host, from whoever notices it to whoever publishes it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use plimsoll_nats::{event::EventKind, now_ms};
use serde_json::Value;
use tokio::sync::Notify;

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
}

impl EventSink {
    /// Hands over an event. Whoever calls makes sure that it is told once.
    pub fn emit(&self, event: Event) {
        tracing::info!(event.kind = %event.kind, event.subject = event.subject, "{}", event.message);
        let mut events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == CAPACITY {
            events.pop_front();
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
}
