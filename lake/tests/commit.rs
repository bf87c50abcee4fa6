//! Commits on a real lake: rows and positions together, once, whatever happens in between.

use std::collections::BTreeMap;

use plimsoll_lake::{
    CommitOutcome, CommitReport, LakeConfig, LakeWriter, PendingMessage, Positions,
    schema::AdmitError,
    writer::{CommitSet, Rejection},
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
const NOW_MS: i64 = 1_790_000_000_000;

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

fn partition(number: u16) -> PartitionId {
    PartitionId::new(number).expect("exists")
}

fn batch(measurement: &str, times: &[i64], column: Column) -> Batch {
    Batch {
        host: HostId::parse("h").expect("host"),
        measurement: name(measurement),
        epoch: ulid::Ulid::nil(),
        seq: 1,
        times: times.to_vec(),
        tags: BTreeMap::from([(name("order"), vec!["a".to_owned(); times.len()])]),
        fields: BTreeMap::from([(name("select"), column)]),
    }
}

fn integers(measurement: &str, times: &[i64]) -> Batch {
    batch(measurement, times, Column::Integer(times.iter().map(|time| Some(time - NOW_MS)).collect()))
}

/// A set of one partition: batch i has sequence `first + i`.
fn set(number: u16, life: Incarnation, first: u64, batches: Vec<Batch>) -> CommitSet {
    let last = first + batches.len() as u64 - 1;
    let messages = batches.into_iter().zip(first..).map(|(batch, sequence)| PendingMessage {
        partition: partition(number),
        sequence: Sequence(sequence),
        stored_ms: NOW_MS,
        batch,
    });
    CommitSet {
        messages: messages.collect(),
        reached: BTreeMap::from([(partition(number), Position { incarnation: life, sequence: Sequence(last) })]),
        current: None,
    }
}

struct TestLake {
    writer: LakeWriter,
    config: LakeConfig,
    _dir: TempDir,
}

impl TestLake {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(dir.path());
        Self { writer: LakeWriter::open(&config).expect("opens"), config, _dir: dir }
    }

    fn commit(&self, set: &CommitSet) -> CommitReport {
        match self.writer.commit(set).expect("commits") {
            CommitOutcome::Committed(report) => report,
            other => panic!("not committed: {other:?}"),
        }
    }

    fn reject(&self, set: &CommitSet) -> Vec<Rejection> {
        match self.writer.commit(set).expect("answers") {
            CommitOutcome::Rejected(rejections) => rejections,
            other => panic!("not rejected: {other:?}"),
        }
    }

    fn query(&self, sql: &str) -> Vec<String> {
        let connection = self.writer.lake().connection();
        let mut statement = connection.prepare(&format!("SELECT x::VARCHAR FROM ({sql}) t(x)")).expect("prepares");
        let rows = statement.query_map([], |row| row.get(0)).expect("runs");
        rows.map(|row| row.expect("a row")).collect()
    }
}

#[test]
fn rows_and_positions_are_there_after_a_commit_and_once() {
    let lake = TestLake::new();
    let first = set(3, LIFE, 1, vec![integers("order", &[NOW_MS, NOW_MS + 1]), integers("order", &[NOW_MS + 2])]);
    let report = lake.commit(&first);
    assert_eq!((report.messages, report.rows, report.points, report.contained), (2, 3, 3, 0));
    let again = lake.commit(&first);
    assert_eq!((again.messages, again.rows, again.contained), (0, 0, 2), "what is contained is not written again");
    lake.commit(&set(3, LIFE, 2, vec![integers("order", &[NOW_MS + 2]), integers("order", &[NOW_MS + 3])]));
    assert_eq!(lake.query("SELECT \"select\" FROM lake.\"order\" ORDER BY ts"), ["0", "1", "2", "3"]);
    let positions = lake.writer.positions().expect("reads");
    assert_eq!(positions.of(partition(3), LIFE).sequence, Sequence(3));
    assert_eq!(positions.of(partition(4), LIFE).sequence, Sequence(0));
}

#[test]
fn reopening_finds_the_same_lake() {
    let lake = TestLake::new();
    lake.commit(&set(0, LIFE, 1, vec![integers("cpu", &[NOW_MS])]));
    let again = LakeWriter::open(&lake.config).expect("opens again");
    assert_eq!(again.positions().expect("reads"), lake.writer.positions().expect("reads"));
}

#[test]
fn a_moved_folder_is_the_same_lake() {
    let dir = TempDir::new().expect("a folder");
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    let writer = LakeWriter::open(&LakeConfig::embedded(&before)).expect("opens");
    writer.commit(&set(0, LIFE, 1, vec![integers("cpu", &[NOW_MS])])).expect("commits");
    drop(writer);
    std::fs::rename(&before, &after).expect("moves");
    let writer = LakeWriter::open(&LakeConfig::embedded(&after)).expect("opens");
    writer.commit(&set(0, LIFE, 2, vec![integers("cpu", &[NOW_MS + 1])])).expect("commits");
    let sql = "SELECT count(*) FROM lake.cpu";
    let rows: i64 = writer.lake().connection().query_row(sql, [], |row| row.get(0)).expect("reads");
    assert_eq!(rows, 2);
    assert!(!before.exists(), "nothing is written where the lake was");
}

