//! Replays on a real lake: what is lacking, once, whoever else writes.

use std::collections::BTreeMap;

use plimsoll_lake::{
    CommitOutcome, LakeConfig, LakeError, LakeWriter, PendingMessage, ReplayWriter,
    replay::{Begun, ReplayOutcome, ReplayReport, ReplayRequest, ReplaySet},
    schema::AdmitError,
    writer::CommitSet,
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
const NOW_MS: i64 = 1_790_000_000_000;
const SINCE_MS: i64 = NOW_MS - 60_000;

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

fn partition(number: u16) -> PartitionId {
    PartitionId::new(number).expect("exists")
}

/// The message of a sequence: a row a second of two series, in partition 0 or 1.
fn message(sequence: u64) -> PendingMessage {
    let time = NOW_MS + sequence.cast_signed() * 1000;
    let batch = Batch {
        host: HostId::parse(&format!("h{}", sequence % 2)).expect("host"),
        measurement: name("cpu"),
        epoch: ulid::Ulid::nil(),
        seq: sequence,
        times: vec![time, time],
        tags: BTreeMap::from([(name("core"), vec!["0".to_owned(), "1".to_owned()])]),
        fields: BTreeMap::from([
            (name("n"), Column::Integer(vec![Some(sequence.cast_signed()), Some(-sequence.cast_signed())])),
            (name("load"), Column::Float(vec![Some(sequence as f64 / 3.0), None])),
        ]),
    };
    let partition = partition(u16::try_from(sequence % 2).expect("0 or 1"));
    PendingMessage { partition, sequence: Sequence(sequence), stored_ms: NOW_MS, batch }
}

fn messages(sequences: impl Iterator<Item = u64>) -> Vec<PendingMessage> {
    sequences.map(message).collect()
}

fn set(sequences: std::ops::RangeInclusive<u64>, is_last: bool) -> ReplaySet {
    let reached = Sequence(*sequences.end());
    ReplaySet { messages: messages(sequences), reached, is_last }
}

fn request() -> ReplayRequest {
    ReplayRequest {
        selection: "all".to_owned(),
        is_partial: false,
        since_ms: SINCE_MS,
        incarnation: LIFE,
        is_named: false,
        restarts: false,
    }
}

fn part(named: bool) -> ReplayRequest {
    ReplayRequest { selection: "hosts h1".to_owned(), is_partial: true, is_named: named, ..request() }
}

struct TestLake {
    replay: ReplayWriter,
    writer: LakeWriter,
    config: LakeConfig,
    _dir: TempDir,
}

impl TestLake {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(dir.path());
        let replay = ReplayWriter::open(&config).expect("opens");
        Self { replay, writer: LakeWriter::open(&config).expect("opens"), config, _dir: dir }
    }

    /// Commits as ingest does.
    fn ingest(&self, sequences: std::ops::RangeInclusive<u64>) -> usize {
        let reached = Position { incarnation: LIFE, sequence: Sequence(*sequences.end()) };
        let reached = [0, 1].map(|number| (partition(number), reached)).into();
        let set = CommitSet { messages: messages(sequences), reached, current: None };
        loop {
            match self.writer.commit(&set) {
                Ok(CommitOutcome::Committed(report)) => return report.rows,
                Err(error) if error.is_conflict() => {}
                other => panic!("not committed: {other:?}"),
            }
        }
    }

    fn begin(&self) -> Begun {
        self.replay.begin(&request()).expect("begins")
    }

    fn store(&self, set: &ReplaySet) -> ReplayReport {
        match self.replay.store(&request(), set).expect("stores") {
            ReplayOutcome::Stored(report) => report,
            other => panic!("not stored: {other:?}"),
        }
    }

    fn delete(&self, condition: &str) {
        let sql = format!("DELETE FROM lake.cpu WHERE {condition}");
        self.writer.lake().connection().execute_batch(&sql).expect("deletes");
    }

    fn text(&self, sql: &str) -> String {
        self.writer.lake().connection().query_row(sql, [], |row| row.get(0)).expect("one row")
    }

    /// Asserts that the lake holds the rows of exactly these messages, each once.
    fn holds(&self, sequences: std::ops::RangeInclusive<u64>) {
        let stored = "SELECT epoch_ms(ts) AS ms, host, core, n, load FROM lake.cpu";
        let (first, last) = (sequences.start(), sequences.end());
        let expected = format!(
            "SELECT {NOW_MS} + i * 1000 AS ms, 'h' || i % 2 AS host, core, CASE core WHEN '0' THEN i ELSE -i END AS n,
                 CASE core WHEN '0' THEN i / 3 END AS load
             FROM range({first}, {last} + 1) t(i), (VALUES ('0'), ('1')) c(core)"
        );
        let differences = format!(
            "SELECT (SELECT count(*) FROM ({expected} EXCEPT ALL {stored})) || ' missing, '
                 || (SELECT count(*) FROM ({stored} EXCEPT ALL {expected})) || ' too many'"
        );
        assert_eq!(self.text(&differences), "0 missing, 0 too many");
    }
}

