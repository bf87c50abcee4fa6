//! Where samples leave the collectors: numbered and encoded by measurement, then buffered for the broker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use plimsoll_nats::{HostId, Name};
use ulid::Ulid;

use crate::{
    buffer::SharedBuffer,
    encoder::{Encoder, PayloadLimit},
    rows::Columns,
};

/// Takes the samples of every collector and custom source. One a run of the agent, since it numbers the batches.
#[derive(Debug)]
pub struct Outlet {
    host: HostId,
    epoch: Ulid,
    limit: PayloadLimit,
    buffer: Arc<SharedBuffer>,
    encoders: Mutex<HashMap<Name, Encoder>>,
}

impl Outlet {
    /// Numbers under `epoch`, the id of this run of the agent, and fills `buffer`.
    #[must_use]
    pub fn new(host: HostId, epoch: Ulid, limit: PayloadLimit, buffer: Arc<SharedBuffer>) -> Self {
        Self { host, epoch, limit, buffer, encoders: Mutex::default() }
    }

    /// Sends the rows of one tick, whose columns are all `rows` long. Nothing is sent of no rows.
    pub fn push(&self, measurement: &Name, tick_ms: i64, rows: usize, columns: Columns) {
        let mut encoders = self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        let encoder = encoders
            .entry(measurement.clone())
            .or_insert_with(|| Encoder::new(self.host.clone(), measurement.clone(), self.epoch, self.limit.clone()));
        self.buffer.push(encoder.encode(tick_ms, rows, columns));
    }
}
