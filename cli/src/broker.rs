//! The broker as a supervised child: started again when it ends by itself.

use std::time::Duration;

use plimsoll_nats::{
    dead::chain,
    server::{Server, ServerConfig, ServerError},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::data_dir::DataDir;

/// Pause before a broker that ended is started again.
const RESTART: Duration = Duration::from_secs(1);

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    url: String,
    stop: CancellationToken,
    supervisor: JoinHandle<()>,
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Somebody listens on the port.
    #[error("port {port} for the broker is taken: choose another with --nats-port, or use that broker with --nats-url")]
    PortTaken {
        /// The port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// The broker does not start.
    #[error("failed to start the broker")]
    Start(#[source] ServerError),
}

impl Broker {
    /// Starts the broker on loopback and supervises it. Port 0 means any free one.
    pub async fn start(data: &DataDir, port: u16) -> Result<Self, BrokerError> {
        let mut config = ServerConfig {
            port: (port != 0).then_some(port),
            store_dir: data.broker_store(),
            run_dir: data.broker_run(),
            sync_always: true,
        };
        let server = Server::start(&config).await.map_err(|error| match error {
            ServerError::PortTaken { port, source } => BrokerError::PortTaken { port, source },
            error => BrokerError::Start(error),
        })?;
        let url = server.url().to_owned();
        // A broker that is started again must be where its clients look for it.
        config.port = url.rsplit(':').next().and_then(|port| port.parse().ok());
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervise(server, config, stop.clone()));
        Ok(Self { url, stop, supervisor })
    }

    /// The address that clients connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends the broker in order.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.supervisor.await;
    }
}

async fn supervise(first: Server, config: ServerConfig, stop: CancellationToken) {
    let mut running = Some(first);
    loop {
        match running.take() {
            Some(mut server) => {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return server.stop().await,
                    () = server.ended() => tracing::error!("nats-server ended by itself and is started again"),
                }
            }
            None => match Server::start(&config).await {
                Ok(server) => {
                    running = Some(server);
                    continue;
                }
                Err(error) => tracing::error!(error = %chain(&error), "nats-server can't be started, trying again"),
            },
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESTART) => {}
        }
    }
}
