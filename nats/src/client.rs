//! The connection to the broker.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use async_nats::{ConnectOptions, jetstream};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// Most bytes of messages that the reader of a partition may ask for at a time.
const MAX_PULL_BYTES: usize = 64 * 1024 * 1024;

/// How to reach the broker; the `[nats]` section of every service.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsConfig {
    /// Addresses of the broker, separated by commas; default `nats://127.0.0.1:4222`.
    pub url: String,
    /// User name, where the broker asks for one.
    pub user: Option<String>,
    /// Password of the user.
    pub password: Option<SecretString>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// A NATS credentials file, where the broker uses JWT.
    pub credentials_file: Option<PathBuf>,
    /// Replicas of streams and buckets that this service creates; default 1, in a cluster 3. An existing stream keeps its own.
    pub replicas: usize,
    /// Size of `METRICS` in bytes past which the oldest samples go; default what the stream has, for a new one 10 GiB.
    pub metrics_max_bytes: Option<i64>,
    /// Bytes of messages that the reader of a partition asks for at a time; default 2 MiB, at most 64 MiB. It holds half as much again
    /// at most, and asks for as much as the largest message takes at least.
    pub pull_bytes: NonZeroUsize,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            user: None,
            password: None,
            password_file: None,
            credentials_file: None,
            replicas: 1,
            metrics_max_bytes: None,
            pull_bytes: NonZeroUsize::new(2 * 1024 * 1024).expect("not zero"),
        }
    }
}

impl NatsConfig {
    /// Every problem that the types don't show.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.url.trim().is_empty() {
            problems.push("`nats.url`: expected an address such as `nats://127.0.0.1:4222`".to_owned());
        }
        match (&self.user, self.password.is_some() || self.password_file.is_some()) {
            (Some(_), false) => {
                problems.push("`nats.password`: expected with `nats.user`, here or in `nats.password_file`".to_owned())
            }
            (None, true) => problems.push("`nats.user`: expected with `nats.password`".to_owned()),
            _ => {}
        }
        if !(1..=5).contains(&self.replicas) {
            problems.push("`nats.replicas`: expected 1 to 5".to_owned());
        }
        if self.metrics_max_bytes.is_some_and(|bytes| bytes < 1) {
            problems.push("`nats.metrics_max_bytes`: expected a number of bytes above 0".to_owned());
        }
        // Each of 16 partitions holds half as much again.
        if self.pull_bytes.get() > MAX_PULL_BYTES {
            problems.push(format!("`nats.pull_bytes`: expected at most {MAX_PULL_BYTES} (64 MiB)"));
        }
        problems
    }

    /// The addresses as they may be shown: without user, password or token.
    #[must_use]
    pub fn shown_url(&self) -> String {
        self.url.split(',').map(|url| without_user_info(url.trim())).collect::<Vec<_>>().join(",")
    }
}

fn without_user_info(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    // A password may hold any character, also `/` where it should not: the last `@` is where the host begins.
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

/// Why a connection cannot come about, however long one waits.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A secret's or credentials file could not be read.
    #[error("failed to read `{path}`")]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The address is not one.
    #[error("`{url}` is not a NATS address: expected `nats://host:port`")]
    Address {
        /// The address as configured, without user and password.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The broker does not answer or does not let the client in. Only an attempt that is not repeated fails so.
    #[error("failed to connect")]
    Away {
        /// Why.
        source: async_nats::ConnectError,
    },
    /// The service was told to stop while it waited for the broker.
    #[error("stopped while waiting for the broker")]
    Cancelled,
}

/// A connection with its JetStream context. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    /// The plain connection.
    pub nats: async_nats::Client,
    /// JetStream on it.
    pub jetstream: jetstream::Context,
}

impl Client {
    /// Connects under a client name, waiting for the broker as long as it takes.
    ///
    /// Fails on an invalid address or unreadable secret, and when `shutdown` comes first. An established connection
    /// reconnects by itself.
    pub async fn connect(config: &NatsConfig, name: &str, shutdown: &CancellationToken) -> Result<Self, ConnectError> {
        const MAX_PAUSE: Duration = Duration::from_secs(5);
        let addresses = addresses(config)?;
        let mut pause = Duration::from_millis(50);
        let mut told = false;
        loop {
            let attempt = options(config, name).await?.connect(addresses.clone());
            let result = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(ConnectError::Cancelled),
                result = attempt => result,
            };
            match result {
                Ok(nats) => {
                    let jetstream = jetstream::new(nats.clone());
                    return Ok(Self { nats, jetstream });
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(url = %config.shown_url(), error = %crate::dead::chain(&error), "broker is away, waiting for it");
                }
                Err(_) => {}
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(ConnectError::Cancelled),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
            }
        }
    }

    /// Connects under a client name, trying once.
    ///
    /// Fails as [`Client::connect`] does, and when the broker does not answer or does not let the client in.
    pub async fn connect_once(config: &NatsConfig, name: &str) -> Result<Self, ConnectError> {
        let attempt = options(config, name).await?.connect(addresses(config)?);
        let nats = attempt.await.map_err(|source| ConnectError::Away { source })?;
        Ok(Self { jetstream: jetstream::new(nats.clone()), nats })
    }

    /// Whether the connection stands at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.nats.connection_state() == async_nats::connection::State::Connected
    }
}

