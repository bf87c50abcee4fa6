//! What is read of lake, rollups and tail, against the same computed from a list of samples.

mod support;

use std::{
    collections::BTreeMap,
    num::{NonZeroU64, NonZeroUsize},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use plimsoll_lake::{
    LakeConfig, LakeError, LakeReader, PendingMessage, Tail, Tier,
    query::{
        Aggregate, Bucket, FleetGroup, FleetQuery, FleetRows, GroupKey, HostPattern, Hosts, PointSeries, Points,
        PointsQuery, QueryError, Ranking, Selection, Threshold, TierChoice, Value,
    },
    rollup::{Retention, RollupLimits},
};
use plimsoll_nats::{Batch, Column};
use support::{Fixture, START_MS, all_of, host, limits, name};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// The first day that samples are of.
const BASE: i64 = START_MS / DAY * DAY - 4 * DAY;

/// Numbers that are the same in each run (Vigna's splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: i64) -> i64 {
        (self.next() % end.unsigned_abs()).cast_signed()
    }
}

#[derive(Debug, Clone)]
struct Sample {
    host: String,
    core: String,
    time: i64,
    usage: Option<f64>,
    ticks: i64,
}

fn batch(samples: &[Sample]) -> Batch {
    let fields = [
        ("usage_percent", Column::Float(samples.iter().map(|sample| sample.usage).collect())),
        ("ticks_total", Column::Integer(samples.iter().map(|sample| Some(sample.ticks)).collect())),
    ];
    Batch {
        host: host(&samples[0].host),
        measurement: name("load"),
        epoch: ulid::Ulid::nil(),
        seq: 1,
        times: samples.iter().map(|sample| sample.time).collect(),
        tags: BTreeMap::from([(name("core"), samples.iter().map(|sample| sample.core.clone()).collect())]),
        fields: fields.into_iter().map(|(field, column)| (name(field), column)).collect(),
    }
}

/// Everything that was ever sampled, and a lake that may have it in any form.
struct World {
    fixture: Fixture,
    random: Random,
    /// What is asked for, of its own: so the lake's history is that of the seed whatever is asked.
    asked: Random,
    samples: Vec<Sample>,
    pending: Vec<PendingMessage>,
    /// Before this raw rows are gone, and minutes.
    gone: (i64, i64),
}

impl World {
    fn new(seed: u64) -> Self {
        let fixture = Fixture::new();
        // Not only in the catalog: small commits make files too.
        fixture.execute("CALL lake.set_option('data_inlining_row_limit', 3)");
        Self {
            fixture,
            random: Random(seed),
            asked: Random(seed),
            samples: Vec::new(),
            pending: Vec::new(),
            gone: (0, 0),
        }
    }

    fn arrive(&mut self) {
        let (rows, of) = (1 + self.random.below(25), format!("web-{}", self.random.below(3)));
        let late = self.random.below(4) == 0;
        let start = BASE + if late { self.random.below(4 * DAY) } else { self.random.below(10 * HOUR) + 86 * HOUR };
        let mut samples = Vec::new();
        for row in 0..rows {
            let usage = (self.random.below(5) > 0).then(|| self.random.below(20_000) as f64 / 100.0 - 50.0);
            let core = self.random.below(2).to_string();
            let time = start + row * (500 + self.random.below(30_000));
            samples.push(Sample { host: of.clone(), core, time, usage, ticks: self.random.below(1000) });
        }
        self.pending.push(self.fixture.arrive(batch(&samples)));
        self.samples.extend(samples);
    }

    async fn step(&mut self) {
        match self.random.below(11) {
            0..=3 => (0..3).for_each(|_| self.arrive()),
            4 | 5 => {
                let count = self.random.below(self.pending.len() as i64 + 1);
                let messages = self.pending.drain(..count.unsigned_abs() as usize).collect();
                self.fixture.commit(messages);
            }
            6 => self.fixture.tail.forget(&self.fixture.reader.positions().await.expect("reads")),
            7 => self.roll_up(Tier::Minute),
            8 => self.roll_up(Tier::Hour),
            _ => self.remove(),
        }
    }

    fn has(&self, table: &str) -> bool {
        let sql =
            format!("SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake' AND table_name = '{table}'");
        let tables: i64 = self.fixture.writer.lake().connection().query_row(&sql, [], |row| row.get(0)).expect("reads");
        tables > 0
    }

    fn roll_up(&self, tier: Tier) {
        let source = if tier == Tier::Hour { "load_1m" } else { "load" };
        if self.has(source) {
            self.fixture.roll_up("load", &["core"], &["usage_percent", "ticks_total"], tier);
        }
    }

    /// Merges files and, once all is rolled up, removes old days: of raw rows first.
    fn remove(&mut self) {
        if !self.has("load_1h") {
            return;
        }
        self.fixture.execute("CALL ducklake_merge_adjacent_files('lake')");
        self.roll_up(Tier::Minute);
        self.roll_up(Tier::Hour);
        let (raw, minutes) = (BASE + (1 + self.random.below(3)) * DAY, BASE + self.random.below(3) * DAY);
        if raw > self.gone.0 && minutes <= raw {
            self.fixture.remove_before("load", Tier::Raw, raw);
            self.gone.0 = raw;
            if minutes > self.gone.1 {
                self.fixture.remove_before("load", Tier::Minute, minutes);
                self.gone.1 = minutes;
            }
        }
    }

    fn naive(&self, selection: &Selection, step: i64) -> BTreeMap<(String, String, i64), Vec<f64>> {
        let mut buckets = BTreeMap::<_, Vec<f64>>::new();
        for sample in &self.samples {
            if is_selected(sample, selection) {
                let key = (sample.host.clone(), sample.core.clone(), sample.time / step * step);
                buckets.entry(key).or_default().extend(sample.usage);
            }
        }
        buckets.retain(|_, values| !values.is_empty());
        buckets
    }

