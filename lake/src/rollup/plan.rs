//! Cuts new rows into steps, each one transaction, and steps into pieces, each one query of bounded memory.

use duckdb::Connection;

use super::catalog::{DAY_MS, Span};
use crate::{LakeError, error::Context, sql::literal};

/// Rows of one snapshot in one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DayRows {
    snapshot: i64,
    day: i64,
    rows: u64,
}

/// Snapshots `(after, upto]` of a source, to be rolled up in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) after: i64,
    pub(super) upto: i64,
    /// Days with new rows and how many they are, in order.
    days: Vec<(i64, u64)>,
    /// Whether no further step is known to follow.
    pub(super) is_last: bool,
}

/// A part of a step's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// The SQL condition that the rows meet.
    pub(super) condition: String,
    pub(super) rows: u64,
}

/// The steps that roll up what came after one snapshot up to another one, of `max_rows` rows each, a single snapshot's where that
/// has more. There is none where there are no new rows.
pub(super) fn steps(
    connection: &Connection,
    source: &str,
    (after, upto): (i64, i64),
    spans: &[Span],
    max_rows: u64,
) -> Result<Vec<Step>, LakeError> {
    let mut found = Vec::new();
    for (first, last) in spans {
        let condition = format!("{} AND {}", snapshots(after, upto), times(first * DAY_MS, (last + 1) * DAY_MS));
        let sql = format!(
            "SELECT snapshot_id, floor(epoch_ms(ts) / {DAY_MS})::BIGINT AS day, count(*) FROM {source} WHERE {condition} GROUP BY ALL"
        );
        let mut statement = connection.prepare(&sql).context("count new rows")?;
        let rows = statement
            .query_map([], |row| {
                Ok(DayRows { snapshot: row.get(0)?, day: row.get(1)?, rows: row.get::<_, i64>(2)?.unsigned_abs() })
            })
            .and_then(Iterator::collect::<Result<Vec<_>, _>>);
        found.extend(rows.context("count new rows")?);
    }
    Ok(cut(found, (after, upto), max_rows))
}

fn cut(mut found: Vec<DayRows>, (after, upto): (i64, i64), max_rows: u64) -> Vec<Step> {
    found.sort_unstable_by_key(|rows| (rows.snapshot, rows.day));
    let mut steps: Vec<Step> = Vec::new();
    let mut total = 0;
    for snapshot in found.chunk_by(|a, b| a.snapshot == b.snapshot) {
        let rows: u64 = snapshot.iter().map(|rows| rows.rows).sum();
        let upto = snapshot[0].snapshot;
        match steps.last_mut() {
            Some(step) if total + rows <= max_rows => step.upto = upto,
            before => {
                let after = before.map_or(after, |before| before.upto);
                steps.push(Step { after, upto, days: Vec::new(), is_last: false });
                total = 0;
            }
        }
        total += rows;
        let step = steps.last_mut().expect("one was there or was added");
        step.days.extend(snapshot.iter().map(|rows| (rows.day, rows.rows)));
    }
    steps.iter_mut().for_each(Step::sum_days);
    if let Some(step) = steps.last_mut() {
        step.upto = upto;
        step.is_last = true;
    }
    steps
}

impl Step {
    /// All rows of the step.
    pub(super) fn rows(&self) -> u64 {
        self.days.iter().map(|(_, rows)| rows).sum()
    }

    fn sum_days(&mut self) {
        self.days.sort_unstable();
        self.days.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            kept.1 += if same { later.1 } else { 0 };
            same
        });
    }

    /// Cuts the step into pieces of at most `max_rows` rows: by days, and days by hosts. Only a host's day in a single bucket of
    /// the length `bucket_ms` may have more.
    pub(super) fn pieces(
        &self,
        connection: &Connection,
        source: &str,
        max_rows: u64,
        bucket_ms: i64,
    ) -> Result<Vec<Piece>, LakeError> {
        let mut pieces = Vec::new();
        for (first, last, rows) in self.runs_of_days(max_rows) {
            let times = times(first * DAY_MS, (last + 1) * DAY_MS);
            let condition = format!("{} AND {times}", snapshots(self.after, self.upto));
            if rows <= max_rows {
                pieces.push(Piece { condition, rows });
                continue;
            }
            for (hosts, rows) in hosts(connection, source, &condition, max_rows)? {
                if rows <= max_rows {
                    pieces.push(Piece { condition: format!("{condition} AND {hosts}"), rows });
                } else {
                    let base = format!("{} AND {hosts}", snapshots(self.after, self.upto));
                    pieces.extend(by_time(&base, first, rows, max_rows, bucket_ms));
                }
            }
        }
        Ok(pieces)
    }

    /// Runs of days that follow each other without a gap and have at most `max_rows` rows, or are a single day that has more.
    fn runs_of_days(&self, max_rows: u64) -> Vec<(i64, i64, u64)> {
        let mut runs: Vec<(i64, i64, u64)> = Vec::new();
        for &(day, rows) in &self.days {
            match runs.last_mut() {
                Some((_, last, total)) if *last + 1 == day && *total + rows <= max_rows => {
                    *last = day;
                    *total += rows;
                }
                _ => runs.push((day, day, rows)),
            }
        }
        runs
    }
}

