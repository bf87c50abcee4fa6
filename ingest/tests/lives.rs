//! Lives of the stream that the lake takes for over.

mod support;

use plimsoll_lake::{LakeConfig, LakeWriter, writer::CommitSet};
use plimsoll_nats::{
    Incarnation, PartitionId, Position, Sequence,
    testing::{TestServer, eventually},
};
use support::{IngestProcess, LIMIT, TestLake, differences, known_batch, publish_all};

#[tokio::test]
async fn rows_are_stored_though_the_lake_knows_a_stream_that_was_made_later() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    // As after a broker whose clock was years ahead.
    let later = Position { incarnation: Incarnation(i64::MAX / 2), sequence: Sequence(1000) };
    let reached = PartitionId::all().map(|partition| (partition, later)).collect();
    let writer = LakeWriter::open(&LakeConfig::embedded(lake.dir.path())).expect("opens");
    writer.commit(&CommitSet { reached, ..CommitSet::default() }).expect("commits");
    drop(writer);

    publish_all(&client, (0..3).map(|host| known_batch(host, 0, 10))).await;
    let ingest = IngestProcess::start(&server.url(), lake.dir.path());
    let rows = "SELECT count(*) FROM lake.known";
    eventually("the rows", LIMIT, async || (lake.number(rows) == Some(30)).then_some(())).await;
    publish_all(&client, (0..3).map(|host| known_batch(host, 10, 10))).await;
    eventually("further rows", LIMIT, async || (lake.number(rows) == Some(60)).then_some(())).await;
    assert_eq!(lake.number(&differences(3, 20)), Some(0));
    ingest.stop().await;
}
