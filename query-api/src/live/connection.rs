//! One live connection.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::{Subscription, filter::LiveFilter};
use crate::metrics::Metrics;

/// Time between two pings.
const PING: Duration = Duration::from_secs(20);
/// A peer that says nothing for so long, pongs included, is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How long one message may take to leave; a peer that takes no byte for so long is gone.
const SEND: Duration = Duration::from_secs(30);

/// Sends samples until either side ends.
pub struct LiveConnection {
    /// What arrives.
    pub subscription: Subscription,
    /// What the peer wants of it.
    pub filter: LiveFilter,
    /// Where lags are counted.
    pub metrics: Metrics,
    /// Cancelled when the service stops.
    pub shutdown: CancellationToken,
}

/// The connection is over.
struct Gone;

type Sender = SplitSink<WebSocket, Message>;

impl LiveConnection {
    /// Serves the connection until the peer leaves, falls silent, or the service stops.
    pub async fn run(mut self, socket: WebSocket) {
        self.metrics.live_subscribers.inc();
        let (mut sender, mut receiver) = socket.split();
        // Reading must never wait for writing: otherwise a slow peer's pongs and close would not be seen.
        let reading = async { while let Ok(Some(Ok(_))) = tokio::time::timeout(SILENCE, receiver.next()).await {} };
        let shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = reading => {}
            Gone = self.write(&mut sender) => {}
        }
        if shutdown.is_cancelled() {
            let frame = CloseFrame { code: close_code::AWAY, reason: "the service stops".into() };
            let _ = tokio::time::timeout(Duration::from_secs(1), sender.send(Message::Close(Some(frame)))).await;
        }
        self.metrics.live_subscribers.dec();
    }

    async fn write(&mut self, sender: &mut Sender) -> Gone {
        let mut pings = tokio::time::interval(PING);
        loop {
            let message = tokio::select! {
                biased;
                _ = pings.tick() => Message::Ping(bytes::Bytes::new()),
                batch = self.subscription.batches.recv() => match batch {
                    Ok(batch) if self.filter.passes(&batch) => Message::Text(batch.text()),
                    Ok(_) => continue,
                    Err(RecvError::Lagged(missed)) => self.skip(missed),
                    Err(RecvError::Closed) => return Gone,
                },
            };
            match tokio::time::timeout(SEND, sender.send(message)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Gone,
            }
        }
    }

    /// Goes on with what arrives from now on: a peer that is behind wants the newest, not the backlog.
    fn skip(&mut self, missed: u64) -> Message {
        let batches = &mut self.subscription.batches;
        let skipped = missed + batches.len() as u64;
        *batches = batches.resubscribe();
        self.metrics.live_lagged.inc_by(skipped);
        self.metrics.slow_subscribers.inc();
        Message::Text(json!({ "type": "lagged", "skipped": skipped }).to_string().into())
    }
}
