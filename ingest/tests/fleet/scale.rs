//! From one member to four and back while data flows.

use std::time::{Duration, Instant};

use plimsoll_testkit::{LakePlace, Servers, TestCluster};

use crate::{fleet::Fleet, publisher::Publisher};

#[tokio::test(flavor = "multi_thread")]
async fn one_to_four_members_and_back() {
    let (servers, cluster) = tokio::join!(Servers::shared(), TestCluster::start());
    let client = cluster.client().await;
    let publisher = Publisher::start(client.clone());
    let mut fleet = Fleet::new(&cluster.config(), client, LakePlace::fleet(&servers));
    let mut longest = Duration::ZERO;
    for members in [1, 2, 4, 3, 1] {
        let started = Instant::now();
        fleet.grow(members);
        fleet.shrink(members).await;
        fleet.settled(started).await;
        let taken = started.elapsed();
        println!("{members} members share the partitions after {} ms", taken.as_millis());
        longest = longest.max(taken);
        fleet.works(&publisher).await;
    }
    let what = format!("1 -> 2 -> 4 -> 3 -> 1 members, shared within {:.1} s", longest.as_secs_f64());
    fleet.account(&what, publisher).await.settle();
}
