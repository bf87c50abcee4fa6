//! When to take a sample: at the multiples of the interval in wall time.

use std::time::Duration;

/// Longest sleep before the clock is looked at again, so that a step of the clock is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// How far the clock may step back while the ticks before the step are waited for; past it, the clock is followed.
const PATIENCE_MS: i64 = 10_000;

/// What to do at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Sleep for at most this long, then ask again.
    Sleep(Duration),
    /// Take the sample of this tick, in Unix ms.
    Take(i64),
}

/// The ticks of one collector. Each is taken at most once; one that is late by half an interval is skipped.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval_ms: i64,
    last: Option<i64>,
}

impl Schedule {
    /// Ticks at the multiples of `interval`, which counts in whole milliseconds and is at least one.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
        Self { interval_ms, last: None }
    }

    /// What to do at `now_ms`, in Unix ms. A tick that it says to take counts as taken.
    pub fn decide(&mut self, now_ms: i64) -> Decision {
        let tick = now_ms - now_ms.rem_euclid(self.interval_ms);
        if self.last.is_none() && now_ms > tick {
            // It began before this schedule: an agent that ran before this one may have taken it.
            self.last = Some(tick);
        }
        let on_time = now_ms - tick < (self.interval_ms + 1) / 2;
        if on_time && self.is_due(tick, now_ms) {
            self.last = Some(tick);
            return Decision::Take(tick);
        }
        let mut next = tick + self.interval_ms;
        if let Some(last) = self.last.filter(|last| *last >= next && self.is_patient(*last, now_ms)) {
            next = last + self.interval_ms;
        }
        Decision::Sleep(Duration::from_millis((next - now_ms).unsigned_abs()).min(LONGEST_SLEEP))
    }

    fn is_due(&self, tick: i64, now_ms: i64) -> bool {
        self.last.is_none_or(|last| tick > last || !self.is_patient(last, now_ms))
    }

    /// Whether the clock has stepped back by no more than what is waited for.
    fn is_patient(&self, last: i64, now_ms: i64) -> bool {
        last - now_ms <= PATIENCE_MS.max(self.interval_ms)
    }
}

/// The ticks of many collectors, of which the next is waited for: one timer for all.
#[derive(Debug, Clone)]
pub struct Wheel {
    schedules: Vec<Schedule>,
}

impl Wheel {
    /// Turns these schedules, which are known by their place.
    #[must_use]
    pub fn new(schedules: Vec<Schedule>) -> Self {
        Self { schedules }
    }

    /// Puts the place and tick, in Unix ms, of every schedule that is to be taken at `now_ms` in `due`, and returns how long at
    /// most to sleep when nothing is.
    pub fn turn(&mut self, now_ms: i64, due: &mut Vec<(usize, i64)>) -> Duration {
        due.clear();
        let mut pause = LONGEST_SLEEP;
        for (place, schedule) in self.schedules.iter_mut().enumerate() {
            match schedule.decide(now_ms) {
                Decision::Take(tick_ms) => due.push((place, tick_ms)),
                Decision::Sleep(longest) => pause = pause.min(longest),
            }
        }
        pause
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sleep(ms: u64) -> Decision {
        Decision::Sleep(Duration::from_millis(ms))
    }

    #[test]
    fn ticks_are_multiples_and_taken_once() {
        let mut schedule = Schedule::new(Duration::from_secs(1));
        assert_eq!(schedule.decide(10_900), sleep(100));
        assert_eq!(schedule.decide(11_002), Decision::Take(11_000));
        assert_eq!(schedule.decide(11_003), sleep(997));
        assert_eq!(schedule.decide(12_000), Decision::Take(12_000));
    }

    #[test]
    fn a_tick_that_began_before_the_schedule_is_left_out() {
        let mut schedule = Schedule::new(Duration::from_secs(1));
        assert_eq!(schedule.decide(11_050), sleep(950));
        assert_eq!(schedule.decide(12_001), Decision::Take(12_000));
    }

    #[test]
    fn late_and_missed_ticks_are_skipped() {
        let mut schedule = Schedule::new(Duration::from_secs(1));
        assert_eq!(schedule.decide(11_000), Decision::Take(11_000));
        assert_eq!(schedule.decide(12_500), sleep(500));
        assert_eq!(schedule.decide(60_499), Decision::Take(60_000));
    }

    #[test]
    fn a_small_step_back_doubles_nothing_and_a_great_one_is_followed() {
        let mut schedule = Schedule::new(Duration::from_secs(1));
        assert_eq!(schedule.decide(20_000), Decision::Take(20_000));
        assert_eq!(schedule.decide(17_000), sleep(4_000));
        assert_eq!(schedule.decide(20_000), sleep(1_000));
        assert_eq!(schedule.decide(21_000), Decision::Take(21_000));
        assert_eq!(schedule.decide(5_000), Decision::Take(5_000));
        assert_eq!(schedule.decide(6_000), Decision::Take(6_000));
    }

    #[test]
    fn one_turn_takes_all_that_is_due_and_sleeps_until_the_first() {
        let intervals = [Duration::from_secs(1), Duration::from_millis(250), Duration::from_secs(2)];
        let mut wheel = Wheel::new(intervals.map(Schedule::new).to_vec());
        let mut due = Vec::new();
        assert_eq!(wheel.turn(10_900, &mut due), Duration::from_millis(100));
        assert_eq!(due, []);
        assert_eq!(wheel.turn(11_001, &mut due), Duration::from_millis(999));
        assert_eq!(due, [(0, 11_000), (1, 11_000)]);
        assert_eq!(wheel.turn(11_002, &mut due), Duration::from_millis(248));
        assert_eq!(due, []);
        wheel.turn(12_000, &mut due);
        assert_eq!(due, [(0, 12_000), (1, 12_000), (2, 12_000)]);
        assert_eq!(Wheel::new(Vec::new()).turn(0, &mut due), LONGEST_SLEEP);
        assert_eq!(due, []);
    }

    #[test]
    fn a_long_sleep_is_broken_up() {
        assert_eq!(
            Schedule::new(Duration::from_secs(3_600)).decide(3_599_000 - 1_000_000),
            Decision::Sleep(LONGEST_SLEEP)
        );
    }

    proptest! {
        #[test]
        fn whatever_the_clock_does_no_burst_comes(
            interval in 100_i64..5_000,
            start in 0_i64..1_000_000_000,
            steps in proptest::collection::vec((0_i64..3_000, -9_000_i64..9_000, proptest::bool::weighted(0.1)), 1..200),
        ) {
            let mut schedule = Schedule::new(Duration::from_millis(interval.unsigned_abs()));
            let mut now = start;
            let mut taken = std::collections::HashSet::new();
            for (passed, jump, jumps) in steps {
                now = (now + passed + if jumps { jump } else { 0 }).max(0);
                match schedule.decide(now) {
                    Decision::Take(tick) => {
                        prop_assert_eq!(tick % interval, 0);
                        prop_assert!(tick <= now && now - tick <= interval / 2);
                        // Only a step back beyond the schedule's patience may bring a tick again.
                        taken.insert(tick);
                        prop_assert!(matches!(schedule.decide(now), Decision::Sleep(_)));
                    }
                    Decision::Sleep(pause) => prop_assert!(!pause.is_zero() && pause <= LONGEST_SLEEP),
                }
            }
        }
    }
}