    /// A selection whose ends cut buckets only where the rows are there.
    fn selection(&mut self) -> Selection {
        let (from, to) = (BASE + self.random.below(3 * DAY), BASE + 3 * DAY + self.random.below(30 * HOUR));
        let whole = self.gone.0 > 0;
        let start = |time: i64| if whole { time / HOUR * HOUR } else { time };
        let hosts = match self.random.below(4) {
            0 => Hosts::All,
            1 => Hosts::Matching(HostPattern::parse("web-?").expect("a pattern")),
            2 => Hosts::Listed(vec![host("web-0"), host("web-2"), host("nobody")]),
            _ => Hosts::from(host("web-1")),
        };
        let tags =
            if self.random.below(3) == 0 { BTreeMap::from([(name("core"), "1".to_owned())]) } else { BTreeMap::new() };
        let to_ms = (self.random.below(3) > 0).then(|| start(to));
        Selection { hosts, measurement: name("load"), from_ms: start(from), to_ms, tags }
    }

    async fn check(&mut self) {
        let selection = self.selection();
        let choice = match self.random.below(4) {
            0 => TierChoice::Only(Tier::Raw),
            1 => TierChoice::Only(Tier::Minute),
            2 => TierChoice::Only(Tier::Hour),
            _ => TierChoice::Auto,
        };
        self.check_buckets(&selection, choice).await;
        self.check_fleet(&selection, choice).await;
        self.check_groups(&selection, choice).await;
        self.check_points(&selection).await;
        self.check_stats(&selection, choice).await;
    }

    async fn check_buckets(&self, selection: &Selection, tier: TierChoice) {
        let quantiles = vec![0.0, 0.5, 0.95];
        let query = PointsQuery { quantiles: quantiles.clone(), tier, ..buckets(HOUR) };
        let answer = self.fixture.reader.points(&self.fixture.tail, selection.clone(), query).await.expect("answers");
        let exact = answer.tiers.iter().all(|part| part.tier == Tier::Raw);
        let mut expected = self.naive(selection, HOUR);
        for series in &answer.rows {
            for bucket in buckets_of(series) {
                let key = (series.host.clone(), series.tags[&name("core")].clone(), bucket.time_ms);
                let mut values =
                    expected.remove(&key).unwrap_or_else(|| panic!("{key:?} was never sampled: {:?}", answer.tiers));
                check_bucket(bucket, &mut values, &quantiles, exact);
            }
        }
        assert!(expected.is_empty(), "missing of {selection:?} by {:?}: {expected:?}", answer.tiers);
    }

    async fn check_fleet(&self, selection: &Selection, tier: TierChoice) {
        let query = FleetQuery { by: vec![GroupKey::Tag(name("core"))], tier, ..fleet(Aggregate::Avg, Some(HOUR)) };
        let answer =
            self.fixture.reader.fleet(&self.fixture.tail, selection.clone(), query.clone()).await.expect("answers");
        let mut groups = BTreeMap::<(String, i64), Vec<f64>>::new();
        for ((_, core, time), values) in self.naive(selection, HOUR) {
            groups.entry((core, time)).or_default().extend(values);
        }
        let mut found = BTreeMap::new();
        let FleetRows::Groups(rows) = answer.rows else { panic!("groups") };
        for group in rows {
            found.extend(group.points.iter().map(|(time, value)| ((group.tags[&name("core")].clone(), *time), *value)));
        }
        assert!(found.keys().eq(groups.keys()), "{found:?} {groups:?}");
        for (key, values) in &groups {
            assert_near(found[key], values.iter().sum::<f64>() / values.len() as f64);
        }
        let above = FleetQuery { threshold: Some(Threshold::Above(50.0)), ..query };
        let answer = self.fixture.reader.fleet(&self.fixture.tail, selection.clone(), above).await.expect("answers");
        let FleetRows::Counts(counts) = answer.rows else { panic!("counts") };
        let mut expected = BTreeMap::<i64, (u64, u64)>::new();
        for ((_, time), mean) in &found {
            let counts = expected.entry(*time).or_default();
            *counts = (counts.0 + u64::from(*mean > 50.0), counts.1 + 1);
        }
        assert_eq!(counts, expected.into_iter().map(|(time, (above, of))| (time, above, of)).collect::<Vec<_>>());
    }

