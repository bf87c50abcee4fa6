//! Rolls new rows up, in steps that are one transaction each.
//!
//! A step takes the source's rows of some snapshots. It summarizes them into a temporary table, outside of any transaction: what a
//! snapshot holds does not change. Then one short transaction checks that the mark is where the step began, inserts the
//! summaries and moves the mark. So a step is contained as a whole or not at all, whoever else rolls up, and whenever this dies.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    time::{Duration, Instant},
};

use duckdb::Connection;
use plimsoll_nats::{Name, clock::now_ms};

use super::{
    Tier, catalog,
    marks::{self, Mark, Marks},
    plan::{self, Step},
    sketch::Grouping,
    tables,
    transaction::transaction,
};
use crate::{Lake, LakeError, LakeWriter, error::Context, schema::LakeSchema, sql::ident};

/// Temporary table of a step's summaries.
const STAGING: &str = "rollup_staging";
/// How many values the sketch of a minute counts as: about as many entries does one of well spread values have.
const VALUES_IN_A_SUMMARY: u64 = 32;

/// How often and in which steps to roll up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollupLimits {
    /// Time between two rounds of a measurement's minutes; default 15 minutes. Each leaves one more part of the minute that it
    /// ends in, and files.
    pub minute_every: Duration,
    /// The same where `busy_rows` or more have come meanwhile, which readers would have to add up themselves; default 5 minutes.
    pub minute_every_if_busy: Duration,
    /// Default 100,000.
    pub busy_rows: u64,
    /// Shortest time between two rounds of a measurement's hours; default 1 hour.
    pub hour_every: Duration,
    /// Most values in one query, which takes some 20 bytes of memory for each; default 8 million. It is halved where memory
    /// does not suffice. A step takes as many, or one commit's where that has more.
    pub values_per_step: NonZeroU64,
}

impl Default for RollupLimits {
    fn default() -> Self {
        Self {
            minute_every: Duration::from_secs(15 * 60),
            minute_every_if_busy: Duration::from_secs(5 * 60),
            busy_rows: 100_000,
            hour_every: Duration::from_secs(3600),
            values_per_step: NonZeroU64::new(8_000_000).expect("is not zero"),
        }
    }
}

impl RollupLimits {
    /// Whether a measurement's round is due when the last one is so long ago.
    fn due(&self, tier: Tier, age_ms: i64) -> Due {
        // A time that lies ahead was taken from a clock that was wrong.
        let is_over = |span: Duration| age_ms < 0 || i64::try_from(span.as_millis()).is_ok_and(|span| age_ms >= span);
        match tier {
            Tier::Hour if is_over(self.hour_every) => Due::Now,
            Tier::Hour => Due::Later,
            _ if is_over(self.minute_every) => Due::Now,
            _ if is_over(self.minute_every_if_busy) => Due::IfBusy,
            _ => Due::Later,
        }
    }

    fn max_rows(&self, tier: Tier, grouping: &Grouping) -> u64 {
        let weight = if tier == Tier::Hour { VALUES_IN_A_SUMMARY } else { 1 };
        let values = weight * (grouping.fields.len() as u64).max(1);
        (self.values_per_step.get() / values).max(1)
    }
}

/// Whether the time for a round has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now,
    /// Where many rows have come.
    IfBusy,
    Later,
}

/// What a round has done.
#[derive(Debug, Default)]
pub struct RollupReport {
    /// Transactions.
    pub steps: u64,
    /// Rows that were rolled up: samples, and summaries of minutes.
    pub source_rows: u64,
    /// Rows of summaries that were written.
    pub rows: u64,
    /// Transactions that had to be tried again because another writer was faster.
    pub conflicts: u32,
    /// Rollups that another member took on meanwhile.
    pub overtaken: u32,
    /// Rollups that failed, where the others could go on.
    pub failures: Vec<RollupFailure>,
    /// Whether all that was due was done, failures aside.
    pub finished: bool,
    /// Time that it took.
    pub duration: Duration,
}

/// A rollup that failed.
#[derive(Debug)]
pub struct RollupFailure {
    /// The measurement.
    pub measurement: Name,
    /// The tier that could not be written.
    pub tier: Tier,
    /// Why.
    pub error: LakeError,
}

/// What came of a step's transaction.
enum Written {
    Rows(usize),
    /// The mark was not where the step began.
    Overtaken,
}

