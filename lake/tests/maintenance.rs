//! Maintenance on a real lake: fewer files, the same rows, and nobody is disturbed.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use plimsoll_lake::{
    Access, CommitOutcome, Keep, Lake, LakeConfig, LakeStatus, LakeWriter, MaintenanceReport, PendingMessage,
    writer::CommitSet,
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
const NOW_MS: i64 = 1_790_000_000_000;
const NOTHING: Keep = Keep { snapshots: Duration::ZERO, unused_files: Duration::ZERO, orphans: None };
const HOUR: Duration = Duration::from_secs(3600);

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

fn partition(number: u16) -> PartitionId {
    PartitionId::new(number).expect("exists")
}

/// The message of a sequence: three rows that no other sequence has.
fn message(number: u16, sequence: u64, measurement: &str) -> PendingMessage {
    let first = sequence.cast_signed() * 3;
    let values: Vec<i64> = (first..first + 3).collect();
    let batch = Batch {
        host: HostId::parse(&format!("host-{number}")).expect("host"),
        measurement: name(measurement),
        epoch: ulid::Ulid::nil(),
        seq: sequence,
        times: values.iter().map(|value| NOW_MS + value * 1000).collect(),
        tags: BTreeMap::from([(name("core"), vec!["a".to_owned(), "b".to_owned(), "a".to_owned()])]),
        fields: BTreeMap::from([(name("value"), Column::Integer(values.into_iter().map(Some).collect()))]),
    };
    PendingMessage { partition: partition(number), sequence: Sequence(sequence), stored_ms: NOW_MS, batch }
}

fn commit(writer: &LakeWriter, number: u16, sequence: u64) {
    let set = CommitSet {
        messages: vec![message(number, sequence, "cpu"), message(number, sequence, "load")],
        reached: BTreeMap::from([(partition(number), Position { incarnation: LIFE, sequence: Sequence(sequence) })]),
        current: None,
    };
    match writer.commit(&set).expect("commits") {
        CommitOutcome::Committed(_) => {}
        other => panic!("not committed: {other:?}"),
    }
}

fn maintain(writer: &LakeWriter, keep: Keep) -> MaintenanceReport {
    writer.maintain(keep, &AtomicBool::new(false)).expect("maintains")
}

/// Makes all snapshots a day older, so that they may expire, without which the newest ones of all writers at work never do.
fn age_snapshots(lake: &Lake) {
    let age = "UPDATE __ducklake_metadata_lake.ducklake_snapshot
               SET snapshot_time = ((snapshot_time::TIMESTAMPTZ::TIMESTAMP - INTERVAL 1 DAY)::VARCHAR || '+00')";
    lake.connection().execute_batch(age).expect("ages");
}

fn number(lake: &Lake, sql: &str) -> i64 {
    lake.connection().query_row(sql, [], |row| row.get(0)).expect("a number")
}

fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

/// A digest of all rows of a table, whatever their order.
fn rows(lake: &Lake, table: &str) -> (i64, String) {
    let sql = format!("SELECT count(*), sum(hash(ts, host, core, value))::VARCHAR FROM lake.{table}");
    lake.connection().query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a digest")
}

#[test]
fn small_files_become_few_and_the_rows_stay() {
    let dir = TempDir::new().expect("a folder");
    let writer = LakeWriter::open(&LakeConfig::embedded(dir.path())).expect("opens");
    (1..=30).for_each(|sequence| commit(&writer, 3, sequence));
    let before = [rows(writer.lake(), "cpu"), rows(writer.lake(), "load")];
    assert_eq!(before[0].0, 90);
    let data = dir.path().join("data");
    assert!(files(&data) >= 60);

    age_snapshots(writer.lake());
    let report = maintain(&writer, NOTHING);
    assert!(report.merged_files >= 60 && report.created_files >= 2, "{report:?}");
    assert!(report.expired_snapshots >= 30 && report.postponed == 0, "{report:?}");
    assert_eq!([rows(writer.lake(), "cpu"), rows(writer.lake(), "load")], before);
    // A file a table, and those of the positions.
    assert!(files(&data) <= 8, "{} files are left", files(&data));

    commit(&writer, 3, 31);
    assert_eq!(rows(writer.lake(), "cpu").0, 93);
    assert_eq!(writer.positions().expect("reads").of(partition(3), LIFE).sequence, Sequence(31));
}

#[test]
fn snapshots_of_the_last_minutes_are_kept_whatever_is_asked_for() {
    let dir = TempDir::new().expect("a folder");
    let writer = LakeWriter::open(&LakeConfig::embedded(dir.path())).expect("opens");
    (1..=3).for_each(|sequence| commit(&writer, 3, sequence));
    assert_eq!(maintain(&writer, NOTHING).expired_snapshots, 0);
}

