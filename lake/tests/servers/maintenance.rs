//! All of maintenance with a PostgreSQL catalog and S3, beside two members that commit.

use std::{thread, time::Duration};

use plimsoll_lake::LakeWriter;
use plimsoll_testkit::{LakePlace, Servers};

use crate::rows::{
    Committer, NO_ORPHANS, NOTHING, age_snapshots, files_are_named, holds, maintain, number, roll_up, rollups_hold,
    sweep,
};

const COMMITS: u64 = 40;
/// Snapshots that no transaction under way began before.
const UNDER_WAY: i64 = 30;

#[tokio::test(flavor = "multi_thread")]
async fn rows_rollups_and_files_are_exact_while_two_members_commit() {
    let servers = Servers::shared().await;
    let place = LakePlace::fleet(&servers);
    let config = &place.config();
    let writer = LakeWriter::open(config).expect("opens");
    let mut merged = 0;
    let expected = thread::scope(|scope| {
        let committers = [1, 2].map(|number| {
            scope.spawn(move || {
                let mut committer = Committer::new(config, number);
                committer.commit(COMMITS);
                committer.expected()
            })
        });
        while !committers.iter().all(|committer| committer.is_finished()) {
            roll_up(&writer).expect("rolls up");
            sweep(&writer).expect("sweeps");
            age_snapshots(writer.lake(), UNDER_WAY);
            merged += maintain(&writer, NOTHING).expect("maintains").merged_files;
            thread::sleep(Duration::from_millis(200));
        }
        committers.map(|committer| committer.join().expect("no panic")).join(" UNION ALL ")
    });
    assert!(merged > 0, "nothing was merged while others committed");
    roll_up(&writer).expect("rolls up");
    sweep(&writer).expect("sweeps");
    age_snapshots(writer.lake(), 0);
    maintain(&writer, NO_ORPHANS).expect("maintains");
    // What was merged last waits for one more run: its snapshots are expired by the first.
    age_snapshots(writer.lake(), 0);
    maintain(&writer, NO_ORPHANS).expect("maintains");
    holds(writer.lake(), &expected, true);
    rollups_hold(writer.lake(), &expected);
    files_are_named(writer.lake(), &place);
    assert!(number(writer.lake(), "SELECT count(*) FROM ducklake_list_files('lake', 'cpu')") <= 8);
    assert_eq!(crate::history::rows(writer.lake()), 4);
}
