//! Running nats-server: the shipped configuration, and what goes wrong.

use std::{path::Path, process::Command, time::Duration};

use plimsoll_nats::server::{Server, ServerConfig, ServerError, find_binary};
use tempfile::TempDir;

fn config_in(folder: &Path) -> ServerConfig {
    ServerConfig { port: None, store_dir: folder.join("store"), run_dir: folder.join("run"), sync_always: true }
}

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
    let port = Some(taken.local_addr().expect("an address").port());
    let config = ServerConfig { port, ..config_in(dir.path()) };
    let error = Server::start(&config).await.expect_err("the port is taken");
    assert!(matches!(error, ServerError::PortTaken { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_ends_at_once_tells_why_and_keeps_the_log() {
    let dir = TempDir::new().expect("a folder");
    let config = config_in(dir.path());
    std::fs::create_dir_all(&config.store_dir).expect("a folder");
    std::fs::write(config.store_dir.join("jetstream"), "no folder").expect("written");
    std::fs::create_dir_all(&config.run_dir).expect("a folder");
    let log = config.run_dir.join("nats-server.log");
    std::fs::write(&log, "[FTL] the last crash\n").expect("written");

    let error = Server::start(&config).await.expect_err("the store is no folder");
    assert!(matches!(&error, ServerError::Ended { log } if !log.contains("the last crash")), "{error}");
    let text = std::fs::read_to_string(&log).expect("a log");
    assert!(text.starts_with("[FTL] the last crash\n") && text.lines().count() > 1, "{text}");

    std::fs::write(&log, vec![b'x'; 11 * 1024 * 1024]).expect("written");
    Server::start(&config).await.expect_err("the store is no folder");
    let size = |path: &Path| std::fs::metadata(path).expect("a file").len();
    assert!(size(&log) < 1024 * 1024, "a large log is begun anew");
    assert_eq!(size(&config.run_dir.join("nats-server.log.1")), 11 * 1024 * 1024, "and kept aside");
}

#[tokio::test]
async fn a_server_left_behind_is_ended_before_the_next_one_starts() {
    let dir = TempDir::new().expect("a folder");
    let mut config = config_in(dir.path());
    let mut first = Server::start(&config).await.expect("starts");
    config.port = first.url().rsplit(':').next().and_then(|port| port.parse().ok());
    let second = Server::start(&config).await.expect("starts on the same port");
    tokio::time::timeout(Duration::from_secs(10), first.ended()).await.expect("the first one was ended");
    assert_eq!(first.url(), second.url());
    second.stop().await;
}

#[tokio::test]
async fn a_server_that_is_just_being_killed_is_waited_for() {
    let dir = TempDir::new().expect("a folder");
    let mut config = config_in(dir.path());
    for _ in 0..20 {
        let server = Server::start(&config).await.expect("starts on the same port");
        config.port = server.url().rsplit(':').next().and_then(|port| port.parse().ok());
        drop(server); // SIGKILL
    }
}

#[tokio::test]
async fn another_process_with_the_noted_id_is_left_alone() {
    let dir = TempDir::new().expect("a folder");
    let config = config_in(dir.path());
    let mut other = Command::new("sleep").arg("60").spawn().expect("sleep");
    std::fs::create_dir_all(&config.run_dir).expect("a folder");
    std::fs::write(config.run_dir.join("nats-server.pid"), other.id().to_string()).expect("written");
    Server::start(&config).await.expect("starts").stop().await;
    assert!(other.try_wait().expect("a child").is_none(), "it runs on");
    other.kill().and_then(|()| other.wait()).expect("is killed");
}

#[tokio::test]
async fn an_unwritable_store_is_named() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let error = Server::start(&config_in(file.path())).await.expect_err("no folder can be there").to_string();
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