impl LakeWriter {
    /// Rolls up, for every measurement whose time has come, the rows that came since the last time: samples into minutes,
    /// minutes into hours.
    ///
    /// `go_on` is asked before each step, of which each is one transaction; it may wait to let commits through, and ends the
    /// round with false. What then is left is done by the next one. Fails when the lake can't be reached, or others are faster
    /// again and again.
    pub fn roll_up(&self, limits: &RollupLimits, mut go_on: impl FnMut() -> bool) -> Result<RollupReport, LakeError> {
        let started = Instant::now();
        let lake = self.lake();
        marks::ensure(lake)?;
        let mut report = RollupReport::default();
        let mut finished = true;
        for tier in Tier::ROLLED {
            finished = finished && Round::begin(lake, limits, tier)?.run(&mut report, &mut go_on)?;
        }
        report.finished = finished;
        report.duration = started.elapsed();
        Ok(report)
    }
}

/// One tier of all measurements.
struct Round<'c> {
    lake: &'c Lake,
    connection: &'c Connection,
    limits: &'c RollupLimits,
    tier: Tier,
    /// The snapshot up to which the round goes.
    upto: i64,
    schema: LakeSchema,
    marks: Marks,
    /// Days of new rows, by table of the source.
    spans: BTreeMap<String, Vec<catalog::Span>>,
}

impl<'c> Round<'c> {
    fn begin(lake: &'c Lake, limits: &'c RollupLimits, tier: Tier) -> Result<Self, LakeError> {
        let connection = lake.connection();
        let upto = catalog::last_snapshot(connection)?;
        let (schema, marks) = (LakeSchema::read(connection)?, marks::read(connection)?);
        let mut round = Self { lake, connection, limits, tier, upto, schema, marks, spans: BTreeMap::new() };
        let due = round.due(now_ms());
        let after = due.iter().map(|(table, (after, _))| (table.clone(), *after)).collect();
        let is_wanted = |table: &str, rows| due[table].1 == Due::Now || rows >= limits.busy_rows;
        round.spans = catalog::spans(connection, &after, is_wanted)?;
        Ok(round)
    }

    fn source(&self) -> Tier {
        self.tier.source().expect("only tiers with a source are rolled up")
    }

    fn mark(&self, measurement: &Name) -> Option<Mark> {
        self.marks.get(&(measurement.clone(), self.tier)).copied()
    }

    /// The snapshots after which new rows are wanted, by the source's table.
    fn due(&self, now_ms: i64) -> BTreeMap<String, (i64, Due)> {
        let measurements = self.schema.tables().map(|(measurement, _)| measurement);
        let due = measurements.filter_map(|measurement| {
            let mark = self.mark(measurement);
            let rolled_ms = mark.and_then(|mark| mark.rolled_ms);
            let due = rolled_ms.map_or(Due::Now, |rolled_ms| self.limits.due(self.tier, now_ms - rolled_ms));
            let after = mark.map_or(0, |mark| mark.snapshot);
            (due != Due::Later).then(|| (self.source().table_name(measurement), (after, due)))
        });
        due.collect()
    }

