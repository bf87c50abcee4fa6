//! Quantiles of a sketch that is added up in memory.

use std::collections::BTreeMap;

use super::{SKETCH_GAMMA, SKETCH_OFFSET};

/// So many keys stand in a row, half of them below the first one that came: more than two orders of magnitude.
const WINDOW: usize = 512;
/// How many counts are kept as they came.
const FEW: usize = 128;

/// Counts by key, added up. A quantile of them is what DuckDB's `quantile_cont` gives of the values, within 1 %; see
/// [`super::sketch`].
#[derive(Debug, Clone, Default)]
pub struct Sketch {
    /// The first counts as they came: most sketches that are read have no more.
    few: Vec<(i32, u64)>,
    window: Option<Window>,
}

#[derive(Debug, Clone)]
struct Window {
    /// The key of the first count.
    start: i32,
    counts: Box<[u64; WINDOW]>,
    /// Counts of keys that are not in the window.
    others: BTreeMap<i32, u64>,
}

impl Sketch {
    /// Adds how often a key counts.
    pub fn add(&mut self, key: i32, count: u64) {
        if let Some(window) = &mut self.window {
            return window.add(key, count);
        }
        self.few.push((key, count));
        if self.few.len() > FEW {
            let mut window = Window {
                start: key.saturating_sub((WINDOW / 2) as i32),
                counts: Box::new([0; WINDOW]),
                others: BTreeMap::new(),
            };
            self.few.drain(..).for_each(|(key, count)| window.add(key, count));
            self.few.shrink_to_fit();
            self.window = Some(window);
        }
    }

    /// The quantiles, from 0 to 1, in the order asked for; none where nothing was added.
    #[must_use]
    pub fn quantiles(&self, quantiles: &[f64]) -> Option<Vec<f64>> {
        let counts = self.sorted();
        let total: u64 = counts.iter().map(|(_, count)| count).sum();
        let last = total.checked_sub(1)?;
        let quantile = |quantile: &f64| {
            let rank = quantile * last as f64;
            let (below, above) = (number(key_at(&counts, rank.floor())), number(key_at(&counts, rank.ceil())));
            // In this form also where the difference of the two is beyond the largest double.
            below * (1.0 - rank.fract()) + above * rank.fract()
        };
        Some(quantiles.iter().map(quantile).collect())
    }

    /// The counts in the order of their keys.
    fn sorted(&self) -> Vec<(i32, u64)> {
        let mut counts = self.few.clone();
        if let Some(window) = &self.window {
            counts.extend(window.others.iter().map(|(key, count)| (*key, *count)));
            counts.extend((window.start..).zip(window.counts.iter().copied()).filter(|(_, count)| *count > 0));
        }
        counts.sort_unstable();
        counts
    }
}

impl Window {
    fn add(&mut self, key: i32, count: u64) {
        let place = usize::try_from(i64::from(key) - i64::from(self.start)).unwrap_or(usize::MAX);
        match self.counts.get_mut(place) {
            Some(sum) => *sum += count,
            None => *self.others.entry(key).or_default() += count,
        }
    }
}

/// The key of the value of that rank, from 0, in the order of values.
fn key_at(counts: &[(i32, u64)], rank: f64) -> i32 {
    let mut upto = 0;
    let found = counts.iter().find(|(_, count)| {
        upto += count;
        upto as f64 > rank
    });
    found.or(counts.last()).map_or(0, |(key, _)| *key)
}

/// The number that a key stands for, as [`super::number_sql`] has it.
fn number(key: i32) -> f64 {
    if key == 0 {
        return 0.0;
    }
    let exponent = f64::from(key.abs() - SKETCH_OFFSET - 1);
    f64::from(key.signum()) * SKETCH_GAMMA.powf(exponent) * (2.0 * SKETCH_GAMMA / (SKETCH_GAMMA + 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The key of a number, as [`super::super::key_sql`] has it.
    fn key(number: f64) -> i32 {
        let k = |number: f64| (number.ln() / SKETCH_GAMMA.ln()).ceil() as i32 + SKETCH_OFFSET;
        if number == 0.0 { 0 } else { k(number.abs()) * number.signum() as i32 }
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_values_within_one_percent(
            values in prop::collection::vec(prop_oneof![
                4 => -1e3..1e3_f64, 1 => Just(0.0), 4 => 40.0..60.0_f64, 1 => -1e200..1e200_f64, 1 => 1e-200..1e-100_f64
            ], 1..600),
            quantile in prop_oneof![Just(0.0), Just(0.5), Just(0.95), Just(1.0), 0.0..1.0_f64]
        ) {
            let mut sketch = Sketch::default();
            values.iter().for_each(|value| sketch.add(key(*value), 1));
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let rank = quantile * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
            let wanted = below * (1.0 - rank.fract()) + above * rank.fract();
            let found = sketch.quantiles(&[quantile]).expect("values")[0];
            // Between values of both signs, of the larger one.
            prop_assert!((found - wanted).abs() <= 0.01 * below.abs().max(above.abs()), "{} is no {}", found, wanted);
        }
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Sketch::default().quantiles(&[0.5]), None);
    }
}
