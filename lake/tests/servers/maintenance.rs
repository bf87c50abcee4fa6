//! All of maintenance with a PostgreSQL catalog and S3, beside two members that commit.

use plimsoll_lake::LakeWriter;
use plimsoll_testkit::{LakePlace, Servers};

use crate::rows::{
    NO_ORPHANS, NOTHING, UNDER_WAY, age_snapshots, beside_commits, files_are_named, holds, maintain, number, roll_up,
    rollups_hold, sweep,
};

const COMMITS: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn rows_rollups_and_files_are_exact_while_two_members_commit() {
    let servers = Servers::shared().await;
    let place = LakePlace::fleet(&servers);
    let config = &place.config();
    let writer = LakeWriter::open(config).expect("opens");
    let mut merged = 0;
    let expected = beside_commits(config, COMMITS, || {
        roll_up(&writer).expect("rolls up");
        sweep(&writer).expect("sweeps");
        age_snapshots(writer.lake(), UNDER_WAY);
        merged += maintain(&writer, NOTHING).expect("maintains").merged_files;
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