    /// Any aggregate by any keys, in buckets or over the whole time.
    async fn check_groups(&mut self, selection: &Selection, tier: TierChoice) {
        use Aggregate::{Avg, Count, Last, Max, Min, Sum};
        let aggregate = [Avg, Min, Max, Sum, Count, Last][self.asked.below(6).unsigned_abs() as usize];
        let (by_host, by_core) = (self.asked.below(2) == 0, self.asked.below(2) == 0);
        // The latest values are in raw rows only.
        if aggregate == Last && selection.from_ms < self.gone.0 {
            return;
        }
        let by = [by_host.then_some(GroupKey::Host), by_core.then(|| GroupKey::Tag(name("core")))];
        let step = (self.asked.below(4) > 0).then(|| [MINUTE, HOUR][self.asked.below(2).unsigned_abs() as usize]);
        let coarse = matches!(tier, TierChoice::Only(Tier::Hour)) || self.gone.0 > 0;
        let step = step.map(|step| if coarse { HOUR } else { step });
        let query = FleetQuery { by: by.into_iter().flatten().collect(), tier, ..fleet(aggregate, step) };
        let answer = self.fixture.reader.fleet(&self.fixture.tail, selection.clone(), query).await.expect("answers");
        let FleetRows::Groups(groups) = answer.rows else { panic!("groups") };
        let mut found = BTreeMap::new();
        let mut keys = Vec::new();
        for group in groups {
            assert!(group.points.is_sorted_by(|a, b| a.0 < b.0), "{group:?}");
            let key = (group.host, group.tags.get(&name("core")).cloned());
            keys.push(key.clone());
            found.extend(group.points.into_iter().map(|(time, value)| ((key.clone(), time), value)));
        }
        assert!(keys.is_sorted_by(|a, b| a < b), "groups in order, each once: {keys:?}");
        let start = |time: i64| step.map_or(selection.from_ms, |step| time / step * step);
        let mut expected = BTreeMap::<_, BTreeMap<(String, String), Vec<(i64, f64)>>>::new();
        for sample in self.samples.iter().filter(|sample| is_selected(sample, selection)) {
            let Some(usage) = sample.usage else { continue };
            let key = (by_host.then(|| sample.host.clone()), by_core.then(|| sample.core.clone()));
            let series = expected.entry((key, start(sample.time))).or_default();
            series.entry((sample.host.clone(), sample.core.clone())).or_default().push((sample.time, usage));
        }
        assert!(found.keys().eq(expected.keys()), "{aggregate:?} by {step:?}: {found:?} {expected:?}");
        for (key, series) in expected {
            let all: Vec<(i64, f64)> = series.values().flatten().copied().collect();
            let values = || all.iter().map(|(_, value)| *value);
            let mean = |values: &[(i64, f64)]| values.iter().map(|value| value.1).sum::<f64>() / values.len() as f64;
            let wanted = match aggregate {
                Avg => mean(&all),
                Min => values().fold(f64::INFINITY, f64::min),
                Max => values().fold(f64::NEG_INFINITY, f64::max),
                Sum => series.values().map(|values| mean(values)).sum(),
                Count => all.len() as f64,
                _ => {
                    let latest = all.iter().map(|(time, _)| *time).max().expect("a sample");
                    let at_once = all.iter().filter(|(time, _)| *time == latest).map(|(_, value)| *value);
                    assert!(at_once.clone().any(|value| value == found[&key]), "{} at {latest}", found[&key]);
                    found[&key]
                }
            };
            assert_near(found[&key], wanted);
        }
    }

    /// Every point, or the newest of each series.
    async fn check_points(&mut self, selection: &Selection) {
        if selection.from_ms < self.gone.0 {
            return;
        }
        let limit = if self.asked.below(2) == 0 { 1_000_000 } else { 1 + self.asked.below(20).unsigned_abs() as usize };
        let fields = Some(vec![name("ticks_total"), name("usage_percent")]);
        let tier = TierChoice::Only(Tier::Raw);
        let query = PointsQuery { fields, tier, ..PointsQuery::new(NonZeroUsize::new(limit).expect("not 0")) };
        let answer = self.fixture.reader.points(&self.fixture.tail, selection.clone(), query).await.expect("answers");
        let mut expected = BTreeMap::<(String, String, &str), Vec<(i64, String)>>::new();
        for sample in self.samples.iter().filter(|sample| is_selected(sample, selection)) {
            let mut add = |field, value: String| {
                let points = expected.entry((sample.host.clone(), sample.core.clone(), field)).or_default();
                points.push((sample.time, value));
            };
            add("ticks_total", format!("{:?}", Value::Integer(sample.ticks)));
            if let Some(usage) = sample.usage {
                add("usage_percent", format!("{:?}", Value::Float(usage)));
            }
        }
        assert_eq!(answer.rows.len(), expected.len(), "{selection:?}");
        for (series, ((host, core, field), mut points)) in answer.rows.iter().zip(expected) {
            assert_eq!((&series.host, &series.tags[&name("core")], &*series.field), (&host, &core, field));
            points.sort();
            let left_out = points.len().saturating_sub(limit);
            assert_eq!(series.truncated, left_out > 0);
            let Points::Values(found) = &series.points else { panic!("values") };
            let mut found: Vec<(i64, String)> =
                found.iter().map(|(time, value)| (*time, format!("{value:?}"))).collect();
            assert!(found.is_sorted_by_key(|(time, _)| *time));
            found.sort();
            if left_out == 0 {
                assert_eq!(found, points);
            } else {
                // Which of those that were taken at the same time stay is not said.
                assert!(found.iter().all(|point| points.contains(point)));
                let times = |points: &[(i64, String)]| points.iter().map(|point| point.0).collect::<Vec<_>>();
                assert_eq!(times(&found), times(&points[left_out..]));
            }
        }
    }

    async fn check_stats(&self, selection: &Selection, tier: TierChoice) {
        let fields = Some(vec![name("usage_percent")]);
        let answer =
            self.fixture.reader.stats(&self.fixture.tail, selection.clone(), fields, tier).await.expect("answers");
        let exact = answer.tiers.iter().all(|part| part.tier == Tier::Raw);
        let mut series = BTreeMap::<(String, String), Vec<f64>>::new();
        for ((host, core, _), values) in self.naive(selection, HOUR) {
            series.entry((host, core)).or_default().extend(values);
        }
        for stats in answer.rows {
            let key = (stats.host.clone(), stats.tags[&name("core")].clone());
            let mut values = series.remove(&key).expect("was sampled");
            let summary = stats.summary.expect("numbers");
            let quantiles = vec![summary.p50, summary.p95, summary.p99];
            let (min, max) = (summary.min, summary.max);
            let bucket = Bucket { time_ms: 0, avg: summary.avg, min, max, count: stats.count, quantiles };
            check_bucket(&bucket, &mut values, &[0.5, 0.95, 0.99], exact);
        }
        assert!(series.is_empty(), "missing: {series:?}");
    }
}

fn is_selected(sample: &Sample, selection: &Selection) -> bool {
    let within = sample.time >= selection.from_ms && selection.to_ms.is_none_or(|to| sample.time < to);
    within && selection.tags.values().all(|core| *core == sample.core) && selection.hosts.contain(&host(&sample.host))
}

fn buckets(step: i64) -> PointsQuery {
    let limit = NonZeroUsize::new(100_000).expect("not 0");
    let step = Some(Duration::from_millis(step.unsigned_abs()));
    PointsQuery { fields: Some(vec![name("usage_percent")]), step, ..PointsQuery::new(limit) }
}

