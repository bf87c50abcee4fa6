//! Keeps this host's record in the bucket `HOSTS` fresh.

use std::time::Duration;

use plimsoll_nats::{
    Client, HostId,
    async_nats::jetstream::kv,
    dead::chain,
    host::{HostRecord, Inventory},
    now_ms, streams,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{context::HostPaths, inventory, update::Receipts};

/// How often the record is written.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long to wait after an attempt that failed, as when the bucket is yet to be declared.
const RETRY: Duration = Duration::from_secs(1);

/// After how many failures in a row it is told: the first come before the bucket is declared.
const TOLD_AFTER: u32 = 5;

/// Writes this host's record.
#[derive(Debug)]
pub struct Heartbeat {
    client: Client,
    host: HostId,
    inventory: Inventory,
    paths: HostPaths,
    bucket: Option<kv::Store>,
    failures: u32,
    receipts: Receipts,
}

impl Heartbeat {
    /// Speaks of `host`, seen at `paths`.
    #[must_use]
    pub fn new(client: Client, host: HostId, paths: HostPaths) -> Self {
        let inventory = inventory::read(&paths);
        Self { client, host, inventory, paths, bucket: None, failures: 0, receipts: Receipts::default() }
    }

    /// The same, telling `receipts` of each record written.
    #[must_use]
    pub fn telling(self, receipts: Receipts) -> Self {
        Self { receipts, ..self }
    }

    /// Writes the record at once and every [`HEARTBEAT`] until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = self.beat() => {}
        }
    }

    async fn beat(&mut self) {
        loop {
            // While the broker is away requests would pile up in the client.
            let written = self.client.is_connected() && self.write().await;
            sleep(if written { HEARTBEAT } else { RETRY }).await;
        }
    }

    async fn write(&mut self) -> bool {
        let Err(error) = self.try_write().await else {
            self.failures = 0;
            self.receipts.heartbeat();
            return true;
        };
        self.bucket = None;
        self.failures += 1;
        if self.failures == TOLD_AFTER {
            tracing::warn!(error = %chain(&*error), "host record cannot be written, the host will look offline");
        }
        false
    }

    async fn try_write(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let bucket = match &self.bucket {
            Some(bucket) => bucket,
            None => self.bucket.insert(streams::bucket(&self.client, streams::HOSTS).await?),
        };
        // The one part of the inventory that changes while the host runs.
        self.inventory.addresses = inventory::addresses(&self.paths);
        let record = HostRecord {
            host: self.host.clone(),
            last_seen_ms: now_ms(),
            heartbeat_ms: i64::try_from(HEARTBEAT.as_millis()).unwrap_or(i64::MAX),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            inventory: self.inventory.clone(),
        };
        bucket.put(&*self.host, serde_json::to_vec(&record)?.into()).await?;
        Ok(())
    }
}
