//! A bucket in memory, kept current by a watch.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_nats::jetstream::kv::Operation;
use futures_util::StreamExt;
use plimsoll_nats::{
    Client, NatsConfig,
    dead::chain,
    streams::{self, DeclareError},
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

/// Pause before a watch is begun anew.
const RETRY: Duration = Duration::from_millis(500);

/// The values of a bucket by key, as JSON documents of type `T`.
#[derive(Debug)]
pub struct Mirror<T> {
    bucket: &'static str,
    entries: RwLock<BTreeMap<String, T>>,
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Bucket(#[from] DeclareError),
    #[error("failed to watch the bucket")]
    Watch(#[source] async_nats::Error),
    #[error("the broker ended the watch")]
    Ended,
}

impl<T: DeserializeOwned + Clone> Mirror<T> {
    /// An empty mirror of a bucket.
    #[must_use]
    pub fn new(bucket: &'static str) -> Self {
        Self { bucket, entries: RwLock::default() }
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<T> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// All values, in the order of their keys.
    #[must_use]
    pub fn values(&self) -> Vec<T> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Follows the bucket until `shutdown`, through all breaks; what was known stays known meanwhile.
    pub async fn run(self: Arc<Self>, client: Client, config: NatsConfig, shutdown: CancellationToken) {
        let mut failures = 0_u32;
        loop {
            let outcome = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                outcome = self.follow(&client, &config) => outcome,
            };
            failures += 1;
            if let Err(error) = outcome
                && failures.is_power_of_two()
            {
                tracing::warn!(bucket = self.bucket, error = %chain(&error), failures, "watching a bucket broke off, trying again");
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// One run of a watch; ends by an error only.
    async fn follow(&self, client: &Client, config: &NatsConfig) -> Result<(), WatchError> {
        let watch_error = |error: async_nats::Error| WatchError::Watch(error);
        let store = match streams::bucket(client, self.bucket).await {
            Ok(store) => store,
            Err(_) => {
                // Its streams may have been wiped.
                streams::declare(client, config).await?;
                streams::bucket(client, self.bucket).await?
            }
        };
        let status = store.status().await.map_err(|error| watch_error(error.into()))?;
        let mut watch = store.watch_with_history(">").await.map_err(|error| watch_error(error.into()))?;
        // Replaces what was known once it is whole, so that no key vanishes for a moment, and deleted ones do.
        let mut fresh = Some(BTreeMap::new());
        if status.values() == 0 {
            self.replace(&mut fresh);
        }
        while let Some(entry) = watch.next().await {
            let entry = entry.map_err(|error| watch_error(error.into()))?;
            let value = (entry.operation == Operation::Put).then(|| self.parse(&entry.key, &entry.value)).flatten();
            match &mut fresh {
                Some(fresh) => set(fresh, entry.key, value),
                None => set(&mut self.entries.write().unwrap_or_else(PoisonError::into_inner), entry.key, value),
            }
            if entry.delta == 0 {
                self.replace(&mut fresh);
            }
        }
        Err(WatchError::Ended)
    }

    fn replace(&self, fresh: &mut Option<BTreeMap<String, T>>) {
        if let Some(fresh) = fresh.take() {
            *self.entries.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
    }

    fn parse(&self, key: &str, value: &[u8]) -> Option<T> {
        let parsed = serde_json::from_slice(value);
        if let Err(error) = &parsed {
            tracing::warn!(bucket = self.bucket, key, error = %error, "a value of a bucket cannot be read, leaving it out");
        }
        parsed.ok()
    }
}

fn set<T>(entries: &mut BTreeMap<String, T>, key: String, value: Option<T>) {
    match value {
        Some(value) => drop(entries.insert(key, value)),
        None => drop(entries.remove(&key)),
    }
}
