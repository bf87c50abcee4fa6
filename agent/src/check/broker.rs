//! Whether samples would arrive.

use std::{future::Future, time::Duration};

use plimsoll_nats::{Client, ConnectError, NatsConfig, dead::chain, streams};
use serde::Serialize;
use tokio::time::timeout;

/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the broker fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokerState {
    /// It takes samples.
    Accepts,
    /// It lets the agent in, and there is no stream of samples yet.
    WithoutStream,
    /// It cannot be reached, or does not let the agent in.
    Away,
    /// The address is none, or a secret cannot be read: the agent would end.
    Unusable,
}

/// What was found of the broker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BrokerReport {
    /// Its addresses, without users and passwords.
    pub url: String,
    /// How it fares.
    pub state: BrokerState,
    /// Why it takes no samples.
    pub reason: Option<String>,
}

/// Connects once and looks for the stream of samples, on a runtime of its own.
pub(super) fn ask(config: &NatsConfig) -> BrokerReport {
    let (state, reason) = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(state(config)),
        Err(error) => (BrokerState::Away, Some(chain(&error))),
    };
    BrokerReport { url: config.shown_url(), state, reason }
}

async fn state(config: &NatsConfig) -> (BrokerState, Option<String>) {
    let client = match in_time(Client::connect_once(config, "plimsoll-agent check")).await {
        Some(Ok(client)) => client,
        Some(Err(error @ ConnectError::Away { .. })) => return (BrokerState::Away, Some(chain(&error))),
        Some(Err(error)) => return (BrokerState::Unusable, Some(chain(&error))),
        None => return (BrokerState::Away, Some(silence())),
    };
    match in_time(streams::metrics(&client)).await {
        Some(Ok(_)) => (BrokerState::Accepts, None),
        Some(Err(error)) => (BrokerState::WithoutStream, Some(chain(&error))),
        None => (BrokerState::Away, Some(silence())),
    }
}

fn silence() -> String {
    format!("no answer within {} s", PATIENCE.as_secs())
}

async fn in_time<T>(work: impl Future<Output = T>) -> Option<T> {
    timeout(PATIENCE, work).await.ok()
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::testing::TestServer;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_broker_accepts_only_once_it_has_the_stream() {
        let mut server = TestServer::start().await;
        let ask = async |config: NatsConfig| tokio::task::spawn_blocking(move || ask(&config)).await.unwrap();
        let report = ask(server.config()).await;
        assert_eq!(report.state, BrokerState::WithoutStream, "{report:?}");
        server.client().await;
        assert_eq!(
            ask(server.config()).await,
            BrokerReport { url: server.url(), state: BrokerState::Accepts, reason: None }
        );
        server.kill();
        let report = ask(server.config()).await;
        assert!(report.state == BrokerState::Away && report.reason.is_some(), "{report:?}");
    }

    #[test]
    fn a_password_is_never_shown() {
        let url = "nats://u:hunter2@127.0.0.1:1".to_owned();
        let report = ask(&NatsConfig { url, ..NatsConfig::default() });
        assert_eq!((&*report.url, report.state), ("nats://127.0.0.1:1", BrokerState::Away));
        let report = ask(&NatsConfig { url: "http://u:hunter2@a".to_owned(), ..NatsConfig::default() });
        assert_eq!(report.state, BrokerState::Unusable);
        assert!(!format!("{report:?}").contains("hunter2"), "{report:?}");
    }
}
