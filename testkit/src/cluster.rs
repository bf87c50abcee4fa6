//! A cluster of three brokers.

use std::{fs, path::Path, process::Command, process::Stdio, time::Duration};

use plimsoll_nats::{
    Client, NatsConfig, server,
    streams::{self, METRICS},
    testing::eventually,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{Process, ports};

/// An election and its aftermath, beside other work.
const LIMIT: Duration = Duration::from_secs(60);

/// Three nats-servers on free ports of loopback, which keep three replicas of each stream.
#[derive(Debug)]
pub struct TestCluster {
    nodes: [Node; 3],
    // Stands last: the servers end first.
    dir: TempDir,
}

#[derive(Debug)]
struct Node {
    name: String,
    port: u16,
    server: Option<Process>,
}

impl TestCluster {
    /// Starts the servers and waits until they have a leader.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn start() -> Self {
        let (clients, routes) = (ports::free::<3>(), ports::free::<3>());
        let dir = TempDir::new().expect("a temporary folder");
        let nodes = [0, 1, 2].map(|index| {
            let node = Node { name: format!("node-{index}"), port: clients[index], server: None };
            fs::write(conf(dir.path(), index), node.config(dir.path(), routes, index)).expect("written");
            node
        });
        let mut cluster = Self { nodes, dir };
        (0..3).for_each(|index| cluster.start_again(index));
        drop(cluster.client().await);
        cluster
    }

    /// Starts a killed server on the same ports and store; it joins by itself.
    ///
    /// # Panics
    /// When there is no binary.
    pub fn start_again(&mut self, index: usize) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join(format!("{index}.log")));
        let mut command = Command::new(server::find_binary().expect("`make tools` fetches it"));
        command.arg("--config").arg(conf(self.dir.path(), index));
        command.stdout(Stdio::null()).stderr(log.expect("a log"));
        self.nodes[index].server = Some(Process::spawn(&mut command));
    }

    /// Kills a server without warning.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].server = None;
    }

    /// The servers' addresses, separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        self.nodes.each_ref().map(|node| format!("nats://127.0.0.1:{}", node.port)).join(",")
    }

    /// A configuration that leads to this cluster, small enough for a test's disk.
    #[must_use]
    pub fn config(&self) -> NatsConfig {
        let metrics_max_bytes = Some(512 * 1024 * 1024);
        NatsConfig { url: self.url(), replicas: 3, metrics_max_bytes, ..NatsConfig::default() }
    }

    /// A connection to the cluster, with all streams and buckets declared.
    ///
    /// # Panics
    /// When it does not take them.
    pub async fn client(&self) -> Client {
        let client = Client::connect(&self.config(), "test", &CancellationToken::new()).await.expect("connects");
        eventually("the cluster", LIMIT, async || streams::declare(&client, &self.config()).await.ok()).await;
        client
    }

    /// The server that leads `METRICS` now, once there is one.
    ///
    /// # Panics
    /// When none is elected in time.
    pub async fn leader(&self, client: &Client) -> usize {
        eventually("a leader of METRICS", LIMIT, async || {
            let stream = client.jetstream.get_stream(METRICS).await.ok()?;
            let leader = stream.cached_info().cluster.as_ref()?.leader.clone()?;
            self.nodes.iter().position(|node| node.name == leader)
        })
        .await
    }

    /// Waits until every replica of `METRICS` has what its leader has.
    ///
    /// # Panics
    /// When that takes too long.
    pub async fn whole(&self, client: &Client) {
        eventually("all replicas", LIMIT, async || {
            let stream = client.jetstream.get_stream(METRICS).await.ok()?;
            let cluster = stream.cached_info().cluster.clone()?;
            let current = cluster.replicas.iter().filter(|replica| replica.current && !replica.offline).count();
            (current == 2).then_some(())
        })
        .await;
    }
}

impl Node {
    fn config(&self, dir: &Path, routes: [u16; 3], index: usize) -> String {
        let (store, others) = (dir.join(index.to_string()), routes.map(|port| format!("\"nats://127.0.0.1:{port}\"")));
        format!(
            "listen: \"127.0.0.1:{}\"\nserver_name: {}\nmax_payload: 1MB\njetstream {{ store_dir: \"{}\" }}\n\
             cluster {{ name: plimsoll, listen: \"127.0.0.1:{}\", routes: [{}] }}\n",
            self.port,
            self.name,
            store.display(),
            routes[index],
            others.join(", "),
        )
    }
}

fn conf(dir: &Path, index: usize) -> std::path::PathBuf {
    dir.join(format!("{index}.conf"))
}