#[test]
fn of_the_unused_files_of_a_day_only_the_older_ones_are_deleted() {
    let dir = TempDir::new().expect("a folder");
    let writer = LakeWriter::open(&LakeConfig::embedded(dir.path())).expect("opens");
    (1..=10).for_each(|sequence| commit(&writer, 3, sequence));
    let keep = Keep { snapshots: HOUR, unused_files: HOUR, orphans: None };
    assert!(maintain(&writer, keep).merged_files >= 20);
    let unused = "__ducklake_metadata_lake.ducklake_files_scheduled_for_deletion";
    age_snapshots(writer.lake());
    // The merged files wait from now on.
    maintain(&writer, keep);
    let waiting = number(writer.lake(), &format!("SELECT count(*) FROM {unused}"));
    assert!(waiting >= 20, "{waiting} files wait");
    let before = files(&dir.path().join("data"));
    let older = format!(
        "INSERT INTO {unused} SELECT 1000000, 'main/gone.parquet', 1, ((now() - INTERVAL 61 MINUTE)::TIMESTAMP::VARCHAR || '+00')"
    );
    writer.lake().connection().execute_batch(&format!("SET TimeZone = 'UTC'; {older}")).expect("inserts");
    assert_eq!(maintain(&writer, keep).deleted_files, 1);
    assert_eq!(number(writer.lake(), &format!("SELECT count(*) FROM {unused}")), waiting);
    assert_eq!(files(&dir.path().join("data")), before);
}

#[test]
fn a_query_that_began_before_reads_on_and_files_stay_for_their_time() {
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let writer = LakeWriter::open(&config).expect("opens");
    (1..=10).for_each(|sequence| commit(&writer, 3, sequence));
    let reader = Lake::open(&config, Access::Read).expect("opens");
    reader.connection().execute_batch("BEGIN").expect("begins");
    assert_eq!(rows(&reader, "cpu").0, 30);
    let before = files(&dir.path().join("data"));

    let keep = Keep { snapshots: HOUR, unused_files: HOUR, orphans: None };
    let report = maintain(&writer, keep);
    assert!(report.merged_files >= 20, "{report:?}");
    assert_eq!((report.deleted_files, report.expired_snapshots), (0, 0));
    assert!(files(&dir.path().join("data")) > before, "nothing is deleted before its time");
    assert_eq!(rows(&reader, "cpu").0, 30);
    reader.connection().execute_batch("COMMIT").expect("ends");
    assert_eq!(rows(&reader, "cpu"), rows(writer.lake(), "cpu"));
}

