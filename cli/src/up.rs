//! `plimsoll up`: broker, agent, ingest, alert worker and query API in one process.
//!
//! Start: data folder, HTTP address, broker, then the services, so that whatever can fail for the user's reasons fails before
//! anything runs. End: the agent first, then the workers, the broker last.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use plimsoll_agent::{AgentConfig, AgentError, collectors::KINDS};
use plimsoll_alert_worker::{AlertWorkerConfig, AlertWorkerError};
use plimsoll_ingest::{IngestConfig, IngestError};
use plimsoll_lake::LakeConfig;
use plimsoll_nats::{Client, ConnectError, NatsConfig, dead::chain, now_ms};
use plimsoll_query_api::{QueryApiConfig, QueryApiError};
use plimsoll_service::{
    config::{ConfigError, Layers, Validate},
    launch::CommonArgs,
    ops::{self, Ops, ServeError},
};
use serde::Deserialize;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{Broker, BrokerError},
    data_dir::{DataDir, DataDirError},
    drain,
    probe::{self, Awaited},
};

/// Longest wait for the workers once they are told to stop.
const DRAIN: Duration = Duration::from_secs(30);

/// Flags of `plimsoll up`.
#[derive(Debug, clap::Args)]
#[command(after_help = CONFIGURATION)]
pub struct UpArgs {
    /// Folder for the stream and the lake; created where it is missing
    #[arg(long, default_value = "./data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Address of the HTTP API; whoever reaches it may read everything and change rules
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Port of the broker on loopback; 0 takes any free one [default: 4222]
    #[arg(long, value_name = "PORT")]
    nats_port: Option<u16>,
    /// Use the running broker at this address instead of starting one; `url` in [nats] and PLIMSOLL_NATS__URL do the same
    #[arg(long, value_name = "URL", conflicts_with = "nats_port")]
    nats_url: Option<String>,
    /// Don't sample this host
    #[arg(long)]
    no_agent: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

const CONFIGURATION: &str = "\
The HTTP API listens on 127.0.0.1:8080 unless --http or PLIMSOLL_QUERY_API__HTTP says otherwise.
The configuration file has the sections [agent], [ingest], [alert_worker], [query_api], [nats] and [lake], with the keys that the
services alone have: see `plimsoll-agent --help` and so on. Variables override it, such as PLIMSOLL_INGEST__COMMIT_INTERVAL=10s,
PLIMSOLL_AGENT__INTERVAL=5s or PLIMSOLL_LAKE__MEMORY_LIMIT=512MB; flags override both. All services share [nats] and [lake].
While it runs, live samples are on the NATS subjects plimsoll.metrics.<host>.<measurement>, and any DuckDB with the ducklake
extension can attach <data-dir>/lake/catalog.sqlite.";

/// The port of a broker that is started.
const NATS_PORT: u16 = 4222;

/// What a service's own section can't say here, and the section that says it for all.
const SHARED: [(&str, &str); 6] = [
    ("agent.nats", "nats"),
    ("ingest.nats", "nats"),
    ("ingest.lake", "lake"),
    ("alert_worker.nats", "nats"),
    ("query_api.nats", "nats"),
    ("query_api.lake", "lake"),
];

/// The services' settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpConfig {
    #[serde(default)]
    agent: AgentConfig,
    #[serde(default)]
    ingest: IngestConfig,
    #[serde(default)]
    alert_worker: AlertWorkerConfig,
    #[serde(default)]
    query_api: QueryApiConfig,
    #[serde(default)]
    nats: NatsConfig,
    lake: LakeConfig,
    /// Port of the broker to start; none where `nats.url` names a running one.
    #[serde(skip)]
    broker_port: Option<u16>,
}

impl Validate for UpConfig {
    fn problems(&self) -> Vec<String> {
        let sections: [(&str, Vec<String>); 4] = [
            ("agent", self.agent.problems()),
            ("ingest", self.ingest.problems()),
            ("alert_worker", self.alert_worker.problems()),
            ("query_api", self.query_api.problems()),
        ];
        let named = |(section, problems): (&str, Vec<String>)| {
            let section = section.to_owned();
            problems.into_iter().map(move |problem| format!("[{section}] {problem}"))
        };
        let shared = self.nats.problems().into_iter().chain(self.lake.problems());
        shared.chain(sections.into_iter().flat_map(named)).collect()
    }
}

