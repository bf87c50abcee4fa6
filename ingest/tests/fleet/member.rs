//! Real ingest processes.

use std::{collections::BTreeSet, net::SocketAddr, process::Command};

use plimsoll_testkit::{Process, http, ports};
use rustix::process::Signal;

use crate::fleet::LIMIT;

/// An ingest process with an address of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Member {
    process: Process,
    http: SocketAddr,
}

impl Member {
    /// Starts a member by a command that ends in the ingest binary.
    pub fn start_by(mut command: Command, variables: &[(&'static str, String)]) -> Self {
        let [port] = ports::free();
        let http = SocketAddr::from(([127, 0, 0, 1], port));
        command
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env("PLIMSOLL_INGEST__HTTP", http.to_string())
            .env("PLIMSOLL_LOG", std::env::var("PLIMSOLL_LOG").unwrap_or_else(|_| "error".to_owned()));
        Self { process: Process::spawn(&mut command), http }
    }

    pub fn start(variables: &[(&'static str, String)]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_plimsoll-ingest")), variables)
    }

    /// SIGKILL.
    pub fn kill(self) {
        self.process.kill();
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn stop(self) {
        let status = self.process.end_by(Signal::TERM, LIMIT).await;
        assert!(status.success(), "{status}");
    }

    /// SIGSTOP: the process holds what it has and does nothing.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.status().is_some()
    }

    /// What keeps the member from being ready; none while it does not answer.
    pub async fn not_ready(&self) -> Option<String> {
        let (status, text) = http::get(self.http, "/readyz").await?;
        Some(if status == 200 { String::new() } else { text })
    }

    pub async fn is_ready(&self) -> bool {
        self.not_ready().await.is_some_and(|reasons| reasons.is_empty())
    }

    /// The partitions that the member reads; none while it does not answer.
    pub async fn partitions(&self) -> Option<BTreeSet<u16>> {
        const GAUGE: &str = "plimsoll_ingest_lag_messages{partition=\"";
        let (_, text) = http::get(self.http, "/metrics").await?;
        let of = |line: &str| line.strip_prefix(GAUGE)?.split('"').next()?.parse().ok();
        Some(text.lines().filter_map(of).collect())
    }

    /// A counter or gauge without labels; 0 while the member does not answer.
    pub async fn metric(&self, name: &str) -> f64 {
        let Some((_, text)) = http::get(self.http, "/metrics").await else { return 0.0 };
        let of = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(of).unwrap_or(0.0)
    }
}