#[test]
fn what_is_lacking_is_filled_and_what_is_there_is_not_doubled() {
    let lake = TestLake::new();
    lake.ingest(1..=60);
    // A stretch, one series, and single rows, as files and as rows that the catalog holds.
    lake.delete("n BETWEEN 20 AND 30 OR core = '1' OR n = 55");
    assert_eq!(lake.begin(), Begun { after: Sequence(0), rebuilds: false });
    let report = lake.store(&set(1..=40, false));
    assert_eq!((report.rows, report.present, report.left), (40 + 11, 80 - 51, 0));
    let report = lake.store(&set(41..=70, true));
    assert_eq!((report.rows, report.present, report.left), (20 + 1, 19, 10), "what ingest will store is left to it");
    lake.holds(1..=60);
    assert_eq!(lake.ingest(61..=70), 20);
    lake.holds(1..=70);
    lake.begin();
    let report = lake.store(&set(1..=70, true));
    assert_eq!((report.rows, report.present), (0, 140), "a second replay finds everything");
    lake.holds(1..=70);
}

#[test]
fn a_row_is_the_same_only_when_every_column_is() {
    let lake = TestLake::new();
    lake.ingest(1..=2);
    lake.begin();
    let mut other = message(1);
    other.batch.fields = BTreeMap::from([(name("added"), Column::Integer(vec![Some(1), None]))]);
    let twice = vec![message(1), message(1), other];
    let report = lake.store(&ReplaySet { messages: twice, reached: Sequence(2), is_last: true });
    assert_eq!(
        (report.rows, report.present),
        (2, 4),
        "fields of the same series and time that came in another message"
    );
    lake.delete("true");
    lake.begin();
    let report =
        lake.store(&ReplaySet { messages: messages([1, 1, 2].into_iter()), reached: Sequence(2), is_last: true });
    assert_eq!((report.rows, report.present), (4, 2), "equal rows that are not there are written once");
    lake.holds(1..=2);
}

#[test]
fn an_empty_lake_is_rebuilt_and_ingest_goes_on_after_it() {
    let lake = TestLake::new();
    assert_eq!(lake.begin(), Begun { after: Sequence(0), rebuilds: true });
    let mut first = set(11..=20, false);
    // As ingest does, which has no way to tell that a row came twice.
    first.messages.push(message(20));
    assert_eq!(lake.store(&first).rows, 22);
    lake.delete("n = 20 AND load IS NOT NULL");
    let again = lake.store(&set(11..=20, false));
    assert_eq!((again.rows, again.present), (1, 19), "a set that was stored already fills only what is lacking");
    lake.store(&set(21..=30, false));
    let resumed = lake.replay.begin(&ReplayRequest { since_ms: SINCE_MS + 5000, ..request() }).expect("begins");
    assert_eq!(resumed, Begun { after: Sequence(30), rebuilds: true }, "an interrupted one goes on");
    lake.store(&set(31..=40, true));
    let positions = lake.writer.positions().expect("reads");
    for number in PartitionId::all() {
        assert_eq!(positions.of(number, LIFE).sequence, Sequence(40));
    }
    assert_eq!(lake.ingest(31..=50), 20, "ingest goes on right after it");
    let (more, older) = (lake.begin(), ReplayRequest { since_ms: SINCE_MS - 1, ..request() });
    assert_eq!(more, Begun { after: Sequence(0), rebuilds: false }, "ingest has taken over");
    lake.replay.begin(&older).expect("begins");
    assert_eq!(lake.store(&set(1..=50, true)).rows, 20, "what came before the first replay");
}

#[test]
fn a_rebuild_leaves_the_rest_to_ingest_once_that_has_begun() {
    let lake = TestLake::new();
    lake.begin();
    lake.store(&set(1..=10, false));
    assert_eq!(lake.ingest(11..=20), 20);
    let report = lake.store(&set(11..=30, true));
    assert_eq!((report.rows, report.present, report.left), (0, 20, 10));
    assert_eq!(lake.ingest(21..=30), 20);
    lake.holds(1..=30);
}

