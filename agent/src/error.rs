//! Why the agent cannot run.

use plimsoll_nats::ConnectError;

use crate::state::StateError;

/// Why the agent cannot run, however long one waits.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration is not valid.
    #[error("configuration is wrong: {}", problems.join("; "))]
    Config {
        /// Every problem found.
        problems: Vec<String>,
    },
    /// The address of the broker or its secret is of no use.
    #[error("failed to connect to the broker")]
    Connect(#[from] ConnectError),
    /// The system gives no thread.
    #[error("failed to start a thread that samples")]
    Thread(#[source] std::io::Error),
    /// Another agent is there.
    #[error(transparent)]
    State(#[from] StateError),
    /// The runtime ends.
    #[error("the agent was stopped while it started")]
    Stopped,
}
