//! The agent's measurement of itself.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use plimsoll_nats::{catalog, now_ms};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    buffer::BufferStats,
    delivery::Delivery,
    events::EventSink,
    outlet::Outlet,
    rows::Rows,
    schedule::{Decision, Schedule},
};

/// Shortest time between two samples: they are about the agent, not the host.
pub const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// Measures this process and what it holds.
#[derive(Debug)]
pub struct Vitals {
    delivery: Delivery,
    events: EventSink,
    started: Instant,
    rows: Rows,
}

impl Vitals {
    /// Measures this delivery and these events.
    ///
    /// # Panics
    /// Never: the catalog has the measurement, as a test proves.
    #[must_use]
    pub fn new(delivery: Delivery, events: EventSink) -> Self {
        let spec = catalog::measurement("agent").expect("the catalog has the agent's own measurement");
        Self { delivery, events, started: Instant::now(), rows: Rows::new(spec) }
    }

    /// Samples at the interval, but no more often than every [`MIN_INTERVAL`], until `shutdown`.
    pub async fn run(mut self, interval: Duration, outlet: Arc<Outlet>, shutdown: CancellationToken) {
        let mut schedule = Schedule::new(interval.max(MIN_INTERVAL));
        while !shutdown.is_cancelled() {
            match schedule.decide(now_ms()) {
                Decision::Sleep(pause) => drop(shutdown.run_until_cancelled(sleep(pause)).await),
                Decision::Take(tick_ms) => self.sample(tick_ms, &outlet),
            }
        }
    }

    fn sample(&mut self, tick_ms: i64, outlet: &Outlet) {
        self.read();
        outlet.push_rows([(tick_ms, &self.rows)]);
        self.rows.clear();
    }

    fn read(&mut self) {
        let BufferStats { batches, bytes, spool, dropped, published, published_bytes } = self.delivery.stats();
        self.rows.push(
            &[],
            &[
                ("cpu_seconds_total", cpu_seconds().into()),
                ("resident_bytes", resident_bytes().into()),
                ("open_files", open_files().into()),
                ("uptime_seconds", self.started.elapsed().as_secs_f64().into()),
                ("buffer_batches", batches.into()),
                ("buffer_bytes", bytes.into()),
                ("spool_batches", spool.batches.into()),
                ("spool_bytes", spool.bytes.into()),
                ("spool_segments", spool.segments.into()),
                ("published_batches_total", published.into()),
                ("published_bytes_total", published_bytes.into()),
                ("dropped_batches_total", dropped.into()),
                ("dropped_events_total", self.events.dropped().into()),
                ("corrupt_records_total", spool.corrupt.into()),
            ],
        );
    }
}

/// What all threads of this process have used of the processors, `clock_gettime(2)`.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// None elsewhere than on Linux.
fn resident_bytes() -> Option<u64> {
    parse_resident(&fs::read_to_string("/proc/self/status").ok()?)
}

/// The line `VmRSS:      1234 kB` of proc_pid_status(5).
fn parse_resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

fn open_files() -> Option<u64> {
    // The one by which the folder is read is there as well.
    let files = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(files.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::Column;

    use super::*;
    use crate::config::SpoolConfig;

    #[test]
    fn the_catalog_describes_what_is_measured() {
        let (delivery, _) = Delivery::open(1024 * 1024, &SpoolConfig::default(), None);
        let mut vitals = Vitals::new(delivery, EventSink::default());
        vitals.read();
        let columns = vitals.rows.take();
        let Column::Float(cpu) = &columns.fields["cpu_seconds_total"] else { panic!("a float") };
        assert!(cpu[0].unwrap() > 0.0);
        let integer = |name: &str| match &columns.fields[name] {
            Column::Integer(values) => values[0],
            column => panic!("`{name}` is {column:?}"),
        };
        assert_eq!(integer("spool_batches"), Some(0));
        if cfg!(target_os = "linux") {
            assert!(integer("resident_bytes").unwrap() > 1024 * 1024);
            assert!(integer("open_files").unwrap() > 2);
        }
    }

    #[test]
    fn memory_is_read_from_the_status() {
        assert_eq!(parse_resident("Name:\tx\nVmPeak:\t 9 kB\nVmRSS:\t    1234 kB\n"), Some(1234 * 1024));
        for strange in ["", "VmRSS:", "VmRSS:\t12 MB", "VmRSS:\t-1 kB", "VmRSS:\t18446744073709551615 kB"] {
            assert_eq!(parse_resident(strange), None, "{strange}");
        }
    }
}
