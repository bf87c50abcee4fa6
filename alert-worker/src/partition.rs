//! One partition as this member evaluates it.

use std::{collections::HashMap, time::Duration};

use plimsoll_nats::{
    Batch, HostId, Name,
    alert::AlertState,
    dead::chain,
    reader::{Acker, StoredMessage},
    subject::MetricSubject,
};

use crate::{
    evaluator::{Evaluator, millis},
    metrics::Metrics,
};

/// A reader that is no further behind than this knows which series are silent.
const MAX_LAG: Duration = Duration::from_secs(5);
/// Most messages that are read before the broker is told.
const UNACKED: u32 = 1000;

/// The evaluator of a partition, and what has been read and stored of it.
#[derive(Debug)]
pub(crate) struct Partition {
    pub evaluator: Evaluator,
    /// The revision of each stored state.
    pub revisions: HashMap<String, u64>,
    last: Option<Last>,
    unacked: u32,
}

#[derive(Debug)]
struct Last {
    stored_ms: i64,
    pending: u64,
    acker: Acker,
}

impl Partition {
    pub fn new(evaluator: Evaluator, revisions: HashMap<String, u64>) -> Self {
        Self { evaluator, revisions, last: None, unacked: 0 }
    }

    /// Evaluates a message. One that is no batch is only counted, since ingest is who reports it.
    pub fn push(&mut self, message: StoredMessage, metrics: &Metrics, changes: &mut Vec<AlertState>) {
        metrics.messages.inc();
        match MetricSubject::parse(message.subject()) {
            Ok(subject) if self.evaluator.watches(&subject.host, &subject.measurement) => {
                self.evaluate(&subject.host, &subject.measurement, &message, metrics, changes);
            }
            Ok(_) => {}
            Err(_) => {
                metrics.decode_failures.inc();
            }
        }
        let (stored_ms, pending) = (message.stored_ms, message.pending);
        self.last = Some(Last { stored_ms, pending, acker: message.into_acker() });
        self.unacked += 1;
    }

    fn evaluate(
        &mut self,
        host: &HostId,
        measurement: &Name,
        message: &StoredMessage,
        metrics: &Metrics,
        changes: &mut Vec<AlertState>,
    ) {
        match Batch::decode(host, measurement, message.headers(), message.payload()) {
            Ok(batch) => {
                metrics.rows.inc_by(batch.rows() as u64);
                self.evaluator.push_batch(&batch, Some(message.stored_ms), changes);
            }
            Err(error) => {
                metrics.decode_failures.inc();
                tracing::debug!(stream.seq = %message.sequence, error = %chain(&error), "skipped a message that is no batch");
            }
        }
    }

    /// Whether what the stream holds has been read, so that a series without rows is silent.
    pub fn is_current(&self, now_ms: i64) -> bool {
        self.last.as_ref().is_none_or(|last| last.pending == 0 || now_ms - last.stored_ms < millis(MAX_LAG))
    }

    /// Whether so much has been read that the broker should be told before the next second.
    pub fn wants_ack(&self) -> bool {
        self.unacked >= UNACKED
    }

    /// Tells the broker what has been read. It only saves the broker work: a reader starts from the rules' lookback.
    pub async fn ack(&mut self) {
        let Some(last) = self.last.as_ref().filter(|_| self.unacked > 0) else { return };
        match last.acker.ack().await {
            Ok(()) => self.unacked = 0,
            Err(error) => tracing::debug!(error = %chain(&*error), "failed to acknowledge, trying again"),
        }
    }
}
