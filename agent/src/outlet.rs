//! Where samples leave the collectors: numbered and encoded by measurement, then buffered for the broker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use plimsoll_nats::{HostId, Name};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::{
    buffer::SharedBuffer,
    encoder::{Encoder, Packer, PayloadLimit},
    message::Message,
    rows::{Columns, Frame, Rows},
};

/// What is due within this time is sent along with what is due now, so that one wake-up does for all measurements.
const DUE_TOGETHER: Duration = Duration::from_secs(1);

/// Takes the samples of every collector and custom source. One a run of the agent, since it numbers the batches.
#[derive(Debug)]
pub struct Outlet {
    buffer: Arc<SharedBuffer>,
    /// How long the rows of a measurement are gathered.
    interval: Duration,
    encoders: Mutex<Encoders>,
}

#[derive(Debug)]
struct Encoders {
    host: HostId,
    epoch: Ulid,
    limit: PayloadLimit,
    packer: Packer,
    by_measurement: HashMap<Name, Encoder>,
    /// Messages of a tick that wait for others of the same; none when each is sent at once.
    held: Option<Vec<Message>>,
}

impl Outlet {
    /// Numbers under `epoch`, the id of this run of the agent, and fills `buffer`.
    #[must_use]
    pub fn new(host: HostId, epoch: Ulid, limit: PayloadLimit, buffer: Arc<SharedBuffer>) -> Self {
        let (packer, by_measurement) = (Packer::default(), HashMap::new());
        let encoders = Encoders { host, epoch, limit, packer, by_measurement, held: None };
        Self { buffer, interval: Duration::ZERO, encoders: Mutex::new(encoders) }
    }