/// Why `plimsoll up` ended.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The data folder can't be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The HTTP address is taken.
    #[error("failed to open the HTTP API: choose another address with --http")]
    Http(#[source] ServeError),
    /// The broker can't be started.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The broker's address is wrong.
    #[error("failed to connect to the broker")]
    Connect(#[from] ConnectError),
    /// The agent failed.
    #[error("the agent failed")]
    Agent(#[from] AgentError),
    /// Ingest failed.
    #[error("ingest failed")]
    Ingest(#[from] IngestError),
    /// The alert worker failed.
    #[error("the alert worker failed")]
    AlertWorker(#[from] AlertWorkerError),
    /// The query API failed.
    #[error("the query API failed")]
    QueryApi(#[from] QueryApiError),
}

/// Reads the configuration: defaults that follow from the flags, then file and variables, then flags. Fails on anything wrong.
pub fn configure(args: &UpArgs) -> Result<UpConfig, ConfigError> {
    // Absolute, since the catalog remembers it for readers that are started elsewhere.
    let data_dir = std::path::absolute(&args.data_dir).unwrap_or_else(|_| args.data_dir.clone());
    let lake = LakeConfig::embedded(&data_dir.join("lake"));
    let state_dir = data_dir.join("agent").to_string_lossy().into_owned();
    let defaults = [
        ("lake.catalog", lake.catalog.as_str()),
        ("lake.data_path", lake.data_path.as_str()),
        ("agent.state_dir", state_dir.as_str()),
    ];
    let sections = ["agent", "ingest", "alert_worker", "query_api", "nats", "lake"];
    let layers = Layers::read(&defaults, "up", &sections, args.common.config.as_deref())?;
    let problems = misplaced(&layers, args);
    if !problems.is_empty() {
        return Err(ConfigError::Invalid { problems });
    }
    let uses_running_broker = args.nats_url.is_some() || layers.contains("nats.url");
    let mut config: UpConfig = layers.extract()?;
    config.broker_port = (!uses_running_broker).then(|| args.nats_port.unwrap_or(NATS_PORT));
    if let Some(http) = args.http {
        config.query_api.http = http;
    }
    if let Some(url) = &args.nats_url {
        config.nats.url.clone_from(url);
    }
    Ok(config)
}

/// What is set but would have no effect.
fn misplaced(layers: &Layers, args: &UpArgs) -> Vec<String> {
    let of_services = SHARED.into_iter().filter(|(key, _)| layers.contains(key));
    let mut problems: Vec<String> =
        of_services.map(|(key, section)| format!("`{key}`: all services share one, set [{section}] instead")).collect();
    if args.nats_port.is_some() && layers.contains("nats.url") {
        problems.push(
            "`nats.url`: names a running broker, --nats-port the port of one to start: expected one of them".to_owned(),
        );
    }
    problems
}

impl UpConfig {
    /// Gives every service the one broker and the one lake.
    fn share(&mut self, broker: Option<&Broker>) {
        if let Some(broker) = broker {
            self.nats.url = broker.url().to_owned();
        }
        self.agent.nats = self.nats.clone();
        self.ingest.nats = self.nats.clone();
        self.alert_worker.nats = self.nats.clone();
        self.query_api.nats = self.nats.clone();
        self.ingest.lake = self.lake.clone();
        self.query_api.lake = self.lake.clone();
    }
}

/// Runs everything until `shutdown` or until a service fails; then drains.
pub async fn run(args: UpArgs, mut config: UpConfig, shutdown: CancellationToken) -> Result<(), UpError> {
    // Installed once: the HTTP clients are built without a choice of their own. Fails when it was installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let data = DataDir::open(&args.data_dir)?;
    let listener = ops::bind(config.query_api.http).await.map_err(UpError::Http)?;
    let broker = match config.broker_port {
        Some(port) => Some(Broker::start(&data, port).await?),
        None => None,
    };
    config.share(broker.as_ref());
    let outcome = Box::pin(run_services(&args, config, listener, shutdown)).await;
    if let Some(broker) = broker {
        broker.stop().await;
    }
    outcome
}

async fn run_services(
    args: &UpArgs,
    config: UpConfig,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), UpError> {
    let client = match Client::connect(&config.nats, "plimsoll-up", &shutdown).await {
        Err(ConnectError::Cancelled) => return Ok(()),
        client => client?,
    };
    let awaited = if args.no_agent { None } else { first_sample(&config.agent) };
    let http = listener.local_addr().unwrap_or(config.query_api.http);
    let mut services = Services::start(config, &client, listener, !args.no_agent);
    let outcome = tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        ended = services.first_end() => ended,
        () = announce(http, awaited, &shutdown) => tokio::select! {
            biased;
            () = shutdown.cancelled() => Ok(()),
            ended = services.first_end() => ended,
        },
    };
    let drained = services.stop(&client).await;
    outcome.and(drained)
}

/// The sample of this host to wait for; none when all collectors are switched off.
fn first_sample(agent: &AgentConfig) -> Option<Awaited> {
    let measurements: Vec<_> = KINDS
        .iter()
        .filter(|kind| agent.interval_of(kind).is_some())
        .flat_map(|kind| kind.measurements)
        .copied()
        .collect();
    (!measurements.is_empty()).then_some(Awaited { host: agent.host_id().ok()?, since_ms: now_ms(), measurements })
}

/// Prints `ready http://…` once the first sample can be queried.
async fn announce(http: SocketAddr, awaited: Option<Awaited>, shutdown: &CancellationToken) {
    // An unspecified address means all of this machine's: any of them answers.
    let reachable =
        if http.ip().is_unspecified() { SocketAddr::from((Ipv4Addr::LOCALHOST, http.port())) } else { http };
    if probe::first_answer(reachable, awaited.as_ref(), shutdown).await {
        println!("ready http://{reachable}");
    }
}

/// The running services, in the two groups that are stopped one after the other.
struct Services {
    agent: JoinSet<Result<(), UpError>>,
    workers: JoinSet<Result<(), UpError>>,
    stop_agent: CancellationToken,
    stop_workers: CancellationToken,
}

impl Services {
    fn start(config: UpConfig, client: &Client, listener: TcpListener, with_agent: bool) -> Self {
        let (stop_agent, stop_workers) = (CancellationToken::new(), CancellationToken::new());
        let (mut agent, mut workers) = (JoinSet::new(), JoinSet::new());
        let ops = Ops::default();
        let UpConfig { agent: agent_config, ingest, alert_worker, query_api, .. } = config;
        if with_agent {
            let stop = stop_agent.clone();
            agent.spawn(async move { Ok(plimsoll_agent::run(agent_config, stop).await?) });
        }
        let (of_ingest, ops_ingest, stop) = (client.clone(), ops.scoped("ingest"), stop_workers.clone());
        workers.spawn(async move { Ok(plimsoll_ingest::run_with(ingest, of_ingest, ops_ingest, stop).await?) });
        let (of_alerts, ops_alerts, stop) = (client.clone(), ops.scoped("alert worker"), stop_workers.clone());
        workers.spawn(
            async move { Ok(plimsoll_alert_worker::run_with(of_alerts, alert_worker, ops_alerts, stop).await?) },
        );
        let (of_api, stop) = (client.clone(), stop_workers.clone());
        workers.spawn(async move { Ok(plimsoll_query_api::run_with(query_api, of_api, ops, listener, stop).await?) });
        Self { agent, workers, stop_agent, stop_workers }
    }

    /// Waits until a service ends, which none does by itself but by an error.
    async fn first_end(&mut self) -> Result<(), UpError> {
        tokio::select! {
            Some(ended) = self.agent.join_next() => ended.expect("the agent does not panic"),
            Some(ended) = self.workers.join_next() => ended.expect("the workers do not panic"),
        }
    }

    /// Stops the agent, waits until ingest has its last samples, stops the workers. Returns the first error on the way.
    async fn stop(mut self, client: &Client) -> Result<(), UpError> {
        self.stop_agent.cancel();
        let agent = join(&mut self.agent).await;
        if client.is_connected() && !self.workers.is_empty() {
            drain::delivered(client).await;
        }
        self.stop_workers.cancel();
        let workers = tokio::time::timeout(DRAIN, join(&mut self.workers)).await.unwrap_or_else(|_| {
            tracing::warn!(
                "the workers did not end within {} s and are cut off; the stream keeps what is not committed",
                DRAIN.as_secs()
            );
            Ok(())
        });
        agent.and(workers)
    }
}

async fn join(tasks: &mut JoinSet<Result<(), UpError>>) -> Result<(), UpError> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.expect("the services do not panic");
        if let (Err(error), Err(_)) = (&ended, &outcome) {
            tracing::error!(error = %chain(error), "a further service failed");
        } else if ended.is_err() {
            outcome = ended;
        }
    }
    outcome
}
