//! The broker is wiped, and the agent's spool refills it: the lake has every batch once.

mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use plimsoll_agent::{delivery::Delivery, state::StateDir};
use plimsoll_lake::{Access, Lake, LakeConfig};
use plimsoll_nats::{
    Column, streams,
    testing::{TestServer, eventually},
};
use plimsoll_testkit::{Account, account};
use support::{
    LIMIT, Up,
    delivery::{deliver, message},
    install_crypto,
};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

/// Batches that are sent while the broker is there, and as many while it is away.
const BATCHES: i64 = 300;

/// The agent's delivery, fed with batches of a row that tells its number.
struct Agent {
    delivery: Delivery,
    epoch: Ulid,
    sent: i64,
    stop: CancellationToken,
    _state: StateDir,
}

impl Agent {
    fn start(folder: &Path, url: String) -> Self {
        let stop = CancellationToken::new();
        let (delivery, state) = deliver(folder, url, &stop);
        Self { delivery, epoch: Ulid::generate(), sent: 0, stop, _state: state }
    }

    /// Hands batches over, each once the one before is on disk or with the broker.
    async fn send(&mut self, batches: i64) {
        for _ in 0..batches {
            let number = [("n", Column::Integer(vec![Some(self.sent)]))];
            self.delivery.metrics().push([message(self.epoch, "known", self.sent.cast_unsigned() + 1, &number)]);
            self.sent += 1;
            let is_safe = async || self.delivery.metrics().is_safe().then_some(());
            eventually("the batch to be safe", LIMIT, is_safe).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn rows(lake: &Path) -> i64 {
    let lake = Lake::open(&LakeConfig::embedded(lake), Access::Read);
    let count = |lake: Lake| lake.connection().query_row("SELECT count(*) FROM lake.known", [], |row| row.get(0)).ok();
    lake.ok().and_then(count).unwrap_or(0)
}

async fn holds(lake: &Path, expected: i64) {
    eventually("the rows in the lake", LIMIT, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        (rows(lake) >= expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_broker_is_refilled_from_the_agents_spool() {
    install_crypto();
    let (folder, data) = (support::data(), support::data());
    let lake = data.path().join("lake");
    let mut server = TestServer::start().await;
    let url = server.url();
    let flags = ["--no-agent", "--nats-url", &url];
    let up = Up::start(data.path(), &flags, &[("PLIMSOLL_INGEST__COMMIT_INTERVAL", "200ms")]).await;
    let mut agent = Agent::start(folder.path(), url.clone());
    let seconds = std::env::var("PLIMSOLL_CHAOS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(0)) / 4;
    let (started, mut wipes) = (Instant::now(), 0);
    while wipes < 2 || started.elapsed() < length {
        agent.send(BATCHES).await;
        // What a single broker has acknowledged and ingest has not committed goes with its disk.
        holds(&lake, agent.sent).await;
        server.wipe();
        agent.send(BATCHES).await;
        server.start_again().await;
        // Samples go on while the spool is sent.
        agent.send(BATCHES).await;
        holds(&lake, agent.sent).await;
        wipes += 1;
    }
    let client = server.client().await;
    up.process.stop().await;
    let dead = client.jetstream.get_stream(streams::DEAD).await.expect("there").cached_info().state.messages;
    let lake_path = lake.join("data").display().to_string();
    let lake = Lake::open(&LakeConfig::embedded(&lake), Access::Read).expect("opens");
    let expected = format!("SELECT 'simulated' AS host, n FROM range({}) numbers(n)", agent.sent);
    let (once, lost, doubled) = account::compare(&lake, &expected, "SELECT host, n FROM lake.known");
    let (orphans, missing) = account::files(&lake, &lake_path);
    assert_eq!(missing, 0);
    let fault = format!("broker wiped and refilled from the agent's spool, {wipes} times");
    Account { fault, sent: agent.sent, once, lost, doubled, dead, orphans }.settle();
}
