//! Queries whose files vanish between the look at the catalog and the read.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use plimsoll_nats::{Batch, Column, HostId, Incarnation, Name, PartitionId, Position, Sequence};
use plimsoll_testkit::{LakePlace, Servers};
use tempfile::TempDir;

use super::*;
use crate::{CommitOutcome, Keep, LakeWriter, PendingMessage, S3Config, writer::CommitSet};

const NOW_MS: i64 = 1_790_000_000_000;
const COMMITS: u64 = 10;

/// A place of the kit as this build's configuration: the kit's is another build's.
pub(super) fn config(place: &LakePlace) -> LakeConfig {
    let config = place.config();
    let s3 = config.s3.map(|s3| S3Config {
        endpoint: s3.endpoint,
        region: s3.region,
        access_key_id: s3.access_key_id,
        secret_access_key: s3.secret_access_key,
        secret_access_key_file: s3.secret_access_key_file,
        use_ssl: s3.use_ssl,
        url_style: s3.url_style,
        timeout: s3.timeout,
    });
    LakeConfig {
        catalog: config.catalog,
        catalog_password: config.catalog_password,
        data_path: config.data_path,
        s3,
        ..LakeConfig::default()
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn partition() -> PartitionId {
    PartitionId::new(3).expect("exists")
}

fn commit(writer: &LakeWriter, sequence: u64) {
    let batch = Batch {
        host: HostId::parse("web-1").expect("a host"),
        measurement: name("cpu"),
        epoch: ulid::Ulid::nil(),
        seq: sequence,
        times: vec![NOW_MS + sequence.cast_signed() * 1000],
        tags: BTreeMap::new(),
        fields: BTreeMap::from([(name("value"), Column::Integer(vec![Some(sequence.cast_signed())]))]),
    };
    let sequence = Sequence(sequence);
    let set = CommitSet {
        messages: vec![PendingMessage { partition: partition(), sequence, stored_ms: NOW_MS, batch }],
        reached: BTreeMap::from([(partition(), Position { incarnation: Incarnation(1), sequence })]),
        current: None,
    };
    assert!(matches!(writer.commit(&set).expect("commits"), CommitOutcome::Committed(_)));
}

/// Merges all files and deletes those that were merged, though a query may still read them.
fn replace_files(writer: &LakeWriter) {
    let snapshots = "__ducklake_metadata_lake.ducklake_snapshot";
    let age = |time: &str| format!("UPDATE {snapshots} SET snapshot_time = {time} - INTERVAL 1 DAY");
    let connection = writer.lake().connection();
    let texts = format!("SELECT typeof(snapshot_time) = 'VARCHAR' FROM {snapshots} LIMIT 1");
    let age = match connection.query_row(&texts, [], |row| row.get(0)).expect("a snapshot") {
        true => age("snapshot_time::TIMESTAMPTZ::TIMESTAMP").replace(" - INTERVAL 1 DAY", " - INTERVAL 1 DAY || '+00'"),
        false => age("snapshot_time"),
    };
    connection.execute_batch(&age).expect("ages");
    let keep = Keep { snapshots: Duration::ZERO, unused_files: Duration::ZERO, orphans: None };
    let report = writer.maintain(keep, &AtomicBool::new(false)).expect("maintains");
    assert!(report.merged_files >= COMMITS && report.deleted_files >= COMMITS, "{report:?}");
}

/// A lake with some files and its reader.
fn lake(config: &LakeConfig) -> (LakeWriter, LakeReader) {
    let writer = LakeWriter::open(config).expect("opens");
    (1..=COMMITS).for_each(|sequence| commit(&writer, sequence));
    let limits = ReaderLimits { connections: NonZeroUsize::new(2).expect("not 0"), timeout: Duration::from_secs(60) };
    let reader = LakeReader::new(config, limits).expect("opens");
    reader.attach().expect("attaches");
    (writer, reader)
}

fn all() -> Selection {
    let hosts = Hosts::from(HostId::parse("web-1").expect("a host"));
    Selection { hosts, measurement: name("cpu"), from_ms: 0, to_ms: None, tags: BTreeMap::new() }
}

/// A query that has taken its list of files when maintenance deletes these.
async fn is_answered_though_its_files_are_merged_away(config: &LakeConfig) {
    let (writer, reader) = lake(config);
    let (writer, attempts) = (Arc::new(Mutex::new(writer)), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&attempts);
    let read = move |snapshot: &source::Snapshot<'_>, tail: &Tail| {
        let source = snapshot.source(tail, &all(), None)?;
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            replace_files(&writer.lock().expect("no panic"));
        }
        Ok(stats::read(&source, TierChoice::Auto)?.rows)
    };
    let rows = reader.transaction(&Arc::new(Tail::new(usize::MAX)), read).await.expect("an answer");
    assert_eq!((rows.len(), rows[0].count), (1, COMMITS));
    let sum = (1..=COMMITS).sum::<u64>() as f64;
    assert_eq!(rows[0].summary.as_ref().expect("numbers").avg, sum / COMMITS as f64);
    assert_eq!(attempts.load(Ordering::Relaxed), 2, "from the snapshot after it");
}

#[tokio::test]
async fn a_query_is_answered_though_its_files_are_merged_away() {
    let dir = TempDir::new().expect("a folder");
    is_answered_though_its_files_are_merged_away(&LakeConfig::embedded(dir.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_on_postgresql_and_s3_is_answered_though_its_files_are_merged_away() {
    let servers = Servers::shared().await;
    is_answered_though_its_files_are_merged_away(&config(&LakePlace::fleet(&servers))).await;
}

#[tokio::test]
async fn a_file_that_is_gone_for_good_is_named_by_the_error() {
    let dir = TempDir::new().expect("a folder");
    let (writer, reader) = lake(&LakeConfig::embedded(dir.path()));
    let listed = "SELECT min(data_file) FROM ducklake_list_files('lake', 'cpu')";
    let lost: String = writer.lake().connection().query_row(listed, [], |row| row.get(0)).expect("a file");
    std::fs::remove_file(&lost).expect("deletes");
    let error = reader.stats(&Arc::new(Tail::new(usize::MAX)), all(), None, TierChoice::Auto).await.expect_err("fails");
    let QueryError::Lake(LakeError::Database { source, .. }) = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains(&lost), "{source}");
    commit(&writer, COMMITS + 1);
    let error = reader.stats(&Arc::new(Tail::new(usize::MAX)), all(), None, TierChoice::Auto).await;
    assert!(error.is_err(), "rows are missing, which no answer may hide");
}
