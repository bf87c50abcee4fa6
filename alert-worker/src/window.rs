//! Sliding windows: the rows of one series within `(newest - length, newest]` of event time, as one number.
//!
//! Rows may come out of order; one that is older than the window is refused. Of rows with the same time the one that came
//! last is the newest. Each window keeps no more than its aggregate needs, and both inserting in order and reading cost
//! amortized O(1): `last` is one row; `min` and `max` are the deque of rows that no newer row surpasses; `avg` is all rows
//! with a compensated sum (Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen", 1974), which
//! is built anew after as many evictions as there are rows, so that no error outlives the rows that it came from.

use std::collections::VecDeque;

use plimsoll_nats::rule::Aggregate;

/// A value at a time in Unix ms.
type Point = (i64, f64);

/// The rows of one series that a rule looks at.
#[derive(Debug, Clone)]
pub struct Window {
    length_ms: i64,
    newest_ms: Option<i64>,
    points: Points,
}

#[derive(Debug, Clone)]
enum Points {
    Last(Option<Point>),
    Mean(Mean),
    Extreme(Extreme),
}

impl Window {
    /// An empty window of `length_ms`, which is above 0.
    #[must_use]
    pub fn new(aggregate: Aggregate, length_ms: i64) -> Self {
        let points = match aggregate {
            Aggregate::Last => Points::Last(None),
            Aggregate::Avg => Points::Mean(Mean::default()),
            Aggregate::Min => Points::Extreme(Extreme { largest: false, points: VecDeque::new() }),
            Aggregate::Max => Points::Extreme(Extreme { largest: true, points: VecDeque::new() }),
        };
        Self { length_ms, newest_ms: None, points }
    }

    /// Takes a row in, and lets go of those that its time puts outside. Returns false when it is itself too old.
    pub fn insert(&mut self, time_ms: i64, value: f64) -> bool {
        let newest = self.newest_ms.map_or(time_ms, |newest| newest.max(time_ms));
        let begin = newest.saturating_sub(self.length_ms);
        if time_ms <= begin {
            return false;
        }
        self.newest_ms = Some(newest);
        match &mut self.points {
            Points::Last(last) => {
                if last.is_none_or(|(time, _)| time_ms >= time) {
                    *last = Some((time_ms, value));
                }
            }
            Points::Mean(mean) => {
                mean.insert(time_ms, value);
                mean.evict(begin);
            }
            Points::Extreme(extreme) => {
                extreme.insert(time_ms, value);
                extreme.evict(begin);
            }
        }
        true
    }

    /// The aggregate over the window that ends with the newest row; none before the first row.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        match &self.points {
            Points::Last(last) => last.map(|(_, value)| value),
            Points::Mean(mean) => mean.value(),
            Points::Extreme(extreme) => extreme.points.front().map(|(_, value)| *value),
        }
    }
}

/// Where a row of this time belongs: behind those of the same time.
fn place(points: &VecDeque<Point>, time_ms: i64) -> usize {
    match points.back() {
        Some((time, _)) if *time > time_ms => points.partition_point(|(time, _)| *time <= time_ms),
        _ => points.len(),
    }
}

#[derive(Debug, Clone, Default)]
struct Mean {
    points: VecDeque<Point>,
    sum: Sum,
    evicted: usize,
}

impl Mean {
    fn insert(&mut self, time_ms: i64, value: f64) {
        self.points.insert(place(&self.points, time_ms), (time_ms, value));
        self.sum.add(value);
    }

    fn evict(&mut self, begin_ms: i64) {
        while let Some((time, value)) = self.points.front().copied()
            && time <= begin_ms
        {
            self.points.pop_front();
            self.sum.add(-value);
            self.evicted += 1;
        }
        if self.evicted >= self.points.len() {
            self.evicted = 0;
            self.sum = Sum::default();
            self.points.iter().for_each(|(_, value)| self.sum.add(*value));
        }
    }