fn fleet(aggregate: Aggregate, step: Option<i64>) -> FleetQuery {
    FleetQuery {
        field: name("usage_percent"),
        aggregate,
        by: Vec::new(),
        step: step.map(|step| Duration::from_millis(step.unsigned_abs())),
        ranking: None,
        threshold: None,
        rate: false,
        tier: TierChoice::Auto,
    }
}

fn buckets_of(series: &PointSeries) -> impl Iterator<Item = &Bucket> {
    let Points::Buckets(buckets) = &series.points else { panic!("buckets") };
    buckets.iter()
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{found} instead of {expected}");
}

fn check_bucket(bucket: &Bucket, values: &mut [f64], quantiles: &[f64], exact: bool) {
    values.sort_by(f64::total_cmp);
    let count = values.len();
    assert_eq!(bucket.count, count as u64, "{values:?}");
    assert_near(bucket.avg, values.iter().sum::<f64>() / count as f64);
    assert_eq!((bucket.min.number(), bucket.max.number()), (Some(values[0]), Some(values[count - 1])));
    for (found, quantile) in bucket.quantiles.iter().zip(quantiles) {
        let rank = quantile * (count - 1) as f64;
        let (below, above) = (values[rank.floor() as usize], values[rank.ceil() as usize]);
        let expected = below + (above - below) * rank.fract();
        if exact {
            assert_near(*found, expected);
        } else {
            let bound = 0.01 * below.abs().max(above.abs()) + 1e-9;
            assert!((found - expected).abs() <= bound, "{found} for rank {rank} of {values:?}");
        }
    }
}

#[tokio::test]
async fn each_sample_counts_once_wherever_it_is() {
    for seed in [1, 2] {
        let mut world = World::new(seed);
        (0..4).for_each(|_| world.arrive());
        for _ in 0..40 {
            world.step().await;
            world.check().await;
        }
        assert!(world.gone.0 > 0, "seed {seed} removes rows");
    }
}

#[tokio::test]
async fn the_newest_points_are_given_of_more_than_an_answer_may_have() {
    const ROWS: i64 = 1_050_000;
    let mut fixture = Fixture::new();
    let sample = Sample { host: "web-1".to_owned(), core: "0".to_owned(), time: BASE, usage: Some(0.5), ticks: 7 };
    let message = fixture.arrive(batch(&[sample]));
    fixture.commit(vec![message]);
    fixture.execute(&format!(
        "INSERT INTO lake.main.load BY NAME SELECT epoch_ms({BASE} + 1 + r)::TIMESTAMP_MS AS ts, 'web-1' AS host, '0' AS core,
           r::DOUBLE AS usage_percent, r AS ticks_total FROM range({ROWS}) x(r)"
    ));
    let query = |limit: usize| PointsQuery {
        tier: TierChoice::Only(Tier::Raw),
        ..PointsQuery::new(NonZeroUsize::new(limit).expect("not 0"))
    };
    let (reader, tail) = (&fixture.reader, &fixture.tail);
    let answer = reader.points(tail, all_of("web-1", "load"), query(3)).await.expect("answers");
    for series in &answer.rows {
        let Points::Values(points) = &series.points else { panic!("values") };
        let times: Vec<i64> = points.iter().map(|(time, _)| *time - BASE).collect();
        let numbers: Vec<f64> = points.iter().filter_map(|(_, value)| value.number()).collect();
        assert_eq!((times, series.truncated), (vec![ROWS - 2, ROWS - 1, ROWS], true));
        assert_eq!(numbers, [ROWS - 3, ROWS - 2, ROWS - 1].map(|number| number as f64));
    }
    assert_eq!(answer.rows.len(), 2);
    let line = PointsQuery { line: NonZeroUsize::new(100), ..query(3) };
    let refused = reader.points(tail, all_of("web-1", "load"), line).await.expect_err("too many");
    assert!(matches!(refused, QueryError::TooLarge { .. }), "{refused}");
}

/// How many ticks there are, by the coarsest tier and what it does not contain yet.
async fn count(reader: &LakeReader, tail: &Arc<Tail>) -> usize {
    let selection = Selection { hosts: Hosts::All, ..all_of("web-0", "load") };
    let tier = TierChoice::Only(Tier::Hour);
    let query = FleetQuery { field: name("ticks_total"), tier, ..fleet(Aggregate::Count, None) };
    let answer = reader.fleet(tail, selection, query).await.expect("answers");
    let FleetRows::Groups(groups) = answer.rows else { panic!("groups") };
    groups.first().map_or(0, |group| group.points[0].1 as usize)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_neither_dip_nor_double_while_commits_and_rollups_go_on() {
    let mut world = World::new(7);
    for round in 0..12 {
        (0..3).for_each(|_| world.arrive());
        let total = world.samples.len();
        let stop = Arc::new(AtomicBool::new(false));
        let (reader, tail) = (Arc::clone(&world.fixture.reader), Arc::clone(&world.fixture.tail));
        let asking = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                let mut asked = 0;
                while asked == 0 || !stop.load(Ordering::Relaxed) {
                    assert_eq!(count(&reader, &tail).await, total);
                    asked += 1;
                }
            }
        });
        let messages = std::mem::take(&mut world.pending);
        world.fixture.commit(messages);
        world.roll_up(Tier::Minute);
        world.fixture.tail.forget(&world.fixture.reader.positions().await.expect("reads"));
        if round % 2 == 1 {
            world.roll_up(Tier::Hour);
        }
        stop.store(true, Ordering::Relaxed);
        asking.await.expect("each count is right");
    }
}

