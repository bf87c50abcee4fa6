//! A catalog that restarts, whose answers are lost, and that another writer holds.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use plimsoll_nats::testing::{Proxy, Swallow, TestServer, eventually};
use plimsoll_testkit::{LakePlace, PostgresProxy, Process, Servers, TestPostgres};
use tempfile::TempDir;

use crate::{
    fleet::{Fleet, LIMIT, length, random_moment, seeded},
    publisher::Publisher,
};

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_restarted_in_the_middle_of_commits() {
    let (servers, mut postgres, server) = tokio::join!(Servers::shared(), TestPostgres::start(), TestServer::start());
    let client = server.client().await;
    let mut random = seeded();
    let publisher = Publisher::start(client.clone());
    let place = LakePlace::on(&postgres, &servers.s3);
    // Commits follow one another, so that a restart finds some under way.
    let mut fleet = Fleet::new(&server.config(), client, place).with("PLIMSOLL_INGEST__COMMIT_INTERVAL", "100ms");
    fleet.grow(2);
    fleet.works(&publisher).await;
    let (started, mut restarts) = (Instant::now(), 0);
    while restarts < 3 || started.elapsed() < length() {
        random_moment(&mut random, Duration::from_secs(2)).await;
        match restarts % 3 {
            0 => postgres.crash().await,
            1 => postgres.stop().await,
            _ => postgres.kill(),
        }
        postgres.start_again().await;
        fleet.works(&publisher).await;
        restarts += 1;
    }
    fleet
        .account(&format!("PostgreSQL crashed, stopped or killed amid commits, {restarts} times"), publisher)
        .await
        .settle();
}

/// The worst moment: PostgreSQL has committed, and nobody hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_catalogs_answers_to_commits_are_lost() {
    let (servers, server) = tokio::join!(Servers::shared(), TestServer::start());
    let client = server.client().await;
    let proxy = PostgresProxy::start(servers.postgres.port()).await;
    let publisher = Publisher::start(client.clone());
    let place = LakePlace::fleet(&servers);
    let through_proxy = place.clone().with_catalog_port(proxy.port);
    let mut fleet = Fleet::new(&server.config(), client, place).with_place_of_members(&through_proxy);
    fleet.grow(2);
    fleet.works(&publisher).await;
    let started = Instant::now();
    while proxy.harmed() < 5 || started.elapsed() < length() {
        let before = proxy.harmed();
        proxy.lose_next_commit();
        eventually("a commit", LIMIT, async || (proxy.harmed() > before).then_some(())).await;
        fleet.works(&publisher).await;
    }
    let what = format!("PostgreSQL commits and its answer is lost, {} times", proxy.harmed());
    fleet.account(&what, publisher).await.settle();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_catalog_are_cut_at_any_moment() {
    let (servers, server) = tokio::join!(Servers::shared(), TestServer::start());
    let client = server.client().await;
    let mut random = seeded();
    let proxy = Proxy::start(format!("127.0.0.1:{}", servers.postgres.port())).await;
    let port = proxy.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let publisher = Publisher::start(client.clone());
    let place = LakePlace::fleet(&servers);
    let through_proxy = place.clone().with_catalog_port(port);
    let fleet = Fleet::new(&server.config(), client, place).with_place_of_members(&through_proxy);
    let mut fleet = fleet.with("PLIMSOLL_INGEST__COMMIT_INTERVAL", "100ms");
    fleet.grow(2);
    fleet.works(&publisher).await;
    let (started, mut cuts) = (Instant::now(), 0);
    while cuts < 3 || started.elapsed() < length() {
        random_moment(&mut random, Duration::from_secs(1)).await;
        proxy.swallow(Swallow::Answers);
        random_moment(&mut random, Duration::from_millis(500)).await;
        proxy.cut();
        fleet.works(&publisher).await;
        cuts += 1;
    }
    fleet.account(&format!("PostgreSQL falls silent and connections are cut, {cuts} times"), publisher).await.settle();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_writer_holds_the_postgresql_catalog() {
    let (servers, server) = tokio::join!(Servers::shared(), TestServer::start());
    let client = server.client().await;
    let publisher = Publisher::start(client.clone());
    let place = LakePlace::fleet(&servers);
    let mut fleet = Fleet::new(&server.config(), client, place.clone());
    fleet.grow(2);
    fleet.works(&publisher).await;
    let lock = "BEGIN; LOCK TABLE ducklake_snapshot IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3600)";
    let holder = servers.postgres.session(place.database(), lock);
    told(&fleet, "lake").await;
    holder.kill();
    servers.postgres.end_sessions(place.database());
    fleet.works(&publisher).await;
    ready(&fleet).await;
    fleet.account("PostgreSQL catalog locked by another writer", publisher).await.settle();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_holds_the_sqlite_catalog() {
    let (server, folder) = (TestServer::start().await, TempDir::new().expect("a folder"));
    let client = server.client().await;
    let publisher = Publisher::start(client.clone());
    let fleet = Fleet::new(&server.config(), client, LakePlace::embedded(folder.path()));
    let mut fleet = fleet.with("PLIMSOLL_LAKE__BUSY_TIMEOUT_MS", "100");
    fleet.grow(2);
    fleet.works(&publisher).await;
    let started = Instant::now();
    let mut times = 0;
    while times < 1 || started.elapsed() < length() {
        let holder = hold(folder.path().join("catalog.sqlite").to_str().expect("text"));
        told(&fleet, "commit").await;
        holder.kill();
        fleet.works(&publisher).await;
        ready(&fleet).await;
        times += 1;
    }
    fleet.account(&format!("SQLite catalog held beyond the busy timeout, {times} times"), publisher).await.settle();
}

/// A process that holds the write lock of a SQLite database. The library that this process has must not open the file besides.
pub fn hold(database: &str) -> Process {
    const SCRIPT: &str = "import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute('BEGIN IMMEDIATE')
time.sleep(3600)";
    Process::spawn(Command::new("python3").args(["-c", SCRIPT, database]).stdout(Stdio::null()))
}

/// Waits until every member says on `/readyz` what is wrong.
async fn told(fleet: &Fleet, part: &str) {
    for member in &fleet.members {
        eventually("the fault to be told", LIMIT, async || {
            member.not_ready().await.filter(|reasons| reasons.contains(part))
        })
        .await;
    }
}

async fn ready(fleet: &Fleet) {
    for member in &fleet.members {
        eventually("a member to be ready", LIMIT, async || member.is_ready().await.then_some(())).await;
    }
}
