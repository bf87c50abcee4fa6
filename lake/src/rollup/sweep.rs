//! Deletes what is older than is wanted, whole days or months at once.
//!
//! A table's files lie in one day each, or in one month where it holds hours, so that what is deleted is whole files: they leave the
//! catalog, and no row of another file is touched. Rows go only once the next tier contains them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use duckdb::Connection;
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use plimsoll_nats::Name;

use super::{
    Retention, Tier,
    catalog::{self, DAY_MS},
    marks::{self, Mark},
    removed,
    sketch::Grouping,
    tables,
    transaction::transaction,
};
use crate::{Lake, LakeError, LakeWriter, error::Context, schema::LakeSchema};

/// What was deleted of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// The measurement.
    pub measurement: Name,
    /// The tier.
    pub tier: Tier,
    /// Rows deleted.
    pub rows: u64,
    /// Whether rows were left that are due, because the next tier does not contain them yet.
    pub waits: bool,
}

/// What retention has done.
#[derive(Debug, Default)]
pub struct RetentionReport {
    /// Tables of which something was due.
    pub tables: Vec<Swept>,
    /// Transactions that had to be tried again because another writer was faster.
    pub conflicts: u32,
    /// Whether all that was due was seen to.
    pub finished: bool,
    /// Time that it took.
    pub duration: Duration,
}

impl RetentionReport {
    /// Rows deleted.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}

impl LakeWriter {
    /// Deletes the rows of every tier that are older than is wanted at the time `now`: whole days of samples and minutes, whole
    /// months of hours, and only what the next tier contains.
    ///
    /// Each day or month of a table is one transaction. `go_on` is asked before each; it may wait to let commits through, and ends
    /// the work with false. Fails when the lake can't be reached, or others are faster again and again.
    pub fn apply_retention(
        &self,
        retention: &Retention,
        now: SystemTime,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<RetentionReport, LakeError> {
        let started = Instant::now();
        let mut report = RetentionReport::default();
        report.finished = Sweep::begin(self.lake(), retention, now)?.run(&mut report, &mut go_on)?;
        report.duration = started.elapsed();
        Ok(report)
    }
}

/// A table that has rows which may be due.
struct Due {
    measurement: Name,
    tier: Tier,
    /// Rows before this are due, Unix ms.
    cutoff_ms: i64,
    /// Ends of the days or months that have some, in order, Unix ms.
    ends: Vec<i64>,
}

struct Sweep<'c> {
    lake: &'c Lake,
    connection: &'c Connection,
    due: Vec<Due>,
}

impl<'c> Sweep<'c> {
    fn begin(lake: &'c Lake, retention: &Retention, now: SystemTime) -> Result<Self, LakeError> {
        let connection = lake.connection();
        let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, millis);
        let mut due = Vec::new();
        for (measurement, tier) in rows_of(connection)? {
            let Some(kept) = retention.of(&measurement, tier) else { continue };
            let Some((cutoff_ms, _)) = bounds(tier, now_ms.saturating_sub(millis(kept)).max(0)) else { continue };
            due.push(Due { measurement, tier, cutoff_ms, ends: Vec::new() });
        }
        let tables = due.iter().map(|due| (due.tier.table_name(&due.measurement), -1)).collect();
        let spans = catalog::spans(connection, &tables, |_, _| true)?;
        for due in &mut due {
            let spans = spans.get(&due.tier.table_name(&due.measurement)).map_or(&[][..], |spans| spans);
            let days: BTreeSet<i64> = spans.iter().map(|(first, _)| *first).collect();
            for start_ms in days.into_iter().map(|day| day.saturating_mul(DAY_MS)).filter(|ms| *ms < due.cutoff_ms) {
                let end = bounds(due.tier, start_ms).map_or(due.cutoff_ms, |(_, end)| end.min(due.cutoff_ms));
                if due.ends.last() != Some(&end) {
                    due.ends.push(end);
                }
            }
        }
        due.retain(|due| !due.ends.is_empty());
        Ok(Self { lake, connection, due })
    }