/// A series of a counter: times, and values that now and then fall.
fn counter(random: &mut Random) -> Vec<(i64, i64)> {
    let interval = 1000 * (1 + random.below(10));
    let (mut time, mut value) = (BASE + random.below(HOUR), random.below(1_000_000));
    (0..3 + random.below(120))
        .map(|_| {
            time += match random.below(12) {
                0 => interval * (2 + random.below(200)),
                1 => interval / 2,
                _ => interval,
            };
            value = if random.below(15) == 0 { random.below(50) } else { value + random.below(1000) };
            (time, value)
        })
        .collect()
}

/// Rises of a counter as the documentation defines them: time, ms since the value before, and rise.
fn naive_rises(values: &[(i64, i64)]) -> Vec<(i64, i64, f64)> {
    let mut distances: Vec<i64> = values.windows(2).map(|pair| pair[1].0 - pair[0].0).filter(|d| *d > 0).collect();
    distances.sort_unstable();
    let Some(last) = distances.len().checked_sub(1) else { return Vec::new() };
    let median = (distances[last / 2] + distances[last.div_ceil(2)]) as f64 / 2.0;
    let mut rises = Vec::new();
    for pair in values.windows(2) {
        let ([(before, old), (time, new)], distance) = ([pair[0], pair[1]], pair[1].0 - pair[0].0);
        if distance as f64 <= 2.5 * median {
            rises.push((time, distance, if new >= old { (new - old) as f64 } else { new as f64 }));
            assert!(before < time);
        }
    }
    rises
}

/// Many counters of one host, as tag values; a part of each is in the lake.
fn counters(fixture: &mut Fixture, random: &mut Random) -> BTreeMap<String, Vec<(i64, i64)>> {
    let mut all = BTreeMap::new();
    let mut messages = Vec::new();
    for series in 0..40 {
        let values = counter(random);
        let half = values.len() / 2;
        for (part, values) in [(0, &values[..half]), (1, &values[half..])] {
            let sample = |(time, ticks): &(i64, i64)| Sample {
                host: "web-1".to_owned(),
                core: series.to_string(),
                time: *time,
                usage: None,
                ticks: *ticks,
            };
            let samples: Vec<Sample> = values.iter().map(sample).collect();
            if part == 0 && !samples.is_empty() {
                messages.push(fixture.arrive(batch(&samples)));
            } else if !samples.is_empty() {
                // These stay in the tail.
                all.entry(series.to_string()).or_insert_with(Vec::new);
                messages.push(fixture.arrive(batch(&samples)));
            }
        }
        all.insert(series.to_string(), values);
    }
    // The first half of the messages, in the order of the stream.
    messages.truncate(40);
    fixture.commit(messages);
    all
}

fn rates(step: Option<i64>) -> PointsQuery {
    let step = step.map(|step| Duration::from_millis(step.unsigned_abs()));
    PointsQuery { fields: Some(vec![name("ticks_total")]), step, rate: true, ..buckets(1) }
}

#[tokio::test]
async fn counters_become_rates_that_survive_resets_and_gaps() {
    let (mut fixture, mut random) = (Fixture::new(), Random(5));
    let all = counters(&mut fixture, &mut random);
    let selection = all_of("web-1", "load");
    let raw = fixture.reader.points(&fixture.tail, selection.clone(), rates(None)).await.expect("answers").rows;
    let bucketed =
        fixture.reader.points(&fixture.tail, selection.clone(), rates(Some(30_000))).await.expect("answers").rows;
    let with_rises = all.iter().filter(|(_, values)| !naive_rises(values).is_empty()).count();
    assert_eq!((raw.len(), bucketed.len()), (with_rises, with_rises));
    for (series, buckets) in raw.iter().zip(&bucketed) {
        assert!(series.rate && series.tags == buckets.tags);
        let rises = naive_rises(&all[&series.tags[&name("core")]]);
        let Points::Values(points) = &series.points else { panic!("values") };
        assert_eq!(points.len(), rises.len());
        for ((time, rate), (at, distance, rise)) in points.iter().zip(&rises) {
            assert_eq!(time, at);
            assert_near(rate.number().expect("a number"), rise * 1000.0 / *distance as f64);
            assert!(rate.number() >= Some(0.0));
        }
        let mut expected = BTreeMap::<i64, (f64, i64, u64)>::new();
        for (time, distance, rise) in rises {
            let sum = expected.entry(time / 30_000 * 30_000).or_default();
            *sum = (sum.0 + rise, sum.1 + distance, sum.2 + 1);
        }
        let found: Vec<_> = buckets_of(buckets).map(|bucket| (bucket.time_ms, bucket.count)).collect();
        assert_eq!(found, expected.iter().map(|(time, (_, _, count))| (*time, *count)).collect::<Vec<_>>());
        for (bucket, (rise, distance, _)) in buckets_of(buckets).zip(expected.values()) {
            assert_near(bucket.avg, rise * 1000.0 / *distance as f64);
        }
    }
    // Where no gap and no reset is, what a part of the time has risen by does not depend on where it begins.
    let later = Selection { from_ms: BASE + HOUR + 120_000, ..selection };
    let part = fixture.reader.points(&fixture.tail, later.clone(), rates(None)).await.expect("answers").rows;
    for series in part {
        let whole = raw.iter().find(|whole| whole.tags == series.tags).expect("is part of the whole");
        let (Points::Values(part), Points::Values(whole)) = (&series.points, &whole.points) else { panic!("values") };
        assert!(part.iter().all(|(time, _)| *time >= later.from_ms));
        assert!(part.len() <= whole.len());
    }
}

