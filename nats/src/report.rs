//! The measurement `plimsoll`: what services tell of themselves, so that the pipeline is watched by its own means.
//!
//! A batch has a row of the member as a whole, with the tag `partition` = `total`, and one of each partition. It is sent once: what
//! the broker does not take at once is dropped and counted.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{HeaderMap, jetstream::context::PublishError};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{Batch, Client, Column, HostId, Name, PartitionId, now_ms, subject};

/// How often.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for the broker.
const PATIENCE: Duration = Duration::from_secs(5);
/// The measurement; described in the catalog.
pub const MEASUREMENT: &str = "plimsoll";

/// Fields of a row of the measurement.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values {
    /// Fields that are integers.
    pub integers: Vec<(&'static str, i64)>,
    /// Fields that are floats.
    pub floats: Vec<(&'static str, f64)>,
}

/// How far what is read of the stream is behind it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Lag {
    /// Messages that the stream still holds.
    pub messages: i64,
    /// Age of the oldest message that is not done.
    pub seconds: f64,
}

impl Lag {
    /// Both as fields.
    #[must_use]
    pub fn values(self) -> Values {
        Values { integers: vec![("lag_messages", self.messages)], floats: vec![("lag_seconds", self.seconds)] }
    }

    /// The lag of several parts of the stream: all messages, and the longest time.
    #[must_use]
    pub fn of_all(lags: impl IntoIterator<Item = Self>) -> Self {
        let sum = |all: Self, lag: Self| Self {
            messages: all.messages.saturating_add(lag.messages),
            seconds: all.seconds.max(lag.seconds),
        };
        lags.into_iter().fold(Self::default(), sum)
    }
}

/// The last message that is done, as it tells what comes after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// When the broker stored it, Unix ms.
    pub stored_ms: i64,
    /// Messages that the stream held after it when it was delivered.
    pub pending: u64,
}

impl Reached {
    /// How far that is behind: nothing once no message comes after it, else the time since it was stored.
    #[must_use]
    pub fn lag(self, now_ms: i64) -> Lag {
        if self.pending == 0 {
            return Lag::default();
        }
        let seconds = now_ms.saturating_sub(self.stored_ms).max(0) as f64 / 1000.0;
        Lag { messages: integer(self.pending), seconds }
    }
}

/// A count as the value of a field; what is too large is the largest there is.
#[must_use]
pub fn integer(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A service that tells of itself.
pub trait Reported: Send + Sync + 'static {
    /// Brings up to date what takes time to find out. The broker may be away.
    fn refresh(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// The present values: the member's own, and those of each partition that it reads.
    fn values(&self) -> (Values, Vec<(PartitionId, Values)>);

    /// Counts a batch that was dropped.
    fn dropped(&self);
}

/// Why a batch was dropped.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("the broker is away")]
    Away,
    #[error("failed to publish")]
    Publish(#[from] PublishError),
    #[error("no answer from the broker")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

/// Publishes the measurement of one member.
#[derive(Debug)]
pub struct Reporter<R> {
    client: Client,
    service: &'static str,
    reported: R,
    host: HostId,
    /// Tells members of one host apart, and stays the same when one is started again.
    member: String,
    epoch: Ulid,
    seq: u64,
}

impl<R: Reported> Reporter<R> {
    /// Reports of the member of a service whose HTTP endpoints have this port.
    #[must_use]
    pub fn new(client: &Client, service: &'static str, port: u16, reported: R) -> Self {
        let host = HostId::from_host_name(&rustix::system::uname().nodename().to_string_lossy());
        let (member, epoch) = (port.to_string(), Ulid::generate());
        Self { client: client.clone(), service, reported, host, member, epoch, seq: 0 }
    }

    /// Publishes until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                published = self.report() => if let Err(error) = published {
                    self.reported.dropped();
                    tracing::debug!(%error, "dropped a batch of the measurement `plimsoll`");
                },
            }
        }
    }

    async fn report(&mut self) -> Result<(), ReportError> {
        self.reported.refresh().await;
        let batch = self.batch();
        publish(&self.client, &batch).await
    }

    /// The next batch, with the present values.
    pub fn batch(&mut self) -> Batch {
        let (own, partitions) = self.reported.values();
        self.seq += 1;
        let total = [("total".to_owned(), own)].into_iter();
        let rows: Vec<_> = total.chain(partitions.into_iter().map(|(id, values)| (id.to_string(), values))).collect();
        let all = |value: &str| vec![value.to_owned(); rows.len()];
        Batch {
            host: self.host.clone(),
            measurement: name(MEASUREMENT),
            epoch: self.epoch,
            seq: self.seq,
            times: vec![now_ms(); rows.len()],
            tags: BTreeMap::from([
                (name("service"), all(self.service)),
                (name("member"), all(&self.member)),
                (name("partition"), rows.iter().map(|(partition, _)| partition.clone()).collect()),
            ]),
            fields: fields(&rows),
        }
    }
}

