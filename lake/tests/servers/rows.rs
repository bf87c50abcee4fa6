//! Rows of known content, who commits them, and whether the lake holds them.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, SystemTime},
};

use plimsoll_lake::{
    CommitOutcome, Keep, Lake, LakeConfig, LakeError, LakeWriter, MaintenanceReport, PendingMessage,
    rollup::{Retention, RollupLimits},
    writer::CommitSet,
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use plimsoll_testkit::{LakePlace, account};

pub const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);
/// The start of a day, of 2026-09-21.
const OLD_DAY_MS: i64 = 1_789_948_800_000;
pub const NEW_DAY_MS: i64 = OLD_DAY_MS + 2 * 86_400_000;
const ROWS_A_MESSAGE: i64 = 10;
/// Keeps nothing that need not be kept.
pub const NOTHING: Keep = Keep { snapshots: Duration::ZERO, unused_files: Duration::ZERO, orphans: None };
/// The same, and deletes every file that the catalog does not name: only where nobody writes.
pub const NO_ORPHANS: Keep = Keep { orphans: Some(Duration::ZERO), ..NOTHING };
/// Keeps all files and snapshots.
pub const ALL: Keep =
    Keep { snapshots: Duration::from_secs(30 * 86_400), unused_files: Duration::from_secs(30 * 86_400), orphans: None };
/// Snapshots that no transaction under way began before, while two members commit.
pub const UNDER_WAY: i64 = 30;
/// Counts the files that wait for their deletion.
pub const WAITING: &str = "SELECT count(*) FROM __ducklake_metadata_lake.ducklake_files_scheduled_for_deletion";

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

pub fn partition(number: u16) -> PartitionId {
    PartitionId::new(number).expect("exists")
}

/// The message of a sequence: ten rows that no other has. Every fourth lies two days before the others.
pub fn message(number: u16, sequence: u64) -> PendingMessage {
    let first = sequence.cast_signed() * ROWS_A_MESSAGE;
    let numbers = || first..first + ROWS_A_MESSAGE;
    let day = if sequence % 4 == 1 { OLD_DAY_MS } else { NEW_DAY_MS };
    let batch = Batch {
        host: HostId::parse(&format!("h{number}")).expect("host"),
        measurement: name("cpu"),
        epoch: ulid::Ulid::nil(),
        seq: sequence,
        times: numbers().map(|n| day + n * 1000).collect(),
        tags: BTreeMap::from([(name("core"), numbers().map(|n| (n % 2).to_string()).collect())]),
        fields: BTreeMap::from([
            (name("n"), Column::Integer(numbers().map(Some).collect())),
            (name("value"), Column::Float(numbers().map(|n| Some(n as f64 / 4.0)).collect())),
        ]),
    };
    PendingMessage {
        partition: partition(number),
        sequence: Sequence(sequence),
        stored_ms: NEW_DAY_MS + 3_600_000,
        batch,
    }
}

/// What commits that message alone.
pub fn commit_set(number: u16, sequence: u64) -> CommitSet {
    let reached = Position { incarnation: LIFE, sequence: Sequence(sequence) };
    CommitSet {
        messages: vec![message(number, sequence)],
        reached: BTreeMap::from([(partition(number), reached)]),
        current: None,
    }
}

