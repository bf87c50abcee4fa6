//! Real agent processes, and what the broker has stored of theirs.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use plimsoll_agent::{
    buffer::SharedBuffer,
    message::{Message, Topic},
    spool::Spool,
};
use plimsoll_nats::{
    Batch, Client, HostId, Name, streams,
    subject::MetricSubject,
    testing::{TestServer, eventually},
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use ulid::Ulid;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const HOST: &str = "test-host";
/// The spool's bound in these tests.
pub const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// An agent process. Dropping it kills it.
pub struct AgentProcess {
    child: Child,
    log: PathBuf,
}

impl AgentProcess {
    /// Starts an agent that samples ten times a second.
    pub fn start(url: &str, state: &Path) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_plimsoll-agent")), url, state)
    }

    /// The same by a command that ends up as the agent.
    pub fn start_by(mut command: Command, url: &str, state: &Path) -> Self {
        let log = state.with_extension("log");
        let child = command
            .env("PLIMSOLL_AGENT__HOST", HOST)
            .env("PLIMSOLL_AGENT__INTERVAL", "100ms")
            .env("PLIMSOLL_AGENT__STATE_DIR", state)
            .env("PLIMSOLL_NATS__URL", url)
            .env("PLIMSOLL_NATS__METRICS_MAX_BYTES", (512 * 1024 * 1024).to_string())
            .stdin(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).expect("a log"))
            .spawn()
            .expect("the agent starts");
        Self { child, log }
    }

    /// What all agents on this state folder have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    /// SIGKILL: no handler runs, no file is closed in order.
    pub fn kill(mut self) {
        self.child.kill().expect("is killed");
        self.child.wait().expect("is gone");
    }

    /// SIGTERM, and waits for the orderly end.
    pub async fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("is told to stop");
        let status = eventually("the agent to end", PATIENCE, async || self.child.try_wait().expect("a child")).await;
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Waits for an end that nobody asked for, and returns the exit code.
    pub async fn end(mut self) -> Option<i32> {
        eventually("the agent to give up", PATIENCE, async || self.child.try_wait().expect("a child")).await.code()
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder with room for a state folder and its log.
pub fn state() -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let state = folder.path().join("state");
    (folder, state)
}

pub fn metrics_spool(state: &Path) -> PathBuf {
    state.join("spool/metrics")
}

/// The files of a spool's segments, oldest first.
pub fn segments(spool: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(spool).into_iter().flatten().map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    files.sort();
    files
}

/// What tells batches apart: run, measurement, number.
pub type Key = (Ulid, String, u64);

pub fn key(message: &Message) -> Key {
    let Topic::Metrics(measurement) = &message.topic else { panic!("a batch") };
    (message.epoch, measurement.to_string(), message.seq)
}

/// What waits in the spool of samples while no agent runs.
pub fn spooled(state: &Path) -> Vec<Key> {
    let mut keys = Vec::new();
    Spool::open(&metrics_spool(state), MAX_BYTES, &mut |message| keys.push(key(message))).expect("a spool");
    keys
}

/// Spools batches of one row as an agent would that never finds its broker, and returns them.
pub fn spool_batches(
    state: &Path,
    epoch: Ulid,
    measurements: &[&str],
    seqs: std::ops::RangeInclusive<u64>,
) -> Vec<Key> {
    let spool = Spool::open(&metrics_spool(state), MAX_BYTES, &mut |_| {}).expect("a spool");
    let buffer = SharedBuffer::spooled(1024 * 1024, spool);
    let host = HostId::parse(HOST).expect("valid");
    let mut keys = Vec::new();
    for seq in seqs {
        for measurement in measurements {
            let measurement = Name::parse(measurement).expect("valid");
            let batch = Batch {
                host: host.clone(),
                measurement: measurement.clone(),
                epoch,
                seq,
                times: vec![plimsoll_nats::now_ms()],
                tags: BTreeMap::new(),
                fields: BTreeMap::from([(
                    Name::parse("n").expect("valid"),
                    plimsoll_nats::Column::Integer(vec![Some(seq.cast_signed())]),
                )]),
            };
            let message = Message {
                host: host.clone(),
                topic: Topic::Metrics(measurement),
                epoch,
                seq,
                compressed: false,
                payload: batch.encode().into(),
            };
            keys.push(key(&message));
            buffer.push([message]);
        }
    }
    assert_eq!(buffer.close(), 0, "everything is on disk");
    keys
}

