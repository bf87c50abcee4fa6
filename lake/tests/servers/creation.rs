//! Several that create one lake at once: each finds it whole.

use std::{path::Path, sync::Barrier, thread};

use plimsoll_lake::{Lake, LakeConfig, LakeWriter};
use plimsoll_testkit::{LakePlace, Servers};
use tempfile::TempDir;

use crate::rows::{Committer, holds, number};

const AT_ONCE: u16 = 8;
const ROUNDS: usize = 5;

/// Asserts that nothing is missing of what a new lake has, and nothing there twice.
pub fn is_whole(lake: &Lake) {
    let partitions = "SELECT count(*) * 1000 + count(DISTINCT partition) FROM lake.plimsoll.positions";
    assert_eq!(number(lake, partitions), 16_016);
    for option in ["data_inlining_row_limit", "parquet_compression", "parquet_version"] {
        let told = format!("SELECT count(*) FROM __ducklake_metadata_lake.ducklake_metadata WHERE key = '{option}'");
        assert_eq!(number(lake, &told), 1, "{option}");
    }
}

/// Opens in each thread, and calls for more there.
fn create_at_once<T: Send>(config: &LakeConfig, then: impl Fn(Committer) -> T + Sync) -> Vec<T> {
    let ready = Barrier::new(usize::from(AT_ONCE));
    thread::scope(|scope| {
        let create = |number| {
            ready.wait();
            then(Committer::new(config, number))
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|number| scope.spawn(move || create(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Many times; the last time they commit at once, too, as members do that start together.
fn is_created_whole(new: impl Fn(&Path) -> LakeConfig) {
    for _ in 0..ROUNDS {
        let folder = TempDir::new().expect("a folder");
        let config = new(folder.path());
        create_at_once(&config, drop);
        is_whole(LakeWriter::open(&config).expect("opens").lake());
    }
    let folder = TempDir::new().expect("a folder");
    let config = new(folder.path());
    let expected = create_at_once(&config, |mut committer| {
        committer.commit(1);
        committer.expected()
    });
    let writer = LakeWriter::open(&config).expect("opens");
    is_whole(writer.lake());
    holds(writer.lake(), &expected.join(" UNION ALL "), false);
}

#[test]
fn with_a_sqlite_catalog() {
    is_created_whole(LakeConfig::embedded);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_postgresql_catalog() {
    let servers = Servers::shared().await;
    is_created_whole(|folder| in_folder(&LakePlace::fleet(&servers), folder));
}

/// The store is not what this is about.
fn in_folder(place: &LakePlace, folder: &Path) -> LakeConfig {
    LakeConfig { data_path: folder.display().to_string(), s3: None, ..place.config() }
}

#[test]
fn a_lake_whose_creator_died_before_it_told_all_options_is_completed() {
    let folder = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(folder.path());
    let writer = LakeWriter::open(&config).expect("opens");
    let forget = "DELETE FROM __ducklake_metadata_lake.ducklake_metadata WHERE key = 'data_inlining_row_limit'";
    writer.lake().connection().execute_batch(forget).expect("forgets");
    drop(writer);
    let mut committer = Committer::new(&config, 3);
    is_whole(committer.writer.lake());
    committer.commit(3);
    let files = "SELECT count(*) FROM ducklake_list_files('lake', 'positions', schema => 'plimsoll')";
    assert!(number(committer.writer.lake(), files) <= 1, "the positions lie in the catalog");
}
