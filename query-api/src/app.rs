//! What all requests share.

use std::sync::Arc;

use plimsoll_lake::{LakeReader, Tail};
use plimsoll_nats::{Client, alert::AlertState, host::HostRecord};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{feed::FeedState, live::LiveHub, metrics::Metrics, mirror::Mirror};

/// The service's state as handlers see it.
#[derive(Debug, Clone)]
pub struct App {
    /// The broker.
    pub client: Client,
    /// Reads the lake.
    pub reader: Arc<LakeReader>,
    /// Rows that the lake does not contain yet.
    pub tail: Arc<Tail>,
    /// How far the tail is, and which hosts it has seen.
    pub feed: Arc<FeedState>,
    /// The bucket `HOSTS`.
    pub hosts: Arc<Mirror<HostRecord>>,
    /// The bucket `ALERT_STATE`.
    pub alerts: Arc<Mirror<AlertState>>,
    /// Samples as they arrive.
    pub live: Arc<LiveHub>,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// Cancelled when the service stops.
    pub shutdown: CancellationToken,
    /// Live connections, which outlive their requests.
    pub connections: TaskTracker,
}
