//! Streams and buckets: declared here, applied by whichever service starts first.
//!
//! Declaring is idempotent. A changed declaration updates what exists and never recreates it. The number of replicas of what
//! exists stays as an operator set it, and so does the size of `METRICS` unless a service is told another.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    context::{CreateKeyValueError, CreateStreamError},
    kv,
    stream::{Compression, Config, RetentionPolicy, StorageType, SubjectTransform},
};

use crate::{Client, Incarnation, NatsConfig, PartitionId, Sequence, subject};

/// The stream of all samples.
pub const METRICS: &str = "METRICS";
/// The stream of host events.
pub const EVENTS: &str = "EVENTS";
/// The stream of alert transitions.
pub const ALERTS: &str = "ALERTS";
/// The work queue of notifications.
pub const NOTIFY: &str = "NOTIFY";
/// The stream of messages that could not be decoded or stored.
pub const DEAD: &str = "DEAD";

/// The bucket of host records, by host id.
pub const HOSTS: &str = "HOSTS";
/// The bucket of alert rules, by name.
pub const RULES: &str = "RULES";
/// The bucket of alert states.
pub const ALERT_STATE: &str = "ALERT_STATE";
/// The bucket of settings.
pub const SETTINGS: &str = "SETTINGS";
/// The bucket of users.
pub const USERS: &str = "USERS";
/// The bucket of workers' heartbeats, each key with a time to live.
pub const MEMBERS: &str = "MEMBERS";

/// How far back the stream can be replayed.
pub const METRICS_MAX_AGE: Duration = Duration::from_secs(72 * 3600);
/// How long a published message id is remembered.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Size of a new `METRICS` in bytes, unless a service is told another.
pub const METRICS_MAX_BYTES: i64 = 10 * 1024 * 1024 * 1024;

/// Size of each other stream in bytes: they hold little, and a flood of dead messages must not fill the broker's disk.
const OTHERS_MAX_BYTES: i64 = 512 * 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why a stream or bucket could not be declared.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// The broker has no room for a stream of the configured size.
    #[error(
        "the broker's disk has no room for {bytes} bytes of samples: set `nats.metrics_max_bytes` (PLIMSOLL_NATS__METRICS_MAX_BYTES) lower"
    )]
    NoRoom {
        /// The configured size in bytes.
        bytes: i64,
    },
    /// The broker refused a stream or did not answer.
    #[error("failed to declare stream `{name}`")]
    Stream {
        /// The stream.
        name: &'static str,
        /// Why.
        source: CreateStreamError,
    },
    /// The broker refused a bucket or did not answer.
    #[error("failed to declare bucket `{name}`")]
    Bucket {
        /// The bucket.
        name: &'static str,
        /// Why.
        source: CreateKeyValueError,
    },
    /// A stream could not be looked up.
    #[error("failed to look up stream `{name}`")]
    Lookup {
        /// The stream.
        name: &'static str,
        /// Why.
        source: async_nats::Error,
    },
}

impl DeclareError {
    /// Whether the broker has answered and says no, so that trying again won't help by itself.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        use async_nats::jetstream::context::CreateStreamErrorKind;
        match self {
            Self::NoRoom { .. } => true,
            Self::Stream { source, .. } => matches!(source.kind(), CreateStreamErrorKind::JetStream(_)),
            Self::Bucket { .. } | Self::Lookup { .. } => false,
        }
    }
}

fn stream(name: &str, subjects: &str, max_age: Duration) -> Config {
    Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        max_age,
        max_bytes: OTHERS_MAX_BYTES,
        storage: StorageType::File,
        allow_direct: true,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    }
}