/// Every stored batch in the stream's order.
pub async fn stored(client: &Client) -> Vec<Key> {
    let (stream, _) = streams::metrics(client).await.expect("the stream is there");
    let state = stream.cached_info().state.clone();
    let mut keys = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.direct_get(sequence).await.expect("stored messages can be read");
        let subject = MetricSubject::parse(&message.subject).expect("stored under a subject of the contract");
        let batch = Batch::decode(&subject.host, &subject.measurement, Some(&message.headers), &message.payload);
        let batch = batch.expect("a valid batch");
        assert_eq!(message.headers.get("Nats-Msg-Id").map(|id| id.to_string()), Some(batch.message_id()));
        keys.push((batch.epoch, batch.measurement.to_string(), batch.seq));
    }
    keys
}

pub async fn stored_count(client: &Client) -> u64 {
    match streams::metrics(client).await {
        Ok((stream, _)) => stream.cached_info().state.messages,
        Err(_) => 0,
    }
}

/// Leaves windows so short that they protect from no double.
pub async fn narrow_duplicate_windows(server: &TestServer) -> Client {
    let client = server.client().await;
    for name in [streams::METRICS, streams::EVENTS] {
        let (stream, _) = streams::open(&client, name).await.expect("the stream is there");
        let mut config = stream.cached_info().config.clone();
        config.duplicate_window = Duration::from_millis(100);
        client.jetstream.update_stream(config).await.expect("the window can be narrowed");
    }
    client
}

/// Waits until the agents have nothing left on disk but what is sampled meanwhile, and ends the last one.
pub async fn drained(agent: AgentProcess, state: &Path) {
    eventually("an empty spool", PATIENCE, async || segments(&metrics_spool(state)).is_empty().then_some(())).await;
    agent.stop().await;
    assert_eq!(spooled(state), []);
}

/// Each of `expected` is stored once; of other runs, each measurement's numbers are 1, 2, 3 … once.
pub fn assert_each_once(stored: &[Key], expected: &[Key]) {
    let mut counts: BTreeMap<&Key, usize> = BTreeMap::new();
    for key in stored {
        *counts.entry(key).or_default() += 1;
    }
    let doubles: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubles.is_empty(), "stored more than once: {doubles:?}");
    let missing: Vec<_> = expected.iter().filter(|key| !counts.contains_key(key)).collect();
    assert!(missing.is_empty(), "{} are missing: {:?}", missing.len(), &missing[..missing.len().min(10)]);
}

/// The numbers of each run and measurement are 1, 2, 3 … without a gap.
pub fn assert_no_gaps(stored: &[Key]) {
    let mut seqs: BTreeMap<(Ulid, &str), Vec<u64>> = BTreeMap::new();
    for (epoch, measurement, seq) in stored {
        seqs.entry((*epoch, measurement)).or_default().push(*seq);
    }
    for (lane, mut seqs) in seqs {
        seqs.sort_unstable();
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{lane:?}: {seqs:?}");
    }
}

/// Backlog keeps its order: what `expected` tells in order is in that order in the stream, a measurement at a time.
pub fn assert_in_order(stored: &[Key], expected: &[Key]) {
    let of = |keys: &[Key], measurement: &str| -> Vec<Key> {
        keys.iter().filter(|key| key.1 == measurement && expected.contains(key)).cloned().collect()
    };
    for measurement in expected.iter().map(|key| &key.1).collect::<std::collections::BTreeSet<_>>() {
        assert_eq!(of(stored, measurement), of(expected, measurement), "{measurement}");
    }
}
