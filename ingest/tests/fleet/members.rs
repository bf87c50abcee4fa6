//! Members that are killed, and one that sleeps.

use std::time::{Duration, Instant};

use plimsoll_nats::{reader::PIN_TIMEOUT, testing::eventually};
use plimsoll_testkit::{LakePlace, Servers, TestCluster};
use rand::RngExt;

use crate::{
    fleet::{Fleet, LIMIT, chaos, length, random_moment, seeded, settled},
    member::Member,
    publisher::Publisher,
};

#[tokio::test(flavor = "multi_thread")]
async fn random_members_are_killed_every_few_seconds() {
    let (servers, cluster) = tokio::join!(Servers::shared(), TestCluster::start());
    let client = cluster.client().await;
    let mut random = seeded();
    let publisher = Publisher::start(client.clone());
    let fleet = Fleet::new(&cluster.config(), client, LakePlace::fleet(&servers));
    // So that kills meet maintenance, too.
    let mut fleet = fleet.with("PLIMSOLL_INGEST__MAINTENANCE__INTERVAL", "1s");
    fleet.grow(4);
    fleet.works(&publisher).await;
    let (started, mut kills) = (Instant::now(), 0);
    while started.elapsed() < chaos().unwrap_or(Duration::from_secs(8)) {
        random_moment(&mut random, Duration::from_secs(4)).await;
        fleet.replace(random.random_range(0..4));
        kills += 1;
    }
    fleet.account(&format!("SIGKILL of a random member, {kills} times"), publisher).await.settle();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_sleeps_past_its_pin_wakes_and_tries_to_commit() {
    let (servers, cluster) = tokio::join!(Servers::shared(), TestCluster::start());
    let client = cluster.client().await;
    let mut random = seeded();
    let publisher = Publisher::start(client.clone());
    let fleet = Fleet::new(&cluster.config(), client, LakePlace::fleet(&servers));
    // Longer than elsewhere: a sleeper has nearly always gathered something.
    let mut fleet = fleet.with("PLIMSOLL_INGEST__COMMIT_INTERVAL", "2s");
    fleet.grow(4);
    fleet.settled(Instant::now()).await;
    fleet.works(&publisher).await;
    let (started, mut naps) = (Instant::now(), 0);
    while naps < 1 || started.elapsed() < length() {
        random_moment(&mut random, Duration::from_secs(2)).await;
        let sleeper = fleet.members.swap_remove(random.random_range(0..4));
        let asleep = Instant::now();
        sleeper.pause();
        let others: Vec<&Member> = fleet.members.iter().collect();
        settled(&others, asleep).await;
        random_moment(&mut random, length().min(PIN_TIMEOUT)).await;
        fleet.works(&publisher).await;
        sleeper.resume();
        eventually("the sleeper to be at work again", LIMIT, async || {
            (sleeper.partitions().await?.len() == 4).then_some(())
        })
        .await;
        fleet.members.push(sleeper);
        naps += 1;
    }
    // It waits its turn before that.
    eventually("a sleeper to try to commit what others have committed", LIMIT, async || {
        let mut dropped = 0.0;
        for member in &fleet.members {
            for counter in ["contained_messages", "commit_conflicts"] {
                dropped += member.metric(&format!("plimsoll_ingest_{counter}_total")).await;
            }
        }
        (dropped > 0.0).then_some(())
    })
    .await;
    fleet.account(&format!("SIGSTOP of a member past its pin, {naps} times"), publisher).await.settle();
}
