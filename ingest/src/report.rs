//! Publishes what `/metrics` tells as the measurement `plimsoll`, so that the pipeline is watched by its own means.
//!
//! A batch has a row of the member as a whole, with the tag `partition` = `total`, and one of each partition. It is sent once: what the
//! broker does not take at once is dropped and counted.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_nats::{
    Batch, Client, Column, HostId, Name, async_nats::HeaderMap, async_nats::jetstream::context::PublishError, now_ms,
    subject,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{
    GROUP,
    metrics::{Metrics, Values},
};

/// How often.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for the broker.
const PATIENCE: Duration = Duration::from_secs(5);
/// The measurement; described in the catalog.
const MEASUREMENT: &str = "plimsoll";

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
pub struct Reporter {
    client: Client,
    metrics: Metrics,
    host: HostId,
    /// Tells members of one host apart, and stays the same when one is started again.
    member: String,
    epoch: Ulid,
    seq: u64,
}

impl Reporter {
    /// Reports of the member whose HTTP endpoints have this port.
    #[must_use]
    pub fn new(client: &Client, port: u16, metrics: Metrics) -> Self {
        let host = HostId::from_host_name(&rustix::system::uname().nodename().to_string_lossy());
        Self { client: client.clone(), metrics, host, member: port.to_string(), epoch: Ulid::generate(), seq: 0 }
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
            let batch = self.batch();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                published = publish(&self.client, &batch) => if let Err(error) = published {
                    self.metrics.dropped_reports.inc();
                    tracing::debug!(%error, "dropped a batch of the measurement `plimsoll`");
                },
            }
        }
    }

    fn batch(&mut self) -> Batch {
        let (own, partitions) = self.metrics.values();
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
                (name("service"), all(GROUP)),
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

#[cfg(test)]
mod tests {
    use plimsoll_nats::{PartitionId, catalog, testing::TestServer};
    use plimsoll_service::ops::Ops;

    use super::*;

    #[tokio::test]
    async fn a_batch_says_what_the_catalog_describes() {
        let server = TestServer::start().await;
        let metrics = Metrics::register(&Ops::default());
        metrics.partition_started(PartitionId::new(3).expect("exists"));
        metrics.maintenance.holds_lease(true);
        metrics.maintenance.done(Duration::ZERO, &BTreeMap::default());
        let batch = Reporter::new(&server.client().await, 9301, metrics).batch();
        let spec = catalog::measurement(MEASUREMENT).expect("is described");
        let described: BTreeMap<&str, _> = spec.fields.iter().map(|field| (field.name, field.field_type)).collect();
        let sent: BTreeMap<&str, _> =
            batch.fields.iter().map(|(name, column)| (&**name, column.field_type())).collect();
        // The lake's size is known after a run of maintenance.
        let missing: Vec<_> = described.iter().filter(|(name, _)| !sent.contains_key(*name)).collect();
        assert!(missing.iter().all(|(name, _)| name.starts_with("lake_")), "{missing:?}");
        assert!(sent.iter().all(|(name, field_type)| described.get(name) == Some(field_type)), "{sent:?}");
        assert!(batch.tags.keys().map(|tag| &**tag).eq(spec.tags.iter().map(|tag| tag.name)), "{:?}", batch.tags);
        assert_eq!(batch.tags[&name("partition")], ["total", "3"]);
        let subject = subject::metrics(&batch.host, &batch.measurement);
        assert_eq!(&*subject, format!("plimsoll.metrics.{}.plimsoll", batch.host).as_str());
    }
}
