//! Backups of a real lake that is at work, and what is restored from them.

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use plimsoll_lake::{
    Access, CommitOutcome, Lake, LakeConfig, LakeWriter, PendingMessage,
    backup::{BackupError, BackupReport, Manifest, RestoreReport, Step, backup, restore},
    writer::CommitSet,
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
const NOW_MS: i64 = 1_790_000_000_000;
const TABLES: [&str; 2] = ["cpu", "order"];

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

fn partition() -> PartitionId {
    PartitionId::new(0).expect("exists")
}

/// The message of a sequence: `rows` rows over two days, told apart by the sequence and a number.
fn message(sequence: u64, measurement: &str, rows: i64) -> PendingMessage {
    let numbers = || 0..rows;
    let batch = Batch {
        host: HostId::parse("h").expect("host"),
        measurement: name(measurement),
        epoch: ulid::Ulid::nil(),
        seq: sequence,
        times: numbers().map(|n| NOW_MS + n * 172_800_000 / rows).collect(),
        tags: BTreeMap::from([(name("tag"), numbers().map(|n| format!("it's \"{}\"", n % 3)).collect())]),
        fields: BTreeMap::from([
            (name("sequence"), Column::Integer(numbers().map(|_| Some(sequence.cast_signed())).collect())),
            (name("n"), Column::Integer(numbers().map(Some).collect())),
            (name("ratio"), Column::Float(numbers().map(|n| (n % 5 > 0).then_some(n as f64 / 7.0)).collect())),
            (name("is_odd"), Column::Bool(numbers().map(|n| Some(n % 2 == 1)).collect())),
        ]),
    };
    PendingMessage { partition: partition(), sequence: Sequence(sequence), stored_ms: NOW_MS + 172_800_000, batch }
}

/// How many rows the message of a sequence has in each table: some become files, others lie in the catalog.
fn rows(sequence: u64) -> i64 {
    if sequence.is_multiple_of(3) { 4 } else { 100 }
}

fn commit(writer: &LakeWriter, sequence: u64) {
    let messages = TABLES.map(|table| message(sequence, table, rows(sequence))).into();
    let reached = BTreeMap::from([(partition(), Position { incarnation: LIFE, sequence: Sequence(sequence) })]);
    let set = CommitSet { messages, reached, current: None };
    loop {
        match writer.commit(&set) {
            Ok(CommitOutcome::Committed(_)) => return,
            Err(error) if error.is_conflict() => {}
            other => panic!("not committed: {other:?}"),
        }
    }
}

fn never(_: &Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

struct TestLake {
    writer: LakeWriter,
    config: LakeConfig,
    dir: TempDir,
}

impl TestLake {
    fn with(sequences: std::ops::RangeInclusive<u64>) -> Self {
        let dir = TempDir::new().expect("a folder");
        let config = LakeConfig::embedded(&dir.path().join("lake"));
        let lake = Self { writer: LakeWriter::open(&config).expect("opens"), config, dir };
        sequences.for_each(|sequence| commit(&lake.writer, sequence));
        lake
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    fn backup(&self) -> BackupReport {
        backup(&self.config, &self.folder(), &mut never).expect("is made")
    }

    /// Restores into a new place.
    fn restored(&self, place: &str) -> (LakeConfig, RestoreReport) {
        let config = LakeConfig::embedded(&self.dir.path().join(place));
        let report = restore(&self.folder(), &config, false, &mut never).expect("is restored");
        (config, report)
    }

    fn refusal(&self) -> String {
        let place = self.dir.path().join("refused");
        let refused = restore(&self.folder(), &LakeConfig::embedded(&place), false, &mut never);
        assert!(!place.exists(), "nothing was restored");
        refused.expect_err("is refused").to_string()
    }
}

fn text(lake: &Lake, sql: &str) -> String {
    lake.connection().query_row(sql, [], |row| row.get::<_, Option<String>>(0)).expect("one row").unwrap_or_default()
}

/// Count and a sum over the contents of every row, with the snapshot that it came with.
fn digest(lake: &Lake, table: &str, version: Option<u64>) -> String {
    let at = version.map(|version| format!(" AT (VERSION => {version})")).unwrap_or_default();
    let rows = format!("SELECT *, snapshot_id AS snapshot FROM lake.{table}{at}");
    text(lake, &format!("SELECT count(*) || ' ' || sum(hash(t)::HUGEINT) FROM ({rows}) t"))
}

/// Asserts that the lake holds the rows up to its position, each once.
fn is_exact(config: &LakeConfig) -> u64 {
    let lake = Lake::open(config, Access::Read).expect("opens");
    let reached = plimsoll_lake::Positions::read(lake.connection()).expect("reads").of(partition(), LIFE).sequence.0;
    for table in TABLES {
        let sql = format!(
            "SELECT count(*) || '/' || count(DISTINCT (sequence, n)) || '/' || coalesce(max(sequence), 0) FROM lake.\"{table}\""
        );
        let expected: i64 = (1..=reached).map(rows).sum();
        assert_eq!(text(&lake, &sql), format!("{expected}/{expected}/{reached}"));
    }
    reached
}

#[test]
fn a_restored_lake_is_the_lake_at_the_snapshot_though_that_was_at_work() {
    let lake = TestLake::with(1..=6);
    let (stop, begun) = (AtomicBool::new(false), AtomicBool::new(false));
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            let writer = LakeWriter::open(&lake.config).expect("opens");
            for sequence in 7.. {
                commit(&writer, sequence);
                if stop.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        scope.spawn(|| {
            let writer = LakeWriter::open(&lake.config).expect("opens");
            while !stop.load(Ordering::Acquire) {
                // Fails when the other writer is faster.
                let merged = writer.lake().connection().execute_batch("CALL ducklake_merge_adjacent_files('lake')");
                begun.fetch_or(merged.is_ok(), Ordering::AcqRel);
                // Otherwise it would keep the other writer from ever committing.
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        });
        while !begun.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let report = backup(&lake.config, &lake.folder(), &mut never);
        stop.store(true, Ordering::Release);
        report.expect("is made")
    });
    let (config, restored) = lake.restored("restored");
    assert_eq!((restored.snapshot, restored.files), (report.snapshot, report.files));
    let reached = is_exact(&config);
    assert!(reached >= 6);
    let copy = Lake::open(&config, Access::Read).expect("opens");
    for table in ["main.cpu", "main.\"order\"", "plimsoll.positions"] {
        let live = digest(lake.writer.lake(), table, Some(report.snapshot));
        assert_eq!(digest(&copy, table, None), live, "{table}");
    }
    let tags =
        "SELECT string_agg(table_name || '.' || column_name || '=' || comment, ' ' ORDER BY ALL) FROM duckdb_columns()
                WHERE database_name = 'lake' AND comment IS NOT NULL";
    assert_eq!(text(&copy, tags), "cpu.tag=tag order.tag=tag");
    drop(copy);
    let writer = LakeWriter::open(&config).expect("opens");
    commit(&writer, reached);
    commit(&writer, reached + 1);
    assert_eq!(is_exact(&config), reached + 1, "a restored lake goes on at its position");
    writer.lake().connection().execute_batch("CALL ducklake_merge_adjacent_files('lake')").expect("merges");
    assert_eq!(is_exact(&config), reached + 1);
}

/// Merges files and deletes at once what that replaces, without the time of grace that maintenance gives.
fn tidy_up(writer: &LakeWriter) {
    let tidy =
        "CALL ducklake_merge_adjacent_files('lake'); CALL ducklake_expire_snapshots('lake', older_than => now());
                CALL ducklake_cleanup_old_files('lake', cleanup_all => true)";
    writer.lake().connection().execute_batch(tidy).expect("tidies up");
}

#[test]
fn files_that_maintenance_deletes_meanwhile_are_taken_from_a_newer_snapshot() {
    let lake = TestLake::with(1..=4);
    let mut merged = false;
    let mut merge_once = |step: &Step| {
        if step.total_files > 0 && !merged {
            merged = true;
            tidy_up(&lake.writer);
        }
        ControlFlow::Continue(())
    };
    let report = backup(&lake.config, &lake.folder(), &mut merge_once).expect("is made");
    assert_eq!(report.attempts, 2);
    let (config, _) = lake.restored("restored");
    assert_eq!(is_exact(&config), 4);
    (5..7).for_each(|sequence| commit(&lake.writer, sequence));
    let mut next = 7;
    let mut merge_always = |step: &Step| {
        if step.total_files > 0 && step.files == 0 && step.bytes == 0 {
            tidy_up(&lake.writer);
            (next..next + 2).for_each(|sequence| commit(&lake.writer, sequence));
            next += 2;
        }
        ControlFlow::Continue(())
    };
    let refused =
        backup(&lake.config, &lake.dir.path().join("other"), &mut merge_always).expect_err("never comes to an end");
    assert!(matches!(refused, BackupError::Vanished { attempts: 5, .. }), "{refused}");
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

#[test]
fn a_second_backup_brings_only_what_is_new_and_removes_what_is_not_needed() {
    let lake = TestLake::with(1..=4);
    let first = lake.backup();
    assert!(first.files > 0 && first.kept == 0 && first.linked == first.files, "{first:?}");
    commit(&lake.writer, 5);
    let second = lake.backup();
    assert_eq!((second.kept, second.removed), (first.files, 0));
    assert!(second.files > first.files && second.snapshot > first.snapshot, "{second:?}");
    lake.writer.lake().connection().execute_batch("CALL ducklake_merge_adjacent_files('lake')").expect("merges");
    let third = lake.backup();
    assert!(third.files < second.files && third.removed > 0, "{third:?}");
    assert_eq!(parquet_files(&lake.folder().join("data")).len(), third.files);
    let (config, _) = lake.restored("restored");
    assert_eq!(is_exact(&config), 5);
}

#[test]
fn a_damaged_backup_is_refused_and_each_damaged_file_named() {
    let lake = TestLake::with(1..=4);
    lake.backup();
    let manifest = Manifest::load(&lake.folder()).expect("reads");
    let path = |index: usize| lake.folder().join(&manifest.files[index].path);
    // A copy of its own: the file is a link to the lake's.
    let whole = fs::read(path(0)).expect("reads");
    let rewrite = |bytes: &[u8]| {
        fs::remove_file(path(0)).expect("is removed");
        fs::write(path(0), bytes).expect("is written");
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    rewrite(&flipped);
    let missing = fs::read(path(1)).expect("reads");
    fs::remove_file(path(1)).expect("is removed");
    let refusal = lake.refusal();
    assert!(refusal.contains(&format!("`{}` was changed", manifest.files[0].path)), "{refusal}");
    assert!(refusal.contains(&format!("`{}` is missing", manifest.files[1].path)), "{refusal}");
    rewrite(&whole[..whole.len() - 1]);
    fs::write(path(1), missing).expect("is written");
    let refusal = lake.refusal();
    assert!(refusal.contains(&manifest.files[0].path) && refusal.contains("bytes, expected"), "{refusal}");
    rewrite(&whole);
    let catalog = lake.folder().join("catalog.sqlite");
    let bytes = fs::read(&catalog).expect("reads");
    fs::write(&catalog, [&bytes[..], b"x"].concat()).expect("is written");
    assert!(lake.refusal().contains("`catalog.sqlite` has "));
    fs::write(&catalog, bytes).expect("is written");
    let (config, _) = lake.restored("restored");
    assert_eq!(is_exact(&config), 4);
}

#[test]
fn an_interrupted_backup_is_none_and_leaves_an_earlier_one_whole() {
    let lake = TestLake::with(1..=4);
    let interrupt = |files: usize| {
        let mut observe =
            move |step: &Step| if step.files >= files { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let refused = backup(&lake.config, &lake.folder(), &mut observe).expect_err("is interrupted");
        assert!(matches!(refused, BackupError::Interrupted { .. }), "{refused}");
    };
    assert!(lake.refusal().contains("no finished backup"));
    interrupt(2);
    assert!(!parquet_files(&lake.folder().join("data")).is_empty());
    assert!(lake.refusal().contains("no finished backup"));
    let report = lake.backup();
    assert!(report.kept >= 2, "what was there already is taken");
    commit(&lake.writer, 5);
    interrupt(report.files);
    let (config, restored) = lake.restored("restored");
    assert_eq!((is_exact(&config), restored.snapshot), (4, report.snapshot));
    lake.backup();
    assert_eq!(is_exact(&lake.restored("again").0), 5);
}

#[test]
fn a_lake_is_replaced_only_when_asked_for_and_is_kept_aside() {
    let lake = TestLake::with(1..=4);
    lake.backup();
    (5..=6).for_each(|sequence| commit(&lake.writer, sequence));
    let refused = restore(&lake.folder(), &lake.config, false, &mut never).expect_err("is there").to_string();
    assert!(refused.contains("--force") && refused.contains("there is a lake"), "{refused}");
    assert_eq!(is_exact(&lake.config), 6);
    let mut break_off = |step: &Step| match step.doing {
        "restoring" => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    restore(&lake.folder(), &lake.config, true, &mut break_off).expect_err("is broken off");
    assert_eq!(is_exact(&lake.config), 6, "a restore that is broken off changes nothing");
    let report = restore(&lake.folder(), &lake.config, true, &mut never).expect("is restored");
    assert_eq!(is_exact(&lake.config), 4);
    let aside = report.aside.expect("was there");
    assert_eq!(is_exact(&LakeConfig::embedded(&aside)), 6);
    let mut names: Vec<_> =
        fs::read_dir(lake.dir.path()).expect("a folder").map(|e| e.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 3, "the backup, the lake and the one before: {names:?}");
}

#[test]
fn catalog_and_data_may_lie_apart() {
    let lake = TestLake::with(1..=4);
    lake.backup();
    let place = lake.dir.path().join("apart");
    let config = LakeConfig {
        catalog: format!("sqlite:{}", place.join("catalogs/lake.db").display()),
        data_path: place.join("files").display().to_string(),
        ..LakeConfig::default()
    };
    restore(&lake.folder(), &config, false, &mut never).expect("is restored");
    assert_eq!(is_exact(&config), 4);
    let again = restore(&lake.folder(), &config, true, &mut never).expect_err("is there");
    assert!(matches!(again, BackupError::Exists { .. }), "{again}");
    let other = lake.dir.path().join("of apart");
    backup(&config, &other, &mut never).expect("is made");
    let config = LakeConfig::embedded(&lake.dir.path().join("together"));
    restore(&other, &config, false, &mut never).expect("is restored");
    assert_eq!(is_exact(&config), 4);
}

#[test]
fn only_a_folder_of_its_own_is_taken_and_by_one_at_a_time() {
    let lake = TestLake::with(1..=1);
    let foreign = lake.dir.path().join("home");
    fs::create_dir(&foreign).expect("is made");
    fs::write(foreign.join("letter.txt"), "dear").expect("is written");
    let refused = backup(&lake.config, &foreign, &mut never).expect_err("is not its own");
    assert!(matches!(refused, BackupError::Foreign { .. }), "{refused}");
    lake.backup();
    let lock = fs::File::create(lake.folder().join("lock")).expect("opens");
    lock.lock().expect("is locked");
    assert!(matches!(backup(&lake.config, &lake.folder(), &mut never), Err(BackupError::InUse { .. })));
    assert!(lake.refusal().contains("in use"));
    drop(lock);
    let missing = LakeConfig::embedded(&lake.dir.path().join("nowhere"));
    let refused = backup(&missing, &lake.dir.path().join("new"), &mut never).expect_err("no lake").to_string();
    assert!(refused.contains("does not exist yet"), "{refused}");
}
