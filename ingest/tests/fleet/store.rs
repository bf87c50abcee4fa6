//! An S3 store that refuses, hangs, and loses its answers.

use std::time::Duration;

use plimsoll_lake::LakeWriter;
use plimsoll_nats::testing::{TestServer, eventually};
use plimsoll_testkit::{LakePlace, S3Fault, S3Proxy, Servers};

use crate::{
    fleet::{Fleet, LIMIT, length},
    member::Member,
    publisher::Publisher,
};

/// What a member says of a fault of the store. One that was just given its partitions has to read where they begin, which a file of
/// the store may tell; it commits nothing before.
async fn told(member: &Member) -> Option<String> {
    member.not_ready().await.filter(|reasons| reasons.contains("commit") || reasons.contains("lake"))
}

/// Lets the store do harm until it was seen and felt, and looks whether the fleet recovers and has told of it.
async fn with_fault(fault: S3Fault, timeout: &str, what: &str) {
    let (servers, server) = tokio::join!(Servers::shared(), TestServer::start());
    let client = server.client().await;
    let proxy = S3Proxy::start(servers.s3.endpoint()).await;
    let place = LakePlace::fleet(&servers);
    let through_proxy = place.clone().with_endpoint(&proxy.endpoint);
    let publisher = Publisher::start(client.clone());
    let fleet = Fleet::new(&server.config(), client, place).with_place_of_members(&through_proxy);
    let mut fleet = fleet.with("PLIMSOLL_LAKE__S3__TIMEOUT", timeout);
    fleet.grow(2);
    fleet.works(&publisher).await;
    proxy.set(fault);
    if !matches!(fault, S3Fault::RefuseOneIn(_)) {
        for member in &fleet.members {
            eventually("the store's fault to be told", LIMIT, async || told(member).await).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(1) + length()).await;
    proxy.set(S3Fault::Nothing);
    fleet.works(&publisher).await;
    for member in &fleet.members {
        eventually("a member to be ready", LIMIT, async || member.is_ready().await.then_some(())).await;
    }
    let harmed = proxy.harmed();
    assert!(harmed > 0, "the fault did no harm");
    fleet.account(&format!("{what}: {harmed} requests"), publisher).await.settle();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_answers_500() {
    with_fault(S3Fault::Refuse, "30s", "S3 answers 500").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_answers_some_requests_with_500() {
    with_fault(S3Fault::RefuseOneIn(2), "30s", "S3 answers every other request with 500").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_never_answers() {
    // Tells of a commit that is held up before it fails.
    with_fault(S3Fault::Silence, "30s", "S3 takes requests and never answers").await;
}

/// The positions of partitions that nothing was ever committed of are in a file, as they were made.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_starts_while_the_store_never_answers_tells_of_it() {
    let (servers, server) = tokio::join!(Servers::shared(), TestServer::start());
    let client = server.client().await;
    let proxy = S3Proxy::start(servers.s3.endpoint()).await;
    let place = LakePlace::fleet(&servers);
    drop(LakeWriter::open(&place.config()).expect("creates the lake"));
    let through_proxy = place.clone().with_endpoint(&proxy.endpoint);
    let mut fleet = Fleet::new(&server.config(), client.clone(), place).with_place_of_members(&through_proxy);
    proxy.set(S3Fault::Silence);
    fleet.grow(1);
    let publisher = Publisher::start(client);
    let held_up =
        async || told(&fleet.members[0]).await.filter(|reasons| reasons.contains("lake: no answer within 10 s"));
    let reasons = eventually("the store's fault to be told", LIMIT, held_up).await;
    assert!(!reasons.contains("commit"), "{reasons}");
    proxy.set(S3Fault::Nothing);
    fleet.works(&publisher).await;
    eventually("the member to be ready", LIMIT, async || fleet.members[0].is_ready().await.then_some(())).await;
    fleet.account("S3 never answers while a member starts", publisher).await.settle();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_loses_its_answers() {
    with_fault(S3Fault::LoseAnswers, "1s", "S3 stores and never says so").await;
}
