//! What is deleted, and what is not yet.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use plimsoll_lake::{
    Tier,
    rollup::{Retention, RetentionReport, TierRetention},
};
use plimsoll_nats::Column;

use crate::fixture::{DAY_MS, DAY_START_MS, TestLake, batch, name, small_steps, used};

const DAY: Duration = Duration::from_secs(86_400);

/// Noon of a day after 2026-09-21.
fn noon(day: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis((DAY_START_MS + day * DAY_MS + DAY_MS / 2).unsigned_abs())
}

/// Twenty samples around noon and the very first and last of a day.
fn times(day: i64) -> Vec<i64> {
    let start = DAY_START_MS + day * DAY_MS;
    let noon = (0..20).map(|row| start + DAY_MS / 2 + row * 60_000);
    [start].into_iter().chain(noon).chain([start + DAY_MS - 1]).collect()
}

fn days(raw: u32, minute: u32, hour: u32) -> Retention {
    Retention {
        raw: Some(raw * DAY),
        minute: Some(minute * DAY),
        hour: Some(hour * DAY),
        measurements: BTreeMap::new(),
    }
}

fn apply(lake: &TestLake, retention: &Retention, now: SystemTime) -> RetentionReport {
    let report = lake.writer.apply_retention(retention, now, || true).expect("is applied");
    assert!(report.finished);
    report
}

/// Days after 2026-09-21 that a table has rows of.
fn stored_days(lake: &TestLake, table: &str) -> Vec<i64> {
    let sql =
        format!("SELECT DISTINCT ((epoch_ms(ts) - {DAY_START_MS}) // {DAY_MS})::VARCHAR AS day FROM lake.{table}");
    let mut days: Vec<i64> = lake.texts(&sql).iter().map(|day| day.parse().expect("a number")).collect();
    days.sort_unstable();
    days
}

#[test]
fn whole_days_go_from_each_tier_at_their_time_and_nothing_else() {
    let lake = TestLake::new();
    for day in 0..10 {
        lake.commit(vec![used("disk", "a", &times(day)), used("zone", "a", &times(day))]);
    }
    lake.roll_up(&small_steps());
    lake.tidy();
    let mut retention = days(2, 5, 400);
    let own = TierRetention { raw: Some(None), minute: Some(Some(DAY)), hour: None };
    retention.measurements.insert(name("zone"), own);
    let hours = lake.number("SELECT count(*) FROM lake.disk_1h");
    let report = apply(&lake, &retention, noon(9));
    assert_eq!(stored_days(&lake, "disk"), [7, 8, 9]);
    assert_eq!(stored_days(&lake, "disk_1m"), [4, 5, 6, 7, 8, 9]);
    assert_eq!(stored_days(&lake, "zone"), (0..10).collect::<Vec<_>>());
    assert_eq!(stored_days(&lake, "zone_1m"), [8, 9]);
    assert_eq!(lake.number("SELECT count(*) FROM lake.disk_1h"), hours);
    assert_eq!(lake.number("SELECT count(*) FROM lake.disk"), 3 * 22);
    assert_eq!(
        lake.number("SELECT count(*) FROM __ducklake_metadata_lake.ducklake_delete_file"),
        0,
        "whole files went"
    );
    assert!(report.tables.iter().all(|table| !table.waits));
    assert_eq!(report.tables.len(), 3);
    assert_eq!(apply(&lake, &retention, noon(9)).tables, [], "nothing is left to do");
    lake.tidy();
    assert_eq!(stored_days(&lake, "disk"), [7, 8, 9]);
}

#[test]
fn rows_wait_until_the_next_tier_contains_them() {
    let lake = TestLake::new();
    for day in 0..5 {
        lake.commit(vec![used("disk", "a", &times(day))]);
    }
    let waits = |report: &RetentionReport| -> Vec<_> {
        report.tables.iter().map(|table| (table.tier, table.rows, table.waits)).collect()
    };
    let report = apply(&lake, &days(2, 3, 400), noon(4));
    assert_eq!(waits(&report), [(Tier::Raw, 0, true)]);
    assert_eq!(lake.number("SELECT count(*) FROM lake.disk"), 5 * 22);
    lake.roll_up(&small_steps());
    // A late sample, not yet rolled up.
    lake.commit(vec![used("disk", "a", &times(1)[..1])]);
    let report = apply(&lake, &days(2, 400, 400), noon(4));
    assert_eq!(waits(&report), [(Tier::Raw, 22, true)], "its day waits, the one before does not");
    lake.roll_up(&small_steps());
    let report = apply(&lake, &days(2, 400, 400), noon(4));
    assert_eq!(waits(&report), [(Tier::Raw, 23, false)]);
    assert_eq!(stored_days(&lake, "disk"), [2, 3, 4]);
    let hours = "SELECT sum(used.count)::BIGINT FROM lake.disk_1h";
    let minutes = "SELECT sum(used.count)::BIGINT FROM lake.disk_1m";
    assert_eq!(lake.number(hours), lake.number(minutes), "what is gone was rolled up");
}

#[test]
fn text_alone_waits_for_no_rollup() {
    let lake = TestLake::new();
    for day in 0..4 {
        let at = times(day);
        let texts = at.iter().map(|_| Some("up".to_owned())).collect();
        lake.commit(vec![batch("disk", "a", "sda", &at, vec![("state", Column::Text(texts))])]);
    }
    apply(&lake, &days(1, 1, 1), noon(3));
    assert_eq!(stored_days(&lake, "disk"), [2, 3]);
}

#[test]
fn hours_go_by_whole_months_and_without_their_measurement_too() {
    let lake = TestLake::new();
    // From 2026-09-21 into November.
    for day in (0..60).step_by(5) {
        lake.commit(vec![used("disk", "a", &times(day))]);
    }
    lake.roll_up(&small_steps());
    lake.execute("DROP TABLE lake.disk");
    apply(&lake, &days(1, 1, 30), noon(55));
    assert_eq!(stored_days(&lake, "disk_1h"), (10..60).step_by(5).collect::<Vec<_>>(), "all of September, no more");
    assert_eq!(stored_days(&lake, "disk_1m"), [55]);
    assert_eq!(lake.number("SELECT count(*) FROM __ducklake_metadata_lake.ducklake_delete_file"), 0);
}

#[test]
fn retention_that_is_cut_short_goes_on_the_next_time() {
    let lake = TestLake::new();
    for day in 0..6 {
        lake.commit(vec![used("disk", "a", &times(day))]);
    }
    lake.roll_up(&small_steps());
    let mut left = 2;
    let go_on = || {
        left -= 1;
        left >= 0
    };
    let report = lake.writer.apply_retention(&days(1, 400, 400), noon(5), go_on).expect("is applied");
    assert!(!report.finished && report.rows() == 2 * 22);
    assert_eq!(stored_days(&lake, "disk"), [2, 3, 4, 5]);
    apply(&lake, &days(1, 400, 400), noon(5));
    assert_eq!(stored_days(&lake, "disk"), [4, 5]);
}
