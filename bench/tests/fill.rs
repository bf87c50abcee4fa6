//! A lake that is filled holds exactly what the fleet yields, and the commands that work on lakes say how they ended.

use std::{collections::BTreeMap, path::Path, process::Command};

use plimsoll_bench::{
    Fleet, FleetConfig,
    fill::{FillError, Filled, fill},
    points,
};
use plimsoll_lake::{Access, Lake, LakeConfig, LakeWriter, writer::CommitSet};
use plimsoll_nats::{Batch, Incarnation, PartitionId, Position, Sequence};
use tempfile::TempDir;

const TICKS: u64 = 12;

fn config() -> FleetConfig {
    FleetConfig { hosts: 3, start_ms: 1_790_000_000_000, samples_a_batch: 2, ..FleetConfig::default() }
}

fn number(lake: &Path, sql: &str) -> i64 {
    let lake = Lake::open(&LakeConfig::embedded(lake), Access::Read).expect("opens");
    lake.connection().query_row(sql, [], |row| row.get(0)).expect("a number")
}

#[test]
fn the_lake_holds_every_row_of_the_fleet_once() {
    let dir = TempDir::new().expect("a folder");
    let lake = LakeConfig::embedded(dir.path());
    let mut told = Vec::new();
    let filled = fill(&lake, config(), TICKS, 250, |ticks| told.push(ticks)).expect("filled");
    let batches: Vec<Batch> = Fleet::new(config()).expect("a fleet").rounds(TICKS).flatten().collect();
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    for batch in &batches {
        *rows.entry(batch.measurement.to_string()).or_default() += batch.rows();
    }
    let expected = (rows.values().sum::<usize>(), batches.iter().map(points).sum::<usize>());
    assert_eq!((filled.rows, filled.points), expected);
    assert!(filled.commits > 2 && told.len() == filled.commits && told.is_sorted() && told.last() == Some(&TICKS));
    for (measurement, rows) in rows {
        let distinct = format!("SELECT count(*) FROM (SELECT DISTINCT * FROM lake.{measurement})");
        assert_eq!(number(dir.path(), &distinct), rows as i64, "{measurement}");
    }
    let times = "SELECT epoch_ms(max(ts)) - epoch_ms(min(ts)) FROM lake.cpu";
    assert_eq!(number(dir.path(), times), (TICKS as i64 - 1) * 1000);

    // A second fleet is added, and no position stands in its way.
    let more = FleetConfig { prefix: "more-".to_owned(), ..config() };
    let Filled { rows: more, .. } = fill(&lake, more, TICKS, 5000, |_| {}).expect("filled");
    assert!(more > 0);
    let hosts = "SELECT count(DISTINCT host) FROM lake.memory";
    assert_eq!(number(dir.path(), hosts), 2 * config().hosts as i64);
}

#[test]
fn a_lake_that_follows_a_broker_is_left_alone() {
    let dir = TempDir::new().expect("a folder");
    let lake = LakeConfig::embedded(dir.path());
    let position = Position { incarnation: Incarnation(1_790_000_000_000_000_000), sequence: Sequence(9) };
    let reached = BTreeMap::from([(PartitionId::new(3).expect("exists"), position)]);
    let set = CommitSet { reached, ..CommitSet::default() };
    LakeWriter::open(&lake).expect("opens").commit(&set).expect("commits");
    let refused = fill(&lake, config(), TICKS, 500, |_| {}).expect_err("in use");
    assert!(matches!(refused, FillError::InUse), "{refused}");
}

fn bench(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_plimsoll-bench")).args(arguments).output().expect("starts");
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.code(), text)
}

#[test]
fn commands_fill_and_settle_and_tell_what_is_wrong() {
    let dir = TempDir::new().expect("a folder");
    let lake = dir.path().join("lake");
    let lake = lake.to_str().expect("text");
    let (code, text) = bench(&[
        "fill",
        "--lake",
        lake,
        "--hosts=3",
        "--seconds=600",
        "--interval=10",
        "--measurements=memory,load",
        "--commit-rows=40",
    ]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("360 rows"), "{text}");
    let rows_of_hosts = || {
        let lake = Lake::open(&LakeConfig::embedded(Path::new(lake)), Access::Read).expect("opens");
        let sql = "SELECT host, count(*), count(DISTINCT ts) FROM lake.memory GROUP BY host ORDER BY host";
        let mut statement = lake.connection().prepare(sql).expect("is SQL");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).expect("answers");
        rows.collect::<Result<Vec<(String, u64, u64)>, _>>().expect("reads")
    };
    let expected = ["host-00000", "host-00001", "host-00002"].map(|host| (host.to_owned(), 60, 60));
    assert_eq!(rows_of_hosts(), expected);
    let files = || {
        let mut folders = vec![Path::new(lake).join("data")];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path()) {
                if entry.is_dir() { folders.push(entry) } else { files += 1 }
            }
        }
        files
    };
    let before = files();
    assert_eq!(bench(&["settle", "--lake", lake, "--step", "merge"]).0, Some(0));
    assert!(files() < before, "{} files of {before}", files());
    assert_eq!(rows_of_hosts(), expected);
    let merged = files();
    assert_eq!(bench(&["settle", "--lake", lake, "--step", "roll-up"]).0, Some(0));
    assert!(files() > merged, "summaries are files of their own");
    assert_eq!(rows_of_hosts(), expected);
    for wrong in [
        &["fill", "--lake", lake, "--measurements", "nonsense"][..],
        &["fill", "--lake", lake, "--seconds", "0"],
        &["record", "file", "--seconds", "-1"],
        &["compare", "--fleet-interval", "7"],
        &["publish", "--rate", "fast"],
        &["nonsense"],
    ] {
        let (code, text) = bench(wrong);
        assert_eq!(code, Some(64), "{wrong:?}: {text}");
    }
    let (code, text) = bench(&["publish", "--nats-url", "nats://127.0.0.1:1", "--seconds", "1"]);
    assert!(code == Some(70) && text.contains("is it running"), "{text}");
    let (code, text) = bench(&["replay", "/nowhere/recording"]);
    assert!(code == Some(70) && text.contains("/nowhere/recording"), "{text}");
}