#[test]
fn a_replay_goes_on_only_where_it_covers_what_is_asked() {
    let lake = TestLake::new();
    lake.ingest(1..=30);
    lake.begin();
    lake.store(&set(1..=10, false));
    assert_eq!(lake.begin().after, Sequence(10));
    let anew = lake.replay.begin(&ReplayRequest { restarts: true, ..request() }).expect("begins");
    assert_eq!(anew.after, Sequence(0), "it is told to begin anew");
    lake.store(&set(1..=10, false));
    let other = lake.replay.begin(&part(false)).expect("begins");
    assert_eq!(other.after, Sequence(0), "another selection has a progress of its own");
    let older = ReplayRequest { since_ms: SINCE_MS - 1, ..request() };
    assert_eq!(lake.replay.begin(&older).expect("begins").after, Sequence(0), "more is asked for");
    lake.store(&set(1..=10, false));
    let life = ReplayRequest { incarnation: Incarnation(LIFE.0 + 1), ..older.clone() };
    assert_eq!(lake.replay.begin(&life).expect("begins").after, Sequence(0), "sequences of another life");
    lake.replay.begin(&older).expect("begins");
    lake.store(&set(1..=30, true));
    assert_eq!(lake.begin().after, Sequence(0), "the last one came to its end");
}

#[test]
fn a_part_is_replayed_into_an_untouched_lake_only_when_that_is_named() {
    let lake = TestLake::new();
    let refused = lake.replay.begin(&part(false)).expect_err("ingest may be about to begin");
    assert!(matches!(refused, LakeError::NotIngested), "{refused}");
    assert!(lake.replay.begin(&part(true)).expect("begins").rebuilds);
    lake.ingest(1..=1);
    assert!(!lake.replay.begin(&part(false)).expect("begins").rebuilds);
}

#[test]
fn messages_that_do_not_fit_are_told_and_nothing_of_their_set_is_written() {
    let lake = TestLake::new();
    lake.ingest(1..=10);
    lake.delete("true");
    lake.begin();
    let mut bad = set(1..=10, true);
    bad.messages[3].batch.fields.insert(name("n"), Column::Text(vec![Some("x".to_owned()), None]));
    // A view stands for what DuckLake will refuse some day.
    lake.writer.lake().connection().execute_batch("CREATE VIEW lake.main.taken AS SELECT 1 AS one").expect("made");
    bad.messages[5].batch.measurement = name("taken");
    let told = |set: &ReplaySet| match lake.replay.store(&request(), set).expect("answers") {
        ReplayOutcome::Rejected(rejections) => rejections,
        stored => panic!("not rejected: {stored:?}"),
    };
    let rejections = told(&bad);
    assert!(
        matches!(rejections[..], [ref one] if one.index == 3 && matches!(one.reason, AdmitError::Type { .. })),
        "{rejections:?}"
    );
    bad.messages.remove(3);
    let rejections = told(&bad);
    assert!(
        matches!(rejections[..], [ref one] if one.index == 4 && matches!(one.reason, AdmitError::Refused { .. })),
        "{rejections:?}"
    );
    assert_eq!(lake.text("SELECT count(*)::VARCHAR FROM lake.cpu"), "0");
    bad.messages.remove(4);
    assert_eq!(lake.store(&bad).rows, 16);
}

#[test]
fn replays_and_ingest_at_the_same_time_store_each_row_once() {
    const MESSAGES: u64 = 80;
    let lake = TestLake::new();
    lake.ingest(1..=60);
    lake.delete("n BETWEEN -45 AND 45");
    std::thread::scope(|scope| {
        for selection in ["all", "the same in other words"] {
            let (config, request) = (&lake.config, ReplayRequest { selection: selection.to_owned(), ..request() });
            scope.spawn(move || {
                let replay = ReplayWriter::open(config).expect("opens");
                while replay.begin(&request).is_err() {}
                for first in (1..=MESSAGES).step_by(20) {
                    let set = set(first..=first + 19, first + 19 == MESSAGES);
                    while replay.store(&request, &set).is_err() {}
                }
            });
        }
        for first in (61..=MESSAGES).step_by(10) {
            lake.ingest(first..=first + 9);
        }
    });
    lake.holds(1..=MESSAGES);
}
