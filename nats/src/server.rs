//! Runs a nats-server as a child process: where the binary is, how it is configured, when it is ready.
//!
//! The run folder holds `nats-server.conf`, `nats-server.pid` with the process id of the latest start, `nats-server.log`, and
//! `nats-server.log.1` with what was logged before that. A parent that is killed leaves its server running; the next start
//! finds it by its process id, knows it by its command line, and ends it: no two servers open one store.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
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
    /// Where the configuration, the log and the process id are written.
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
        source: io::Error,
    },
    /// A server that an earlier start left behind does not end.
    #[error("failed to end the nats-server {pid} that an earlier start left behind: end it, then start again")]
    LeftBehind {
        /// Its process id.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// Somebody listens on the port.
    #[error("port {port} is taken")]
    PortTaken {
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The binary could not be started.
    #[error("failed to start `{binary}`")]
    Spawn {
        /// The binary.
        binary: PathBuf,
        /// Why.
        source: io::Error,
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
/// Longest wait for a server that was asked to end, before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for a process without a command line, which is one that is ending, or none of ours.
const DYING_PATIENCE: Duration = Duration::from_secs(1);
/// Size in bytes at which a start sets the log aside.
const LOG_MAX_BYTES: u64 = 10 * 1024 * 1024;

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
    /// Starts a server and waits until it accepts clients. A server that an earlier start left behind is ended first.
    ///
    /// Fails when there is no binary, when a folder is not writable, when the port is taken, and when the server ends at once.
    pub async fn start(config: &ServerConfig) -> Result<Self, ServerError> {
        let binary = find_binary()?;
        for folder in [&config.store_dir, &config.run_dir] {
            fs::create_dir_all(folder).map_err(writing(folder))?;
        }
        // Absolute, so that the command line tells this server from all others.
        let run_dir = config.run_dir.canonicalize().map_err(writing(&config.run_dir))?;
        let (conf, pid_file) = (run_dir.join("nats-server.conf"), run_dir.join("nats-server.pid"));
        end_left_behind(&pid_file, &conf).await?;
        if let Some(port) = config.port {
            // The server would tell a taken port only in its log, with the store already open.
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|source| ServerError::PortTaken { port, source })?;
        }
        fs::write(&conf, render(config)).map_err(writing(&conf))?;
        let log = run_dir.join("nats-server.log");
        let log_file = open_log(&log).map_err(writing(&log))?;
        let log_start = log_file.metadata().map_err(writing(&log))?.len();
        let mut command = Command::new(&binary);
        command
            .arg("--config")
            .arg(&conf)
            .arg("--ports_file_dir")
            .arg(&run_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .kill_on_drop(true)
            // A Ctrl-C in the terminal goes to the parent alone, which stops the broker last.
            .process_group(0);
        let mut child = command.spawn().map_err(|source| ServerError::Spawn { binary, source })?;
        let pid = child.id().unwrap_or_default();
        fs::write(&pid_file, pid.to_string()).map_err(writing(&pid_file))?;
        let ports = run_dir.join(format!("nats-server_{pid}.ports"));
        let url = tokio::time::timeout(READY_TIMEOUT, ready(&mut child, &ports, &log, log_start))
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
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await.is_err() {
            tracing::warn!("nats-server did not end within {} s and is killed", STOP_PATIENCE.as_secs());
            let _ = self.child.kill().await;
        }
    }
}

fn writing(path: &Path) -> impl FnOnce(io::Error) -> ServerError {
    |source| ServerError::Write { path: path.to_owned(), source }
}

/// Ends the server that an earlier start wrote into `pid_file`, where it still runs with the configuration `conf`.
async fn end_left_behind(pid_file: &Path, conf: &Path) -> Result<(), ServerError> {
    let pid = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    // Comes before the look at the command line, as the number may go to another process at any time.
    let process = pidfd_open(pid, PidfdFlags::empty());
    let command_line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    if command_line.is_empty() {
        // A process on its way out, killed a moment ago, has lost its command line before its files and port.
        if let Ok(process) = process {
            let _ = tokio::time::timeout(DYING_PATIENCE, ended(&process)).await;
        }
        return Ok(());
    }
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    if !arguments.windows(2).any(|pair| pair == [b"--config", conf.as_os_str().as_bytes()]) {
        return Ok(());
    }
    let left_behind = |source| ServerError::LeftBehind { pid: pid.as_raw_nonzero().get(), source };
    tracing::warn!(%pid, "a nats-server that an earlier start left behind is ended");
    end(&process.map_err(|error| left_behind(error.into()))?).await.map_err(left_behind)
}

/// Asks a process that is nobody's child here to end, and kills it where it does not.
async fn end(process: &OwnedFd) -> io::Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if let Ok(ended) = tokio::time::timeout(STOP_PATIENCE, ended(process)).await {
            return ended;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Waits until a process has ended and its files are closed: then its descriptor is readable.
async fn ended(process: &OwnedFd) -> io::Result<()> {
    while poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&Timespec::default()))? == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Opens the log to be continued: it may tell why the server ended before.
fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_MAX_BYTES) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    File::options().create(true).append(true).open(path)
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
async fn ready(child: &mut Child, ports: &Path, log: &Path, log_start: u64) -> Result<String, ServerError> {
    #[derive(serde::Deserialize)]
    struct Ports {
        nats: Vec<String>,
    }
    loop {
        if let Ok(Some(_)) = child.try_wait() {
            return Err(ServerError::Ended { log: last_words(log, log_start) });
        }
        let url = fs::read(ports)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Ports>(&bytes).ok())
            .and_then(|ports| ports.nats.into_iter().next());
        if let Some(url) = url {
            let _ = fs::remove_file(ports);
            return Ok(url);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the server that began its log at `start` said last.
fn last_words(log: &Path, start: u64) -> String {
    let log = fs::read(log).unwrap_or_default();
    let own = usize::try_from(start).ok().and_then(|start| log.get(start..)).unwrap_or_default();
    let text = String::from_utf8_lossy(own);
    let line = text.lines().rev().find(|line| line.contains("[FTL]") || line.contains("[ERR]")).or(text.lines().last());
    line.unwrap_or("it left no log").to_owned()
}
