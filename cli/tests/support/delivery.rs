//! The agent's delivery without its collectors, fed with batches that a test makes up.

use std::{collections::BTreeMap, path::Path};

use plimsoll_agent::{
    config::SpoolConfig,
    delivery::Delivery,
    encoder::PayloadLimit,
    message::{Message, Topic},
    state::StateDir,
    update::Receipts,
};
use plimsoll_nats::{Batch, Client, Column, HostId, Name, NatsConfig, now_ms};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

/// Delivers to the broker at `url` until `stop`, with a spool in the folder, which is locked as long as the second part lives.
pub fn deliver(folder: &Path, url: String, stop: &CancellationToken) -> (Delivery, StateDir) {
    let state = StateDir::open(Some(&folder.join("state"))).expect("no other agent").expect("a folder");
    let (delivery, _) = Delivery::open(64 * 1024 * 1024, &SpoolConfig::default(), Some(&state));
    tokio::spawn(delivery.clone().keep(stop.clone()));
    let (publishing, stopped) = (delivery.clone(), stop.clone());
    tokio::spawn(async move {
        let nats = NatsConfig { url, ..NatsConfig::default() };
        let client = Client::connect(&nats, "simulated", &stopped).await.expect("an address");
        publishing.publishers(client, &nats, &PayloadLimit::default(), &Receipts::default()).run(&stopped).await;
    });
    (delivery, state)
}

/// A batch of one row of now, of the host `simulated`.
pub fn message(epoch: Ulid, measurement: &str, seq: u64, fields: &[(&str, Column)]) -> Message {
    let name = |text: &str| Name::parse(text).expect("valid");
    let (host, measurement) = (HostId::parse("simulated").expect("valid"), name(measurement));
    let fields = fields.iter().map(|(field, column)| (name(field), column.clone())).collect();
    let (times, tags) = (vec![now_ms()], BTreeMap::new());
    let batch = Batch { host: host.clone(), measurement: measurement.clone(), epoch, seq, times, tags, fields };
    let payload = batch.encode().into();
    Message { host, topic: Topic::Metrics(measurement), epoch, seq, compressed: false, payload }
}
