//! Notices steps of the wall clock by holding it against the clock that counts since the boot.
//!
//! `CLOCK_BOOTTIME` goes on while the host sleeps (`clock_gettime(2)`), and so does the wall clock: a resume is no step. The kernel
//! slews the wall clock by at most 500 parts in a million (`adjtimex(2)`), far below what counts as a step within a second.

use std::time::Duration;

use plimsoll_nats::event::EventKind;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::events::{Event, EventSink};

/// How often the clocks are read.
const EVERY: Duration = Duration::from_secs(1);
/// A step smaller than this is not told.
const SMALLEST_STEP_NS: i64 = 1_000_000_000;
/// Readings of both clocks that lie further apart than this say nothing, as when the agent was suspended in between.
const MAX_SPREAD_NS: i64 = 50_000_000;

#[cfg(target_os = "linux")]
const SINCE_BOOT: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const SINCE_BOOT: ClockId = ClockId::Monotonic;

/// Both clocks at a moment, in nanoseconds: the clock since the boot is read before and after the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Since the boot, before.
    pub before: i64,
    /// Since 1970.
    pub wall: i64,
    /// Since the boot, after.
    pub after: i64,
}

impl Reading {
    fn now() -> Self {
        Self { before: read(SINCE_BOOT), wall: read(ClockId::Realtime), after: read(SINCE_BOOT) }
    }
}

fn read(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// How far the wall clock is ahead of the clock since the boot.
#[derive(Debug, Default)]
pub struct ClockWatch {
    offset: Option<i64>,
}

impl ClockWatch {
    /// By how many nanoseconds the wall clock has stepped since the last reading; none when it has not.
    pub fn observe(&mut self, reading: Reading) -> Option<i64> {
        if reading.after - reading.before > MAX_SPREAD_NS {
            return None;
        }
        let offset = reading.wall - reading.before;
        let step = offset - self.offset.replace(offset)?;
        (step.abs() >= SMALLEST_STEP_NS).then_some(step)
    }
}

/// Emits an event for each step of the wall clock until `shutdown`.
pub async fn run(events: EventSink, shutdown: CancellationToken) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = ClockWatch::default();
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Some(step) = watch.observe(Reading::now()) {
            events.emit(event(step));
        }
    }
}

fn event(step_ns: i64) -> Event {
    let seconds = step_ns as f64 / 1e9;
    let direction = if seconds > 0.0 { "forward" } else { "back" };
    let message = format!("The clock was set {direction} by {:.3} s", seconds.abs());
    Event::new(EventKind::ClockStep, "", message).with("step_seconds", seconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at(boot: i64, wall: i64) -> Reading {
        Reading { before: boot, wall, after: boot + 1000 }
    }

    #[test]
    fn a_step_is_told_once_with_its_direction() {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.observe(at(0, 1000 * SECOND)), None);
        assert_eq!(watch.observe(at(SECOND, 1001 * SECOND)), None);
        assert_eq!(watch.observe(at(2 * SECOND, 902 * SECOND)), Some(-100 * SECOND));
        assert_eq!(watch.observe(at(3 * SECOND, 903 * SECOND)), None);
        // A night's sleep, which both clocks count.
        assert_eq!(watch.observe(at(30_000 * SECOND, 30_900 * SECOND)), None);
        let step = watch.observe(at(30_001 * SECOND, 30_903 * SECOND)).unwrap();
        let event = event(step);
        assert_eq!(event.message, "The clock was set forward by 2.000 s");
        assert_eq!(event.attributes["step_seconds"], 2.0);
    }

    #[test]
    fn a_pause_between_the_readings_is_no_step() {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.observe(at(0, 0)), None);
        let paused = Reading { before: SECOND, wall: 9 * SECOND, after: 9 * SECOND };
        assert_eq!(watch.observe(paused), None);
        assert_eq!(watch.observe(at(10 * SECOND, 10 * SECOND)), None);
    }

    #[test]
    fn this_hosts_clocks_agree() {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.observe(Reading::now()), None);
        assert!(Reading::now().before > 0 && Reading::now().wall > 1_600_000_000 * SECOND);
    }

    proptest! {
        /// Slewing at the kernel's limit tells nothing, however long; each step is told with its size.
        #[test]
        fn only_steps_are_told(ticks in proptest::collection::vec((1_i64..100_000, -500_i64..=500, prop::option::weighted(0.2, -1000_i64..1000)), 1..100)) {
            let mut watch = ClockWatch::default();
            let (mut boot, mut wall) = (0, 5000 * SECOND);
            watch.observe(at(boot, wall));
            for (ms, slew, step) in ticks {
                let passed = ms.min(1_900) * 1_000_000;
                let step = step.filter(|step| step.abs() > 2).unwrap_or(0) * SECOND;
                boot += passed;
                wall += passed + passed / 1_000_000 * slew + step;
                let told = watch.observe(at(boot, wall));
                prop_assert_eq!(told.is_some(), step != 0);
                prop_assert!(told.is_none_or(|told| (told - step).abs() < SECOND));
            }
        }
    }
}
