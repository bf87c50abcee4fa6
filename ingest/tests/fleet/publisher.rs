//! Sends rows of known content at a steady rate, as agents do: each batch under its id, again and again until the broker has it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use plimsoll_nats::{Batch, Client, Column, async_nats::HeaderMap, subject};
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::support::{known_batch, name};

/// Enough for every partition to have some.
pub const HOSTS: usize = 64;
const ROWS_A_BATCH: i64 = 5;
const TICK: Duration = Duration::from_millis(250);

/// A publisher of its own task.
#[derive(Debug)]
pub struct Publisher {
    stop: CancellationToken,
    task: JoinHandle<()>,
    rows_a_host: Arc<AtomicI64>,
}

impl Publisher {
    pub fn start(client: Client) -> Self {
        let (stop, rows_a_host) = (CancellationToken::new(), Arc::new(AtomicI64::new(0)));
        let task = tokio::spawn(publish(client, stop.clone(), Arc::clone(&rows_a_host)));
        Self { stop, task, rows_a_host }
    }

    /// Rows that the broker has acknowledged.
    pub fn sent(&self) -> i64 {
        self.rows_a_host.load(Ordering::Relaxed) * HOSTS as i64
    }

    /// Stops when all that was begun is acknowledged; returns how many rows each host has sent.
    pub async fn finish(self) -> i64 {
        self.stop.cancel();
        self.task.await.expect("publishing does not panic");
        self.rows_a_host.load(Ordering::Relaxed)
    }
}

async fn publish(client: Client, stop: CancellationToken, rows_a_host: Arc<AtomicI64>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for first in (0..).step_by(usize::try_from(ROWS_A_BATCH).expect("a few")) {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        join_all((0..HOSTS).map(|host| store(&client, batch(host, first)))).await;
        rows_a_host.fetch_add(ROWS_A_BATCH, Ordering::Relaxed);
    }
}

/// Known rows; those of every other second have a field that is new, so that faults meet commits that add a column.
fn batch(host: usize, first: i64) -> Batch {
    const ROWS_A_COLUMN: i64 = 8 * ROWS_A_BATCH;
    const MAX_COLUMNS: i64 = 200;
    let mut batch = known_batch(host, first, ROWS_A_BATCH);
    let column = first / ROWS_A_COLUMN;
    if first % ROWS_A_COLUMN == 0 && column < MAX_COLUMNS {
        batch.fields.insert(name(&format!("added_{column}")), Column::Integer(vec![Some(1); batch.times.len()]));
    }
    batch
}

/// Publishes a batch until the broker says that it has it. By its id the broker knows a repeated one.
async fn store(client: &Client, batch: Batch) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", batch.message_id().as_str());
    let subject = subject::metrics(&batch.host, &batch.measurement);
    let payload = bytes::Bytes::from(batch.encode());
    loop {
        let publish = async {
            client.jetstream.publish_with_headers(subject.clone(), headers.clone(), payload.clone()).await?.await
        };
        if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, publish).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
