//! Rollups tell the same as the rows, whatever happens in which order.

use std::{num::NonZeroU64, time::Duration};

use plimsoll_lake::{Tier, rollup::RollupLimits};
use plimsoll_nats::Column;
use proptest::{collection::vec, prelude::*};

use crate::fixture::{DAY_MS, DAY_START_MS, TestLake, batch, small_steps, used};

/// What may happen to a lake.
#[derive(Debug, Clone)]
enum Event {
    /// Samples come: of a host, so many of them, from a day and second on.
    Commit { host: u8, rows: i64, day: i64, second: i64 },
    /// Samples come that have a further field.
    CommitFurther { host: u8, rows: i64, second: i64 },
    /// Rows are rolled up, in so many steps at most.
    RollUp { steps: usize },
    /// Files are merged and snapshots forgotten.
    Tidy,
}

fn event() -> impl Strategy<Value = Event> {
    let commit =
        (0..4_u8, prop_oneof![1..8_i64, 1..120_i64], prop_oneof![4 => Just(3_i64), 1 => 0..3_i64], 0..86_000_i64);
    prop_oneof![
        5 => commit.prop_map(|(host, rows, day, second)| Event::Commit { host, rows, day, second }),
        1 => (0..4_u8, 1..30_i64, 0..86_000_i64).prop_map(|(host, rows, second)| Event::CommitFurther { host, rows, second }),
        3 => prop_oneof![Just(1), Just(2), Just(usize::MAX)].prop_map(|steps| Event::RollUp { steps }),
        1 => Just(Event::Tidy),
    ]
}

fn times(day: i64, second: i64, rows: i64) -> Vec<i64> {
    (0..rows).map(|row| DAY_START_MS + day * DAY_MS + (second + row) * 1000).collect()
}

fn apply(lake: &TestLake, event: &Event) {
    match event {
        Event::Commit { host, rows, day, second } => {
            lake.commit(vec![used("disk", &format!("h{host}"), &times(*day, *second, *rows))]);
        }
        Event::CommitFurther { host, rows, second } => {
            let times = times(3, *second, *rows);
            let counts = times.iter().map(|time| Some(time / 1000)).collect();
            let flags = times.iter().map(|time| (time % 3 == 0).then_some(time % 2 == 0)).collect();
            let fields = vec![("reads_total", Column::Integer(counts)), ("ok", Column::Bool(flags))];
            lake.commit(vec![batch("disk", &format!("h{host}"), "sdb", &times, fields)]);
        }
        Event::RollUp { steps } => {
            let mut left = *steps;
            let go_on = || {
                left = left.saturating_sub(1);
                left > 0
            };
            lake.writer.roll_up(&small_steps(), go_on).expect("rolls up");
        }
        Event::Tidy => lake.tidy(),
    }
}

fn further(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::CommitFurther { .. }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_shrink_iters: 32, ..ProptestConfig::default() })]

    #[test]
    fn rollups_and_what_they_lack_tell_the_same_as_all_rows(events in vec(event(), 4..12)) {
        let lake = TestLake::new();
        lake.commit(vec![used("disk", "h0", &times(3, 0, 100))]);
        for (index, event) in events.iter().enumerate() {
            apply(&lake, event);
            if !matches!(event, Event::RollUp { .. } | Event::Tidy) {
                continue;
            }
            let fields = if further(&events[..=index]) { &["used", "reads_total", "ok"][..] } else { &["used"] };
            lake.check("disk", fields);
        }
        lake.roll_up(&small_steps());
        lake.roll_up(&small_steps());
        lake.check("disk", &["used"]);
        let left = format!("SELECT count(*) FROM lake.disk WHERE snapshot_id > {}", lake.mark("disk", Tier::Minute));
        prop_assert_eq!(lake.number(&left), 0, "all rows are rolled up in the end");
        let left = format!("SELECT count(*) FROM lake.disk_1m WHERE snapshot_id > {}", lake.mark("disk", Tier::Hour));
        prop_assert_eq!(lake.number(&left), 0);
    }
}

#[test]
fn a_commit_of_more_than_a_step_takes_is_rolled_up_piece_by_piece() {
    let lake = TestLake::new();
    let batches =
        |host: &str| (0..6).map(|part| used("disk", host, &times(part % 2, part * 3000, 700))).collect::<Vec<_>>();
    lake.commit(["a", "b", "c"].into_iter().flat_map(batches).collect());
    let report = lake.roll_up(&small_steps());
    assert_eq!((report.steps, report.source_rows > 6 * 3 * 700), (2, true), "one commit is one step of each tier");
    lake.check("disk", &["used"]);
    let doubled = "SELECT count(*) - count(DISTINCT (ts, host, disk)) FROM lake.disk_1m";
    assert_eq!(lake.number(doubled), 0, "pieces end where buckets do");
}

#[test]
fn late_samples_add_parts_and_nothing_new_adds_nothing() {
    let lake = TestLake::new();
    lake.commit(vec![used("disk", "a", &times(0, 0, 120))]);
    lake.roll_up(&small_steps());
    let rows = || lake.number("SELECT count(*) FROM lake.disk_1m");
    let before = rows();
    let marked = lake.mark("disk", Tier::Minute);
    let idle = lake.roll_up(&small_steps());
    assert_eq!((idle.steps, rows(), lake.mark("disk", Tier::Minute)), (0, before, marked));
    lake.commit(vec![used("disk", "a", &times(0, 30, 1))]);
    lake.roll_up(&small_steps());
    assert_eq!(rows(), before + 1);
    lake.check("disk", &["used"]);
}

