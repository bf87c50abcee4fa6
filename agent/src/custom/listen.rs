//! `[listen]`: where programs of this host hand over samples of their own, by StatsD or Influx line protocol.
//!
//! A datagram holds one line or several. A line that can't be read is counted and left out, the others count.

mod socket;

use std::{io, sync::Arc, time::Duration};

use plimsoll_nats::{dead::chain, now_ms};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use self::socket::{Address, OpenError};
use self::socket::{MAX_DATAGRAM_BYTES, Socket};
use super::{
    influx,
    notes::Refusal,
    points::Gatherer,
    statsd::{self, Aggregator},
    text::{SyntaxError, lines},
};
use crate::{
    outlet::Outlet,
    schedule::{Decision, Schedule},
};

/// Time between two attempts to open a socket.
const RETRY: Duration = Duration::from_secs(10);
/// Time between two flushes of what was handed over as points.
const POINTS_INTERVAL: Duration = Duration::from_secs(1);
/// Most datagrams that are read before the clock is looked at.
const BURST: usize = 64;

/// What is spoken on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// StatsD, summed up over an interval.
    StatsD {
        /// Time between two flushes.
        interval: Duration,
    },
    /// Influx line protocol.
    Influx,
}

/// A socket on which samples are handed over.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    outlet: Arc<Outlet>,
    gatherer: Gatherer,
    schedule: Schedule,
    /// What is spoken; none is Influx line protocol.
    aggregator: Option<Aggregator>,
}

impl Listener {
    /// Does not listen yet.
    #[must_use]
    pub fn new(address: Address, protocol: Protocol, outlet: Arc<Outlet>, gatherer: Gatherer) -> Self {
        let (interval, aggregator) = match protocol {
            Protocol::StatsD { interval } => (interval, Some(Aggregator::new(interval))),
            Protocol::Influx => (POINTS_INTERVAL, None),
        };
        Self { address, outlet, gatherer, schedule: Schedule::new(interval), aggregator }
    }

    /// Listens until `stop`, then hands over what was gathered. A socket that can't be opened is tried again.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            match Socket::open(&self.address) {
                Ok(socket) => {
                    self.gatherer.notes().succeeded();
                    if let Err(error) = self.serve(&socket, &stop).await {
                        self.gatherer.notes().failed(chain(&error));
                    }
                }
                Err(error) => self.gatherer.notes().failed(chain(&error)),
            }
            if stop.run_until_cancelled(sleep(RETRY)).await.is_none() {
                break;
            }
        }
        self.flush(second(now_ms()));
    }

    /// Reads until `stop`. Fails when the socket does.
    async fn serve(&mut self, socket: &Socket, stop: &CancellationToken) -> Result<(), io::Error> {
        // One byte more, by which one that was cut off is known.
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES + 1];
        loop {
            let pause = match self.schedule.decide(now_ms()) {
                Decision::Sleep(pause) => pause,
                Decision::Take(tick_ms) => {
                    self.flush(tick_ms);
                    continue;
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.burst(socket, &mut buffer),
                () = sleep(pause) => {}
                readable = socket.readable() => {
                    readable?;
                    self.burst(socket, &mut buffer)?;
                }
            }
        }
    }

    /// Reads what is there. Fails when the socket does.
    fn burst(&mut self, socket: &Socket, buffer: &mut [u8]) -> Result<(), io::Error> {
        for _ in 0..BURST {
            match socket.try_recv(buffer) {
                Ok(count) => self.take(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, datagram: &[u8]) {
        if datagram.len() > MAX_DATAGRAM_BYTES {
            let detail = || format!("a datagram is longer than {MAX_DATAGRAM_BYTES} bytes");
            self.gatherer.notes().refuse(Refusal::Malformed, 1, detail);
            return;
        }
        let arrival_ms = second(now_ms());
        for (index, line) in lines(datagram) {
            if let Err(error) = line.and_then(|line| self.take_line(index, line, arrival_ms)) {
                let detail = || format!("{error}, in a datagram of {} bytes", datagram.len());
                self.gatherer.notes().refuse(Refusal::Malformed, 1, detail);
            }
        }
    }

    fn take_line(&mut self, index: usize, line: &str, arrival_ms: i64) -> Result<(), SyntaxError> {
        match &mut self.aggregator {
            None => {
                let point = influx::parse_line(line).map_err(|error| error.in_line(index, line))?;
                point.into_iter().for_each(|point| self.gatherer.add(point, arrival_ms));
            }
            Some(aggregator) => {
                let metric = statsd::parse_line(line).map_err(|error| error.in_line(index, line))?;
                let Some(Err(refusal)) = metric.map(|metric| aggregator.add(&metric)) else { return Ok(()) };
                let detail = || format!("at most {} series are taken between two flushes", statsd::MAX_SERIES);
                self.gatherer.notes().refuse(refusal, 1, detail);
            }
        }
        Ok(())
    }

    fn flush(&mut self, tick_ms: i64) {
        if let Some(aggregator) = &mut self.aggregator {
            aggregator.flush(tick_ms, &mut self.gatherer);
        }
        self.gatherer.send(&self.outlet);
    }
}

/// The second that a time is in.
fn second(ms: i64) -> i64 {
    ms - ms.rem_euclid(1000)
}
