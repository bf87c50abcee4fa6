//! Leases against a real broker: one member at a time, and soon another one.

use std::time::Duration;

use plimsoll_nats::{
    client::MemberId,
    lease::{Lease, TIME_TO_LIVE},
    testing::{TestServer, eventually},
};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn one_member_holds_it_until_it_gives_it_back_or_dies() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let lease = |member: &str| Lease::new(&client, "test", &MemberId::from(member));
    let (mut a, mut b, mut other) = (lease("a"), lease("b"), Lease::new(&client, "other", &MemberId::from("b")));
    assert!(!a.is_held());
    assert!(a.hold().await.expect("answers"));
    assert!(!b.hold().await.expect("answers"));
    assert!(other.hold().await.expect("answers"), "another lease is another matter");
    assert!(a.hold().await.expect("answers"), "it is prolonged");
    a.give_back().await.expect("answers");
    assert!(!a.is_held());
    assert!(b.hold().await.expect("answers"));
    assert!(!a.hold().await.expect("answers"));
    // Dies without a word.
    drop(b);
    eventually("the lease of the dead to expire", LIMIT, async || a.hold().await.expect("answers").then_some(())).await;
}

#[tokio::test]
async fn of_many_that_try_at_once_one_gets_it() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let mut tries = tokio::task::JoinSet::new();
    for member in 0..20 {
        let mut lease = Lease::new(&client, "test", &MemberId::from(format!("m{member}").as_str()));
        tries.spawn(async move { lease.hold().await.expect("answers") });
    }
    let held = tries.join_all().await.into_iter().filter(|held| *held).count();
    assert_eq!(held, 1);
}

#[tokio::test]
async fn one_that_hears_nothing_of_the_broker_holds_it_no_longer_than_it_lasts() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    let mut lease = Lease::new(&client, "test", &MemberId::from("a"));
    assert!(lease.hold().await.expect("answers"));
    server.kill();
    eventually("the lease to be uncertain", 2 * TIME_TO_LIVE, async || {
        let _ = lease.hold().await;
        (!lease.is_held()).then_some(())
    })
    .await;
    server.start_again().await;
    eventually("the lease to be held again", LIMIT, async || lease.hold().await.is_ok_and(|held| held).then_some(()))
        .await;
}
