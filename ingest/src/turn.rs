//! Members commit in turn.
//!
//! Two members that commit to one lake at the same time conflict, since both move positions: the later one has written all its rows
//! in vain and writes them again. So a member takes a lease before it commits. That spares work and nothing else: what is committed
//! is right without it. A member therefore goes on when it can't learn whose turn it is, and when it has waited for too long.

use std::{convert::Infallible, time::Duration};

use plimsoll_nats::{Client, client::MemberId, dead::chain, lease::Lease};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the turn of a member holds that was killed or stopped.
const TIME_TO_LIVE: Duration = Duration::from_secs(3);
/// How often the turn is prolonged while a commit goes on.
const PROLONG: Duration = Duration::from_secs(1);
/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same once ingest is told to stop. Without any, it would lose against those who commit in turn, and end later.
const LAST_PATIENCE: Duration = Duration::from_secs(4);
/// Shortest and longest pause between two looks whose turn it is.
const LOOK_MS: std::ops::Range<u64> = 10..40;

/// A member's part in taking turns.
#[derive(Debug)]
pub struct Turn {
    client: Client,
    lease: Lease,
    shutdown: CancellationToken,
}

impl Turn {
    /// Of a member that has committed nothing yet.
    #[must_use]
    pub fn new(client: &Client, group: &str, member: &MemberId, shutdown: CancellationToken) -> Self {
        let lease = Lease::new(client, &format!("{group}-commit"), member).lasting(TIME_TO_LIVE);
        Self { client: client.clone(), lease, shutdown }
    }

    /// Waits until no other member commits, less long once ingest is told to stop; returns how long that was.
    pub async fn take(&mut self) -> Duration {
        let started = Instant::now();
        while self.client.is_connected() && started.elapsed() < self.patience() {
            match self.lease.hold().await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(error = %chain(&error), "failed to ask whose turn it is to commit, commits at once");
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(rand::random_range(LOOK_MS))).await;
        }
        started.elapsed()
    }

    fn patience(&self) -> Duration {
        if self.shutdown.is_cancelled() { LAST_PATIENCE } else { PATIENCE }
    }

    /// Works and gives the turn to others.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let done = tokio::select! {
            biased;
            done = work => done,
            never = self.prolong() => match never {},
        };
        if let Err(error) = self.lease.give_back().await {
            tracing::debug!(error = %chain(&error), "failed to give the turn to commit back, it expires instead");
        }
        done
    }

    /// Prolongs the turn, if it is held, until it is dropped.
    async fn prolong(&mut self) -> Infallible {
        loop {
            tokio::time::sleep(PROLONG).await;
            if self.lease.is_held()
                && let Err(error) = self.lease.hold().await
            {
                tracing::debug!(error = %chain(&error), "failed to prolong the turn to commit");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    };

    use plimsoll_nats::{streams, testing::TestServer};

    use super::*;

    async fn turn(server: &TestServer) -> Turn {
        let client = server.client().await;
        streams::declare(&client, &server.config()).await.expect("declares");
        Turn::new(&client, "test", &MemberId::unique(), CancellationToken::new())
    }

    #[tokio::test]
    async fn members_work_one_at_a_time() {
        let server = TestServer::start().await;
        let (busy, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let mut members = Vec::new();
        for _ in 0..4 {
            let (mut turn, busy, done) = (turn(&server).await, Arc::clone(&busy), Arc::clone(&done));
            members.push(tokio::spawn(async move {
                for _ in 0..5 {
                    turn.take().await;
                    turn.during(async {
                        assert!(!busy.swap(true, Ordering::SeqCst), "another member works");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        busy.store(false, Ordering::SeqCst);
                    })
                    .await;
                    done.fetch_add(1, Ordering::SeqCst);
                }
            }));
        }
        for member in members {
            member.await.expect("no panic");
        }
        assert_eq!(done.load(Ordering::SeqCst), 20);
    }

    #[tokio::test]
    async fn work_that_takes_long_keeps_its_turn_and_that_of_the_dead_ends() {
        let server = TestServer::start().await;
        let (mut first, mut second) = (turn(&server).await, turn(&server).await);
        first.take().await;
        let busy = AtomicBool::new(true);
        let long = async {
            first.during(tokio::time::sleep(2 * TIME_TO_LIVE)).await;
            busy.store(false, Ordering::SeqCst);
        };
        let waits = async {
            let waited = second.take().await;
            assert!(!busy.load(Ordering::SeqCst) && waited > TIME_TO_LIVE, "waited {waited:?}");
        };
        tokio::join!(long, waits);
        // It never gives its turn back.
        drop(second);
        assert!(first.take().await < PATIENCE);
        assert!(first.lease.is_held());
    }

    #[tokio::test]
    async fn nobody_waits_for_long_at_the_end_or_without_a_broker() {
        let server = TestServer::start().await;
        let (mut first, mut second) = (turn(&server).await, turn(&server).await);
        first.take().await;
        second.shutdown.cancel();
        let (waited, ()) = tokio::join!(second.take(), first.during(tokio::time::sleep(2 * LAST_PATIENCE)));
        assert!((LAST_PATIENCE..2 * LAST_PATIENCE).contains(&waited), "waited {waited:?}");
        assert!(!second.lease.is_held());
        drop(server);
        let waited = first.take().await;
        assert!(waited < PATIENCE, "waited {waited:?}");
        assert_eq!(first.during(async { 7 }).await, 7);
    }
}
