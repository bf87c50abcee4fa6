//! How busy a host is: everything on it follows from that.

use super::random::Random;

const DAY_MS: f64 = 86_400_000.0;

/// A share of the host's processors: a level of its own, a wave through the day, small steps, and bursts.
#[derive(Debug, Clone)]
pub(super) struct Load {
    base: f64,
    wave: f64,
    /// When in the day the wave is highest, as a share of it.
    peak: f64,
    drift: f64,
    burst_seconds: f64,
}

impl Load {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            base: random.within(0.02, 0.6),
            wave: random.within(0.0, 0.25),
            peak: random.unit(),
            drift: 0.0,
            burst_seconds: 0.0,
        }
    }

    /// The load, in `[0, 1]`, some seconds after the one before.
    pub(super) fn next(&mut self, random: &mut Random, time_ms: i64, seconds: f64) -> f64 {
        const BURSTS_AN_HOUR: f64 = 0.7;
        let reach = 0.02 * seconds.sqrt();
        self.drift = (self.drift + random.within(-reach, reach)).clamp(-0.15, 0.15);
        if random.happens(BURSTS_AN_HOUR * seconds / 3600.0) {
            self.burst_seconds = random.within(10.0, 240.0);
        }
        self.burst_seconds -= seconds;
        if self.burst_seconds > 0.0 {
            return random.within(0.88, 1.0);
        }
        let turn = (time_ms as f64 / DAY_MS - self.peak) * std::f64::consts::TAU;
        (self.base + self.wave * turn.cos() + self.drift + random.within(-0.02, 0.02)).clamp(0.002, 0.99)
    }
}
