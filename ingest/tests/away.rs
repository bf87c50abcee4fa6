//! What ingest says and does while broker or catalog are away.

mod support;

use std::time::Duration;

use plimsoll_ingest::IngestConfig;
use plimsoll_lake::LakeConfig;
use plimsoll_nats::testing::{TestServer, eventually};
use plimsoll_service::ops::Ops;
use support::{LIMIT, TestLake};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn config(server: &TestServer, lake: LakeConfig) -> IngestConfig {
    let http = "127.0.0.1:0".parse().expect("an address");
    IngestConfig { http, nats: server.config(), lake, ..IngestConfig::default() }
}

#[tokio::test]
async fn readiness_follows_the_broker() {
    let mut server = TestServer::start().await;
    let (client, mut lake) = (server.client().await, TestLake::new());
    let (ops, shutdown) = (Ops::default(), CancellationToken::new());
    let config = config(&server, LakeConfig::embedded(lake.dir.path()));
    let ingest = tokio::spawn(plimsoll_ingest::run_with(config, client, ops.clone(), shutdown.clone()));
    let positions = "SELECT count(*) FROM lake.plimsoll.positions";
    eventually("the lake", LIMIT, async || (lake.number(positions) == Some(16)).then_some(())).await;
    let ready = async |expected| {
        eventually("the readiness", LIMIT, async || (ops.readiness.is_ready() == expected).then_some(())).await;
    };
    ready(true).await;
    server.kill();
    ready(false).await;
    server.start_again().await;
    ready(true).await;
    shutdown.cancel();
    ingest.await.expect("no panic").expect("ends in order");
}

#[tokio::test]
async fn a_catalog_that_never_answers_does_not_keep_ingest_from_ending() {
    let (server, dir) = (TestServer::start().await, tempfile::TempDir::new().expect("a folder"));
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let port = silent.local_addr().expect("an address").port();
    let catalog = format!("postgres:host=127.0.0.1 port={port} dbname=lake");
    let lake = LakeConfig { catalog, ..LakeConfig::embedded(dir.path()) };
    let shutdown = CancellationToken::new();
    let ingest = tokio::spawn(plimsoll_ingest::run(config(&server, lake), shutdown.clone()));
    let _connection = silent.accept().await.expect("ingest connects");
    shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), ingest).await.expect("ends though nobody answers");
    ended.expect("no panic").expect("ends in order");
}