/// The rows of messages `1..=sequence` of a partition, as SQL.
pub fn expected(number: u16, sequence: u64) -> String {
    format!(
        "SELECT 'h{number}' AS host, (n % 2)::VARCHAR AS core,
                make_timestamp_ms(if((n // {ROWS_A_MESSAGE}) % 4 = 1, {OLD_DAY_MS}, {NEW_DAY_MS}) + n * 1000)::TIMESTAMP_MS AS ts,
                n, n / 4.0 AS value
         FROM range({ROWS_A_MESSAGE}, {}) numbers(n)",
        (sequence.cast_signed() + 1) * ROWS_A_MESSAGE
    )
}

/// Who commits the messages of a partition.
pub struct Committer {
    pub writer: LakeWriter,
    number: u16,
    pub sequence: u64,
}

impl Committer {
    pub fn new(config: &LakeConfig, number: u16) -> Self {
        Self { writer: LakeWriter::open(config).expect("opens"), number, sequence: 0 }
    }

    /// Commits so many messages, each by itself, however often others are faster.
    pub fn commit(&mut self, messages: u64) {
        for _ in 0..messages {
            self.sequence += 1;
            let set = commit_set(self.number, self.sequence);
            loop {
                match self.writer.commit(&set) {
                    Ok(CommitOutcome::Committed(_)) => break,
                    Err(error) if error.is_conflict() => {}
                    other => panic!("not committed: {other:?}"),
                }
            }
        }
    }

    /// The rows that have been committed, as SQL.
    pub fn expected(&self) -> String {
        expected(self.number, self.sequence)
    }
}

/// Works again and again while two members commit so many messages each; returns the rows that they have committed, as SQL.
pub fn beside_commits(config: &LakeConfig, messages: u64, mut work: impl FnMut()) -> String {
    thread::scope(|scope| {
        let committers = [1, 2].map(|number| {
            scope.spawn(move || {
                let mut committer = Committer::new(config, number);
                committer.commit(messages);
                committer.expected()
            })
        });
        while !committers.iter().all(|committer| committer.is_finished()) {
            work();
            thread::sleep(Duration::from_millis(200));
        }
        committers.map(|committer| committer.join().expect("no panic")).join(" UNION ALL ")
    })
}

/// Rolls up whatever is new, in steps of few rows.
pub fn roll_up(writer: &LakeWriter) -> Result<(), LakeError> {
    let values_per_step = NonZeroU64::new(1000).expect("not zero");
    let limits = RollupLimits {
        minute_every: Duration::ZERO,
        hour_every: Duration::ZERO,
        values_per_step,
        ..RollupLimits::default()
    };
    let report = writer.roll_up(&limits, || true)?;
    match report.failures.into_iter().next() {
        Some(failure) => Err(failure.error),
        None => Ok(()),
    }
}

/// Deletes the samples of the earlier day.
pub fn sweep(writer: &LakeWriter) -> Result<(), LakeError> {
    let retention = Retention { raw: Some(DAY), ..Retention::default() };
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(NEW_DAY_MS.cast_unsigned());
    writer.apply_retention(&retention, now, || true).map(|_| ())
}

pub fn maintain(writer: &LakeWriter, keep: Keep) -> Result<MaintenanceReport, LakeError> {
    writer.maintain(keep, &AtomicBool::new(false))
}

/// Makes snapshots older by a day, except so many of the last: those that a transaction under way may have begun at must not be expired.
pub fn age_snapshots(lake: &Lake, except: i64) {
    let snapshots = "__ducklake_metadata_lake.ducklake_snapshot";
    let texts = format!("SELECT (typeof(snapshot_time) = 'VARCHAR')::BIGINT FROM {snapshots} LIMIT 1");
    let time = if number(lake, &texts) == 1 {
        "((snapshot_time::TIMESTAMPTZ::TIMESTAMP - INTERVAL 1 DAY)::VARCHAR || '+00')"
    } else {
        "(snapshot_time - INTERVAL 1 DAY)"
    };
    let sql = format!(
        "UPDATE {snapshots} SET snapshot_time = {time}
         WHERE snapshot_id <= (SELECT max(snapshot_id) - {except} FROM {snapshots})"
    );
    // Fails while others commit to a SQLite catalog.
    let aged = (0..100).any(|_| lake.connection().execute_batch(&sql).is_ok());
    assert!(aged, "the snapshots could not be made older");
}

pub fn number(lake: &Lake, sql: &str) -> i64 {
    let number = lake.connection().query_row(sql, [], |row| row.get(0));
    number.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Asserts that the lake holds exactly these rows, each once; those of the earlier day only where they are not `swept`.
pub fn holds(lake: &Lake, expected: &str, swept: bool) {
    let kept = if swept {
        format!("SELECT * FROM ({expected}) WHERE (n // {ROWS_A_MESSAGE}) % 4 <> 1")
    } else {
        expected.to_owned()
    };
    let (_, lost, doubled) = account::compare(lake, &kept, "SELECT host, core, ts, n, value FROM lake.cpu");
    assert_eq!((lost, doubled), (0, 0), "rows lost and doubled");
}

/// Asserts that the rollups tell of exactly these rows, swept ones included.
pub fn rollups_hold(lake: &Lake, expected: &str) {
    for (tier, bucket) in [("1m", "minute"), ("1h", "hour")] {
        let wanted = format!(
            "SELECT host, core, date_trunc('{bucket}', ts)::TIMESTAMP_MS AS ts, count(*), sum(value), min(value), max(value),
                    sum(n)::DOUBLE, count(*)
             FROM ({expected}) GROUP BY ALL"
        );
        let stored = format!(
            "SELECT host, core, ts, sum(value.\"count\")::BIGINT, sum(value.\"sum\"), min(value.\"min\"), max(value.\"max\"),
                    sum(n.\"sum\"), sum(list_sum(map_values(value.sketch)))::BIGINT
             FROM lake.main.cpu_{tier} GROUP BY ALL"
        );
        let (buckets, lost, wrong) = account::compare(lake, &wanted, &stored);
        assert!(buckets > 0 && (lost, wrong) == (0, 0), "{tier}: {buckets} right, {lost} lacking, {wrong} wrong");
    }
}

/// Asserts that no file is missing that the catalog names.
pub fn no_file_is_missing(lake: &Lake, place: &LakePlace) {
    assert_eq!(account::files(lake, place.data_path()).1, 0, "files that the catalog names are not there");
}

/// Asserts that the store holds the files that the catalog names, and no others.
pub fn files_are_named(lake: &Lake, place: &LakePlace) {
    assert_eq!(number(lake, WAITING), 0, "files that wait for their deletion");
    assert_eq!(account::files(lake, place.data_path()), (0, 0), "orphans, and files that are missing");
}
