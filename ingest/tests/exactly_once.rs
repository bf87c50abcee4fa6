//! Every row exactly once, however often ingest is killed.

mod support;

use std::time::Duration;

use plimsoll_nats::testing::{TestServer, eventually};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use support::{IngestProcess, LIMIT, TestLake, differences, known_batch, publish_all};

const HOSTS: usize = 50;
const ROWS_A_HOST: i64 = 4000;
const ROWS_A_BATCH: i64 = 20;
const KILLS: i64 = 10;

/// Publishes the part of the rows that belongs to a round, of [`KILLS`] and a last one.
async fn publish_round(client: &plimsoll_nats::Client, round: i64) {
    let batches = ROWS_A_HOST / ROWS_A_BATCH;
    let (from, to) = (batches * round / (KILLS + 1), batches * (round + 1) / (KILLS + 1));
    let batches = (from..to).flat_map(|batch| (0..HOSTS).map(move |host| (host, batch * ROWS_A_BATCH)));
    publish_all(client, batches.map(|(host, first)| known_batch(host, first, ROWS_A_BATCH))).await;
}

fn rows(lake: &mut TestLake) -> i64 {
    lake.number("SELECT count(*) FROM lake.known").unwrap_or(0)
}

/// Waits until ingest has committed something beyond `before`, and then a random moment: into the next commit, or between two.
async fn random_moment_at_work(lake: &mut TestLake, before: i64, random: &mut StdRng) {
    eventually("ingest to be at work", LIMIT, async || (rows(lake) > before).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
}

async fn prove(lake: &mut TestLake) {
    let total = ROWS_A_HOST * HOSTS as i64;
    eventually("all rows", LIMIT, async || (rows(lake) >= total).then_some(())).await;
    assert_eq!(rows(lake), total);
    assert_eq!(lake.number(&differences(HOSTS, ROWS_A_HOST)), Some(0), "rows missing, wrong or doubled");
}

fn seeded() -> StdRng {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

#[tokio::test]
async fn every_row_is_stored_once_though_ingest_is_killed_ten_times() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    let mut random = seeded();
    for round in 0..KILLS {
        let before = rows(&mut lake);
        let ingest = IngestProcess::start(&server.url(), lake.dir.path());
        publish_round(&client, round).await;
        random_moment_at_work(&mut lake, before, &mut random).await;
        ingest.kill();
    }
    let ingest = IngestProcess::start(&server.url(), lake.dir.path());
    publish_round(&client, KILLS).await;
    prove(&mut lake).await;
    ingest.stop().await;
    assert_eq!(lake.number(&differences(HOSTS, ROWS_A_HOST)), Some(0), "the end of ingest changes nothing");
}

#[tokio::test]
async fn two_members_share_the_work_and_store_every_row_once_though_one_is_killed_ten_times() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut lake = TestLake::new();
    let mut random = seeded();
    let start = |lake: &TestLake| IngestProcess::start(&server.url(), lake.dir.path());
    let mut members = vec![start(&lake), start(&lake)];
    for round in 0..KILLS {
        let before = rows(&mut lake);
        publish_round(&client, round).await;
        random_moment_at_work(&mut lake, before, &mut random).await;
        members.swap_remove(random.random_range(0..2)).kill();
        members.push(start(&lake));
    }
    publish_round(&client, KILLS).await;
    prove(&mut lake).await;
    for member in members {
        member.stop().await;
    }
    assert_eq!(lake.number(&differences(HOSTS, ROWS_A_HOST)), Some(0), "the end of ingest changes nothing");
}
