//! Runs a nats-server as a child process: where the binary is, how it is configured, when it is ready.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::{Child, Command};

/// Names the binary to run, before any other place is looked at.
pub const BINARY_VARIABLE: &str = "PLIMSOLL_NATS_SERVER";

/// How to run the server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The port on loopback; none lets the server choose a free one.
    pub port: Option<u16>,
    /// Where JetStream keeps its files.
    pub store_dir: PathBuf,
    /// Where the configuration and the ports file are written.
    pub run_dir: PathBuf,
    /// Whether every acknowledged message is on disk.
    pub sync_always: bool,
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// There is no nats-server to run.
    #[error("nats-server was not found: run `make tools`, put it on PATH, or name it in {BINARY_VARIABLE}")]
    NotFound,
    /// A file or folder could not be written.
    #[error("failed to write `{path}`")]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The binary could not be started.
    #[error("failed to start `{binary}`")]
    Spawn {
        /// The binary.
        binary: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The server ended before it was ready; its last words tell why.
    #[error("nats-server ended before it was ready: {log}")]
    Ended {
        /// The end of its log.
        log: String,
    },
    /// The server did not become ready in time.
    #[error("nats-server was not ready within {} seconds", READY_TIMEOUT.as_secs())]
    Timeout,
}

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A running nats-server. Dropping it kills the process; [`Server::stop`] ends it in order.
#[derive(Debug)]
pub struct Server {
    child: Child,
    url: String,
}

/// The nats-server to run: the one that the environment names, the one beside this executable, the one found at build time,
/// or the first on `PATH`.
pub fn find_binary() -> Result<PathBuf, ServerError> {
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("nats-server")));
    let built = option_env!("PLIMSOLL_NATS_SERVER").map(PathBuf::from);
    let on_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    env::var_os(BINARY_VARIABLE)
        .map(PathBuf::from)
        .into_iter()
        .chain(beside)
        .chain(built)
        .chain(on_path.into_iter().map(|folder| folder.join("nats-server")))
        .find(|path| path.is_file())
        .ok_or(ServerError::NotFound)
}

impl Server {
    /// Starts a server and waits until it accepts clients.
    ///
    /// Fails when there is no binary, when a folder is not writable, and when the server ends at once, as on a taken port.
    pub async fn start(config: &ServerConfig) -> Result<Self, ServerError> {
        let binary = find_binary()?;
        for folder in [&config.store_dir, &config.run_dir] {
            std::fs::create_dir_all(folder).map_err(|source| ServerError::Write { path: folder.clone(), source })?;
        }
        let conf = config.run_dir.join("nats-server.conf");
        write(&conf, &render(config))?;
        let log = config.run_dir.join("nats-server.log");
        let log_file =
            std::fs::File::create(&log).map_err(|source| ServerError::Write { path: log.clone(), source })?;
        let mut command = Command::new(&binary);
        command
            .arg("--config")
            .arg(&conf)
            .arg("--ports_file_dir")
            .arg(&config.run_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .kill_on_drop(true)
            // A Ctrl-C in the terminal goes to the parent alone, which stops the broker last.
            .process_group(0);
        let mut child = command.spawn().map_err(|source| ServerError::Spawn { binary, source })?;
        let ports = config.run_dir.join(format!("nats-server_{}.ports", child.id().unwrap_or_default()));
        let url = tokio::time::timeout(READY_TIMEOUT, ready(&mut child, &ports, &log))
            .await
            .map_err(|_| ServerError::Timeout)??;
        Ok(Self { child, url })
    }

    /// The address that clients connect to.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process id, while the server runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the server ends by itself.
    pub async fn ended(&mut self) {
        let _ = self.child.wait().await;
    }

    /// Asks the server to end and waits for it; kills it when that takes more than 30 seconds.
    pub async fn stop(mut self) {
        const PATIENCE: Duration = Duration::from_secs(30);
        if let Some(pid) = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(PATIENCE, self.child.wait()).await.is_err() {
            tracing::warn!("nats-server did not end within {} s and is killed", PATIENCE.as_secs());
            let _ = self.child.kill().await;
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), ServerError> {
    std::fs::write(path, text).map_err(|source| ServerError::Write { path: path.to_owned(), source })
}

fn render(config: &ServerConfig) -> String {
    let mut text = String::from("# Written by Plimsoll at each start.\n");
    let port = config.port.map_or(-1, i32::from);
    let sync = if config.sync_always { "always" } else { "2m" };
    let _ = write!(
        text,
        "listen: \"127.0.0.1:{port}\"\nserver_name: plimsoll\nmax_payload: 1MB\njetstream {{\n  store_dir: {}\n  sync_interval: {sync}\n}}\n",
        serde_json::Value::from(config.store_dir.to_string_lossy()),
    );
    text
}

/// Waits for the ports file, then for the end of start-up: the file is written when the listeners are open.
async fn ready(child: &mut Child, ports: &Path, log: &Path) -> Result<String, ServerError> {
    #[derive(serde::Deserialize)]
    struct Ports {
        nats: Vec<String>,
    }
    loop {
        if let Ok(Some(_)) = child.try_wait() {
            return Err(ServerError::Ended { log: last_words(log) });
        }
        let url = std::fs::read(ports)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Ports>(&bytes).ok())
            .and_then(|ports| ports.nats.into_iter().next());
        if let Some(url) = url {
            let _ = std::fs::remove_file(ports);
            return Ok(url);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let line = text.lines().rev().find(|line| line.contains("[FTL]") || line.contains("[ERR]")).or(text.lines().last());
    line.unwrap_or("it left no log").to_owned()
}