#[test]
fn two_writers_of_one_partition_store_each_row_once() {
    let lake = TestLake::new();
    let sets: Vec<CommitSet> = (0..10)
        .map(|n| {
            set(5, LIFE, n * 4 + 1, (0..4).map(|i| integers("cpu", &[NOW_MS + (n * 4 + i).cast_signed()])).collect())
        })
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let config = lake.config.clone();
            let sets = &sets;
            scope.spawn(move || {
                let writer = LakeWriter::open(&config).expect("opens");
                for set in sets {
                    while writer.commit(set).is_err() {}
                }
            });
        }
    });
    assert_eq!(lake.query("SELECT count(*) || '/' || count(DISTINCT ts) FROM lake.cpu"), ["40/40"]);
    assert_eq!(lake.writer.positions().expect("reads").of(partition(5), LIFE).sequence, Sequence(40));
}

#[test]
fn writers_of_different_partitions_do_not_lose_each_others_positions() {
    let lake = TestLake::new();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let config = lake.config.clone();
            scope.spawn(move || {
                let writer = LakeWriter::open(&config).expect("opens");
                for n in 1..=5 {
                    let set = set(number, LIFE, n, vec![integers(&format!("m{number}"), &[NOW_MS + n.cast_signed()])]);
                    while writer.commit(&set).is_err() {}
                }
            });
        }
    });
    let positions = lake.writer.positions().expect("reads");
    for number in 0..4 {
        assert_eq!(positions.of(partition(number), LIFE).sequence, Sequence(5));
        assert_eq!(lake.query(&format!("SELECT count(*) FROM lake.m{number}")), ["5"]);
    }
}

#[test]
fn a_later_life_of_the_stream_counts_anew_and_the_earlier_one_is_over() {
    let lake = TestLake::new();
    let later = Incarnation(LIFE.0 + 1);
    lake.commit(&set(1, LIFE, 1, vec![integers("cpu", &[NOW_MS]), integers("cpu", &[NOW_MS + 1])]));
    let report = lake.commit(&set(1, later, 1, vec![integers("cpu", &[NOW_MS + 2])]));
    assert_eq!((report.rows, report.contained), (1, 0), "sequence 1 of a later life is a new row");
    let mut stale = set(1, LIFE, 3, vec![integers("cpu", &[NOW_MS + 9])]);
    let asked = lake.writer.commit(&stale).expect("answers");
    assert!(matches!(asked, CommitOutcome::Superseded), "{asked:?}");
    stale.current = Some(later);
    let stale = lake.commit(&stale);
    assert_eq!((stale.rows, stale.superseded), (0, 1));
    assert_eq!(lake.query("SELECT count(*) FROM lake.cpu"), ["3"]);
    let stored = lake.writer.positions().expect("reads").stored(partition(1)).expect("stored");
    assert_eq!(stored, Position { incarnation: later, sequence: Sequence(1) });
}

#[test]
fn the_present_life_of_the_stream_counts_though_the_lake_knows_a_later_one() {
    let lake = TestLake::new();
    let ahead = Incarnation(LIFE.0 + 1);
    lake.commit(&set(1, ahead, 1, (0..5).map(|n| integers("cpu", &[NOW_MS + n])).collect()));
    let mut present = set(1, LIFE, 1, vec![integers("cpu", &[NOW_MS + 10])]);
    assert!(matches!(lake.writer.commit(&present).expect("answers"), CommitOutcome::Superseded));
    present.current = Some(LIFE);
    let report = lake.commit(&present);
    assert_eq!((report.rows, report.superseded), (1, 0));
    let next = lake.commit(&set(1, LIFE, 2, vec![integers("cpu", &[NOW_MS + 11])]));
    assert_eq!((next.rows, next.superseded), (1, 0), "the position has moved to the present life");
    let stored = lake.writer.positions().expect("reads").stored(partition(1)).expect("stored");
    assert_eq!(stored, Position { incarnation: LIFE, sequence: Sequence(2) });
}

