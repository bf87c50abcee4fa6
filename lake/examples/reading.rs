//! Measures queries on a lake that it makes: `cargo run --release -p plimsoll-lake --example reading -- <folder>`.
//!
//! The variable `ONLY` names queries by a part of what they print, `RUNS` says how often each is run (15 times).
//!
//! The folder keeps the lake, so that a second run only measures. It has two measurements: `one` with 20 hosts and ten fields, sampled each
//! second for 7 days and rolled up for 30, and `many` with 1,000 hosts (or as many as the second argument says) and three fields, sampled
//! each second for 24 hours and rolled up. The catalog is SQLite.
#![expect(clippy::unwrap_used, reason = "whoever measures wants to see where it broke")]

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use plimsoll_lake::{
    LakeConfig, LakeReader, LakeWriter, Tail, Tier,
    query::{Aggregate, FleetQuery, GroupKey, Hosts, PointsQuery, Ranking, ReaderLimits, Selection, TierChoice},
    rollup::{SUMMARY_TYPE, key_sql},
};
use plimsoll_nats::{HostId, Name};

const DAY: i64 = 86_400_000;
/// The end of all samples: a midnight.
const END: i64 = 1_789_948_800_000;
const RUNS: usize = 15;
/// The further fields of `one`: what stands still, counts up, and wanders.
const MORE_COLUMNS: &str = ", limit_bytes BIGINT, read_bytes_total BIGINT, written_bytes_total BIGINT, requests_total BIGINT, \
                            load1 DOUBLE, temperature_celsius DOUBLE, throttled BOOLEAN";
const MORE_VALUES: &str = ", 17179869184, s * 4096 + (4096 * random())::BIGINT, s * 1000 + (1000 * random())::BIGINT, s * 7 + h, \
                           round(2 + sin(s / 300.0) + random() / 2, 2), round(50 + 10 * sin(s / 3000.0) + random(), 1), s % 5000 < 20";

#[tokio::main]
async fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).expect("usage: reading <folder for the lake>"));
    let config = LakeConfig::embedded(&folder);
    if !folder.join("catalog.sqlite").exists() {
        let hosts = std::env::args().nth(2).map_or(1000, |hosts| hosts.parse().unwrap());
        make(&LakeWriter::open(&config).unwrap(), hosts);
    }
    let limits = ReaderLimits { connections: NonZeroUsize::new(4).unwrap(), timeout: Duration::from_secs(300) };
    let reader = LakeReader::new(&config, limits).unwrap();
    reader.attach().unwrap();
    let bench = Bench { reader, tail: Arc::new(Tail::new(usize::MAX)) };
    bench.all().await;
}

struct Bench {
    reader: LakeReader,
    tail: Arc<Tail>,
}