    /// The same, but gathering the rows of each measurement for `interval`; with zero, each sample is sent at once.
    #[must_use]
    pub fn gathering(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Sends the rows of one tick, whose columns are all `rows` long. Nothing is sent of no rows.
    pub fn push(&self, measurement: &Name, tick_ms: i64, rows: usize, columns: Columns) {
        let frame = Frame::new(rows, columns);
        self.send(|encoders, messages| encoders.take(measurement, tick_ms, &frame, self.interval, messages));
    }

    /// Sends the rows of several measurements, each with its tick, at once.
    pub fn push_rows<'a>(&self, samples: impl IntoIterator<Item = (i64, &'a Rows)>) {
        self.send(|encoders, messages| {
            for (tick_ms, rows) in samples {
                encoders.take(rows.measurement(), tick_ms, rows.frame(), self.interval, messages);
            }
        });
    }

    /// Holds messages back until they are [released](Self::release): what several threads take at one tick then goes to the broker
    /// in one piece, and wakes the publisher once.
    pub fn hold(&self) {
        self.lock().held.get_or_insert_default();
    }

    /// Sends what is held, and each message at once from here on.
    pub fn release(&self) {
        let mut encoders = self.lock();
        if let Some(messages) = encoders.held.take().filter(|messages| !messages.is_empty()) {
            self.buffer.push(messages);
        }
    }

    /// Sends what has been gathered or held.
    pub fn flush(&self) {
        self.flush_where(|_| true);
        self.release();
    }

    /// Sends what has been gathered whenever its time has come, until `shutdown`. What is left then waits for
    /// [`flush`](Self::flush).
    pub async fn keep_flushing(self: Arc<Self>, shutdown: CancellationToken) {
        if self.interval.is_zero() {
            return;
        }
        // A row that comes during a sleep is due after the sleep's end.
        let mut pause = self.interval;
        while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = self.flush_due(Instant::now());
        }
    }

    /// Sends what is due, and returns how long nothing else will be.
    fn flush_due(&self, now: Instant) -> Duration {
        let together = DUE_TOGETHER.min(self.interval / 2);
        let next = self.flush_where(|since| since + self.interval <= now + together);
        next.map_or(self.interval, |since| (since + self.interval).saturating_duration_since(now))
    }

    /// Sends what has been gathered since a time that `is_due`. Returns since when the oldest of the rest has been.
    fn flush_where(&self, is_due: impl Fn(Instant) -> bool) -> Option<Instant> {
        let mut rest = None;
        self.send(|encoders, messages| rest = encoders.flush(is_due, messages));
        rest
    }

    /// The buffer gets the messages while the encoders are locked: those of a measurement must come in order.
    fn send(&self, encode: impl FnOnce(&mut Encoders, &mut Vec<Message>)) {
        let mut encoders = self.lock();
        let held = encoders.held.take();
        let holds = held.is_some();
        let mut messages = held.unwrap_or_else(|| Vec::with_capacity(encoders.by_measurement.len()));
        encode(&mut encoders, &mut messages);
        if holds {
            encoders.held = Some(messages);
        } else if !messages.is_empty() {
            self.buffer.push(messages);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Encoders> {
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Encoders {
    fn take(&mut self, measurement: &Name, tick_ms: i64, frame: &Frame, gather: Duration, messages: &mut Vec<Message>) {
        let (host, epoch, limit) = (&self.host, self.epoch, &self.limit);
        let encoder = self
            .by_measurement
            .entry(measurement.clone())
            .or_insert_with(|| Encoder::new(host.clone(), measurement.clone(), epoch, limit.clone()));
        if gather.is_zero() {
            encoder.encode(&mut self.packer, tick_ms, frame, messages);
        } else {
            encoder.gather(&mut self.packer, tick_ms, frame, messages);
        }
    }

    fn flush(&mut self, is_due: impl Fn(Instant) -> bool, messages: &mut Vec<Message>) -> Option<Instant> {
        for encoder in self.by_measurement.values_mut() {
            if encoder.gathered_since().is_some_and(&is_due) {
                encoder.flush(&mut self.packer, messages);
            }
        }
        self.by_measurement.values().filter_map(Encoder::gathered_since).min()
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;

    use super::*;
    use crate::buffer::Side;

    const MINUTE: Duration = Duration::from_secs(60);

    fn outlet(interval: Duration) -> (Outlet, Arc<SharedBuffer>) {
        let buffer = Arc::new(SharedBuffer::new(1024 * 1024));
        let host = HostId::parse("h").unwrap();
        let outlet = Outlet::new(host, Ulid::generate(), PayloadLimit::default(), Arc::clone(&buffer));
        (outlet.gathering(interval), buffer)
    }

    fn rows(measurement: &str) -> Rows {
        let mut rows = Rows::new(catalog::measurement(measurement).unwrap());
        rows.push(
            &[("sensor", "a")],
            &[("temperature_celsius", 40.5.into()), ("critical_celsius", None::<f64>.into())],
        );
        rows
    }

    fn times(buffer: &SharedBuffer) -> Vec<Vec<i64>> {
        std::iter::from_fn(|| buffer.lock().pop_oldest()).map(|entry| entry.message.batch().times).collect()
    }

    #[test]
    fn samples_are_sent_at_once_unless_they_are_to_be_gathered() {
        let (outlet, buffer) = outlet(Duration::ZERO);
        let mut rows = rows("temperature");
        outlet.push_rows([(1_000, &rows)]);
        outlet.push(&Name::parse("custom").unwrap(), 2_000, 1, rows.take());
        outlet.push_rows([(3_000, &rows)]);
        assert_eq!(times(&buffer), [[1_000], [2_000]]);
    }

    #[test]
    fn gathered_samples_wait_for_their_time_or_the_end() {
        let (outlet, buffer) = outlet(MINUTE);
        let rows = rows("temperature");
        assert_eq!(outlet.flush_due(Instant::now()), MINUTE);
        outlet.push_rows([(1_000, &rows), (2_000, &rows)]);
        let now = Instant::now();
        let pause = outlet.flush_due(now);
        assert!(pause > Duration::ZERO && pause <= MINUTE, "{pause:?}");
        assert!(times(&buffer).is_empty());
        assert_eq!(outlet.flush_due(now + MINUTE), MINUTE);
        assert_eq!(times(&buffer), [[1_000, 2_000]]);

        outlet.push(&Name::parse("custom").unwrap(), 3_000, 1, rows.frame().to_columns());
        outlet.flush();
        assert_eq!(times(&buffer), [[3_000]]);
        outlet.flush();
        assert!(buffer.lock().is_empty());
    }

    #[test]
    fn what_is_held_is_sent_in_one_piece() {
        let (outlet, buffer) = outlet(Duration::ZERO);
        let rows = rows("temperature");
        outlet.hold();
        for tick_ms in [1_000, 2_000] {
            outlet.push_rows([(tick_ms, &rows)]);
            outlet.hold();
        }
        assert!(buffer.lock().is_empty());
        outlet.release();
        assert_eq!(times(&buffer), [[1_000], [2_000]]);
        outlet.push_rows([(3_000, &rows)]);
        assert_eq!(times(&buffer), [[3_000]]);
        outlet.hold();
        outlet.push_rows([(4_000, &rows)]);
        outlet.flush();
        assert_eq!(times(&buffer), [[4_000]]);
    }

    #[tokio::test]
    async fn the_task_sends_what_nobody_adds_to() {
        let (outlet, buffer) = outlet(Duration::from_millis(50));
        let (outlet, shutdown) = (Arc::new(outlet), CancellationToken::new());
        let task = tokio::spawn(Arc::clone(&outlet).keep_flushing(shutdown.clone()));
        outlet.push_rows([(1_000, &rows("temperature"))]);
        tokio::time::timeout(Duration::from_secs(20), buffer.filled(Side::Live)).await.expect("it is sent");
        shutdown.cancel();
        task.await.unwrap();
    }
}