#[test]
fn only_the_messages_whose_columns_the_lake_refuses_are_rejected() {
    let lake = TestLake::new();
    let with = |measurement, column| {
        let mut batch = integers(measurement, &[NOW_MS]);
        batch.fields.insert(name(column), Column::Integer(vec![Some(1)]));
        batch
    };
    lake.commit(&set(0, LIFE, 1, vec![integers("cpu", &[NOW_MS])]));
    // A view stands for what DuckLake will refuse some day.
    lake.writer.lake().connection().execute_batch("CREATE VIEW lake.main.taken AS SELECT 1 AS one").expect("made");
    let batches = || [with("cpu", "fine"), with("taken", "fine"), with("taken", "other"), with("disk", "fine")];
    let rejections = lake.reject(&set(0, LIFE, 2, batches().into()));
    assert_eq!(rejections.iter().map(|r| r.index).collect::<Vec<_>>(), [1, 2]);
    for Rejection { reason, .. } in &rejections {
        assert!(matches!(reason, AdmitError::Refused { detail } if detail.contains("taken")), "{reason}");
    }
    let [first, _, _, last] = batches();
    lake.commit(&set(0, LIFE, 2, vec![first, last]));
    assert_eq!(lake.query("SELECT (SELECT count(fine) FROM lake.cpu) || '/' || count(fine) FROM lake.disk"), ["1/1"]);
    let rejections = lake.reject(&set(0, LIFE, 6, vec![with("cpu", "xmin"), with("cpu", "row_id")]));
    assert!(rejections.iter().all(|r| matches!(r.reason, AdmitError::Reserved { .. })), "{rejections:?}");
    assert_eq!(rejections.len(), 2);
}

#[test]
fn new_fields_become_columns_and_what_does_not_fit_is_told_apart() {
    let lake = TestLake::new();
    lake.commit(&set(0, LIFE, 1, vec![integers("cpu", &[NOW_MS])]));
    let mut wider = integers("cpu", &[NOW_MS + 1]);
    wider.fields.insert(name("added"), Column::Float(vec![Some(0.5)]));
    wider.tags.insert(name("core"), vec!["0".to_owned()]);
    lake.commit(&set(0, LIFE, 2, vec![wider]));
    assert_eq!(lake.query("SELECT count(added) || '/' || count(core) || '/' || count(*) FROM lake.cpu"), ["1/1/2"]);

    let text = batch("cpu", &[NOW_MS], Column::Text(vec![Some("x".to_owned())]));
    let mut role = integers("cpu", &[NOW_MS]);
    role.fields.insert(name("core"), Column::Integer(vec![Some(1)]));
    role.tags.clear();
    let ahead = integers("cpu", &[NOW_MS + 601_000]);
    let old = integers("cpu", &[0]);
    let rejections = lake.reject(&set(0, LIFE, 3, vec![text, integers("cpu", &[NOW_MS + 2]), role, ahead, old]));
    let reasons: Vec<(usize, &AdmitError)> = rejections.iter().map(|r| (r.index, &r.reason)).collect();
    assert!(
        matches!(
            reasons[..],
            [
                (0, AdmitError::Type { .. }),
                (2, AdmitError::Role { .. }),
                (3, AdmitError::Ahead { .. }),
                (4, AdmitError::TooOld { .. })
            ]
        ),
        "{reasons:?}"
    );
    assert_eq!(lake.query("SELECT count(*) FROM lake.cpu"), ["2"], "nothing of a rejected set is written");
}

#[test]
fn integers_fit_into_a_float_column() {
    let lake = TestLake::new();
    lake.commit(&set(0, LIFE, 1, vec![batch("m", &[NOW_MS], Column::Float(vec![Some(1.5)]))]));
    lake.commit(&set(0, LIFE, 2, vec![integers("m", &[NOW_MS + 7])]));
    assert_eq!(lake.query("SELECT \"select\" FROM lake.m ORDER BY ts"), ["1.5", "7.0"]);
}

#[test]
fn tables_and_columns_are_bounded() {
    let lake = TestLake::new();
    let mut wide = integers("wide", &[NOW_MS]);
    for n in 0..300 {
        wide.fields.insert(name(&format!("f{n}")), Column::Integer(vec![Some(n)]));
    }
    let rejections = lake.reject(&set(0, LIFE, 1, vec![wide]));
    assert!(matches!(rejections[0].reason, AdmitError::TooManyColumns { columns: 302 }));
    let many = (0..=512).map(|n| integers(&format!("m{n}"), &[NOW_MS])).collect();
    let rejections = lake.reject(&set(0, LIFE, 1, many));
    assert!(matches!(rejections[..], [Rejection { index: 512, reason: AdmitError::TooManyTables }]));
}

#[test]
fn a_read_only_session_sees_commits_and_cannot_write() {
    use plimsoll_lake::{Access, Lake};
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let missing = Lake::open(&config, Access::Read).expect_err("no lake yet").to_string();
    assert!(missing.contains("does not exist yet"), "{missing}");
    let writer = LakeWriter::open(&config).expect("opens");
    let reader = Lake::open(&config, Access::Read).expect("opens");
    writer.commit(&set(0, LIFE, 1, vec![integers("cpu", &[NOW_MS])])).expect("commits");
    let rows: i64 =
        reader.connection().query_row("SELECT count(*) FROM lake.cpu", [], |row| row.get(0)).expect("reads");
    assert_eq!(rows, 1);
    assert_eq!(Positions::read(reader.connection()).expect("reads").of(partition(0), LIFE).sequence, Sequence(1));
    assert!(reader.connection().execute_batch("DELETE FROM lake.cpu").is_err());
}
