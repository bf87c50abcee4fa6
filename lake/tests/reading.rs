//! What is read of lake, rollups and tail, against the same computed from a list of samples.

mod support;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use plimsoll_lake::{
    LakeReader, PendingMessage, Tail, Tier,
    query::{
        Aggregate, Bucket, FleetQuery, FleetRows, GroupKey, HostPattern, Hosts, PointSeries, Points, PointsQuery, QueryError, Ranking,
        Selection, Threshold, TierChoice, Value,
    },
};
use plimsoll_nats::{Batch, Column};
use support::{Fixture, START_MS, all_of, host, name};

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
        Self { fixture, random: Random(seed), samples: Vec::new(), pending: Vec::new(), gone: (0, 0) }
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
        match self.random.below(10) {
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
        let sql = format!("SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake' AND table_name = '{table}'");
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
        let (raw, minutes) = (BASE + self.random.below(4) * DAY, BASE + self.random.below(3) * DAY);
        if raw > self.gone.0 && minutes <= raw {
            self.fixture.remove_before("load", raw);
            self.gone.0 = raw;
            if minutes > self.gone.1 {
                self.fixture.remove_before("load_1m", minutes);
                self.gone.1 = minutes;
            }
        }
    }

    fn naive(&self, selection: &Selection, step: i64) -> BTreeMap<(String, String, i64), Vec<f64>> {
        let mut buckets = BTreeMap::<_, Vec<f64>>::new();
        for sample in &self.samples {
            let within = sample.time >= selection.from_ms && selection.to_ms.is_none_or(|to| sample.time < to);
            let wanted = selection.tags.values().all(|core| *core == sample.core);
            if within && wanted && selection.hosts.contain(&host(&sample.host)) {
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
        let tags = if self.random.below(3) == 0 { BTreeMap::from([(name("core"), "1".to_owned())]) } else { BTreeMap::new() };
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
                let mut values = expected.remove(&key).unwrap_or_else(|| panic!("{key:?} was never sampled: {:?}", answer.tiers));
                check_bucket(bucket, &mut values, &quantiles, exact);
            }
        }
        assert!(expected.is_empty(), "missing of {selection:?} by {:?}: {expected:?}", answer.tiers);
    }

    async fn check_fleet(&self, selection: &Selection, tier: TierChoice) {
        let query = FleetQuery { by: vec![GroupKey::Tag(name("core"))], tier, ..fleet(Aggregate::Avg, Some(HOUR)) };
        let answer = self.fixture.reader.fleet(&self.fixture.tail, selection.clone(), query.clone()).await.expect("answers");
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

    async fn check_stats(&self, selection: &Selection, tier: TierChoice) {
        let fields = Some(vec![name("usage_percent")]);
        let answer = self.fixture.reader.stats(&self.fixture.tail, selection.clone(), fields, tier).await.expect("answers");
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
        if exact {
            assert_near(*found, below + (above - below) * rank.fract());
        } else {
            assert!((found - below).abs() <= 0.01 * below.abs() + 1e-9, "{found} for rank {rank} of {values:?}");
        }
    }
}

#[tokio::test]
async fn each_sample_counts_once_wherever_it_is() {
    for seed in [1, 2, 3] {
        let mut world = World::new(seed);
        (0..4).for_each(|_| world.arrive());
        for _ in 0..30 {
            world.step().await;
            world.check().await;
        }
        assert!(world.gone.0 > 0, "seed {seed} removes rows");
    }
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