#[test]
fn tables_are_laid_out_as_the_contract_says() {
    let lake = TestLake::new();
    let at = times(0, 0, 3);
    let texts = at.iter().map(|_| Some("up".to_owned())).collect();
    lake.commit(vec![batch("disk", "a", "sda", &at, vec![("state", Column::Text(texts))])]);
    lake.roll_up(&small_steps());
    let rollups =
        "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake' AND table_name LIKE 'disk\\__%' ESCAPE '\\'";
    assert_eq!(lake.number(rollups), 0, "there is nothing to summarize yet");
    lake.commit(vec![used("disk", "a", &at)]);
    lake.roll_up(&small_steps());
    let columns = "SELECT string_agg(column_name || ' ' || data_type, ', ' ORDER BY column_index) FROM duckdb_columns()
                   WHERE database_name = 'lake' AND schema_name = 'main' AND table_name IN ('disk_1m', 'disk_1h') GROUP BY table_name";
    let summary = "STRUCT(count UBIGINT, sum DOUBLE, min DOUBLE, max DOUBLE, sketch MAP(INTEGER, UBIGINT))";
    let expected = format!("ts TIMESTAMP_MS, host VARCHAR, disk VARCHAR, used {summary}").replace('"', "");
    for found in lake.texts(columns) {
        assert_eq!(found.replace('"', ""), expected);
    }
    let partitions = "SELECT count(*) FROM __ducklake_metadata_lake.ducklake_partition_column p
                      JOIN __ducklake_metadata_lake.ducklake_table t USING (table_id) WHERE t.table_name = ";
    assert_eq!(lake.number(&format!("{partitions}'disk_1m'")), 3, "by day");
    assert_eq!(lake.number(&format!("{partitions}'disk_1h'")), 2, "by month");
    lake.check("disk", &["used"]);
}

#[test]
fn a_round_waits_for_its_time_unless_the_one_before_was_cut_short() {
    let lake = TestLake::new();
    let limits = RollupLimits {
        minute_every: Duration::from_secs(3600),
        values_per_step: NonZeroU64::new(100).expect("is not zero"),
        ..RollupLimits::default()
    };
    for part in 0..4 {
        lake.commit(vec![used("disk", "a", &times(0, part * 100, 80))]);
    }
    let mut left = 2;
    let cut = lake.writer.roll_up(&limits, || {
        left -= 1;
        left >= 0
    });
    let cut = cut.expect("rolls up");
    assert_eq!((cut.steps, cut.finished), (2, false));
    let rest = lake.roll_up(&limits);
    assert_eq!(
        rest.source_rows - lake.number("SELECT count(*) FROM lake.disk_1m").unsigned_abs(),
        160,
        "the rest at once"
    );
    lake.commit(vec![used("disk", "a", &times(0, 900, 80))]);
    assert_eq!(lake.roll_up(&limits).steps, 0, "not before its time");
    lake.check("disk", &["used"]);
}

#[test]
fn many_rows_are_rolled_up_sooner() {
    let lake = TestLake::new();
    let limits = RollupLimits {
        minute_every: Duration::from_secs(3600),
        minute_every_if_busy: Duration::ZERO,
        busy_rows: 100,
        ..RollupLimits::default()
    };
    lake.commit(vec![used("disk", "a", &times(0, 0, 10))]);
    assert_eq!(lake.roll_up(&limits).source_rows, 10 + 1, "the first at once, by minute and by hour");
    lake.commit(vec![used("disk", "a", &times(0, 100, 60))]);
    lake.commit(vec![used("idle", "a", &times(0, 0, 10))]);
    lake.roll_up(&limits);
    lake.commit(vec![used("idle", "a", &times(0, 10, 10))]);
    assert_eq!(lake.roll_up(&limits).steps, 0, "few rows wait");
    lake.commit(vec![used("disk", "a", &times(0, 200, 60))]);
    assert_eq!(lake.roll_up(&limits).source_rows, 120, "those of `disk` alone");
    lake.check("disk", &["used"]);
}

#[test]
fn a_rollup_that_was_changed_by_hand_is_told_and_stops_no_other() {
    let lake = TestLake::new();
    for measurement in ["disk", "zone"] {
        lake.commit(vec![used(measurement, "a", &times(0, 0, 10))]);
    }
    lake.roll_up(&small_steps());
    lake.execute("DROP TABLE lake.disk_1m");
    for measurement in ["disk", "zone"] {
        lake.commit(vec![used(measurement, "a", &times(0, 50, 10))]);
    }
    let report = lake.writer.roll_up(&small_steps(), || true).expect("goes on");
    let failed: Vec<String> = report.failures.iter().map(|failure| failure.error.to_string()).collect();
    assert!(failed.len() == 1 && failed[0].contains("drop its tables `disk_1m` and `disk_1h`"), "{failed:?}");
    lake.check("zone", &["used"]);
    lake.execute("DROP TABLE lake.disk_1h; DELETE FROM lake.plimsoll.rollups WHERE measurement = 'disk'");
    lake.roll_up(&small_steps());
    lake.check("disk", &["used"]);
}
