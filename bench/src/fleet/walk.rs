//! Values that walk and counters that grow.

use super::random::Random;

/// A value that takes small steps between two bounds.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    value: f64,
    low: f64,
    high: f64,
    step: f64,
}

impl Walk {
    /// Begins anywhere between the bounds and moves by up to `step` a second.
    pub(super) fn new(random: &mut Random, low: f64, high: f64, step: f64) -> Self {
        Self { value: random.within(low, high), low, high, step }
    }

    /// The value after some seconds.
    pub(super) fn next(&mut self, random: &mut Random, seconds: f64) -> f64 {
        // A walk's distance grows with the root of the time.
        let reach = self.step * seconds.sqrt();
        self.value = (self.value + random.within(-reach, reach)).clamp(self.low, self.high);
        self.value
    }

    pub(super) fn whole(&mut self, random: &mut Random, seconds: f64) -> i64 {
        self.next(random, seconds) as i64
    }
}

/// A count since the host's boot.
#[derive(Debug, Clone, Default)]
pub(super) struct Counter(u64);

impl Counter {
    /// As if the host had been up for a while at `rate` a second.
    pub(super) fn grown(random: &mut Random, rate: f64) -> Self {
        const UP_SECONDS: f64 = 1_000_000.0;
        Self((rate * random.within(0.1, 1.0) * UP_SECONDS) as u64)
    }

    /// Adds and returns the sum.
    pub(super) fn add(&mut self, amount: u64) -> i64 {
        self.0 += amount;
        self.value()
    }

    pub(super) fn value(&self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// The count of a unit of which `per_second` make a second.
    pub(super) fn seconds(&self, per_second: f64) -> f64 {
        self.0 as f64 / per_second
    }

    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}
