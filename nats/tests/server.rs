//! Running nats-server: the shipped configuration, and what goes wrong.

use std::{path::Path, process::Command};

use plimsoll_nats::server::{Server, ServerConfig, ServerError, find_binary};
use tempfile::TempDir;

#[test]
fn the_shipped_configuration_is_one_that_the_server_accepts_and_syncs_always() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("nats-server.conf");
    let binary = find_binary().expect("nats-server");
    let check = Command::new(binary).arg("-t").arg("-c").arg(&conf).output().expect("runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    assert!(std::fs::read_to_string(conf).expect("text").contains("sync_interval: always"));
}

#[tokio::test]
async fn a_server_on_a_taken_port_tells_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let dir = TempDir::new().expect("a folder");
    let config = ServerConfig {
        port: Some(taken.local_addr().expect("an address").port()),
        store_dir: dir.path().join("store"),
        run_dir: dir.path().join("run"),
        sync_always: true,
    };
    let error = Server::start(&config).await.expect_err("the port is taken");
    assert!(matches!(&error, ServerError::Ended { log } if log.contains("address already in use")), "{error}");
}

#[tokio::test]
async fn an_unwritable_store_is_named() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let config = ServerConfig {
        port: None,
        store_dir: file.path().join("store"),
        run_dir: file.path().join("run"),
        sync_always: true,
    };
    let error = Server::start(&config).await.expect_err("no folder can be there").to_string();
    assert!(error.contains("store"), "{error}");
}

#[tokio::test]
async fn a_broker_without_room_names_the_setting() {
    use plimsoll_nats::{NatsConfig, streams, testing::TestServer};
    let server = TestServer::start().await;
    let client = server.client().await;
    let config = NatsConfig { metrics_max_bytes: Some(i64::MAX / 2), ..server.config() };
    let error = streams::declare(&client, &config).await.expect_err("no disk is that large");
    assert!(error.is_refusal() && error.to_string().contains("PLIMSOLL_NATS__METRICS_MAX_BYTES"), "{error}");
}