    fn run(&self, report: &mut RetentionReport, go_on: &mut impl FnMut() -> bool) -> Result<bool, LakeError> {
        for due in &self.due {
            let mut swept = Swept { measurement: due.measurement.clone(), tier: due.tier, rows: 0, waits: false };
            for end_ms in &due.ends {
                if !go_on() {
                    report.tables.push(swept);
                    return Ok(false);
                }
                let (deleted, conflicts) = transaction(self.lake, || self.delete(due, *end_ms))?;
                report.conflicts += conflicts;
                match deleted {
                    Some(rows) => swept.rows += rows,
                    None => {
                        swept.waits = true;
                        break;
                    }
                }
            }
            report.tables.push(swept);
        }
        Ok(true)
    }

    /// Deletes the rows before a time in the connection's transaction; none where one of them is not contained in the next tier.
    fn delete(&self, due: &Due, end_ms: i64) -> Result<Option<u64>, LakeError> {
        let table = due.tier.table(&due.measurement);
        let old = format!("ts < make_timestamp_ms({end_ms})::TIMESTAMP_MS");
        if let Some(contained) = self.contained(due)? {
            let sql = format!("SELECT count(*) FROM (FROM {table} WHERE {old} AND snapshot_id > {contained} LIMIT 1)");
            let waiting: i64 = self.connection.query_row(&sql, [], |row| row.get(0)).context("look for new rows")?;
            if waiting > 0 {
                return Ok(None);
            }
        }
        let rows = self.connection.execute(&format!("DELETE FROM {table} WHERE {old}"), []);
        let rows = rows.context("delete old rows")? as u64;
        if rows > 0 {
            removed::note(self.connection, &due.measurement, due.tier, end_ms)?;
        }
        Ok(Some(rows))
    }

    /// The snapshot up to which the next tier contains a table; none where there is no next tier.
    fn contained(&self, due: &Due) -> Result<Option<i64>, LakeError> {
        let Some(next) = due.tier.next() else { return Ok(None) };
        if due.tier == Tier::Raw {
            let schema = LakeSchema::read(self.connection)?;
            let table = schema.table(&due.measurement).cloned().unwrap_or_default();
            if Grouping::of_table(&table, DAY_MS).fields.is_empty() {
                return Ok(None);
            }
        }
        let marks = marks::read(self.connection)?;
        let Mark { snapshot, .. } =
            marks.get(&(due.measurement.clone(), next)).copied().unwrap_or(Mark { snapshot: 0, rolled_ms: None });
        Ok(Some(snapshot))
    }
}

/// The tables of all measurements and rollups, also of measurements that are no more.
fn rows_of(connection: &Connection) -> Result<BTreeSet<(Name, Tier)>, LakeError> {
    let schema = LakeSchema::read(connection)?;
    let raw = schema.tables().map(|(measurement, _)| (measurement.clone(), Tier::Raw));
    let present = tables::all(connection)?;
    let rolled = marks::read(connection)?.into_keys();
    let rolled = rolled.filter(|(measurement, tier)| present.contains(&tier.table_name(measurement)));
    Ok(raw.chain(rolled).collect())
}

/// The start of the day, or of the month where the tier holds hours, that a time lies in, and the start of the next one, Unix ms; none
/// where the time is thousands of years off.
fn bounds(tier: Tier, time_ms: i64) -> Option<(i64, i64)> {
    let date = Timestamp::from_millisecond(time_ms).ok()?.to_zoned(TimeZone::UTC).date();
    let (first, next) = match tier {
        Tier::Hour => (date.first_of_month(), date.first_of_month().checked_add(1.month())),
        Tier::Raw | Tier::Minute => (date, date.tomorrow()),
    };
    let start = |date: Date| Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond());
    Some((start(first)?, start(next.ok()?)?))
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
