//! A lake on PostgreSQL and S3 that is backed up at work and restored into another database and another prefix.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use plimsoll_lake::{
    Access, Lake, LakeWriter, Positions,
    backup::{Step, backup, restore},
};
use plimsoll_testkit::{LakePlace, Servers};
use tempfile::TempDir;

use crate::rows::{ALL, Committer, LIFE, files_are_named, holds, maintain, number, partition, roll_up, sweep};

fn never(_: &Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// All rows of a table with the snapshot that each came with, in order, one a line.
fn lines(lake: &Lake, table: &str, version: Option<u64>) -> Vec<String> {
    let at = version.map(|version| format!(" AT (VERSION => {version})")).unwrap_or_default();
    let sql =
        format!("SELECT t::VARCHAR FROM (SELECT *, snapshot_id AS snapshot FROM lake.{table}{at}) t ORDER BY ALL");
    let mut statement = lake.connection().prepare(&sql).expect("prepares");
    let lines = statement.query_map([], |row| row.get(0)).expect("runs");
    lines.map(|line| line.expect("a row")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn is_the_same_row_by_row_in_another_database_and_prefix() {
    let servers = Servers::shared().await;
    let (place, other) = (LakePlace::fleet(&servers), LakePlace::fleet(&servers));
    let config = &place.config();
    let folder = TempDir::new().expect("a folder");
    let backed_up = folder.path().join("backup");
    let mut first = Committer::new(config, 1);
    first.commit(12);
    roll_up(&first.writer).expect("rolls up");
    sweep(&first.writer).expect("sweeps");
    let stop = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            let mut second = Committer::new(config, 2);
            while !stop.load(Ordering::Relaxed) {
                second.commit(1);
            }
        });
        scope.spawn(|| {
            let maintainer = LakeWriter::open(config).expect("opens");
            while !stop.load(Ordering::Relaxed) {
                maintain(&maintainer, ALL).expect("maintains");
                roll_up(&maintainer).expect("rolls up");
            }
        });
        let report = backup(config, &backed_up, &mut never).and_then(|_| backup(config, &backed_up, &mut never));
        stop.store(true, Ordering::Relaxed);
        report.expect("is made")
    });
    assert!(report.kept > 0, "a second backup keeps what the first has brought");
    let restored = restore(&backed_up, &other.config(), false, &mut never).expect("is restored");
    assert_eq!(restored.snapshot, report.snapshot);

    let (live, copy) =
        (LakeWriter::open(config).expect("opens"), Lake::open(&other.config(), Access::Read).expect("opens"));
    for table in
        ["main.cpu", "main.cpu_1m", "main.cpu_1h", "plimsoll.positions", "plimsoll.rollups", "plimsoll.removed"]
    {
        let stored = lines(&copy, table, None);
        assert!(!stored.is_empty(), "{table}");
        assert_eq!(stored, lines(live.lake(), table, Some(report.snapshot)), "{table}");
    }
    files_are_named(&copy, &other);
    let foreign = format!(
        "SELECT count(*) FROM ducklake_list_files('lake', 'cpu') WHERE NOT starts_with(data_file, '{}')",
        other.data_path()
    );
    assert_eq!(number(&copy, &foreign), 0, "the copy reads files of its own");

    // It goes on where it is.
    let reached = |number| Positions::read(copy.connection()).expect("reads").of(partition(number), LIFE).sequence.0;
    let (mut third, mut fourth) = (Committer::new(&other.config(), 1), Committer::new(&other.config(), 2));
    (third.sequence, fourth.sequence) = (reached(1), reached(2));
    third.commit(2);
    fourth.commit(2);
    let all = format!("{} UNION ALL {}", third.expected(), fourth.expected());
    roll_up(&third.writer).expect("rolls up");
    sweep(&third.writer).expect("sweeps");
    holds(third.writer.lake(), &all, true);
    crate::rows::rollups_hold(third.writer.lake(), &all);
}