#[tokio::test]
async fn what_retention_removes_is_read_from_rollups_and_late_samples_once() {
    let mut fixture = Fixture::new();
    let limits = RollupLimits {
        minute_every: Duration::ZERO,
        hour_every: Duration::ZERO,
        values_per_step: NonZeroU64::new(100_000).expect("not 0"),
        ..RollupLimits::default()
    };
    let days = |days: u64| Some(Duration::from_secs(days * 86_400));
    let retention = Retention { raw: days(1), minute: days(2), ..Retention::default() };
    let now = UNIX_EPOCH + Duration::from_millis((BASE + 3 * DAY).unsigned_abs());
    for day in 0..4 {
        let message = fixture.arrive(batch(&seconds(day * 86_400, 100, |second| second as f64)));
        fixture.commit(vec![message]);
    }
    fixture.writer.roll_up(&limits, || true).expect("rolls up");
    fixture.writer.apply_retention(&retention, now, || true).expect("removes");
    let raw = async |fixture: &Fixture| {
        let query = FleetQuery { tier: TierChoice::Only(Tier::Raw), ..fleet(Aggregate::Count, None) };
        let answer = fixture.reader.fleet(&fixture.tail, all_of("web-1", "load"), query).await.expect("answers");
        let FleetRows::Groups(groups) = answer.rows else { panic!("groups") };
        (groups[0].points[0].1, answer.tiers.iter().map(|part| (part.tier, part.to_ms)).collect::<Vec<_>>())
    };
    let tiers = [(Tier::Hour, Some(BASE + DAY)), (Tier::Minute, Some(BASE + 2 * DAY)), (Tier::Raw, None)];
    assert_eq!(raw(&fixture).await, (400.0, tiers.to_vec()));
    // A late sample of a day that is gone: in the tail, in the lake, and then in rollups.
    let message = fixture.arrive(batch(&seconds(200, 1, |_| 1.0)));
    assert_eq!(raw(&fixture).await.0, 401.0);
    fixture.commit(vec![message]);
    assert_eq!(raw(&fixture).await.0, 401.0);
    fixture.writer.roll_up(&limits, || true).expect("rolls up");
    assert_eq!(raw(&fixture).await, (401.0, tiers.to_vec()));
    fixture.writer.apply_retention(&retention, now, || true).expect("removes");
    assert_eq!(raw(&fixture).await.0, 401.0);
}

#[tokio::test]
async fn rates_of_summaries_come_from_their_maxima() {
    let mut fixture = Fixture::new();
    // Rises by 60 a minute, starts anew in minute 5 and is silent from minute 8 to 30.
    let value = |minute: i64| if minute < 5 { minute * 60 } else { (minute - 5) * 60 };
    let sample = |minute: i64, second: i64| Sample {
        host: "web-1".to_owned(),
        core: "0".to_owned(),
        time: BASE + minute * MINUTE + second * 1000,
        usage: None,
        ticks: value(minute) + second,
    };
    let minutes = (0..8).chain(30..40);
    let samples: Vec<Sample> = minutes.flat_map(|minute| (0..60).map(move |second| sample(minute, second))).collect();
    let message = fixture.arrive(batch(&samples));
    fixture.commit(vec![message]);
    fixture.roll_up("load", &["core"], &["usage_percent", "ticks_total"], Tier::Minute);
    fixture.remove_before("load", Tier::Raw, BASE + DAY);
    let answer = fixture.reader.points(&fixture.tail, all_of("web-1", "load"), rates(None)).await.expect("answers");
    assert_eq!((answer.step_ms, answer.tiers[0].tier), (Some(MINUTE), Tier::Minute));
    let found: Vec<(i64, f64)> =
        buckets_of(&answer.rows[0]).map(|bucket| ((bucket.time_ms - BASE) / MINUTE, bucket.avg)).collect();
    let expected = (1..5).chain(6..8).chain(31..40).map(|minute| (minute, 1.0));
    let mut expected: Vec<(i64, f64)> = expected.collect();
    // The minute of the reset rose to 59, all that its maximum tells.
    expected.insert(4, (5, 59.0 / 60.0));
    assert_eq!(found, expected);
    assert_eq!(answer.rows[0].gaps, [(BASE + 7 * MINUTE, BASE + 31 * MINUTE)]);
}

fn seconds(from: i64, count: i64, usage: impl Fn(i64) -> f64) -> Vec<Sample> {
    let sample = |second: i64| Sample {
        host: "web-1".to_owned(),
        core: "0".to_owned(),
        time: BASE + (from + second) * 1000,
        usage: Some(usage(second)),
        ticks: second,
    };
    (0..count).map(sample).collect()
}

#[tokio::test]
async fn a_line_keeps_its_ends_its_extremes_and_its_gaps() {
    let mut fixture = Fixture::new();
    let spike = |second: i64| if second == 777 { 1000.0 } else { (second % 7) as f64 };
    let message = fixture.arrive(batch(&seconds(0, 2000, spike)));
    fixture.commit(vec![message]);
    fixture.arrive(batch(&seconds(3000, 1000, |_| 5.0)));
    let line = PointsQuery { step: None, line: NonZeroUsize::new(50), ..buckets(1) };
    let answer = fixture.reader.points(&fixture.tail, all_of("web-1", "load"), line.clone()).await.expect("answers");
    let Points::Values(points) = &answer.rows[0].points else { panic!("values") };
    let seconds: Vec<i64> = points.iter().map(|(time, _)| (time - BASE) / 1000).collect();
    assert_eq!((seconds.len(), seconds[0], seconds[49]), (50, 0, 3999));
    assert!(seconds.contains(&777) && seconds.contains(&1999) && seconds.contains(&3000), "{seconds:?}");
    assert_eq!(answer.rows[0].gaps, [(BASE + 1_999_000, BASE + 3_000_000)]);
    // Of long times the means of minutes are enough.
    fixture.roll_up("load", &["core"], &["usage_percent", "ticks_total"], Tier::Minute);
    let line = PointsQuery { tier: TierChoice::Only(Tier::Minute), ..line };
    let answer = fixture.reader.points(&fixture.tail, all_of("web-1", "load"), line).await.expect("answers");
    let Points::Values(points) = &answer.rows[0].points else { panic!("values") };
    assert_eq!((answer.step_ms, points.len()), (Some(MINUTE), 50));
}