fn declarations() -> [(&'static str, Config); 5] {
    let metrics = Config {
        max_bytes: METRICS_MAX_BYTES,
        compression: Some(Compression::S2),
        subject_transform: Some(SubjectTransform {
            source: subject::METRICS_WILDCARD.to_owned(),
            destination: format!(
                "plimsoll.p.{{{{partition({},1)}}}}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
                subject::PARTITIONS
            ),
        }),
        ..stream(METRICS, subject::METRICS_WILDCARD, METRICS_MAX_AGE)
    };
    let notify = Config { retention: RetentionPolicy::WorkQueue, ..stream(NOTIFY, subject::NOTIFY_WILDCARD, 3 * DAY) };
    [
        (METRICS, metrics),
        (EVENTS, stream(EVENTS, subject::EVENTS_WILDCARD, 90 * DAY)),
        (ALERTS, stream(ALERTS, subject::ALERTS_WILDCARD, 90 * DAY)),
        (NOTIFY, notify),
        (DEAD, stream(DEAD, subject::DEAD_WILDCARD, 14 * DAY)),
    ]
}

fn buckets() -> [(&'static str, kv::Config); 6] {
    let bucket = |name: &'static str| {
        (name, kv::Config { bucket: name.to_owned(), history: 1, storage: StorageType::File, ..kv::Config::default() })
    };
    let (members, mut config) = bucket(MEMBERS);
    config.limit_markers = Some(Duration::from_secs(60));
    [bucket(HOSTS), bucket(RULES), bucket(ALERT_STATE), bucket(SETTINGS), bucket(USERS), (members, config)]
}

/// Creates the streams and buckets that are missing and updates those that differ.
///
/// Fails when the broker refuses one, as when its disk has no room for `metrics_max_bytes`, or does not answer.
pub async fn declare(client: &Client, config: &NatsConfig) -> Result<(), DeclareError> {
    for (name, mut declared) in declarations() {
        let existing = existing(client, name).await?;
        declared.num_replicas = existing.as_ref().map_or(config.replicas, |existing| existing.num_replicas);
        if name == METRICS {
            let kept = existing.as_ref().map(|existing| existing.max_bytes);
            declared.max_bytes = config.metrics_max_bytes.or(kept).unwrap_or(METRICS_MAX_BYTES);
        }
        let bytes = declared.max_bytes;
        client.jetstream.create_or_update_stream(declared).await.map_err(|source| refusal(name, bytes, source))?;
    }
    for (name, mut declared) in buckets() {
        let existing = existing(client, &format!("KV_{name}")).await?;
        declared.num_replicas = existing.map_or(config.replicas, |existing| existing.num_replicas);
        client
            .jetstream
            .create_or_update_key_value(declared)
            .await
            .map_err(|source| DeclareError::Bucket { name, source })?;
    }
    Ok(())
}

fn refusal(name: &'static str, bytes: i64, source: CreateStreamError) -> DeclareError {
    use async_nats::jetstream::{ErrorCode, context::CreateStreamErrorKind};
    let CreateStreamErrorKind::JetStream(error) = source.kind() else { return DeclareError::Stream { name, source } };
    match error.error_code() {
        ErrorCode::STORAGE_RESOURCES_EXCEEDED | ErrorCode::INSUFFICIENT_RESOURCES => DeclareError::NoRoom { bytes },
        _ => DeclareError::Stream { name, source },
    }
}

/// How an existing stream is configured.
async fn existing(client: &Client, stream: &str) -> Result<Option<Config>, DeclareError> {
    use jetstream::{ErrorCode, context::GetStreamErrorKind};
    match client.jetstream.get_stream(stream).await {
        Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            _ => Err(DeclareError::Lookup { name: "streams", source: error.into() }),
        },
    }
}

/// The `METRICS` stream and which life of it this is.
///
/// Fails when there is no such stream or the broker does not answer.
pub async fn metrics(client: &Client) -> Result<(jetstream::stream::Stream, Incarnation), DeclareError> {
    open(client, METRICS).await
}

/// A stream that [`declare`] made, and which life of it this is.
///
/// Fails when there is no such stream or the broker does not answer.
pub async fn open(
    client: &Client,
    name: &'static str,
) -> Result<(jetstream::stream::Stream, Incarnation), DeclareError> {
    let stream = client
        .jetstream
        .get_stream(name)
        .await
        .map_err(|source| DeclareError::Lookup { name, source: source.into() })?;
    let created = stream.cached_info().created.unix_timestamp_nanos();
    let incarnation = Incarnation(i64::try_from(created).expect("nanoseconds since 1970 fit into 64 bits until 2262"));
    Ok((stream, incarnation))
}

/// The first message of a partition after a sequence; none when there is none.
///
/// Fails when the broker does not answer.
pub async fn first_after(
    stream: &jetstream::stream::Stream,
    partition: PartitionId,
    after: Sequence,
) -> Result<Option<Sequence>, jetstream::stream::RawMessageError> {
    use jetstream::stream::RawMessageErrorKind;
    let filter = subject::partition_filter(partition);
    match stream.raw_message_builder().sequence(after.next().0).next_by_subject(filter).send().await {
        Ok(message) => Ok(Some(Sequence(message.sequence))),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a bucket that [`declare`] made.
pub async fn bucket(client: &Client, name: &'static str) -> Result<kv::Store, DeclareError> {
    client.jetstream.get_key_value(name).await.map_err(|source| DeclareError::Lookup { name, source: source.into() })
}
