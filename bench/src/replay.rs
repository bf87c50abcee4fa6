//! Publishes a recording again: its times moved, its hosts multiplied.

use std::{collections::HashMap, path::Path, time::Duration};

use plimsoll_nats::{Batch, HostId, Name, NameError, NatsConfig, batch::DecodeError, now_ms, subject::metrics};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{
    points,
    progress::Progress,
    publish::{Pace, Published, Publisher, PublishingError, Rate},
    recording::{Record, RecordingError, RecordingReader},
    wire::Packer,
};

/// How a recording is published.
#[derive(Debug, Clone)]
pub struct ReplayConfig {
    /// How many hosts come of each one; the second and later ones are named `<host>-2` and so on.
    pub hosts_of_each: usize,
    /// Unix ms that the recording's first message is moved to; none takes the present.
    pub start_ms: Option<i64>,
    /// How fast time passes.
    pub rate: Rate,
}

/// Why not all was replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file can't be read.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The broker does not take it.
    #[error(transparent)]
    Publish(#[from] PublishingError),
    /// A message is no batch.
    #[error("message {number} on `{subject}` can't be replayed")]
    Message {
        /// Which one, from 1.
        number: u64,
        /// Its subject.
        subject: String,
        /// Why.
        source: BatchError,
    },
}

/// Why a recorded message is no batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The subject is not an agent's.
    #[error("expected a subject `plimsoll.metrics.<host>.<measurement>`")]
    Subject,
    /// A name in it is not one.
    #[error("the subject carries an invalid name")]
    Name(#[from] NameError),
    /// The payload is not a batch.
    #[error("failed to read the batch")]
    Decode(#[from] DecodeError),
}

/// Makes batches of recorded messages.
struct Renewal {
    hosts_of_each: usize,
    shift_ms: i64,
    /// New for each replay, so that the broker does not take the messages for those that it has.
    epochs: HashMap<(HostId, Ulid), Ulid>,
}

impl Renewal {
    fn renew(&mut self, batch: &Batch, copy: usize) -> Batch {
        let host = if copy == 0 {
            batch.host.clone()
        } else {
            HostId::from_host_name(&format!("{}-{}", batch.host, copy + 1))
        };
        let epoch = *self.epochs.entry((host.clone(), batch.epoch)).or_insert_with(Ulid::generate);
        let times = batch.times.iter().map(|time| time + self.shift_ms).collect();
        Batch { host, epoch, times, ..batch.clone() }
    }
}

/// The batch that a message carries. Fails when it is none.
pub fn batch_of(record: &Record) -> Result<Batch, BatchError> {
    let mut tokens = record.subject.split('.').skip(2);
    let (Some(host), Some(measurement), None) = (tokens.next(), tokens.next(), tokens.next()) else {
        return Err(BatchError::Subject);
    };
    let (host, measurement) = (HostId::parse(host)?, Name::parse(measurement)?);
    if metrics(&host, &measurement) != record.subject {
        return Err(BatchError::Subject);
    }
    Ok(Batch::decode(&host, &measurement, Some(&record.header_map()), &record.payload)?)
}

/// Publishes a recording to its end, or until `stop`.
///
/// Fails when the file is damaged, when a message in it is no batch, and when the broker can't be reached.
pub async fn replay(
    nats: &NatsConfig,
    file: &Path,
    config: &ReplayConfig,
    stop: &CancellationToken,
) -> Result<Published, ReplayError> {
    let mut records = RecordingReader::open(file)?.peekable();
    let Some(Ok(first)) = records.peek() else {
        return records.next().map_or(Ok(Published::default()), |broken| Err(broken.expect_err("seen above").into()));
    };
    let start_ms = first.time_ms;
    let mut publisher = Publisher::connect(nats).await?;
    let (mut packer, pace) = (Packer::default(), Pace::new(config.rate));
    let shift_ms = config.start_ms.unwrap_or_else(now_ms) - start_ms;
    let mut renewal = Renewal { hosts_of_each: config.hosts_of_each, shift_ms, epochs: HashMap::new() };
    let mut progress = Progress::new("messages", None);
    for (record, number) in records.zip(1..) {
        let record = record?;
        let since_start = Duration::from_millis(u64::try_from(record.time_ms - start_ms).unwrap_or(0));
        if !pace.until(since_start, stop).await {
            break;
        }
        let batch = batch_of(&record).map_err(|source| ReplayError::Message {
            number,
            subject: record.subject.clone(),
            source,
        })?;
        for copy in 0..renewal.hosts_of_each {
            let batch = renewal.renew(&batch, copy);
            publisher.send(packer.pack(&batch), batch.rows(), points(&batch)).await?;
        }
        progress.show(number, "");
    }
    Ok(publisher.finish().await?)
}