impl Bench {
    async fn all(&self) {
        let one = |from, to| selection(Hosts::from(HostId::parse("host-0007").unwrap()), "one", from, to);
        let many = |from, to| selection(Hosts::All, "many", from, to);
        let fields = || Some(vec![name("usage_percent")]);
        let points = |step: u64| PointsQuery {
            fields: fields(),
            step: Some(Duration::from_secs(step)),
            ..PointsQuery::new(NonZeroUsize::new(1_000_000).unwrap())
        };
        let line = PointsQuery { step: None, line: NonZeroUsize::new(1000), ..points(1) };
        let p95 = |query: PointsQuery| PointsQuery { quantiles: vec![0.95], ..query };
        let fleet = |aggregate, step| FleetQuery {
            field: name("usage_percent"),
            aggregate,
            by: Vec::new(),
            step: Some(Duration::from_secs(step)),
            ranking: None,
            threshold: None,
            rate: false,
            tier: TierChoice::Auto,
        };
        let by_host = |query: FleetQuery| FleetQuery { by: vec![GroupKey::Host], ..query };
        let top = Some(Ranking { count: NonZeroUsize::new(10).unwrap(), lowest: false });
        println!("{:58} {:>9} {:>9} {:>9}", "query", "median ms", "least ms", "first ms");
        self.run("positions", async |b| drop(b.reader.positions().await.unwrap())).await;
        self.run("1 host, 1 h, stats", async |b| b.stats(one(END - DAY, END - DAY + 3_600_000), fields()).await).await;
        let all = || PointsQuery { fields: None, step: None, ..points(1) };
        self.run("1 host, 1 h, points of 1 field", async |b| {
            b.points(one(END - DAY, END - DAY + 3_600_000), PointsQuery { step: None, ..points(1) }).await
        })
        .await;
        self.run("1 host, 1 h, points of 10 fields", async |b| {
            b.points(one(END - DAY, END - DAY + 3_600_000), all()).await
        })
        .await;
        self.run("1 host, 7 d at 1 s, stats (min, max, avg, p50, p95, p99)", async |b| {
            b.stats(one(END - 7 * DAY, END), fields()).await
        })
        .await;
        self.run("1 host, 24 h, raw points by minute", async |b| b.points(one(END - DAY, END), points(60)).await).await;
        self.run("1 host, 24 h, line of 1000 points", async |b| b.points(one(END - DAY, END), line.clone()).await)
            .await;
        self.run("1 host, 7 d, line of 1000 points", async |b| b.points(one(END - 7 * DAY, END), line.clone()).await)
            .await;
        self.run("1 host, 7 d raw, line of 1000 points", async |b| {
            b.points(one(END - 7 * DAY, END), PointsQuery { tier: TierChoice::Only(Tier::Raw), ..line.clone() }).await;
        })
        .await;
        self.run("1 host, 30 d by hour", async |b| b.points(one(END - 30 * DAY, END), points(3600)).await).await;
        self.run("1 host, 30 d by 30 minutes (minutes)", async |b| {
            b.points(one(END - 30 * DAY, END), points(1800)).await
        })
        .await;
        self.run("1 host, 30 d by hour with p95 (sketches)", async |b| {
            b.points(one(END - 30 * DAY, END), p95(points(3600))).await
        })
        .await;
        self.run("1 host, 30 d, stats (sketches)", async |b| b.stats(one(END - 30 * DAY, END), fields()).await).await;
        self.run("1,000 hosts, 24 h, average by minute", async |b| {
            b.fleet(many(END - DAY, END), fleet(Aggregate::Avg, 60)).await
        })
        .await;
        self.run("1,000 hosts, 24 h, average by minute and host", async |b| {
            b.fleet(many(END - DAY, END), by_host(fleet(Aggregate::Avg, 60))).await
        })
        .await;
        self.run("1,000 hosts, 24 h, p95 by minute (sketches)", async |b| {
            b.fleet(many(END - DAY, END), fleet(Aggregate::Quantile(0.95), 60)).await
        })
        .await;
        self.run("1,000 hosts, 24 h raw, average by minute", async |b| {
            b.fleet(
                many(END - DAY, END),
                FleetQuery { tier: TierChoice::Only(Tier::Raw), ..fleet(Aggregate::Avg, 60) },
            )
            .await;
        })
        .await;
        self.run("1,000 hosts, last 5 min, top 10 by last value", async |b| {
            b.fleet(
                many(END - 300_000, END),
                FleetQuery { ranking: top, step: None, ..by_host(fleet(Aggregate::Last, 60)) },
            )
            .await;
        })
        .await;
    }

