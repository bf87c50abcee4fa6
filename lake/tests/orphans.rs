//! Files that no entry of the catalog names: they are deleted, also where that is cut off, and no file that is named ever is.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use plimsoll_lake::{Keep, LakeConfig, LakeError, LakeWriter, MaintenanceReport};
use plimsoll_nats::{Batch, Column};
use plimsoll_testkit::account;

use support::{Fixture, START_MS, host, name};

/// Names the lake's folder to the child.
const FOLDER: &str = "PLIMSOLL_TEST_ORPHANS_LAKE";
const HOUR: Duration = Duration::from_secs(3600);
/// So many that their deletion takes far longer than a kill does.
const ORPHANS: usize = 20_000;
const LIMIT: Duration = Duration::from_secs(60);

/// Deletes every file of this age that the catalog does not name.
fn delete_orphans(writer: &LakeWriter, age: Duration) -> Result<MaintenanceReport, LakeError> {
    let keep = Keep { snapshots: HOUR, unused_files: HOUR, orphans: Some(age) };
    writer.maintain(keep, &AtomicBool::new(false))
}

/// A lake of so many commits with a row each.
fn lake(commits: i64) -> Fixture {
    let mut fixture = Fixture::new();
    (0..commits).for_each(|second| commit(&mut fixture, second));
    fixture
}

fn commit(fixture: &mut Fixture, second: i64) {
    let message = fixture.arrive(Batch {
        host: host("web-1"),
        measurement: name("cpu"),
        epoch: ulid::Ulid::nil(),
        seq: second.unsigned_abs(),
        times: vec![START_MS + second * 1000],
        tags: BTreeMap::new(),
        fields: BTreeMap::from([(name("value"), Column::Integer(vec![Some(second)]))]),
    });
    fixture.commit(vec![message]);
}

/// Asserts that the lake holds exactly the rows of so many commits, and that all of its files are there; returns how many others are.
fn whole(fixture: &Fixture, commits: i64) -> i64 {
    let lake = fixture.writer.lake();
    let expected = format!("SELECT s::BIGINT AS value FROM range({commits}) seconds(s)");
    assert_eq!(account::compare(lake, &expected, "SELECT value FROM lake.cpu"), (commits, 0, 0));
    let (orphans, missing) = account::files(lake, &data(fixture).to_string_lossy());
    assert_eq!(missing, 0, "files that the catalog names are gone");
    orphans
}

fn data(fixture: &Fixture) -> PathBuf {
    fixture.dir.path().join("data")
}

/// Any file of the measurement.
fn stored_file(folder: &Path) -> PathBuf {
    let path = fs::read_dir(folder).expect("a folder").next().expect("an entry").expect("an entry").path();
    if path.is_dir() { stored_file(&path) } else { path }
}

#[test]
fn what_a_dead_writer_left_is_deleted_once_it_is_old_enough_and_nothing_else() {
    let mut fixture = lake(3);
    let left = data(&fixture).join("main/cpu/ducklake-left-over.parquet");
    fs::copy(stored_file(&data(&fixture).join("main/cpu")), &left).expect("copies");
    delete_orphans(&fixture.writer, HOUR).expect("maintains");
    assert!(left.exists(), "it may be of a commit under way");
    assert_eq!(delete_orphans(&fixture.writer, Duration::ZERO).expect("maintains").deleted_files, 1);
    assert_eq!(whole(&fixture, 3), 0);
    commit(&mut fixture, 3);
    assert_eq!(whole(&fixture, 4), 0);
}

#[test]
fn a_file_that_the_catalog_names_by_another_path_is_no_orphan_and_stops_their_deletion() {
    let fixture = lake(3);
    let folder = stored_file(&data(&fixture).join("main/cpu")).parent().expect("a folder").to_owned();
    let (added, left) = (folder.join("added.parquet"), folder.join("left-over.parquet"));
    for copy in [&added, &left] {
        fs::copy(stored_file(&folder), copy).expect("copies");
    }
    // The same file to the system, and another text to DuckLake, which compares texts.
    let other_path = added.to_string_lossy().replace("/main/", "/./main/");
    fixture.execute(&format!("CALL ducklake_add_data_files('lake', 'cpu', '{other_path}')"));
    let told = delete_orphans(&fixture.writer, Duration::ZERO).expect_err("a file of the lake seems to be left over");
    assert!(matches!(&told, LakeError::NoOrphan { path } if path.ends_with("added.parquet")), "{told:?}");
    assert!(added.exists() && left.exists(), "nothing is deleted");
    assert_eq!(account::files(fixture.writer.lake(), &data(&fixture).to_string_lossy()), (1, 0));
}

/// Leaves files behind in a folder of their own.
fn leave(fixture: &Fixture) -> PathBuf {
    let folder = data(fixture).join("main/left");
    fs::create_dir_all(&folder).expect("a folder");
    let file = stored_file(&data(fixture).join("main/cpu"));
    for number in 0..ORPHANS {
        let link = folder.join(format!("{number}.parquet"));
        if !link.exists() {
            fs::hard_link(&file, link).expect("links");
        }
    }
    folder
}

/// Lets another process delete the orphans and kills it when the first one is gone; returns how many are left.
fn left_by_the_killed(fixture: &Fixture, orphans: &Path) -> usize {
    let changed = || fs::metadata(orphans).and_then(|folder| folder.modified()).expect("a folder");
    let before = changed();
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "deletes_until_it_is_killed"])
        .env(FOLDER, fixture.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    let deadline = Instant::now() + LIMIT;
    while changed() == before {
        assert!(Instant::now() < deadline, "no file is deleted");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("is killed");
    child.wait().expect("is gone");
    fs::read_dir(orphans).expect("a folder").count()
}

#[test]
fn deletion_that_is_killed_half_way_harms_nothing_and_the_next_run_ends_it() {
    let mut fixture = lake(5);
    // Where this process was not given the processor for too long all are gone before the kill, which proves nothing.
    let left = (0..10).map(|_| left_by_the_killed(&fixture, &leave(&fixture))).find(|left| *left > 0);
    let left = left.expect("one is killed before it is done");
    assert!(left < ORPHANS, "none was deleted");
    assert_eq!(whole(&fixture, 5), left as i64);
    commit(&mut fixture, 5);
    let report = delete_orphans(&fixture.writer, Duration::ZERO).expect("maintains");
    assert_eq!(report.deleted_files, left as u64);
    assert_eq!(whole(&fixture, 6), 0);
}

#[test]
#[ignore = "is a process of the test above"]
fn deletes_until_it_is_killed() {
    let folder = std::env::var_os(FOLDER).expect("is run by another test");
    let writer = LakeWriter::open(&LakeConfig::embedded(Path::new(&folder))).expect("opens");
    delete_orphans(&writer, Duration::ZERO).expect("maintains");
}