#[tokio::test]
async fn empty_buckets_are_gaps() {
    let mut fixture = Fixture::new();
    for (from, count) in [(0, 180), (300, 120)] {
        fixture.arrive(batch(&seconds(from, count, |_| 1.0)));
    }
    let rows =
        fixture.reader.points(&fixture.tail, all_of("web-1", "load"), buckets(MINUTE)).await.expect("answers").rows;
    let times: Vec<i64> = buckets_of(&rows[0]).map(|bucket| (bucket.time_ms - BASE) / MINUTE).collect();
    assert_eq!(times, [0, 1, 2, 5, 6]);
    assert_eq!(rows[0].gaps, [(BASE + 2 * MINUTE, BASE + 5 * MINUTE)]);
}

async fn groups(fixture: &Fixture, query: FleetQuery) -> Vec<FleetGroup> {
    let selection = Selection { hosts: Hosts::All, ..all_of("web-1", "load") };
    let answer = fixture.reader.fleet(&fixture.tail, selection, query).await.expect("answers");
    let FleetRows::Groups(groups) = answer.rows else { panic!("groups") };
    groups
}

#[tokio::test]
async fn hosts_are_ranked_summed_and_rated() {
    let mut fixture = Fixture::new();
    for (index, usage) in [10.0, 40.0, 30.0, 20.0].into_iter().enumerate() {
        let samples = seconds(0, 120, |second| usage + (second / 60) as f64);
        let on = |sample: Sample, core: &str| Sample {
            host: format!("web-{index}"),
            core: core.to_owned(),
            ticks: sample.ticks * (1 + index as i64),
            ..sample
        };
        fixture.arrive(batch(
            &samples.iter().flat_map(|s| ["0", "1"].map(|core| on(s.clone(), core))).collect::<Vec<_>>(),
        ));
    }
    let by_host = |query: FleetQuery| FleetQuery { by: vec![GroupKey::Host], ..query };
    let ranking = |lowest| Some(Ranking { count: NonZeroUsize::new(2).expect("not 0"), lowest });
    let told = |groups: Vec<FleetGroup>| -> Vec<(String, Vec<f64>)> {
        let values =
            |group: FleetGroup| (group.host.unwrap_or_default(), group.points.iter().map(|point| point.1).collect());
        groups.into_iter().map(values).collect()
    };
    let found = |on: &str, values: &[f64]| (on.to_owned(), values.to_vec());
    let last = by_host(fleet(Aggregate::Last, None));
    let top = groups(&fixture, FleetQuery { ranking: ranking(false), ..last.clone() }).await;
    assert_eq!(top[0].points[0].0, 0, "the interval's start");
    assert_eq!(told(top), [found("web-1", &[41.0]), found("web-2", &[31.0])]);
    let bottom = groups(&fixture, FleetQuery { ranking: ranking(true), ..last }).await;
    assert_eq!(told(bottom), [found("web-0", &[11.0]), found("web-3", &[21.0])]);
    let stepped = FleetQuery { ranking: ranking(false), ..by_host(fleet(Aggregate::Max, Some(MINUTE))) };
    assert_eq!(told(groups(&fixture, stepped).await), [found("web-1", &[40.0, 41.0]), found("web-2", &[30.0, 31.0])]);
    assert_eq!(told(groups(&fixture, fleet(Aggregate::Sum, Some(MINUTE))).await), [found("", &[200.0, 208.0])]);
    assert_eq!(told(groups(&fixture, fleet(Aggregate::Quantile(0.5), None)).await), [found("", &[25.5])]);
    let rate = FleetQuery { field: name("ticks_total"), rate: true, ..fleet(Aggregate::Sum, None) };
    assert_eq!(
        told(groups(&fixture, rate.clone()).await),
        [found("", &[20.0])],
        "two cores each rise by 1, 2, 3 and 4"
    );
    let top = FleetQuery { ranking: ranking(false), ..by_host(rate) };
    assert_eq!(told(groups(&fixture, top).await), [found("web-3", &[8.0]), found("web-2", &[6.0])]);
    let unknown = FleetQuery { by: vec![GroupKey::Tag(name("disk"))], ..fleet(Aggregate::Avg, None) };
    let answer = fixture.reader.fleet(&fixture.tail, all_of("web-1", "load"), unknown).await;
    assert!(matches!(answer, Err(QueryError::UnknownTag { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_tag_that_only_the_tail_knows_selects_there() {
    let mut fixture = Fixture::new();
    let mut old = batch(&seconds(0, 10, |_| 1.0));
    old.tags.clear();
    let message = fixture.arrive(old);
    fixture.commit(vec![message]);
    fixture.arrive(batch(&seconds(60, 5, |_| 1.0)));
    let tags = BTreeMap::from([(name("core"), "0".to_owned())]);
    let selection = Selection { tags, ..all_of("web-1", "load") };
    let stats = fixture.reader.stats(&fixture.tail, selection, None, TierChoice::Auto).await.expect("answers").rows;
    assert_eq!(stats[0].count, 5);
    let all =
        fixture.reader.stats(&fixture.tail, all_of("web-1", "load"), None, TierChoice::Auto).await.expect("answers");
    let mut counts: Vec<_> = all.rows.iter().map(|stats| (stats.tags.len(), stats.count)).collect();
    counts.sort_unstable();
    assert_eq!(counts, [(0, 10), (0, 10), (1, 5), (1, 5)], "two fields of each series");
}

#[tokio::test]
async fn short_names_of_tags_and_fields_clash_with_nothing() {
    let mut fixture = Fixture::new();
    let fields = ["v", "t_total", "c0", "value", "n"];
    let mut odd = batch(&seconds(0, 120, |_| 1.0));
    let ones = Column::Integer((0..120).map(Some).collect());
    odd.fields = fields.iter().map(|field| (name(field), ones.clone())).collect();
    odd.tags = ["b", "k", "q0", "t", "s0"].iter().map(|tag| (name(tag), vec!["x".to_owned(); 120])).collect();
    let message = fixture.arrive(odd);
    fixture.commit(vec![message]);
    fixture.roll_up("load", &["b", "k", "q0", "t", "s0"], &fields, Tier::Minute);
    let of_all = all_of("web-1", "load");
    for tier in [TierChoice::Only(Tier::Raw), TierChoice::Only(Tier::Minute)] {
        let query = PointsQuery { fields: None, quantiles: vec![0.5], tier, ..buckets(MINUTE) };
        let rows = fixture.reader.points(&fixture.tail, of_all.clone(), query.clone()).await.expect("answers").rows;
        assert_eq!(rows.iter().map(|series| series.points.len()).collect::<Vec<_>>(), [2; 5]);
        let query = PointsQuery { rate: true, quantiles: Vec::new(), ..query };
        let rows = fixture.reader.points(&fixture.tail, of_all.clone(), query).await.expect("answers").rows;
        assert_eq!(rows.iter().filter(|series| series.rate).count(), 1);
        let rows = fixture.reader.stats(&fixture.tail, of_all.clone(), None, tier).await.expect("answers").rows;
        assert_eq!(rows.iter().map(|stats| stats.count).collect::<Vec<_>>(), [120; 5]);
        for aggregate in [Aggregate::Avg, Aggregate::Sum, Aggregate::Quantile(0.5), Aggregate::Last] {
            let by = ["b", "k", "q0", "t", "s0"].map(|tag| GroupKey::Tag(name(tag))).to_vec();
            for (field, rate) in [("value", false), ("t_total", true)] {
                let query =
                    FleetQuery { field: name(field), by: by.clone(), rate, tier, ..fleet(aggregate, Some(MINUTE)) };
                assert_eq!(groups(&fixture, query).await.len(), 1);
            }
        }
    }
}

#[tokio::test]
async fn files_of_other_days_are_left_out() {
    let mut fixture = Fixture::new();
    for day in 0..5 {
        let message = fixture.arrive(batch(&seconds(day * 86_400, 100, |_| 1.0)));
        fixture.commit(vec![message]);
    }
    let sql = format!(
        "EXPLAIN ANALYZE SELECT count(*) FROM lake.main.load WHERE host GLOB 'web*' AND host >= 'web' AND host < 'web~' \
         AND ts >= epoch_ms({}::BIGINT)::TIMESTAMP_MS AND ts < epoch_ms({}::BIGINT)::TIMESTAMP_MS",
        BASE + DAY,
        BASE + 2 * DAY
    );
    // The conditions are those that a selection makes.
    let plan: String = fixture.writer.lake().connection().query_row(&sql, [], |row| row.get(1)).expect("explains");
    let plan: String = plan.chars().filter(|c| c.is_ascii_alphanumeric() || *c == ':').collect();
    assert!(plan.contains("FilesRead:1Inlined"), "{plan}");
}

#[tokio::test]
async fn queries_end_when_nobody_waits_and_at_their_bounds() {
    let mut fixture = Fixture::new();
    for part in 0..30 {
        fixture.arrive(batch(&seconds(part * 60_000, 60_000, |second| second as f64)));
    }
    let config = LakeConfig::embedded(fixture.dir.path());
    let one = NonZeroUsize::MIN;
    let reader = LakeReader::new(
        &config,
        plimsoll_lake::query::ReaderLimits { connections: one, ..limits(Duration::from_secs(600)) },
    );
    let reader = Arc::new(reader.expect("opens"));
    reader.attach().expect("attaches");
    let selection = Selection { hosts: Hosts::All, ..all_of("web-1", "load") };
    let slow = FleetQuery { by: vec![GroupKey::Host], ..fleet(Aggregate::Quantile(0.5), Some(1)) };
    let running = tokio::spawn({
        let (reader, tail, selection) = (Arc::clone(&reader), Arc::clone(&fixture.tail), selection.clone());
        async move { reader.fleet(&tail, selection, slow).await.map(drop) }
    });
    tokio::task::yield_now().await;
    running.abort();
    let next = reader.measurements(&Arc::new(Tail::new(0))).await;
    assert!(next.is_ok(), "the only connection is free again: {next:?}");
    let all = PointsQuery { step: None, line: NonZeroUsize::new(100), fields: None, ..buckets(1) };
    let answer = fixture.reader.points(&fixture.tail, selection.clone(), all).await;
    assert!(matches!(answer, Err(QueryError::TooLarge { .. })), "{:?}", answer.map(|answer| answer.rows.len()));
    let hasty = LakeReader::new(&config, limits(Duration::from_millis(20))).expect("opens");
    let answer = hasty.fleet(&fixture.tail, selection, fleet(Aggregate::Avg, Some(1))).await;
    assert!(matches!(answer, Err(QueryError::Lake(LakeError::Interrupted))), "{answer:?}");
}

#[tokio::test]
async fn a_query_that_needs_too_much_memory_says_so() {
    let fixture = Fixture::new();
    fixture.execute(
        "CREATE TABLE lake.main.load AS SELECT epoch_ms(1790000000000 + i)::TIMESTAMP_MS AS ts, 'h' || i % 10 AS host, random() AS v
         FROM range(20000000) r(i)",
    );
    let config = LakeConfig {
        memory_limit: "70MB".to_owned(),
        temp_limit: "1MB".to_owned(),
        threads: Some(2),
        ..LakeConfig::embedded(fixture.dir.path())
    };
    let reader = LakeReader::new(&config, limits(Duration::from_secs(120))).expect("opens");
    reader.attach().expect("attaches");
    let selection = Selection { hosts: Hosts::All, ..all_of("h", "load") };
    let query = FleetQuery { field: name("v"), by: vec![GroupKey::Host], ..fleet(Aggregate::Avg, Some(1)) };
    let answer = reader.fleet(&fixture.tail, selection, query).await;
    assert!(matches!(answer, Err(QueryError::OutOfMemory(_))), "{answer:?}");
}
