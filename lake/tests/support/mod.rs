//! A lake, a tail beside it, and rollups made by hand as their contract says.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{collections::BTreeMap, num::NonZeroUsize, sync::Arc, time::Duration};

use plimsoll_lake::{
    CommitOutcome, LakeConfig, LakeReader, LakeWriter, PendingMessage, Tail, Tier,
    query::{Hosts, ReaderLimits, Selection},
    rollup::{SUMMARY_TYPE, key_sql},
    writer::CommitSet,
};
use plimsoll_nats::{Batch, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

pub const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
pub const START_MS: i64 = 1_790_000_000_000;

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

pub fn host(text: &str) -> HostId {
    HostId::parse(text).expect("valid host")
}

pub fn partition() -> PartitionId {
    PartitionId::new(3).expect("exists")
}

pub fn limits(timeout: Duration) -> ReaderLimits {
    ReaderLimits { connections: NonZeroUsize::new(2).expect("not 0"), timeout }
}

pub struct Fixture {
    pub writer: LakeWriter,
    pub reader: Arc<LakeReader>,
    pub tail: Arc<Tail>,
    pub sequence: u64,
    pub dir: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(dir.path());
        let writer = LakeWriter::open(&config).expect("opens");
        let reader = Arc::new(LakeReader::new(&config, limits(Duration::from_secs(30))).expect("opens"));
        reader.attach().expect("attaches");
        let tail = Arc::new(Tail::new(usize::MAX));
        tail.reset(partition(), Position::start(LIFE));
        Self { writer, reader, tail, sequence: 0, dir }
    }

    /// Puts a batch into the tail; gives what a commit would take.
    pub fn arrive(&mut self, batch: Batch) -> PendingMessage {
        self.sequence += 1;
        let sequence = Sequence(self.sequence);
        self.tail.push(partition(), sequence, Some(Arc::new(batch.clone())));
        PendingMessage { partition: partition(), sequence, stored_ms: START_MS, batch }
    }

    pub fn commit(&self, messages: Vec<PendingMessage>) {
        let Some(last) = messages.last() else { return };
        let reached = BTreeMap::from([(partition(), Position { incarnation: LIFE, sequence: last.sequence })]);
        let outcome = self.writer.commit(&CommitSet { messages, reached, current: None }).expect("commits");
        assert!(matches!(outcome, CommitOutcome::Committed(_)), "{outcome:?}");
    }

    pub fn execute(&self, sql: &str) {
        self.writer.lake().connection().execute_batch(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }

    fn number(&self, sql: &str) -> i64 {
        self.writer
            .lake()
            .connection()
            .query_row(sql, [], |row| row.get(0))
            .unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    /// Rolls up what is new, in one transaction.
    pub fn roll_up(&self, measurement: &str, tags: &[&str], fields: &[&str], tier: Tier) {
        let (from, into) = match tier {
            Tier::Minute => (measurement.to_owned(), format!("{measurement}_1m")),
            Tier::Hour => (format!("{measurement}_1m"), format!("{measurement}_1h")),
            Tier::Raw => panic!("raw rows are not rolled up"),
        };
        let tier_name = if tier == Tier::Minute { "1m" } else { "1h" };
        let summaries: String = fields.iter().map(|field| format!(", \"{field}\" {SUMMARY_TYPE}")).collect();
        let tag_columns: String = tags.iter().map(|tag| format!(", {tag} VARCHAR")).collect();
        self.execute(&format!(
            "BEGIN;
             CREATE TABLE IF NOT EXISTS lake.plimsoll.rollups (measurement VARCHAR, tier VARCHAR, snapshot BIGINT, rolled_at TIMESTAMP_MS);
             CREATE TABLE IF NOT EXISTS lake.main.{into} (ts TIMESTAMP_MS, host VARCHAR{tag_columns}{summaries})"
        ));
        let whose = format!("measurement = '{measurement}' AND tier = '{tier_name}'");
        let before =
            self.number(&format!("SELECT coalesce(max(snapshot), -1) FROM lake.plimsoll.rollups WHERE {whose}"));
        if before < 0 {
            // Days are removed as whole files.
            self.execute(&format!("ALTER TABLE lake.main.{into} SET PARTITIONED BY (year(ts), month(ts), day(ts))"));
        }
        let snapshot = self.number("SELECT id FROM lake.current_snapshot()");
        let series: String = tags.iter().map(|tag| format!(", {tag}")).collect();
        let bucket = if tier == Tier::Minute { "minute" } else { "hour" };
        let new = format!(
            "(SELECT *, date_trunc('{bucket}', ts)::TIMESTAMP_MS AS _bucket FROM lake.main.{from} WHERE snapshot_id > {before})"
        );
        let mut columns = String::new();
        for field in fields {
            columns.push_str(&if tier == Tier::Minute {
                let key = key_sql(&format!("\"{field}\"::DOUBLE"));
                format!(
                    ", {{'count': count(\"{field}\")::UBIGINT, 'sum': sum(\"{field}\"::DOUBLE), 'min': min(\"{field}\"::DOUBLE), \
                     'max': max(\"{field}\"::DOUBLE), 'sketch': coalesce(histogram({key}), MAP {{}})}}"
                )
            } else {
                // Counts of equal keys are added one by one: sketches are small here.
                let keys = format!("flatten(list(map_keys(\"{field}\".sketch)))");
                let counts = format!("flatten(list(map_values(\"{field}\".sketch)))");
                let count = format!("list_sum([c[2] FOR c IN list_zip({keys}, {counts}) IF c[1] = k])::UBIGINT");
                format!(
                    ", {{'count': sum(\"{field}\".count)::UBIGINT, 'sum': sum(\"{field}\".sum), 'min': min(\"{field}\".min), \
                     'max': max(\"{field}\".max), 'sketch': map(list_distinct({keys}), [{count} FOR k IN list_distinct({keys})])}}"
                )
            });
        }
        self.execute(&format!(
            "INSERT INTO lake.main.{into} SELECT _bucket, host{series}{columns} FROM {new} GROUP BY _bucket, host{series}"
        ));
        self.execute(&format!(
            "DELETE FROM lake.plimsoll.rollups WHERE {whose};
             INSERT INTO lake.plimsoll.rollups VALUES ('{measurement}', '{tier_name}', {snapshot}, NULL);
             COMMIT"
        ));
    }

    /// Removes a tier's rows before a time, as retention does.
    pub fn remove_before(&self, measurement: &str, tier: Tier, time_ms: i64) {
        let (table, label) = (tier.table(measurement), tier.label());
        self.execute(&format!(
            "BEGIN;
             DELETE FROM {table} WHERE ts < epoch_ms({time_ms}::BIGINT)::TIMESTAMP_MS;
             CREATE TABLE IF NOT EXISTS lake.plimsoll.removed (measurement VARCHAR, tier VARCHAR, before TIMESTAMP_MS);
             DELETE FROM lake.plimsoll.removed WHERE measurement = '{measurement}' AND tier = '{label}';
             INSERT INTO lake.plimsoll.removed VALUES ('{measurement}', '{label}', epoch_ms({time_ms}::BIGINT)::TIMESTAMP_MS);
             COMMIT"
        ));
    }
}

/// All of a host's rows.
pub fn all_of(of: &str, measurement: &str) -> Selection {
    Selection {
        hosts: Hosts::from(host(of)),
        measurement: name(measurement),
        from_ms: 0,
        to_ms: None,
        tags: BTreeMap::new(),
    }
}
