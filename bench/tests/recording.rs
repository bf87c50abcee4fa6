//! What was published is recorded, and what was recorded is published again.

use std::{collections::BTreeMap, path::Path, time::Duration};

use plimsoll_bench::{
    Fleet, FleetConfig, points,
    publish::{self, Published, Rate},
    record,
    recording::{Record, RecordingError, RecordingReader, RecordingWriter},
    replay::{self, ReplayConfig, batch_of},
};
use plimsoll_nats::{
    Batch, NatsConfig, streams,
    testing::{TestServer, eventually},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(3600);
const TICKS: u64 = 5;

fn config() -> FleetConfig {
    FleetConfig { hosts: 6, start_ms: 1_790_000_000_000, ..FleetConfig::default() }
}

fn batches() -> Vec<Batch> {
    Fleet::new(config()).expect("a fleet").rounds(TICKS).flatten().collect()
}

async fn publish(nats: &NatsConfig) -> Published {
    publish::publish(nats, config(), TICKS, Rate::Most, &CancellationToken::new()).await.expect("published")
}

fn read(file: &Path) -> Vec<Batch> {
    let records = RecordingReader::open(file).expect("a recording");
    records.map(|record| batch_of(&record.expect("whole")).expect("a batch")).collect()
}

/// Batches in an order of their own, since a stream's partitions have none among each other.
fn sorted(mut batches: Vec<Batch>) -> Vec<Batch> {
    batches.sort_by_key(|batch| (batch.host.clone(), batch.measurement.clone(), batch.times[0], batch.seq));
    batches
}

#[tokio::test]
async fn what_the_stream_holds_is_recorded_and_replayed_by_more_hosts_at_another_time() {
    let (server, dir) = (TestServer::start().await, TempDir::new().expect("a folder"));
    let (nats, stop) = (server.config(), CancellationToken::new());
    let published = publish(&nats).await;
    let expected = batches();
    assert_eq!(published.messages, expected.len() as u64);
    assert_eq!(published.points, expected.iter().map(points).sum::<usize>() as u64);
    let file = dir.path().join("recording");
    let recorded = record::stored(&nats, &file, LONG, &stop).await.expect("recorded");
    assert_eq!((recorded.messages, recorded.bytes), (published.messages, file.metadata().expect("there").len()));
    assert_eq!(sorted(read(&file)), sorted(expected.clone()));

    // Into a broker of its own, and recorded once more.
    let other = TestServer::start().await;
    let first = RecordingReader::open(&file).expect("opens").next().expect("one").expect("whole").time_ms;
    let shift = 86_400_000;
    let replayed = ReplayConfig { hosts_of_each: 3, start_ms: Some(first + shift), rate: Rate::Most };
    let told = replay::replay(&other.config(), &file, &replayed, &stop).await.expect("replayed");
    assert_eq!((told.messages, told.points), (3 * published.messages, 3 * published.points));
    let again = dir.path().join("again");
    record::stored(&other.config(), &again, LONG, &stop).await.expect("recorded");
    let mut by_host: BTreeMap<String, Vec<Batch>> = BTreeMap::new();
    for batch in read(&again) {
        by_host.entry(batch.host.to_string()).or_default().push(batch);
    }
    assert_eq!(by_host.len(), 3 * config().hosts);
    for expected in sorted(expected) {
        for suffix in ["", "-2", "-3"] {
            let copies = &by_host[&format!("{}{suffix}", expected.host)];
            let times: Vec<i64> = expected.times.iter().map(|time| time + shift).collect();
            let same = |batch: &&Batch| batch.measurement == expected.measurement && batch.times == times;
            let found: Vec<_> = copies.iter().filter(same).collect();
            assert_eq!(found.len(), 1, "{} {}{suffix}", expected.measurement, expected.host);
            assert!(found[0].fields == expected.fields && found[0].tags == expected.tags);
            assert_ne!(found[0].epoch, expected.epoch, "the broker would take it for what it has");
        }
    }
}

#[tokio::test]
async fn what_is_published_is_recorded_as_it_comes() {
    let (server, dir) = (TestServer::start().await, TempDir::new().expect("a folder"));
    let (nats, stop) = (server.config(), CancellationToken::new());
    // What the stream already holds is not asked for.
    publish(&nats).await;
    let file = dir.path().join("recording");
    let recording = tokio::spawn({
        let (nats, stop, file) = (nats.clone(), stop.clone(), file.clone());
        async move { record::live(&nats, &file, LONG, &stop).await }
    });
    let client = server.client().await;
    eventually("the recorder to have subscribed", LIMIT, async || file.exists().then_some(())).await;
    let other = FleetConfig { prefix: "later-".to_owned(), ..config() };
    let published = publish::publish(&nats, other, TICKS, Rate::Most, &stop).await.expect("published");
    let (stream, _) = streams::metrics(&client).await.expect("a stream");
    assert_eq!(stream.cached_info().state.messages, 2 * published.messages);
    stop.cancel();
    let recorded = recording.await.expect("no panic").expect("recorded");
    assert_eq!(recorded.messages, published.messages);
    assert!(read(&file).iter().all(|batch| batch.host.starts_with("later-")));
}

#[tokio::test]
async fn a_fleet_that_lives_in_real_time_keeps_its_pace_and_stops_when_told() {
    let server = TestServer::start().await;
    let (nats, stop) = (server.config(), CancellationToken::new());
    let client = server.client().await;
    let publishing = tokio::spawn({
        let stop = stop.clone();
        async move { publish::publish(&nats, config(), 1_000_000, Rate::Times(100.0), &stop).await }
    });
    eventually("some samples", LIMIT, async || {
        let (stream, _) = streams::metrics(&client).await.expect("a stream");
        (stream.cached_info().state.messages > 500).then_some(())
    })
    .await;
    stop.cancel();
    let published = publishing.await.expect("no panic").expect("published");
    assert!(published.messages > 500);
}

#[test]
fn a_recording_that_was_cut_off_yields_what_is_whole_and_then_says_so() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("recording");
    let record = |number: i64| Record {
        time_ms: number,
        subject: "plimsoll.metrics.h.cpu".to_owned(),
        headers: vec![("Nats-Msg-Id".to_owned(), format!("h/cpu/{number}")), ("X".to_owned(), "a: b".to_owned())],
        payload: (0..4000_u32)
            .flat_map(|byte| (u64::from(byte) * 0x9e37_79b9_7f4a + number.unsigned_abs()).to_le_bytes())
            .collect(),
    };
    let mut writer = RecordingWriter::create(&file).expect("created");
    (0..200).for_each(|number| writer.write(&record(number)).expect("written"));
    writer.finish().expect("finished");
    assert!(
        RecordingReader::open(&file)
            .expect("opens")
            .zip(0..)
            .all(|(read, number)| read.expect("whole") == record(number))
    );
    assert!(matches!(RecordingWriter::create(&file), Err(RecordingError::File { .. })), "nothing is overwritten");

    let bytes = std::fs::read(&file).expect("read");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("cut");
    let read: Vec<_> = RecordingReader::open(&file).expect("opens").collect();
    let whole = read.iter().take_while(|record| record.is_ok()).count();
    assert!((20..180).contains(&whole) && read.len() == whole + 1, "{whole}");
    let error = read[whole].as_ref().expect_err("cut off");
    assert!(matches!(error, RecordingError::Damaged { records, .. } if *records == whole as u64), "{error}");

    std::fs::write(&file, "something else").expect("written");
    assert!(matches!(RecordingReader::open(&file), Err(RecordingError::Foreign { .. })));
}
