//! The former rows of tables in the catalog: deleted once no snapshot shows them, while others commit and read.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use plimsoll_lake::{Access, Keep, Lake, LakeConfig, LakeWriter, Positions};
use plimsoll_nats::PartitionId;
use plimsoll_testkit::{LakePlace, Servers};
use tempfile::TempDir;

use crate::rows::{
    ALL, Committer, LIFE, UNDER_WAY, age_snapshots, beside_commits, holds, maintain, number, partition, roll_up,
};

const COMMITS: u64 = 40;
const KEEP: Keep = Keep { snapshots: Duration::ZERO, ..ALL };

fn tables(lake: &Lake) -> Vec<String> {
    let sql = "SELECT table_name FROM __ducklake_metadata_lake.ducklake_inlined_data_tables ORDER BY ALL";
    let mut statement = lake.connection().prepare(sql).expect("prepares");
    let tables = statement.query_map([], |row| row.get(0)).expect("runs");
    tables.map(|table| table.expect("a name")).collect()
}

fn counted(lake: &Lake, condition: &str) -> i64 {
    let count = |table: &String| format!("SELECT count(*) FROM __ducklake_metadata_lake.{table} WHERE {condition}");
    tables(lake).iter().map(|table| number(lake, &count(table))).sum()
}

/// All rows that the catalog holds, former ones included.
pub fn rows(lake: &Lake) -> i64 {
    counted(lake, "true")
}

/// Former rows that no snapshot shows.
fn unseen(lake: &Lake) -> i64 {
    counted(lake, "end_snapshot <= (SELECT min(snapshot_id) FROM __ducklake_metadata_lake.ducklake_snapshot)")
}

/// Reads until told to stop; each partition's position never goes back. Returns how often.
fn read(config: &LakeConfig, stop: &AtomicBool) -> u64 {
    let lake = Lake::open(config, Access::Read).expect("opens");
    let mut last = BTreeMap::<PartitionId, u64>::new();
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        let positions = match Positions::read(lake.connection()) {
            Ok(positions) => positions,
            Err(error) if error.is_conflict() => continue,
            Err(error) => panic!("{error:?}"),
        };
        for number in [1, 2] {
            let sequence = positions.of(partition(number), LIFE).sequence.0;
            let before = last.insert(partition(number), sequence);
            assert!(before.is_none_or(|before| before <= sequence), "{before:?} and then {sequence}");
        }
        reads += 1;
        thread::sleep(Duration::from_millis(5));
    }
    reads
}

fn is_forgotten_beside_commits_and_readers(config: &LakeConfig) {
    let writer = LakeWriter::open(config).expect("opens");
    let (stop, mut forgotten) = (AtomicBool::new(false), 0);
    let expected = thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(|| read(config, &stop)));
        let expected = beside_commits(config, COMMITS, || {
            age_snapshots(writer.lake(), UNDER_WAY);
            let report = maintain(&writer, KEEP).expect("maintains");
            forgotten += report.forgotten_rows;
            if report.postponed == 0 {
                assert_eq!(unseen(writer.lake()), 0);
            }
        });
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().expect("no panic") > 10, "readers got to read");
        }
        expected
    });
    assert!(forgotten > 0, "nothing was forgotten while others committed");
    holds(writer.lake(), &expected, false);

    // Also the marks of rollups, and the tables of earlier versions of a table's columns.
    (0..3).for_each(|_| roll_up(&writer).expect("rolls up"));
    let add = "ALTER TABLE lake.plimsoll.positions ADD COLUMN note VARCHAR";
    writer.lake().connection().execute_batch(add).expect("adds");
    let mut third = Committer::new(config, 3);
    third.commit(5);
    roll_up(&writer).expect("rolls up");
    assert!(tables(writer.lake()).len() >= 3, "{:?}", tables(writer.lake()));

    // A query that has begun before reads on, as long as its snapshot is kept.
    let reader = Lake::open(config, Access::Read).expect("opens");
    reader.connection().execute_batch("BEGIN").expect("begins");
    let before = Positions::read(reader.connection()).expect("reads");
    third.commit(5);
    age_snapshots(writer.lake(), 8);
    assert!(maintain(&writer, KEEP).expect("maintains").forgotten_rows > 0);
    assert_eq!(Positions::read(reader.connection()).expect("reads"), before);
    reader.connection().execute_batch("COMMIT").expect("ends");
    age_snapshots(writer.lake(), 0);
    assert!(maintain(&writer, KEEP).expect("maintains").forgotten_rows > 0);
    // The positions that have moved, and a mark for each tier.
    assert_eq!(rows(writer.lake()), 5);
    let after = Positions::read(reader.connection()).expect("reads");
    assert_eq!(after, Positions::read(writer.lake().connection()).expect("reads"));
    for (number, sequence) in [(1, COMMITS), (2, COMMITS), (3, 10), (4, 0)] {
        assert_eq!(after.of(partition(number), LIFE).sequence.0, sequence);
    }
}

#[test]
fn with_a_sqlite_catalog() {
    let folder = TempDir::new().expect("a folder");
    is_forgotten_beside_commits_and_readers(&LakeConfig::embedded(folder.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_postgresql_catalog() {
    let servers = Servers::shared().await;
    is_forgotten_beside_commits_and_readers(&LakePlace::fleet(&servers).config());
}

/// What 10,000 commits leave, put there at once, costs the commits that follow, and what they cost without it.
fn cost(kind: &str, config: &LakeConfig) {
    const ROWS: u64 = 160_000;
    let writer = LakeWriter::open(config).expect("opens");
    let lake = writer.lake();
    let mut committer = Committer::new(config, 3);
    let mut timed = |state: &str| {
        let mut times: Vec<Duration> = (0..31)
            .map(|_| {
                let started = Instant::now();
                committer.commit(1);
                started.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!("{kind}: {state}, {:?} a commit in the median, {} rows", times[15], rows(writer.lake()));
    };
    timed("new");
    let table = tables(lake).remove(0);
    let row = format!("(SELECT * FROM __ducklake_metadata_lake.{table} WHERE end_snapshot IS NOT NULL LIMIT 1)");
    let insert =
        format!("INSERT INTO __ducklake_metadata_lake.{table} SELECT former.* FROM {row} former, range({ROWS})");
    lake.connection().execute_batch(&insert).expect("inserts");
    timed("after 10,000 commits");
    age_snapshots(lake, 0);
    let started = Instant::now();
    let forgotten = maintain(&writer, KEEP).expect("maintains").forgotten_rows;
    assert!(forgotten >= ROWS, "{forgotten}");
    println!("{kind}: forgot {forgotten} rows in {:?}, pauses and a merge included", started.elapsed());
    timed("maintained");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for docs/ingest-throughput.md"]
async fn what_former_rows_cost() {
    let servers = Servers::shared().await;
    let folder = TempDir::new().expect("a folder");
    cost("SQLite", &LakeConfig::embedded(folder.path()));
    cost("PostgreSQL and S3", &LakePlace::fleet(&servers).config());
}