/// The columns of the rows; nil where a row lacks a value.
fn fields(rows: &[(String, Values)]) -> BTreeMap<Name, Column> {
    let (mut integers, mut floats) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
    for (row, (_, values)) in rows.iter().enumerate() {
        for (field, value) in &values.integers {
            integers.entry(name(field)).or_insert_with(|| vec![None; rows.len()])[row] = Some(*value);
        }
        for (field, value) in &values.floats {
            floats.entry(name(field)).or_insert_with(|| vec![None; rows.len()])[row] = Some(*value);
        }
    }
    let integers = integers.into_iter().map(|(name, values)| (name, Column::Integer(values)));
    integers.chain(floats.into_iter().map(|(name, values)| (name, Column::Float(values)))).collect()
}

async fn publish(client: &Client, batch: &Batch) -> Result<(), ReportError> {
    if !client.is_connected() {
        return Err(ReportError::Away);
    }
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", batch.message_id().as_str());
    let subject = subject::metrics(&batch.host, &batch.measurement);
    let stored = async {
        client.jetstream.publish_with_headers(subject, headers, batch.encode().into()).await?.await?;
        Ok(())
    };
    tokio::time::timeout(PATIENCE, stored).await?
}

fn name(name: &str) -> Name {
    Name::parse(name).expect("the names here follow the contract")
}

/// What differs between a service's batch and the catalog, for the services' tests.
#[cfg(feature = "testing")]
#[must_use]
pub fn differences(batch: &Batch, service: &str) -> Vec<String> {
    use crate::catalog::pipeline::{PLIMSOLL, SENT};
    let expected = SENT.iter().find(|(name, _)| *name == service).map_or(&[][..], |(_, fields)| fields);
    let types: BTreeMap<&str, _> = PLIMSOLL.fields.iter().map(|field| (field.name, field.field_type)).collect();
    let sent = batch.fields.iter().filter_map(|(name, column)| {
        let is_expected = expected.contains(&&**name) && types.get(&**name) == Some(&column.field_type());
        (!is_expected).then(|| format!("`{name}` is sent as {}", column.field_type()))
    });
    let missing = expected.iter().filter(|field| !batch.fields.contains_key(**field));
    let missing = missing.map(|field| format!("`{field}` is not sent"));
    let tags = batch.tags.keys().map(|tag| &**tag).eq(PLIMSOLL.tags.iter().map(|tag| tag.name));
    let tags = (!tags).then(|| format!("the tags are {:?}", batch.tags.keys()));
    sent.chain(missing).chain(tags).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_is_as_old_as_what_was_last_done() {
        assert_eq!(Reached { stored_ms: 1000, pending: 0 }.lag(9000), Lag::default());
        let behind = Reached { stored_ms: 1000, pending: 7 };
        assert_eq!(behind.lag(9500), Lag { messages: 7, seconds: 8.5 });
        assert_eq!(behind.lag(500), Lag { messages: 7, seconds: 0.0 }, "the broker's clock may be ahead");
        let all = Lag::of_all([behind.lag(9500), Lag { messages: 3, seconds: 0.5 }]);
        assert_eq!(all, Lag { messages: 10, seconds: 8.5 });
    }
}