fn addresses(config: &NatsConfig) -> Result<Vec<async_nats::ServerAddr>, ConnectError> {
    let address =
        |url: &str| url.parse().map_err(|source| ConnectError::Address { url: without_user_info(url), source });
    config.url.split(',').map(|url| address(url.trim())).collect()
}

async fn options(config: &NatsConfig, name: &str) -> Result<ConnectOptions, ConnectError> {
    let mut options =
        ConnectOptions::new().name(name).ping_interval(Duration::from_secs(10)).reconnect_delay_callback(|attempts| {
            Duration::from_millis(50 * 2_u64.pow(u32::try_from(attempts.min(6)).unwrap_or(6)))
        });
    if let Some(path) = &config.credentials_file {
        options = options
            .credentials_file(path)
            .await
            .map_err(|source| ConnectError::ReadFile { path: path.clone(), source })?;
    }
    let password = match (&config.password, &config.password_file) {
        (Some(password), _) => Some(password.clone()),
        (None, Some(path)) => Some(
            std::fs::read_to_string(path)
                .map(|text| SecretString::from(text.trim_end().to_owned()))
                .map_err(|source| ConnectError::ReadFile { path: path.clone(), source })?,
        ),
        (None, None) => None,
    };
    if let (Some(user), Some(password)) = (&config.user, password) {
        options = options.user_and_password(user.clone(), password.expose_secret().to_owned());
    }
    Ok(options)
}

/// Names a service as a client of the broker and as a member of a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId(String);

impl MemberId {
    /// A member id that no other process and no other life of this process has.
    #[must_use]
    pub fn unique() -> Self {
        Self(ulid::Ulid::generate().to_string())
    }
}

impl std::fmt::Display for MemberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for MemberId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for MemberId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_login_is_a_problem() {
        let config = |user: Option<&str>, password: Option<&str>, file: Option<&str>| NatsConfig {
            user: user.map(str::to_owned),
            password: password.map(SecretString::from),
            password_file: file.map(PathBuf::from),
            ..NatsConfig::default()
        };
        for (user, password, file) in [(None, None, None), (Some("u"), Some("p"), None), (Some("u"), None, Some("f"))] {
            assert_eq!(config(user, password, file).problems(), [""; 0]);
        }
        assert!(config(Some("u"), None, None).problems()[0].starts_with("`nats.password`"));
        for (password, file) in [(Some("hunter2"), None), (None, Some("f"))] {
            let problems = config(None, password, file).problems().join("\n");
            assert!(problems.starts_with("`nats.user`") && !problems.contains("hunter2"), "{problems}");
        }
        let pull_bytes = NonZeroUsize::new(MAX_PULL_BYTES + 1).expect("not zero");
        let nats = NatsConfig {
            url: " ".to_owned(),
            replicas: 0,
            metrics_max_bytes: Some(0),
            pull_bytes,
            ..NatsConfig::default()
        };
        assert_eq!(nats.problems().len(), 4);
    }

    #[tokio::test]
    async fn a_password_in_an_address_is_never_shown() {
        let url = |url: &str| NatsConfig { url: url.to_owned(), ..NatsConfig::default() };
        let shown = url("nats://u:hunter2@a:4222, token@b , tls://c:1, u:p@ss/w@d").shown_url();
        assert_eq!(shown, "nats://a:4222,b,tls://c:1,d");
        for wrong in ["http://u:hunter2@a:4222", "u:hunter2@a:port", "nats://u:hunter2@"] {
            let connected = Client::connect(&url(wrong), "test", &CancellationToken::new()).await;
            let error = crate::dead::chain(&connected.expect_err(wrong));
            assert!(error.contains("is not a NATS address") && !error.contains("hunter2"), "{error}");
        }
    }
}
