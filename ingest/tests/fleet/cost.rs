//! What a point costs in processor time, by one member and by four.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use plimsoll_nats::{Batch, Column, HostId, now_ms, testing::TestServer};
use plimsoll_testkit::{LakePlace, Servers};

use crate::{
    fleet::Fleet,
    publisher::{HOSTS, Publisher},
    support::{name, publish_all},
};

const FIELDS: usize = 12;
const ROWS_A_BATCH: usize = 60;
const BATCHES_A_HOST: usize = 500;
/// Each number of members in turns, so that whatever else the machine does meets both.
const RUNS: usize = 3;

/// Sixty rows of twelve floats, as of an agent that was away for a minute.
fn batch(host: usize, number: usize) -> Batch {
    let row = |row: usize| host as f64 + (number * ROWS_A_BATCH + row) as f64 / 7.0;
    let field = |field: usize| {
        let values = (0..ROWS_A_BATCH).map(|index| Some((row(index) * field as f64).sin() * 100.0));
        (name(&format!("field_{field}")), Column::Float(values.collect()))
    };
    Batch {
        host: HostId::parse(&format!("h{host}")).expect("valid"),
        measurement: name("cost"),
        epoch: ulid::Ulid::nil(),
        seq: number as u64 + 1,
        times: (0..ROWS_A_BATCH as i64).map(|row| now_ms() - 60_000 + row * 1000).collect(),
        tags: BTreeMap::new(),
        fields: (0..FIELDS).map(field).collect(),
    }
}

/// Processor nanoseconds a point of members that are at work; what their start takes is left out.
async fn cost(servers: &Servers, members: usize) -> f64 {
    let server = TestServer::start().await;
    let client = server.client().await;
    let fleet = Fleet::new(&server.config(), client.clone(), LakePlace::fleet(servers));
    let mut fleet = fleet.with("PLIMSOLL_INGEST__COMMIT_INTERVAL", "15s");
    let publisher = Publisher::start(client.clone());
    fleet.grow(members);
    fleet.settled(Instant::now()).await;
    let sent = publisher.finish().await * HOSTS as i64;
    fleet.holds(sent).await;
    let taken = |fleet: &Fleet| fleet.members.iter().map(|member| member.process().cpu()).sum::<Duration>();
    let before = taken(&fleet);
    // By parts, as the client lets only so many wait for their acknowledgement.
    for number in 0..BATCHES_A_HOST {
        publish_all(&client, (0..HOSTS).map(|host| batch(host, number))).await;
    }
    let rows = (HOSTS * ROWS_A_BATCH * BATCHES_A_HOST) as i64;
    fleet.holds_in("lake.cost", rows).await;
    let points = rows as f64 * FIELDS as f64;
    let cost = (taken(&fleet) - before).as_nanos() as f64 / points;
    let (mut commits, mut conflicts) = (0.0, 0.0);
    for member in &fleet.members {
        commits += member.metric("plimsoll_ingest_commits_total").await;
        conflicts += member.metric("plimsoll_ingest_commit_conflicts_total").await;
    }
    println!(
        "{members} members: {cost:.0} ns of processor time a point, {:.1} million points, {commits} commits, {conflicts} conflicts",
        points / 1e6
    );
    cost
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, which `make chaos` makes"]
async fn cpu_a_point_from_one_to_four_members() {
    let servers = Servers::shared().await;
    let (mut one, mut four) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        one = one.min(cost(&servers, 1).await);
        four = four.min(cost(&servers, 4).await);
    }
    println!(
        "CPU a point, the least of {RUNS} runs each: one member {one:.0} ns, four members {four:.0} ns, {:.2} times",
        four / one
    );
}
