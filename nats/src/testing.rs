//! Real nats-server children for tests: one a test, on a free port, with a store of its own, killed on drop.

mod proxy;

use std::time::Duration;

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{
    Client, NatsConfig,
    server::{Server, ServerConfig},
    streams,
};

pub use proxy::{Proxy, Swallow};

/// A broker of a test's own.
pub struct TestServer {
    server: Option<Server>,
    dir: TempDir,
    port: Option<u16>,
}

impl TestServer {
    /// Starts a broker on a free port of loopback.
    ///
    /// # Panics
    /// When the broker does not start.
    pub async fn start() -> Self {
        let mut server = Self { server: None, dir: TempDir::new().expect("a temporary folder"), port: None };
        server.start_again().await;
        server
    }

    /// Starts the stopped or killed broker on the same port and store.
    ///
    /// # Panics
    /// When the broker does not start.
    pub async fn start_again(&mut self) {
        let config = ServerConfig {
            port: self.port,
            store_dir: self.dir.path().join("store"),
            run_dir: self.dir.path().join("run"),
            sync_always: false,
        };
        let server = Server::start(&config).await.expect("nats-server starts");
        self.port = server.url().rsplit(':').next().and_then(|port| port.parse().ok());
        self.server = Some(server);
    }

    /// Kills the broker without warning.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Kills the broker and wipes its store.
    ///
    /// # Panics
    /// When the store cannot be removed.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("store")).expect("the store can be removed");
    }

    /// The broker's address.
    ///
    /// # Panics
    /// When the broker was never started.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.expect("the broker has been started"))
    }

    /// A configuration that leads to this broker, small enough for a test's disk.
    #[must_use]
    pub fn config(&self) -> NatsConfig {
        NatsConfig { url: self.url(), metrics_max_bytes: Some(512 * 1024 * 1024), ..NatsConfig::default() }
    }

    /// A connection to this broker, with all streams and buckets declared.
    ///
    /// # Panics
    /// When the broker refuses either.
    pub async fn client(&self) -> Client {
        let client = Client::connect(&self.config(), "test", &CancellationToken::new()).await.expect("connects");
        streams::declare(&client, &self.config()).await.expect("declares");
        client
    }
}

/// Waits until `condition` yields a value, asking again every 20 ms.
///
/// # Panics
/// When `limit` passes first, naming `what` was waited for.
pub async fn eventually<T>(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
