//! The status of a real lake with known rows.

use std::collections::BTreeMap;

use plimsoll_lake::{
    CommitOutcome, LakeConfig, LakeError, LakeStatus, LakeWriter, PendingMessage, Tier, rollup::SUMMARY_TYPE,
    writer::CommitSet,
};
use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use tempfile::TempDir;

const LIFE: Incarnation = Incarnation(1_700_000_000_000_000_000);
const NOW_MS: i64 = 1_790_000_000_000;

fn name(text: &str) -> Name {
    Name::parse(text).expect("valid name")
}

/// Rows of a host, every other one without its second value.
fn commit(writer: &LakeWriter, host: &str, sequence: u64, measurement: &str, rows: i64) {
    let partition = PartitionId::new(7).expect("exists");
    let batch = Batch {
        host: HostId::parse(host).expect("host"),
        measurement: name(measurement),
        epoch: ulid::Ulid::nil(),
        seq: sequence,
        times: (0..rows).map(|row| NOW_MS + row * 1000).collect(),
        tags: BTreeMap::from([(name("core"), vec!["a".to_owned(); usize::try_from(rows).expect("small")])]),
        fields: BTreeMap::from([
            (name("value"), Column::Integer((0..rows).map(Some).collect())),
            (name("other"), Column::Float((0..rows).map(|row| (row % 2 == 0).then_some(0.5)).collect())),
        ]),
    };
    let sequence = Sequence(sequence);
    let set = CommitSet {
        messages: vec![PendingMessage { partition, sequence, stored_ms: NOW_MS, batch }],
        reached: BTreeMap::from([(partition, Position { incarnation: LIFE, sequence })]),
        current: None,
    };
    assert!(matches!(writer.commit(&set).expect("commits"), CommitOutcome::Committed(_)));
}

#[test]
fn tables_hosts_positions_and_catalog_are_told_while_a_writer_is_at_work() {
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let writer = LakeWriter::open(&config).expect("opens");
    commit(&writer, "a", 1, "cpu", 30);
    commit(&writer, "b", 2, "cpu", 10);
    commit(&writer, "a", 3, "load", 4);
    let rollup = format!(
        "CREATE TABLE lake.cpu_1m (ts TIMESTAMP_MS, host VARCHAR, core VARCHAR, value {SUMMARY_TYPE});
         COMMENT ON COLUMN lake.cpu_1m.core IS 'tag';
         INSERT INTO lake.cpu_1m VALUES (make_timestamp_ms({NOW_MS}), 'a', 'a',
             {{'count': 30, 'sum': 1, 'min': 1, 'max': 1, 'sketch': MAP {{1: 30}}}})"
    );
    writer.lake().connection().execute_batch(&rollup).expect("inserts");

    let status = LakeStatus::read(&config, true).expect("reads");
    let told: Vec<_> = status
        .tables
        .iter()
        .map(|table| {
            (&*table.table, &*table.measurement, table.tier, table.usage.rows, table.usage.points, table.usage.files)
        })
        .collect();
    let expected = [
        ("cpu", "cpu", Tier::Raw, 40, 60, 2),
        ("cpu_1m", "cpu", Tier::Minute, 1, 1, 1),
        ("load", "load", Tier::Raw, 4, 6, 1),
    ];
    assert_eq!(told, expected);
    let cpu = &status.tables[0];
    assert_eq!((cpu.oldest_ms, cpu.newest_ms), (Some(NOW_MS), Some(NOW_MS + 29_000)));
    assert_eq!((cpu.usage.small_files, cpu.usage.inlined_rows), (2, 0));
    let files: u64 = parquet_bytes(&dir.path().join("data/main"));
    assert_eq!(status.total.bytes, files, "the sizes are those of the files");
    assert_eq!((status.total.rows, status.total.points, status.total.files), (45, 67, 4));

    let sizes = |table: &str| status.tables.iter().find(|status| status.table == table).expect("there").usage.bytes;
    let measurements: Vec<_> = status.measurements.iter().map(|usage| (&*usage.measurement, usage.bytes)).collect();
    assert_eq!(measurements, [("cpu", sizes("cpu") + sizes("cpu_1m")), ("load", sizes("load"))]);
    let cpu = &status.measurements[0];
    assert_eq!((cpu.raw_bytes, cpu.minute_bytes, cpu.hour_bytes), (sizes("cpu"), sizes("cpu_1m"), 0));

    let hosts = status.hosts.expect("asked for");
    assert_eq!(hosts.iter().map(|host| (&*host.host, host.rows)).collect::<Vec<_>>(), [("a", 35), ("b", 10)]);
    let shares: u64 = hosts.iter().map(|host| host.bytes).sum();
    assert!(shares.abs_diff(files) <= 2, "{shares} of {files}");

    let reached: Vec<_> = status.positions.iter().filter(|position| position.sequence > 0).collect();
    assert_eq!(status.positions.len(), 16);
    assert_eq!((reached.len(), reached[0].partition, reached[0].sequence), (1, 7, 3));
    assert_eq!((&*status.catalog.kind, &*status.catalog.version), ("sqlite", "1.0"));
    assert!(
        status.catalog.bytes.is_some_and(|bytes| bytes > 0) && status.catalog.snapshots >= 4,
        "{:?}",
        status.catalog
    );
    assert_eq!(LakeStatus::read(&config, false).expect("reads").hosts, None);
}

#[test]
fn rows_that_an_older_version_left_in_the_catalog_are_counted() {
    let dir = TempDir::new().expect("a folder");
    let config = LakeConfig::embedded(dir.path());
    let writer = LakeWriter::open(&config).expect("opens");
    commit(&writer, "a", 1, "cpu", 30);
    let inline = "SET GLOBAL ducklake_default_data_inlining_row_limit = 10;
                  INSERT INTO lake.cpu (ts, host) VALUES (make_timestamp_ms(0), 'a'), (make_timestamp_ms(1), 'a')";
    writer.lake().connection().execute_batch(inline).expect("inserts");
    let status = LakeStatus::read(&config, false).expect("reads");
    assert_eq!((status.total.rows, status.total.inlined_rows, status.total.points), (32, 2, 45));
}

#[test]
fn a_lake_that_is_not_there_is_an_error_of_its_own() {
    let dir = TempDir::new().expect("a folder");
    let missing = LakeStatus::read(&LakeConfig::embedded(dir.path()), false).expect_err("there is none");
    assert!(matches!(missing, LakeError::NotCreated));
}

fn parquet_bytes(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { parquet_bytes(&path) } else { path.metadata().expect("a file").len() }).sum()
}
