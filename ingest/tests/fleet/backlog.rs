//! A backlog of large messages, which memory would not hold.

use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;
use plimsoll_nats::{
    Batch, Client, Column, HostId, now_ms,
    streams::METRICS,
    testing::{TestServer, eventually},
};
use plimsoll_testkit::LakePlace;
use tempfile::TempDir;

use crate::{
    catalog::hold,
    fleet::{Fleet, LIMIT},
    support::{known_batch, name, publish_all},
};

const MESSAGES: usize = 200;
/// Nearly as long as texts may be, and as many of them as the broker takes in a message.
const TEXT_BYTES: usize = 16_000;
const ROWS_A_MESSAGE: usize = 55;
const MESSAGE_BYTES: usize = TEXT_BYTES * ROWS_A_MESSAGE;
const COMMIT_BYTES: usize = 24 * 1024 * 1024;
const PULL_BYTES: usize = 2 * 1024 * 1024;
/// What readers have yielded and the gathering has not taken yet, see `plimsoll_nats::reader::YIELDED_BYTES`.
const YIELDED_BYTES: usize = 16 * 1024 * 1024;
/// Hosts of different partitions.
const HOSTS: usize = 2;

/// Rows with long texts that have nothing in them to be made shorter.
fn large(message: usize) -> Batch {
    let mut state = message as u64 + 1;
    let mut letter = |_: usize| {
        // Knuth's linear congruential generator, "The Art of Computer Programming", volume 2, 3.3.4.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + (state >> 58) as u8)
    };
    let texts = (0..ROWS_A_MESSAGE).map(|_| Some((0..TEXT_BYTES).map(&mut letter).collect::<String>()));
    let texts = texts.collect();
    let numbers = || message * ROWS_A_MESSAGE..(message + 1) * ROWS_A_MESSAGE;
    Batch {
        host: HostId::parse(&format!("h{}", message % HOSTS)).expect("host"),
        measurement: name("large"),
        epoch: ulid::Ulid::nil(),
        seq: message as u64 + 1,
        times: numbers().map(|n| now_ms() - 60_000 + n as i64).collect(),
        tags: BTreeMap::new(),
        fields: BTreeMap::from([
            (name("n"), Column::Integer(numbers().map(|n| Some(n as i64)).collect())),
            (name("text"), Column::Text(texts)),
        ]),
    }
}

/// Bytes of large messages that the broker has given to ingest.
async fn given(client: &Client) -> Option<usize> {
    let stream = client.jetstream.get_stream(METRICS).await.ok()?;
    let consumers: Vec<_> = stream.consumers().try_collect().await.ok()?;
    let messages: u64 = consumers.iter().map(|consumer| consumer.delivered.consumer_sequence).sum();
    Some(usize::try_from(messages).ok()? * MESSAGE_BYTES)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_taken_than_is_held_while_commits_wait() {
    let (server, folder) = (TestServer::start().await, TempDir::new().expect("a folder"));
    let client = server.client().await;
    let fleet = Fleet::new(&server.config(), client.clone(), LakePlace::embedded(folder.path()));
    let mut fleet = fleet
        .with("PLIMSOLL_INGEST__COMMIT_BYTES", &COMMIT_BYTES.to_string())
        .with("PLIMSOLL_INGEST__PUBLISH_METRICS", "false")
        .with("PLIMSOLL_NATS__PULL_BYTES", &PULL_BYTES.to_string());
    fleet.grow(1);
    publish_all(&client, (0..HOSTS).map(|host| known_batch(host, 0, 10))).await;
    fleet.holds(10 * HOSTS as i64).await;
    let holder = hold(folder.path().join("catalog.sqlite").to_str().expect("text"));
    for message in 0..MESSAGES {
        publish_all(&client, [large(message)].into_iter()).await;
    }
    let told = async || fleet.members[0].not_ready().await.filter(|reasons| reasons.contains("commit"));
    eventually("the commit to be held up", LIMIT, told).await;
    let given = given(&client).await.expect("the broker answers");
    // What is being committed and what is gathered, each with the message that fills it, and each counted as it came and as it was
    // decoded; and of each partition what was pulled, with the message that exceeds it, and the one that waits for room.
    let of_a_partition = PULL_BYTES * 3 / 2 + 2 * MESSAGE_BYTES;
    let most = 2 * (COMMIT_BYTES / 2 + MESSAGE_BYTES) + YIELDED_BYTES + HOSTS * of_a_partition;
    println!("{given} bytes of {} were taken, {most} at most may be", MESSAGES * MESSAGE_BYTES);
    assert!(given > COMMIT_BYTES && given <= most, "{given} bytes were taken, {most} at most may be");
    holder.kill();
    let rows = (MESSAGES * ROWS_A_MESSAGE) as i64;
    fleet.holds_in("lake.large", rows).await;
    let exact = format!("SELECT count(DISTINCT n) FROM lake.large WHERE length(text) = {TEXT_BYTES}");
    assert_eq!(fleet.number(&exact), Some(rows));
    assert_eq!(fleet.number("SELECT count(*) FROM lake.large"), Some(rows));
    fleet.shrink(0).await;
}
