//! Real `plimsoll` processes, and what a user does with them.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::print_stderr, reason = "what a process says explains why its test fails")]

pub mod delivery;

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use plimsoll_nats::testing::eventually;
use serde_json::Value;
use tempfile::TempDir;

/// Patience for anything that a user would wait for.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// A child process, killed on drop.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).expect("takes a signal");
    }

    /// Ctrl-C, and waits for the orderly end.
    pub async fn stop(mut self) {
        self.signal(rustix::process::Signal::INT);
        let status = eventually("the process to end", LIMIT, async || self.0.try_wait().expect("a child")).await;
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The ports of a `plimsoll up`.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    http: u16,
    nats: u16,
}

impl Ports {
    fn free() -> Self {
        Self { http: free_port(), nats: free_port() }
    }
}

/// A `plimsoll up` with ports of its own.
pub struct Up {
    pub process: Process,
    pub ports: Ports,
    pub http: String,
    pub nats: String,
}

pub fn plimsoll() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command
        .stdin(Stdio::null())
        // What services tell of themselves would be counted among what tests send, and their host among the agents'.
        .env("PLIMSOLL_INGEST__PUBLISH_METRICS", "false")
        .env("PLIMSOLL_QUERY_API__PUBLISH_METRICS", "false")
        .env("PLIMSOLL_ALERT_WORKER__PUBLISH_METRICS", "false")
        .env("PLIMSOLL_LOG", std::env::var("PLIMSOLL_LOG").unwrap_or_else(|_| "error".to_owned()))
        .env("PLIMSOLL_NATS__METRICS_MAX_BYTES", (512 * 1024 * 1024).to_string());
    command
}

impl Up {
    /// Starts on free ports and waits for the line that says it is ready.
    pub async fn start(data: &Path, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        match Self::try_start(data, Ports::free(), flags, variables).await {
            // Another test was given the same port between the look and the start.
            Err(text)
                if ["another address with --http", "is taken", "address already in use"]
                    .iter()
                    .any(|taken| text.contains(taken)) =>
            {
                Self::start_on(data, Ports::free(), flags, variables).await
            }
            started => started.expect("is ready before it ends"),
        }
    }

    /// The same on ports that were another process's.
    pub async fn start_on(data: &Path, ports: Ports, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::try_start(data, ports, flags, variables).await.expect("is ready before it ends")
    }

    /// Fails with what the process said when it ends before it is ready.
    async fn try_start(data: &Path, ports: Ports, flags: &[&str], variables: &[(&str, &str)]) -> Result<Self, String> {
        let Ports { http, nats } = ports;
        let mut command = plimsoll();
        command.arg("up").arg("--data-dir").arg(data).arg("--http").arg(format!("127.0.0.1:{http}"));
        let names_broker =
            flags.contains(&"--nats-url") || variables.iter().any(|(name, _)| *name == "PLIMSOLL_NATS__URL");
        if !names_broker {
            command.arg("--nats-port").arg(nats.to_string());
        }
        let mut child = command
            .args(flags)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("plimsoll starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let said = thread::spawn(move || {
            stderr.lines().map_while(Result::ok).inspect(|line| eprintln!("{line}")).collect::<Vec<_>>().join("\n")
        });
        let process = Process(child);
        let line = tokio::task::spawn_blocking(move || stdout.lines().next());
        let line = tokio::time::timeout(LIMIT, line).await.expect("in time").expect("no panic");
        let Some(line) = line else { return Err(said.join().expect("no panic")) };
        assert_eq!(line.expect("text"), format!("ready http://127.0.0.1:{http}"));
        Ok(Self { process, ports, http: format!("http://127.0.0.1:{http}"), nats: format!("nats://127.0.0.1:{nats}") })
    }

    /// GET, expecting success.
    pub async fn get(&self, path: &str) -> Value {
        get(&format!("{}{path}", self.http)).await.unwrap_or_else(|status| panic!("{path}: {status}"))
    }

    /// This host's id.
    pub async fn host(&self) -> String {
        self.get("/api/clients").await["clients"][0]["host"].as_str().expect("a host").to_owned()
    }

    /// How many samples of a measurement's field can be queried.
    pub async fn count(&self, host: &str, measurement: &str, field: &str) -> i64 {
        let path = format!("/api/stats/{host}?measurement={measurement}&field={field}&from=-1h");
        self.get(&path).await["series"][0]["count"].as_i64().unwrap_or(0)
    }
}

/// GET a JSON document; fails with the status.
pub async fn get(url: &str) -> Result<Value, String> {
    let response = reqwest::Client::builder().no_proxy().build().expect("a client").get(url).send().await;
    let response = response.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.text().await.map_err(|error| error.to_string())?;
    if status.is_success() {
        serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
    } else {
        Err(format!("{status}: {body}"))
    }
}

/// Lets HTTP clients be built.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Runs `plimsoll up` that must fail, and returns its exit code and what it said.
pub async fn failing(data: &Path, flags: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let child = plimsoll()
        .arg("up")
        .arg("--data-dir")
        .arg(data)
        .args(flags)
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("plimsoll starts");
    let mut process = Process(child);
    let status = eventually("plimsoll to give up", LIMIT, async || process.0.try_wait().expect("a child")).await;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut process.0.stderr.take().expect("piped"), &mut text).expect("text");
    (status.code().expect("no signal"), text)
}

pub fn data() -> TempDir {
    TempDir::new().expect("a folder")
}

/// The fenced block of a language in the user guide that a test runs.
pub fn guide_block(language: &str) -> String {
    let guide = std::fs::read_to_string(repository().join("docs/user-guide.md")).expect("the guide");
    let (_, rest) = guide
        .split_once(&format!("as it stands here. -->\n```{language}\n"))
        .or_else(|| guide.split_once(&format!("as they stand here. -->\n```{language}\n")))
        .expect("a block");
    rest.split_once("```").expect("its end").0.to_owned()
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

/// The Python that has what tests need: the one that `make test` prepares, or that the same script prepares now.
pub fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("PLIMSOLL_TEST_PYTHON") {
        return python.into();
    }
    let output = Command::new(repository().join("scripts/test-python")).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a path").trim().into()
}
