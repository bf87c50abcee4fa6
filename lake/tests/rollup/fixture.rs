//! A lake, what is committed to it, and whether its rollups tell the same as its rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU64,
    time::Duration,
};

use plimsoll_lake::{
    CommitOutcome, LakeConfig, LakeWriter, PendingMessage, Tier,
    rollup::{RollupLimits, RollupReport, key_sql, marks},
    writer::CommitSet,
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

pub const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
/// The start of a day, of 2026-09-21.
pub const DAY_START_MS: i64 = 1_789_948_800_000;
pub const DAY_MS: i64 = 86_400_000;

/// Everything at once, in steps of few values.
pub fn small_steps() -> RollupLimits {
    RollupLimits {
        minute_every: Duration::ZERO,
        hour_every: Duration::ZERO,
        values_per_step: NonZeroU64::new(200).expect("is not zero"),
        ..RollupLimits::default()
    }
}

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

/// A batch of one host with a tag `disk` and some fields.
pub fn batch(measurement: &str, host: &str, disk: &str, times: &[i64], fields: Vec<(&str, Column)>) -> Batch {
    Batch {
        host: HostId::parse(host).expect("host"),
        measurement: name(measurement),
        epoch: ulid::Ulid::nil(),
        seq: 1,
        times: times.to_vec(),
        tags: BTreeMap::from([(name("disk"), vec![disk.to_owned(); times.len()])]),
        fields: fields.into_iter().map(|(field, column)| (name(field), column)).collect(),
    }
}

/// Samples of the field `used`, whose values are whole, so that sums are exact in any order.
pub fn used(measurement: &str, host: &str, times: &[i64]) -> Batch {
    let values = times.iter().map(|time| (time % 7 != 0).then_some((time / 1000 % 1000 - 300) as f64)).collect();
    batch(measurement, host, "sda", times, vec![("used", Column::Float(values))])
}

pub struct TestLake {
    pub writer: LakeWriter,
    pub config: LakeConfig,
    sequence: std::cell::Cell<u64>,
    _dir: TempDir,
}

impl TestLake {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(dir.path());
        Self { writer: LakeWriter::open(&config).expect("opens"), config, sequence: 0.into(), _dir: dir }
    }

    pub fn commit(&self, batches: Vec<Batch>) {
        let first = self.sequence.get() + 1;
        self.sequence.set(first + batches.len() as u64 - 1);
        commit(&self.writer, 1, first, batches);
    }

    pub fn roll_up(&self, limits: &RollupLimits) -> RollupReport {
        let report = self.writer.roll_up(limits, || true).expect("rolls up");
        assert!(report.finished && report.failures.is_empty() && report.overtaken == 0, "{report:?}");
        report
    }

    pub fn execute(&self, sql: &str) {
        self.writer.lake().connection().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub fn number(&self, sql: &str) -> i64 {
        let number = self.writer.lake().connection().query_row(sql, [], |row| row.get(0));
        number.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Merges files, takes rows from the catalog into files, and forgets all older snapshots.
    pub fn tidy(&self) {
        let tables = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake' AND schema_name = 'main'";
        for table in self.texts(tables) {
            self.execute(&format!("CALL ducklake_flush_inlined_data('lake', table_name => '{table}')"));
        }
        self.execute("CALL ducklake_merge_adjacent_files('lake')");
        self.execute("CALL ducklake_expire_snapshots('lake', older_than => now()::TIMESTAMP)");
        self.execute("CALL ducklake_cleanup_old_files('lake', cleanup_all => true)");
    }

    pub fn texts(&self, sql: &str) -> Vec<String> {
        let connection = self.writer.lake().connection();
        let mut statement = connection.prepare(sql).expect("prepares");
        let rows = statement.query_map([], |row| row.get(0)).expect("runs");
        rows.map(|row| row.expect("a row")).collect()
    }

    pub fn mark(&self, measurement: &str, tier: Tier) -> i64 {
        let marks = marks::read(self.writer.lake().connection()).expect("reads");
        marks.get(&(name(measurement), tier)).map_or(0, |mark| mark.snapshot)
    }

    fn columns(&self, table: &str) -> BTreeSet<String> {
        self.texts(&format!(
            "SELECT column_name FROM duckdb_columns() WHERE database_name = 'lake' AND schema_name = 'main' AND table_name = '{table}'"
        ))
        .into_iter()
        .collect()
    }

    /// Compares, for minutes and hours, the rollups and what they don't contain yet with all rows.
    ///
    /// The rows must still be there, all of them.
    pub fn check(&self, measurement: &str, fields: &[&str]) {
        for field in fields {
            for bucket_ms in [60_000, 3_600_000] {
                let told = self.told(measurement, field, bucket_ms);
                let wanted = parts(&self.raw(measurement, field, "true"), bucket_ms);
                for (missing, what) in [((&wanted, &told), "is missing"), ((&told, &wanted), "is too much")] {
                    let sql =
                        format!("SELECT x::VARCHAR FROM (({}) EXCEPT ALL ({})) AS x LIMIT 3", missing.0, missing.1);
                    let differing = self.texts(&sql);
                    assert!(differing.is_empty(), "{measurement}.{field} by {bucket_ms} ms: {what}: {differing:?}");
                }
            }
        }
    }

    /// The values of a field, as summaries of single values.
    fn raw(&self, measurement: &str, field: &str, condition: &str) -> String {
        format!(
            "SELECT ts, host, disk, 1 AS n, {field}::DOUBLE AS total, {field}::DOUBLE AS low, {field}::DOUBLE AS high, \
             MAP {{{}: 1}} AS sketch FROM {} WHERE {field} IS NOT NULL AND {condition}",
            key_sql(&format!("({field}::DOUBLE)")),
            Tier::Raw.table(measurement)
        )
    }

    /// Rollups of the tiers up to a bucket's length, and what each does not contain of the one before.
    fn told(&self, measurement: &str, field: &str, bucket_ms: i64) -> String {
        let mut rows = Vec::new();
        let minute = self.mark(measurement, Tier::Minute);
        rows.push(self.raw(measurement, field, &format!("snapshot_id > {minute}")));
        let hour = if bucket_ms == 3_600_000 { self.mark(measurement, Tier::Hour) } else { 0 };
        for (tier, after) in [(Tier::Minute, hour), (Tier::Hour, 0)] {
            let is_wanted = tier.bucket_ms() <= Some(bucket_ms);
            if is_wanted && self.columns(&tier.table_name(measurement)).contains(field) {
                rows.push(format!(
                    "SELECT ts, host, disk, f.count, f.sum, f.min, f.max, f.sketch FROM (SELECT ts, host, disk, {field} AS f \
                     FROM {} WHERE {field} IS NOT NULL AND snapshot_id > {after})",
                    tier.table(measurement)
                ));
            }
        }
        parts(&rows.join(" UNION ALL "), bucket_ms)
    }
}

/// A row a series, bucket and key of its sketch, with the count of the key and those of the whole.
fn parts(summaries: &str, bucket_ms: i64) -> String {
    let keys = "ts, host, disk";
    format!(
        "WITH s AS MATERIALIZED (SELECT epoch_ms(ts) // {bucket_ms} AS ts, * EXCLUDE (ts) FROM ({summaries})), \
         whole AS (SELECT {keys}, sum(n)::BIGINT AS n, sum(total) AS total, min(low) AS low, max(high) AS high FROM s GROUP BY ALL), \
         entry AS (SELECT {keys}, unnest(map_keys(sketch))::INTEGER AS k, unnest(map_values(sketch)) AS c FROM s) \
         SELECT whole.*, k, sum(c)::BIGINT AS c FROM whole JOIN entry ON whole.ts = entry.ts AND whole.host = entry.host \
         AND whole.disk IS NOT DISTINCT FROM entry.disk GROUP BY ALL"
    )
}

/// Commits batches as messages of one partition, from sequence `first` on.
pub fn commit(writer: &LakeWriter, partition: u16, first: u64, batches: Vec<Batch>) {
    let partition = PartitionId::new(partition).expect("exists");
    let last = first + batches.len() as u64 - 1;
    let messages = batches.into_iter().zip(first..).map(|(batch, sequence)| PendingMessage {
        partition,
        sequence: Sequence(sequence),
        stored_ms: batch.times.iter().copied().max().unwrap_or_default(),
        batch,
    });
    let set = CommitSet {
        messages: messages.collect(),
        reached: BTreeMap::from([(partition, Position { incarnation: LIFE, sequence: Sequence(last) })]),
        current: None,
    };
    loop {
        match writer.commit(&set) {
            Ok(CommitOutcome::Committed(_)) => return,
            Err(error) if error.is_conflict() => {}
            other => panic!("not committed: {other:?}"),
        }
    }
}