#[test]
fn commits_of_others_go_on_meanwhile() {
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let writer = LakeWriter::open(&config).expect("opens");
    (1..=8).for_each(|sequence| commit(&writer, 1, sequence));
    std::thread::scope(|scope| {
        let commits = scope.spawn(|| {
            let other = LakeWriter::open(&config).expect("opens");
            (1..=20).for_each(|sequence| commit(&other, 2, sequence));
        });
        while !commits.is_finished() {
            maintain(&writer, NOTHING);
            // Some way to go for the commits: in service there are minutes between two runs.
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    maintain(&writer, NOTHING);
    for table in ["cpu", "load"] {
        let count = format!("SELECT count(*) FROM lake.{table} WHERE host = 'host-2'");
        assert_eq!(number(writer.lake(), &count), 60);
        let distinct = format!("SELECT count(DISTINCT (host, value)) FROM lake.{table}");
        assert_eq!(number(writer.lake(), &distinct), 84);
    }
}

#[test]
fn rows_keep_the_snapshot_that_brought_them() {
    let dir = TempDir::new().expect("a folder");
    let writer = LakeWriter::open(&LakeConfig::embedded(dir.path())).expect("opens");
    (1..=20).for_each(|sequence| commit(&writer, 3, sequence));
    let snapshots = "SELECT list((value, snapshot_id) ORDER BY value)::VARCHAR FROM lake.cpu";
    let read = || writer.lake().connection().query_row(snapshots, [], |row| row.get::<_, String>(0)).expect("a list");
    let before = read();
    age_snapshots(writer.lake());
    let report = maintain(&writer, NOTHING);
    assert!(report.merged_files >= 40 && report.expired_snapshots >= 20, "{report:?}");
    assert_eq!(read(), before);
}

#[test]
fn few_rows_are_files_too_and_merged_as_others_are() {
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let writer = LakeWriter::open(&config).expect("opens");
    (1..=12).for_each(|sequence| commit(&writer, 3, sequence));
    let files = "SELECT count(*) FROM ducklake_list_files('lake', 'cpu')";
    assert_eq!(number(writer.lake(), files), 12);
    assert_eq!(LakeStatus::read(&config, false).expect("reads").total.inlined_rows, 0);
    maintain(&writer, NOTHING);
    assert_eq!(number(writer.lake(), files), 1);
}

#[test]
fn a_column_that_is_added_splits_the_files_and_loses_no_row() {
    let dir = TempDir::new().expect("a folder");
    let writer = LakeWriter::open(&LakeConfig::embedded(dir.path())).expect("opens");
    (1..=9).for_each(|sequence| commit(&writer, 3, sequence));
    writer.lake().connection().execute_batch("ALTER TABLE lake.cpu ADD COLUMN other BIGINT").expect("adds");
    (10..=18).for_each(|sequence| commit(&writer, 3, sequence));
    let before = rows(writer.lake(), "cpu");
    assert_eq!(before.0, 54);
    maintain(&writer, NOTHING);
    assert_eq!(rows(writer.lake(), "cpu"), before);
    assert!(number(writer.lake(), "SELECT count(*) FROM ducklake_list_files('lake', 'cpu')") <= 2);
    let again = maintain(&writer, NOTHING);
    assert_eq!((again.merged_files, again.created_files), (0, 0), "what can't be merged is not tried for ever");
}

#[test]
fn more_than_a_step_takes_is_expired_and_deleted_in_several() {
    let dir = TempDir::new().expect("a folder");
    let writer = LakeWriter::open(&LakeConfig::embedded(dir.path())).expect("opens");
    commit(&writer, 3, 1);
    // Unused files by the thousand, without as many commits: entries of files that are gone already.
    let entries = "INSERT INTO __ducklake_metadata_lake.ducklake_files_scheduled_for_deletion
                   SELECT 1000000 + i, 'main/gone-' || i || '.parquet', 1, '2026-01-01 00:00:' || (10 + i % 40) || '+00'
                   FROM range(2500) t(i)";
    writer.lake().connection().execute_batch(entries).expect("inserts");
    let report = maintain(&writer, Keep { snapshots: HOUR, unused_files: HOUR, orphans: None });
    assert_eq!(report.deleted_files, 2500);
    assert_eq!(rows(writer.lake(), "cpu").0, 3);
}

#[test]
fn a_step_under_way_is_cut_off_and_what_it_did_is_undone() {
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let writer = LakeWriter::open(&config).expect("opens");
    (1..=20).for_each(|sequence| commit(&writer, 3, sequence));
    let before = [rows(writer.lake(), "cpu"), rows(writer.lake(), "load")];
    let cancelled = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        let other = LakeWriter::open(&config).expect("opens");
        let cancelled = &cancelled;
        let run = scope.spawn(move || other.maintain(NOTHING, cancelled).expect("maintains"));
        std::thread::sleep(Duration::from_millis(30));
        cancelled.store(true, Ordering::Relaxed);
        run.join().expect("no panic")
    });
    assert!(report.cancelled, "{report:?}");
    assert_eq!([rows(writer.lake(), "cpu"), rows(writer.lake(), "load")], before);
    maintain(&writer, NOTHING);
    assert_eq!([rows(writer.lake(), "cpu"), rows(writer.lake(), "load")], before);
}

#[test]
fn two_runs_at_once_do_no_harm() {
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let writer = LakeWriter::open(&config).expect("opens");
    (1..=16).for_each(|sequence| commit(&writer, 3, sequence));
    let before = [rows(writer.lake(), "cpu"), rows(writer.lake(), "load")];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| maintain(&LakeWriter::open(&config).expect("opens"), NOTHING));
        }
    });
    maintain(&writer, NOTHING);
    assert_eq!([rows(writer.lake(), "cpu"), rows(writer.lake(), "load")], before);
    assert_eq!(number(writer.lake(), "SELECT count(*) FROM ducklake_list_files('lake', 'cpu')"), 1);
}

#[test]
fn a_run_that_is_told_to_end_stops_between_two_steps() {
    let dir = TempDir::new().expect("a folder");
    let writer = LakeWriter::open(&LakeConfig::embedded(dir.path())).expect("opens");
    (1..=10).for_each(|sequence| commit(&writer, 3, sequence));
    let report = writer.maintain(NOTHING, &AtomicBool::new(true)).expect("maintains");
    assert_eq!((report.merged_files, report.expired_snapshots, report.deleted_files), (0, 0, 0));
}
