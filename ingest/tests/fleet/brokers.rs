//! Brokers of a cluster that die.

use std::time::{Duration, Instant};

use plimsoll_testkit::{LakePlace, Servers, TestCluster};

use crate::{
    fleet::{Fleet, length, random_moment, seeded},
    publisher::Publisher,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_of_the_stream_is_lost() {
    let (servers, mut cluster) = tokio::join!(Servers::shared(), TestCluster::start());
    let client = cluster.client().await;
    let mut random = seeded();
    let publisher = Publisher::start(client.clone());
    let mut fleet = Fleet::new(&cluster.config(), client.clone(), LakePlace::fleet(&servers));
    fleet.grow(2);
    fleet.works(&publisher).await;
    let (started, mut losses) = (Instant::now(), 0);
    while losses < 2 || started.elapsed() < length() {
        random_moment(&mut random, Duration::from_secs(1)).await;
        let leader = cluster.leader(&client).await;
        cluster.kill(leader);
        fleet.works(&publisher).await;
        cluster.start_again(leader);
        // Two of three must always be there: what a cluster of three promises.
        cluster.whole(&client).await;
        losses += 1;
    }
    fleet.account(&format!("SIGKILL of the stream's leader, {losses} times"), publisher).await.settle();
}
