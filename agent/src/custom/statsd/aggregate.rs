//! Sums up what StatsD lines tell until the next flush.
//!
//! The measurement is the name up to its first dot, the field the rest with `_` for dots; without a dot, the measurement is `statsd`. A
//! gauge is the field itself; a counter ends in `_count`, a set in `_unique`; a timer has `_count`, `_min`, `_max`, `_mean`, `_p50`, `_p95`
//! and `_p99`. What nothing was told of since the last flush has no value, but a gauge is remembered for what raises or lowers it.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use super::{Change, Metric};
use crate::custom::{
    notes::Refusal,
    points::{FieldValue, Gatherer, Point},
};

/// Most series, remembered gauges included.
pub const MAX_SERIES: usize = 5_000;
/// Most memory that names and tags of series take, in bytes.
pub const MAX_SERIES_BYTES: usize = 4 * 1024 * 1024;
/// Most values that are kept for the percentiles of all timers between two flushes.
pub const MAX_TIMINGS: usize = 131_072;
/// The same of one timer: from there on they are a random sample.
const MAX_TIMINGS_EACH: usize = 1_024;
/// Most members of all sets between two flushes.
pub const MAX_DISTINCT: usize = 131_072;
/// How long a gauge is remembered that nothing is told of.
const GAUGE_MEMORY: Duration = Duration::from_secs(3600);
/// The measurement of names without a dot.
const PLAIN: &str = "statsd";

/// What was told of every series since the last flush.
#[derive(Debug)]
pub struct Aggregator {
    series: HashMap<String, Series>,
    bytes: usize,
    timings: usize,
    members: usize,
    /// Flushes without news after which a gauge is forgotten.
    patience: u64,
    hasher: RandomState,
    random: Random,
    key: String,
}

#[derive(Debug, Default)]
struct Series {
    measurement: String,
    field: String,
    tags: Vec<(String, String)>,
    count: Option<f64>,
    gauge: Option<Gauge>,
    timing: Option<Timing>,
    members: HashSet<u64>,
}

#[derive(Debug, Default)]
struct Gauge {
    value: f64,
    told: bool,
    /// Flushes since something was told.
    idle: u64,
}

#[derive(Debug)]
struct Timing {
    /// How many values there were, each as many as its sample rate says.
    count: f64,
    sum: f64,
    min: f64,
    max: f64,
    /// How many values were told.
    told: u64,
    kept: Vec<f64>,
}