/// Conditions for runs of hosts with at most `max_rows` rows each, or a single host that has more. Files are sorted by host, so
/// that each of them reads its share only.
fn hosts(
    connection: &Connection,
    source: &str,
    condition: &str,
    max_rows: u64,
) -> Result<Vec<(String, u64)>, LakeError> {
    let sql = format!("SELECT host, count(*) FROM {source} WHERE {condition} GROUP BY host ORDER BY host NULLS FIRST");
    let mut statement = connection.prepare(&sql).context("count new rows by host")?;
    let counts = statement
        .query_map([], |row| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, i64>(1)?.unsigned_abs())))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .context("count new rows by host")?;
    let mut runs: Vec<(String, String, u64)> = Vec::new();
    let mut conditions = Vec::new();
    for (host, rows) in counts {
        let Some(host) = host else {
            conditions.push(("host IS NULL".to_owned(), rows));
            continue;
        };
        match runs.last_mut() {
            Some((_, last, total)) if *total + rows <= max_rows => {
                *last = host;
                *total += rows;
            }
            _ => runs.push((host.clone(), host, rows)),
        }
    }
    conditions.extend(
        runs.into_iter()
            .map(|(first, last, rows)| (format!("host >= {} AND host <= {}", literal(&first), literal(&last)), rows)),
    );
    Ok(conditions)
}

/// Cuts a day of too many rows into equal times, whole buckets each.
fn by_time(base: &str, day: i64, rows: u64, max_rows: u64, bucket_ms: i64) -> Vec<Piece> {
    let parts = i64::try_from(rows.div_ceil(max_rows)).unwrap_or(i64::MAX);
    let length = (DAY_MS / parts / bucket_ms).max(1) * bucket_ms;
    let parts = DAY_MS.div_euclid(length) + i64::from(DAY_MS % length > 0);
    let start = day * DAY_MS;
    let pieces = (0..parts).map(|part| {
        let (from, to) = (start + part * length, (start + (part + 1) * length).min(start + DAY_MS));
        Piece { condition: format!("{base} AND {}", times(from, to)), rows: rows.div_ceil(parts.unsigned_abs()) }
    });
    pieces.collect()
}

fn snapshots(after: i64, upto: i64) -> String {
    format!("snapshot_id > {after} AND snapshot_id <= {upto}")
}

/// The condition for times in `[from, to)`, Unix ms.
fn times(from: i64, to: i64) -> String {
    format!("ts >= make_timestamp_ms({from})::TIMESTAMP_MS AND ts < make_timestamp_ms({to})::TIMESTAMP_MS")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(snapshot: i64, day: i64, rows: u64) -> DayRows {
        DayRows { snapshot, day, rows }
    }

    #[test]
    fn steps_are_whole_snapshots_of_bounded_size_without_a_gap() {
        let found = vec![rows(9, 2, 10), rows(4, 1, 5), rows(4, 2, 1), rows(6, 1, 4), rows(7, 1, 1)];
        let steps = cut(found, (3, 12), 10);
        let shape: Vec<_> = steps.iter().map(|step| (step.after, step.upto, step.days.clone(), step.is_last)).collect();
        assert_eq!(
            shape,
            [(3, 6, vec![(1, 9), (2, 1)], false), (6, 7, vec![(1, 1)], false), (7, 12, vec![(2, 10)], true)]
        );
        assert!(cut(Vec::new(), (3, 12), 10).is_empty());
        assert_eq!(cut(vec![rows(5, 0, 1000)], (0, 5), 10).len(), 1, "a snapshot is never split");
    }

    #[test]
    fn days_are_joined_while_few_rows_lie_in_them_and_no_gap_between() {
        let step = Step { after: 0, upto: 1, days: vec![(1, 3), (2, 3), (3, 5), (5, 1), (6, 20)], is_last: true };
        assert_eq!(step.runs_of_days(8), [(1, 2, 6), (3, 3, 5), (5, 5, 1), (6, 6, 20)]);
    }

    #[test]
    fn a_day_is_cut_into_times_that_cover_it() {
        for (rows, max_rows, bucket) in
            [(100, 7, 60_000), (10, 3, 3_600_000), (1_000_000, 1, 3_600_000), (7, 6, 60_000)]
        {
            let pieces = by_time("true", 3, rows, max_rows, bucket);
            let joined: Vec<&str> = pieces.iter().map(|piece| piece.condition.as_str()).collect();
            assert!(joined[0].contains(&format!("ts >= make_timestamp_ms({})", 3 * DAY_MS)));
            assert!(joined[joined.len() - 1].contains(&format!("ts < make_timestamp_ms({})", 4 * DAY_MS)));
            assert!(pieces.len() as i64 <= DAY_MS / bucket);
            for pair in joined.windows(2) {
                let end = pair[0].split("ts < ").nth(1).expect("an end");
                assert!(pair[1].contains(&format!("ts >= {end}")), "{pair:?}");
            }
        }
    }
}
