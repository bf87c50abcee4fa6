//! Live samples: one subscription on the public subjects, fanned out to every live connection.

pub mod connection;
pub mod filter;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::extract::ws::Utf8Bytes;
use futures_util::StreamExt;
use plimsoll_nats::{Batch, Client, HostId, Name, subject};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

/// Batches that a connection may be behind before it is told that it lags.
pub const CAPACITY: usize = 1024;
/// Most live connections.
pub const MAX_SUBSCRIBERS: usize = 256;
/// Pause before the subscription is made anew.
const RETRY: Duration = Duration::from_millis(250);

/// A batch that has just arrived.
#[derive(Debug)]
pub struct LiveBatch {
    batch: Batch,
    text: OnceLock<Utf8Bytes>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    host: &'a HostId,
    measurement: &'a Name,
    rows: Vec<Value>,
}

impl LiveBatch {
    fn new(batch: Batch) -> Self {
        Self { batch, text: OnceLock::new() }
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &HostId {
        &self.batch.host
    }

    /// The measurement.
    #[must_use]
    pub fn measurement(&self) -> &Name {
        &self.batch.measurement
    }

    /// The batch as its JSON message, which is made once for all connections.
    #[must_use]
    pub fn text(&self) -> Utf8Bytes {
        let make = || {
            let batch = &self.batch;
            let document = Document {
                r#type: "samples",
                host: &batch.host,
                measurement: &batch.measurement,
                rows: (0..batch.rows()).map(|row| row_json(batch, row)).collect(),
            };
            serde_json::to_string(&document).expect("names, texts and JSON values have a JSON form").into()
        };
        self.text.get_or_init(make).clone()
    }
}

fn row_json(batch: &Batch, row: usize) -> Value {
    let tags: Map<String, Value> =
        batch.tags.iter().map(|(name, values)| (name.to_string(), values[row].clone().into())).collect();
    let fields: Map<String, Value> =
        batch.fields.iter().map(|(name, column)| (name.to_string(), column.json(row))).collect();
    json!({ "ts": batch.times[row], "tags": tags, "fields": fields })
}

/// Hands new samples to all live connections.
#[derive(Debug)]
pub struct LiveHub {
    sender: broadcast::Sender<Arc<LiveBatch>>,
    places: Arc<Semaphore>,
}

/// A live connection's place among [`MAX_SUBSCRIBERS`], and what arrives while it is held.
#[derive(Debug)]
pub struct Subscription {
    /// Everything that arrives.
    pub batches: broadcast::Receiver<Arc<LiveBatch>>,
    _place: OwnedSemaphorePermit,
}

impl Default for LiveHub {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(CAPACITY), places: Arc::new(Semaphore::new(MAX_SUBSCRIBERS)) }
    }
}

impl LiveHub {
    /// Everything that arrives from now on; none when there are as many subscribers as there may be.
    #[must_use]
    pub fn subscribe(&self) -> Option<Subscription> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Subscription { batches: self.sender.subscribe(), _place: place })
    }

    /// Receives until `shutdown`; the broker's client restores the subscription when it reconnects.
    pub async fn run(self: Arc<Self>, client: Client, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.receive(&client) => {}
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn receive(&self, client: &Client) {
        let mut messages = match client.nats.subscribe(subject::METRICS_WILDCARD).await {
            Ok(messages) => messages,
            Err(error) => {
                tracing::warn!(error = %error, "failed to subscribe to live samples, trying again");
                return;
            }
        };
        while let Some(message) = messages.next().await {
            if self.sender.receiver_count() == 0 {
                continue;
            }
            if let Some(batch) = decode(&message) {
                // Fails when the last connection has just closed.
                let _ = self.sender.send(Arc::new(LiveBatch::new(batch)));
            }
        }
    }
}

/// The batch of a message on a public subject; none when it is not a valid one. The tail counts those.
fn decode(message: &async_nats::Message) -> Option<Batch> {
    let (host, measurement) = message.subject.strip_prefix("plimsoll.metrics.")?.split_once('.')?;
    let (host, measurement) = (HostId::parse(host).ok()?, Name::parse(measurement).ok()?);
    Batch::decode(&host, &measurement, message.headers.as_ref(), &message.payload).ok()
}