impl Aggregator {
    /// Nothing was told yet. `interval` is the time between two flushes.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        let patience = GAUGE_MEMORY.as_millis() / interval.as_millis().max(1);
        Self {
            series: HashMap::new(),
            bytes: 0,
            timings: 0,
            members: 0,
            patience: u64::try_from(patience).unwrap_or(u64::MAX).max(1),
            hasher: RandomState::new(),
            random: Random(0x9e37_79b9_7f4a_7c15),
            key: String::new(),
        }
    }

    /// Takes in a line. Fails when there is no room for what it tells.
    pub fn add(&mut self, metric: &Metric<'_>) -> Result<(), Refusal> {
        self.key.clear();
        self.key.push_str(metric.name);
        for (name, value) in &metric.tags {
            // Neither can occur in a line.
            self.key.extend(["\n", name, "\n", value]);
        }
        if !self.series.contains_key(&self.key) {
            if self.series.len() >= MAX_SERIES || self.bytes >= MAX_SERIES_BYTES {
                return Err(Refusal::Size);
            }
            self.bytes += self.key.len();
            self.series.insert(self.key.clone(), Series::new(metric));
        }
        let Some(series) = self.series.get_mut(&self.key) else { return Ok(()) };
        for change in &metric.changes {
            match *change {
                Change::Count(value) => *series.count.get_or_insert_default() += value,
                Change::Gauge(value) => series.gauge().value = value,
                Change::Shift(value) => series.gauge().value += value,
                Change::Timing(value, weight) => {
                    let timing = series.timing.get_or_insert_with(Timing::new);
                    let room = self.timings < MAX_TIMINGS;
                    self.timings += usize::from(timing.add(value, weight, room, &mut self.random));
                }
                Change::Member(member) => {
                    let member = self.hasher.hash_one(member);
                    if self.members < MAX_DISTINCT {
                        self.members += usize::from(series.members.insert(member));
                    } else if !series.members.contains(&member) {
                        return Err(Refusal::Size);
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands over what was told since the last flush, at `tick_ms`, and begins anew.
    pub fn flush(&mut self, tick_ms: i64, gatherer: &mut Gatherer) {
        for series in self.series.values() {
            gatherer.add(series.point(), tick_ms);
        }
        let patience = self.patience;
        self.series.retain(|_, series| series.begin_anew(patience));
        self.bytes = self.series.keys().map(String::len).sum();
        (self.timings, self.members) = (0, 0);
    }
}

impl Series {
    fn new(metric: &Metric<'_>) -> Self {
        let (measurement, field) = match metric.name.split_once('.') {
            Some((measurement, field)) if !measurement.is_empty() && !field.is_empty() => (measurement, field),
            _ => (PLAIN, metric.name),
        };
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self {
            measurement: measurement.to_owned(),
            field: field.to_owned(),
            tags: metric.tags.iter().map(owned).collect(),
            ..Self::default()
        }
    }

    fn gauge(&mut self) -> &mut Gauge {
        let gauge = self.gauge.get_or_insert_default();
        (gauge.told, gauge.idle) = (true, 0);
        gauge
    }

    fn point(&self) -> Point<'_> {
        let mut fields = Vec::new();
        let mut add = |ending: &str, value: f64| {
            fields.push((format!("{}{ending}", self.field).into(), FieldValue::Float(value)));
        };
        if let Some(gauge) = self.gauge.as_ref().filter(|gauge| gauge.told) {
            add("", gauge.value);
        }
        if let Some(count) = self.count {
            add("_count", count);
        }
        if let Some(timing) = &self.timing {
            timing.fields(&mut add);
        }
        if !self.members.is_empty() {
            add("_unique", self.members.len() as f64);
        }
        let tags = self.tags.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Point { measurement: (&self.measurement).into(), tags, fields, time_ms: None }
    }

    /// Forgets what was handed over. Returns whether something is to be remembered.
    fn begin_anew(&mut self, patience: u64) -> bool {
        (self.count, self.timing) = (None, None);
        self.members = HashSet::new();
        if let Some(gauge) = &mut self.gauge {
            gauge.told = false;
            gauge.idle += 1;
        }
        self.gauge.as_ref().is_some_and(|gauge| gauge.idle <= patience)
    }
}

impl Timing {
    fn new() -> Self {
        Self { count: 0.0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY, told: 0, kept: Vec::new() }
    }

    /// Takes in a value that stands for `weight` values. Returns whether that takes one more place.
    ///
    /// What is kept is a uniform sample: Vitter's algorithm R, with as many places as there was room for.
    fn add(&mut self, value: f64, weight: f64, room: bool, random: &mut Random) -> bool {
        self.count += weight;
        self.sum += value * weight;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.told += 1;
        if room && self.kept.len() < MAX_TIMINGS_EACH {
            self.kept.push(value);
            return true;
        }
        let place = usize::try_from(random.next() % self.told).unwrap_or(usize::MAX);
        if let Some(kept) = self.kept.get_mut(place) {
            *kept = value;
        }
        false
    }

    fn fields(&self, add: &mut impl FnMut(&str, f64)) {
        add("_count", self.count);
        add("_min", self.min);
        add("_max", self.max);
        add("_mean", self.sum / self.count);
        let mut sorted = self.kept.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        for (ending, percent) in [("_p50", 50), ("_p95", 95), ("_p99", 99)] {
            if let Some(value) = percentile(&sorted, percent) {
                add(ending, value);
            }
        }
    }
}

/// The smallest value that so many percent of the values do not exceed: the nearest-rank percentile.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

/// Numbers without a pattern that matters here: Marsaglia's xorshift.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::custom::{notes::SourceNotes, schema::Schema, statsd::parse_line};

    fn aggregator() -> Aggregator {
        Aggregator::new(Duration::from_secs(10))
    }

    fn add(aggregator: &mut Aggregator, line: &str) -> Result<(), Refusal> {
        aggregator.add(&parse_line(line).unwrap().unwrap())
    }

    /// What a flush would hand over, by measurement, tags and field.
    fn told(aggregator: &Aggregator) -> BTreeMap<String, f64> {
        let points = aggregator.series.values().map(Series::point);
        let named = points.flat_map(|point| {
            let tags: String = point.tags.iter().map(|(name, value)| format!(",{name}={value}")).collect();
            let named = |(field, value): (_, FieldValue<'_>)| match value {
                FieldValue::Float(value) => (format!("{}{tags} {field}", point.measurement), value),
                other => panic!("{other:?}"),
            };
            point.fields.into_iter().map(named).collect::<Vec<_>>()
        });
        named.collect()
    }

    fn flush(aggregator: &mut Aggregator) -> BTreeMap<String, f64> {
        let told = told(aggregator);
        aggregator.flush(0, &mut Gatherer::new(Schema::default(), Arc::new(SourceNotes::new("test"))));
        told
    }

    #[test]
    fn every_type_is_summed_up() {
        let mut aggregator = aggregator();
        for line in [
            "app.requests.ok:1|c",
            "app.requests.ok:2|c|@0.5",
            "app.requests.ok:1|c|#zone:a",
            "queue:5|g",
            "queue:-2|g",
            "queue:+10|g",
            "app.users:a|s",
            "app.users:b|s",
            "app.users:a|s",
            "app.time:4:1:3|ms",
            "app.time:2|h|@0.5",
            ".x:1|g",
        ] {
            add(&mut aggregator, line).unwrap();
        }
        let expected = [
            ("app requests.ok_count", 5.0),
            ("app,zone=a requests.ok_count", 1.0),
            ("statsd queue", 13.0),
            ("app users_unique", 2.0),
            ("app time_count", 5.0),
            ("app time_min", 1.0),
            ("app time_max", 4.0),
            ("app time_mean", 12.0 / 5.0),
            ("app time_p50", 2.0),
            ("app time_p95", 4.0),
            ("app time_p99", 4.0),
            ("statsd .x", 1.0),
        ];
        assert_eq!(flush(&mut aggregator), expected.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn only_gauges_are_remembered_and_told_when_there_is_news() {
        let mut aggregator = aggregator();
        for line in ["a:1|c", "b:7|g", "c:1|ms", "d:x|s"] {
            add(&mut aggregator, line).unwrap();
        }
        assert_eq!(flush(&mut aggregator).len(), 1 + 1 + 7 + 1);
        assert!(flush(&mut aggregator).is_empty());
        assert_eq!((aggregator.series.len(), aggregator.bytes), (1, 1));
        add(&mut aggregator, "b:+1|g").unwrap();
        assert_eq!(flush(&mut aggregator), BTreeMap::from([("statsd b".to_owned(), 8.0)]));
        for _ in 0..359 {
            flush(&mut aggregator);
        }
        assert_eq!(aggregator.series.len(), 1, "an hour has not passed");
        flush(&mut aggregator);
        assert!(aggregator.series.is_empty());
    }

    #[test]
    fn series_are_bounded() {
        let mut aggregator = aggregator();
        for number in 0..MAX_SERIES {
            add(&mut aggregator, &format!("a:1|c|#n:{number}")).unwrap();
        }
        assert_eq!(add(&mut aggregator, "a:1|c|#n:more"), Err(Refusal::Size));
        assert_eq!(add(&mut aggregator, "a:1|c|#n:7"), Ok(()));
        assert_eq!(flush(&mut aggregator).len(), MAX_SERIES);
        assert_eq!(add(&mut aggregator, "a:1|c|#n:more"), Ok(()));

        let long = "x".repeat(60_000);
        let added = (0..MAX_SERIES).take_while(|number| add(&mut aggregator, &format!("{long}{number}:1|c")).is_ok());
        assert!(added.count() < 100);
    }

    #[test]
    fn timings_and_members_are_bounded_and_the_sums_stay_exact() {
        let mut aggregator = aggregator();
        for series in 0..200 {
            for value in 0..1_500 {
                add(&mut aggregator, &format!("t{series}:{value}|ms")).unwrap();
            }
        }
        assert_eq!(aggregator.timings, MAX_TIMINGS);
        assert_eq!(
            aggregator.series.values().filter_map(|s| Some(s.timing.as_ref()?.kept.len())).sum::<usize>(),
            MAX_TIMINGS
        );
        let told = flush(&mut aggregator);
        for series in [0, 199] {
            assert_eq!(told[&format!("statsd t{series}_count")], 1_500.0);
            assert_eq!(told[&format!("statsd t{series}_mean")], 749.5);
            assert_eq!(told[&format!("statsd t{series}_max")], 1_499.0);
        }
        // 1,024 of 1,500 values: the sample's median is off by less than 5 % of the range but once in millions.
        assert!((told["statsd t0_p50"] - 750.0).abs() < 75.0, "{}", told["statsd t0_p50"]);
        assert!(!told.contains_key("statsd t199_p50"), "no room was left for it");

        let refused = (0..MAX_DISTINCT + 5).filter(|number| add(&mut aggregator, &format!("s:{number}|s")).is_err());
        assert_eq!(refused.count(), 5);
        assert_eq!(add(&mut aggregator, "s:0|s"), Ok(()));
    }

    proptest! {
        #[test]
        fn percentiles_are_as_counted(mut values in proptest::collection::vec(0_u32..100, 1..200), percent in 1_usize..=100) {
            values.sort_unstable();
            let sorted: Vec<f64> = values.iter().copied().map(f64::from).collect();
            let found = percentile(&sorted, percent).unwrap();
            let enough = |limit: f64| sorted.iter().filter(|value| **value <= limit).count() * 100 >= percent * sorted.len();
            prop_assert!(enough(found));
            prop_assert!(sorted.iter().all(|value| *value >= found || !enough(*value)));
        }
    }
}