    fn value(&self) -> Option<f64> {
        if self.points.is_empty() {
            return None;
        }
        let count = self.points.len() as f64;
        let mean = self.sum.total() / count;
        // A sum of finite values may be too large for a float, their mean is not.
        Some(if mean.is_finite() { mean } else { self.points.iter().map(|(_, value)| value / count).sum() })
    }
}

/// A running sum with the error of each addition beside it.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    sum: f64,
    error: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.error += if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        self.sum = sum;
    }

    fn total(self) -> f64 {
        self.sum + self.error
    }
}

/// Rows in order of time, each surpassing all that follow it.
#[derive(Debug, Clone)]
struct Extreme {
    largest: bool,
    points: VecDeque<Point>,
}

impl Extreme {
    fn surpasses(&self, value: f64, other: f64) -> bool {
        if self.largest { value >= other } else { value <= other }
    }

    fn insert(&mut self, time_ms: i64, value: f64) {
        let mut place = place(&self.points, time_ms);
        if self.points.get(place).is_some_and(|(_, newer)| self.surpasses(*newer, value)) {
            return;
        }
        while place > 0 && self.points.get(place - 1).is_some_and(|(_, older)| self.surpasses(value, *older)) {
            place -= 1;
            self.points.remove(place);
        }
        self.points.insert(place, (time_ms, value));
    }

    fn evict(&mut self, begin_ms: i64) {
        while self.points.front().is_some_and(|(time, _)| *time <= begin_ms) {
            self.points.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The aggregate over `(newest - length, newest]` of all rows ever inserted.
    fn naive(aggregate: Aggregate, length_ms: i64, rows: &[Point]) -> Option<f64> {
        let newest = rows.iter().map(|(time, _)| *time).max()?;
        let within = || rows.iter().filter(|(time, _)| *time > newest - length_ms).map(|(_, value)| *value);
        match aggregate {
            Aggregate::Last => rows.iter().rfind(|(time, _)| *time == newest).map(|(_, value)| *value),
            Aggregate::Avg => Some(within().sum::<f64>() / within().count() as f64),
            Aggregate::Min => within().reduce(f64::min),
            Aggregate::Max => within().reduce(f64::max),
        }
    }

    fn aggregate() -> impl Strategy<Value = Aggregate> {
        prop_oneof![Just(Aggregate::Last), Just(Aggregate::Avg), Just(Aggregate::Min), Just(Aggregate::Max)]
    }

    proptest! {
        #[test]
        fn a_window_equals_the_naive_model(
            aggregate in aggregate(),
            length in 1_i64..20,
            steps in proptest::collection::vec((-8_i64..5, -50_i32..50), 1..200),
        ) {
            let mut window = Window::new(aggregate, length);
            let (mut clock, mut rows) = (0, Vec::new());
            for (step, value) in steps {
                let time = clock + step;
                clock = if rows.is_empty() { time } else { clock.max(time) };
                // Rows outside are refused, and the naive model never looks at them.
                prop_assert_eq!(window.insert(time, value.into()), time > clock - length);
                rows.push((time, f64::from(value)));
                prop_assert_eq!(window.value(), naive(aggregate, length, &rows));
            }
        }
    }

    #[test]
    fn a_mean_does_not_remember_what_has_left() {
        let mut window = Window::new(Aggregate::Avg, 2);
        for (time, value) in [(1, 1e300), (2, 1e-3), (3, 1e17), (4, 0.5), (5, 0.25)] {
            window.insert(time, value);
        }
        assert_eq!(window.value(), Some(0.375));
    }

    #[test]
    fn a_mean_of_huge_values_is_finite() {
        let mut window = Window::new(Aggregate::Avg, 10);
        window.insert(1, f64::MAX);
        window.insert(2, f64::MAX);
        assert_eq!(window.value(), Some(f64::MAX));
    }

    #[test]
    fn hostile_times_do_no_harm() {
        let mut window = Window::new(Aggregate::Max, 10);
        assert!(!window.insert(i64::MIN, 1.0));
        assert!(window.insert(i64::MAX, 2.0));
        assert!(!window.insert(0, 3.0));
        assert_eq!(window.value(), Some(2.0));
    }
}