    async fn run(&self, what: &str, query: impl AsyncFn(&Self)) {
        if std::env::var("ONLY").is_ok_and(|only| !what.contains(&only)) {
            return;
        }
        let runs = std::env::var("RUNS").map_or(RUNS, |runs| runs.parse().unwrap());
        let mut times = Vec::new();
        for _ in 0..runs {
            let started = Instant::now();
            query(self).await;
            times.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        let first = times[0];
        times.sort_by(f64::total_cmp);
        println!("{what:58} {:9.1} {:9.1} {first:9.1}", times[runs / 2], times[0]);
    }

    async fn stats(&self, selection: Selection, fields: Option<Vec<Name>>) {
        let answer = self.reader.stats(&self.tail, selection, fields, TierChoice::Auto).await.unwrap();
        assert!(!answer.rows.is_empty());
    }

    async fn points(&self, selection: Selection, query: PointsQuery) {
        assert!(!self.reader.points(&self.tail, selection, query).await.unwrap().rows.is_empty());
    }

    async fn fleet(&self, selection: Selection, query: FleetQuery) {
        drop(self.reader.fleet(&self.tail, selection, query).await.unwrap());
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn selection(hosts: Hosts, measurement: &str, from_ms: i64, to_ms: i64) -> Selection {
    Selection { hosts, measurement: name(measurement), from_ms, to_ms: Some(to_ms), tags: BTreeMap::new() }
}

fn make(writer: &LakeWriter, hosts: u32) {
    let run =
        |sql: &str| writer.lake().connection().execute_batch(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
    run(
        "CREATE TABLE lake.plimsoll.rollups (measurement VARCHAR, tier VARCHAR, snapshot BIGINT, rolled_at TIMESTAMP_MS)",
    );
    for table in ["one", "many"] {
        run(&format!(
            "CREATE TABLE lake.main.{table} (ts TIMESTAMP_MS, host VARCHAR, core VARCHAR, usage_percent DOUBLE, used_bytes BIGINT, idle_percent DOUBLE{});
             COMMENT ON COLUMN lake.main.{table}.core IS 'tag'",
            if table == "one" { MORE_COLUMNS } else { "" }
        ));
        for tier in ["", "_1m", "_1h"] {
            if !tier.is_empty() {
                run(&format!(
                    "CREATE TABLE lake.main.{table}{tier} (ts TIMESTAMP_MS, host VARCHAR, core VARCHAR, usage_percent {SUMMARY_TYPE}, used_bytes {SUMMARY_TYPE})"
                ));
            }
            let days = if tier == "_1h" { "" } else { ", day(ts)" };
            run(&format!(
                "ALTER TABLE lake.main.{table}{tier} SET PARTITIONED BY (year(ts), month(ts){days});
                 ALTER TABLE lake.main.{table}{tier} SET SORTED BY (host, core, ts)"
            ));
        }
    }
    for (table, hosts, raw_days, days) in [("one", 20, 7, 30), ("many", hosts, 1, 1)] {
        let more = if table == "one" { MORE_VALUES } else { "" };
        for day in (0..days).rev() {
            let start = END - (day + 1) * DAY;
            let rows = format!(
                "SELECT epoch_ms({start} + s * 1000)::TIMESTAMP_MS AS ts, 'host-' || lpad(h::VARCHAR, 4, '0') AS host, 'total' AS core,
                   round(50 + 40 * sin(s / 5000.0 + h) + 10 * random(), 2) AS usage_percent, (1e9 + 1e6 * random())::BIGINT AS used_bytes,
                   round(50 - 40 * sin(s / 5000.0 + h), 2) AS idle_percent{more}
                 FROM range({hosts}) x(h), range(86400) y(s)"
            );
            if day < raw_days {
                run(&format!("INSERT INTO lake.main.{table} {rows} ORDER BY host, ts"));
            }
            let rows = if day < raw_days {
                format!("SELECT * FROM lake.main.{table} WHERE ts >= epoch_ms({start}::BIGINT)::TIMESTAMP_MS")
            } else {
                rows
            };
            run(&roll_up(table, "_1m", "minute", &rows));
            run(&roll_up(table, "_1h", "hour", &rows));
            println!("made `{table}`, {day} days to go");
        }
    }
    let snapshot: i64 =
        writer.lake().connection().query_row("SELECT id FROM lake.current_snapshot()", [], |row| row.get(0)).unwrap();
    for table in ["one", "many"] {
        run(&format!(
            "INSERT INTO lake.plimsoll.rollups VALUES ('{table}', '1m', {snapshot}, NULL), ('{table}', '1h', {snapshot}, NULL)"
        ));
    }
}

fn roll_up(table: &str, tier: &str, bucket: &str, rows: &str) -> String {
    let summary = |field: &str| {
        let key = key_sql(&format!("{field}::DOUBLE"));
        format!(
            "{{'count': count({field})::UBIGINT, 'sum': sum({field}::DOUBLE), 'min': min({field}::DOUBLE), 'max': max({field}::DOUBLE), 'sketch': histogram({key})}}"
        )
    };
    format!(
        "INSERT INTO lake.main.{table}{tier} SELECT date_trunc('{bucket}', ts)::TIMESTAMP_MS AS b, host, core, {}, {} FROM ({rows}) GROUP BY b, host, core ORDER BY host, b",
        summary("usage_percent"),
        summary("used_bytes")
    )
}