    /// Returns whether all was done.
    fn run(&self, report: &mut RollupReport, go_on: &mut impl FnMut() -> bool) -> Result<bool, LakeError> {
        for (measurement, _) in self.schema.tables() {
            let Some(spans) = self.spans.get(&self.source().table_name(measurement)) else { continue };
            match self.roll(measurement, &catalog::joined(spans), report, go_on) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) if concerns_one(&error) => {
                    report.failures.push(RollupFailure { measurement: measurement.clone(), tier: self.tier, error });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn roll(
        &self,
        measurement: &Name,
        spans: &[catalog::Span],
        report: &mut RollupReport,
        go_on: &mut impl FnMut() -> bool,
    ) -> Result<bool, LakeError> {
        let grouping = self.grouping(measurement)?;
        if grouping.fields.is_empty() {
            return Ok(true);
        }
        let source = self.source().table(measurement);
        let after = self.mark(measurement).map_or(0, |mark| mark.snapshot);
        let max_rows = self.limits.max_rows(self.tier, &grouping);
        for step in plan::steps(self.connection, &source, (after, self.upto), spans, max_rows)? {
            if !go_on() {
                return Ok(false);
            }
            self.stage_within(&step, &source, &grouping, max_rows)?;
            let (written, conflicts) = transaction(self.lake, || self.write(measurement, &grouping, &step))?;
            report.conflicts += conflicts;
            match written {
                Written::Rows(rows) => {
                    report.steps += 1;
                    report.rows += rows as u64;
                    report.source_rows += step.rows();
                }
                Written::Overtaken => {
                    report.overtaken += 1;
                    break;
                }
            }
        }
        self.execute(&format!("DROP TABLE IF EXISTS temp.{STAGING}"), "drop a staging table")?;
        Ok(true)
    }

    /// Tags and fields as far as the source has them.
    fn grouping(&self, measurement: &Name) -> Result<Grouping, LakeError> {
        let bucket_ms = self.tier.bucket_ms().expect("only buckets are rolled up");
        let table = self.schema.table(measurement).cloned().unwrap_or_default();
        let mut grouping = Grouping::of_table(&table, bucket_ms);
        let present = tables::columns(self.connection, measurement, self.source())?;
        grouping.tags.retain(|tag| present.contains(&**tag));
        grouping.fields.retain(|(field, _)| present.contains(&**field));
        Ok(grouping)
    }

    /// Summarizes a step's rows, in smaller pieces where memory does not suffice.
    fn stage_within(&self, step: &Step, source: &str, grouping: &Grouping, max_rows: u64) -> Result<(), LakeError> {
        const LEAST_ROWS: u64 = 1000;
        let mut max_rows = max_rows;
        loop {
            match self.stage(step, source, grouping, max_rows) {
                Err(error) if error.is_out_of_memory() && max_rows > LEAST_ROWS => max_rows /= 2,
                other => return other,
            }
        }
    }

    fn stage(&self, step: &Step, source: &str, grouping: &Grouping, max_rows: u64) -> Result<(), LakeError> {
        let query = |condition: &str| match self.tier {
            Tier::Hour => grouping.of_summaries(source, condition),
            _ => grouping.of_raw(source, condition),
        };
        let pieces = step.pieces(self.connection, source, max_rows, grouping.bucket_ms)?;
        let mut conditions = pieces.into_iter().map(|piece| piece.condition);
        // The first piece makes the table, since a query without any rows costs as much as one with few. There is none where the
        // rows were deleted meanwhile.
        let first = query(&conditions.next().unwrap_or_else(|| "false".to_owned()));
        self.execute(&format!("CREATE OR REPLACE TEMP TABLE {STAGING} AS {first}"), "roll rows up")?;
        conditions.try_for_each(|condition| {
            let insert = format!("INSERT INTO temp.{STAGING} BY NAME {}", query(&condition));
            self.execute(&insert, "roll rows up")
        })
    }

    /// Inserts a step's summaries and moves the mark, in the connection's transaction.
    fn write(&self, measurement: &Name, grouping: &Grouping, step: &Step) -> Result<Written, LakeError> {
        let tier = self.tier;
        let before = marks::read(self.connection)?.get(&(measurement.clone(), tier)).copied();
        if before.map_or(0, |mark| mark.snapshot) != step.after {
            return Ok(Written::Overtaken);
        }
        let present = tables::columns(self.connection, measurement, tier)?;
        if before.is_none() != present.is_empty() {
            return Err(LakeError::RollupChanged { measurement: measurement.to_string(), tier: tier.label() });
        }
        tables::migrate(self.connection, measurement, tier, grouping, &present)?;
        let insert = format!("INSERT INTO {} BY NAME SELECT * FROM temp.{}", tier.table(measurement), ident(STAGING));
        let rows = self.connection.execute(&insert, []).context("insert summaries")?;
        // Until all has been rolled up the next round is due at once.
        let rolled_ms = if step.is_last { Some(now_ms()) } else { None };
        marks::set(self.connection, (measurement, tier), before, Mark { snapshot: step.upto, rolled_ms })?;
        Ok(Written::Rows(rows))
    }

    fn execute(&self, sql: &str, action: &'static str) -> Result<(), LakeError> {
        self.connection.execute_batch(sql).context(action)
    }
}

/// Whether other measurements can be rolled up all the same.
fn concerns_one(error: &LakeError) -> bool {
    matches!(error, LakeError::RollupChanged { .. }) || error.is_out_of_memory() || error.refusal().is_some()
}
