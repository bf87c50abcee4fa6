//! The agent's program against a real broker and a release server: what it replaces itself by, and what it refuses.
//!
//! A newer release is a script that starts the agent under another host id, so that the broker tells which of them reports.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Cursor,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    sync::{Arc, Mutex},
    time::Duration,
};

use minisign::KeyPair;
use plimsoll_agent::update::release::target;
use plimsoll_nats::{
    Client,
    host::HostRecord,
    streams,
    testing::{TestServer, eventually},
};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const PATIENCE: Duration = Duration::from_secs(90);
const AGENT: &str = env!("CARGO_BIN_EXE_plimsoll-agent");
const PROGRAM: &str = "/program";
const DESCRIPTION: &str = "/release.json";

/// What a release server has, and what it was asked for.
#[derive(Default)]
struct Site {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    requests: Mutex<Vec<String>>,
}

impl Site {
    fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.files.lock().unwrap().insert(path.to_owned(), content.into());
    }

    fn requests(&self, path: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| *request == path).count()
    }

    /// Waits until `path` has been asked for so many times more.
    async fn asked(&self, path: &str, times: usize) {
        let before = self.requests(path);
        eventually(path, PATIENCE, async || (self.requests(path) >= before + times).then_some(())).await;
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&self).answer(connection));
        }
    }

    async fn answer(self: Arc<Self>, mut connection: TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            match connection.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => return,
            }
        }
        let path = String::from_utf8(request).unwrap().split(' ').nth(1).unwrap().to_owned();
        let file = self.files.lock().unwrap().get(&path).cloned();
        self.requests.lock().unwrap().push(path);
        let (status, body) = match file {
            Some(file) => ("200 OK", file),
            None => ("404 Not Found", Vec::new()),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = connection.write_all(&[head.as_bytes(), &body].concat()).await;
    }
}

/// A broker, a release server, a key to sign with, and a host with an agent.
struct Setting {
    server: TestServer,
    client: Client,
    site: Arc<Site>,
    address: String,
    signer: KeyPair,
    dir: TempDir,
}

impl Setting {
    async fn new() -> Self {
        let server = TestServer::start().await;
        let client = server.client().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let site = Arc::new(Site::default());
        tokio::spawn(Arc::clone(&site).serve(listener));
        let signer = KeyPair::generate_unencrypted_keypair().unwrap();
        let setting = Self { server, client, site, address, signer, dir: TempDir::new().unwrap() };
        setting.configure("1m");
        setting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn version(&self, version: &str) -> PathBuf {
        self.path("state/versions").join(version)
    }

    fn configure(&self, report_within: &str) {
        let text = format!(
            "host = 'old'\nstate_dir = '{}'\n[nats]\nurl = '{}'\nmetrics_max_bytes = 536870912\n\
             [update]\nurl = '{}{DESCRIPTION}'\npublic_key = '{}'\ninterval = '1s'\nreport_within = '{report_within}'\n",
            self.path("state").display(),
            self.server.url(),
            self.address,
            self.signer.pk.to_base64(),
        );
        fs::write(self.path("agent.toml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(AGENT);
        command.arg("--config").arg(self.path("agent.toml"));
        command
    }

    fn start(&self) -> Agent {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        Agent(self.command().stderr(log).spawn().unwrap())
    }

    fn update(&self, arguments: &[&str]) -> Output {
        self.command().arg("update").args(arguments).output().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn description(&self, version: &str, program: &[u8]) -> String {
        let sha256: String = Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect();
        let (target, size) = (target(), program.len());
        format!(
            r#"{{"product": "plimsoll-agent", "version": "{version}",
                "files": {{"{target}": {{"url": "program", "size_bytes": {size}, "sha256": "{sha256}"}}}}}}"#
        )
    }

    fn sign(&self, text: &str) -> String {
        minisign::sign(None, &self.signer.sk, Cursor::new(text), None, None).unwrap().into_string()
    }

    /// Puts a release on the server, as its maintainer would.
    fn publish(&self, version: &str, program: &[u8]) {
        let description = self.description(version, program);
        self.site.put(PROGRAM, program);
        self.site.put("/release.json.minisig", self.sign(&description));
        self.site.put(DESCRIPTION, description);
    }

    /// An agent that reports as `host` and counts its starts in the file `starts`.
    fn script(&self, host: &str) -> Vec<u8> {
        let starts = self.path("starts");
        let counted = format!("echo $$ >>'{}'", starts.display());
        format!("#!/bin/sh\n{counted}\nPLIMSOLL_AGENT__HOST={host} exec '{AGENT}' \"$@\"\n").into_bytes()
    }

    /// The process ids under which programs made by [`Setting::script`] have started.
    fn starts(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.path("starts")).unwrap_or_default();
        text.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    async fn last_seen_ms(&self, host: &str) -> Option<i64> {
        let bucket = streams::bucket(&self.client, streams::HOSTS).await.ok()?;
        let record: HostRecord = serde_json::from_slice(&bucket.get(host).await.ok()??).ok()?;
        Some(record.last_seen_ms)
    }

    /// Waits until an agent has reported as `host` from now on.
    async fn reports(&self, host: &str) {
        let before = self.last_seen_ms(host).await;
        let what = format!("a report of `{host}`");
        eventually(&what, PATIENCE, async || self.last_seen_ms(host).await.filter(|seen| Some(*seen) > before)).await;
    }

    /// Waits until a file of the host's is there, and returns what it holds.
    async fn file(&self, path: &Path) -> String {
        eventually(&path.display().to_string(), PATIENCE, async || fs::read_to_string(path).ok()).await
    }
}

/// The agent's process, killed with this value.
struct Agent(Child);

impl Agent {
    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    /// The version that this process was launched as, and whether it is on trial.
    fn launched(&self) -> (Option<String>, bool) {
        let environ = fs::read_to_string(format!("/proc/{}/environ", self.pid())).unwrap();
        let value = |name: &str| environ.split('\0').find_map(|entry| entry.strip_prefix(name)).map(str::to_owned);
        (value("PLIMSOLL_AGENT_LAUNCHED="), value("PLIMSOLL_AGENT_TRIAL=").is_some())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        eventually("the agent's end", PATIENCE, async || self.0.try_wait().unwrap()).await
    }

    async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().await.code(), Some(0));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_release_takes_over_and_stays() {
    let setting = Setting::new().await;
    let agent = setting.start();
    setting.reports("old").await;
    setting.publish("0.2.0", &setting.script("new"));
    setting.reports("new").await;
    assert_eq!(setting.file(&setting.version("0.2.0").join("good")).await, "0.1.0");
    eventually("the new version in the old one's place", PATIENCE, async || {
        (agent.launched() == (Some("0.2.0".to_owned()), false)).then_some(())
    })
    .await;
    setting.reports("new").await;
    // It is what is released by now, and is told once.
    setting.site.asked(DESCRIPTION, 2).await;
    assert_eq!((setting.site.requests(PROGRAM), setting.starts().len()), (1, 2), "{}", setting.log());
    assert!(setting.version("0.2.0").join("told").exists());
    assert!(setting.log().contains("the agent was updated from 0.1.0 to 0.2.0"), "{}", setting.log());
    agent.stop().await;

    // At the next start it needs no trial, and it is asked for nothing.
    let agent = setting.start();
    setting.reports("new").await;
    assert_eq!(agent.launched(), (Some("0.2.0".to_owned()), false));
    agent.stop().await;
    assert_eq!(setting.starts().len(), 3);

    // A version on top of it is put in its place by the version that runs.
    setting.publish("0.3.0", &setting.script("newest"));
    let agent = setting.start();
    setting.reports("newest").await;
    assert_eq!(setting.file(&setting.version("0.3.0").join("good")).await, "0.2.0");
    setting.reports("newest").await;
    agent.stop().await;

    // What is no longer as it was signed is not executed; the one before it is.
    fs::write(setting.version("0.3.0").join("plimsoll-agent"), setting.script("forged")).unwrap();
    setting.site.put(DESCRIPTION, "");
    let agent = setting.start();
    setting.reports("new").await;
    assert_eq!(agent.launched(), (Some("0.2.0".to_owned()), false));
    agent.stop().await;
    assert_eq!(setting.last_seen_ms("forged").await, None);

    // Switched off, the installed program runs.
    let config = fs::read_to_string(setting.path("agent.toml")).unwrap();
    fs::write(setting.path("agent.toml"), config.split("[update]").next().unwrap()).unwrap();
    let asked = setting.site.requests(DESCRIPTION);
    let agent = setting.start();
    setting.reports("old").await;
    assert_eq!(agent.launched(), (None, false));
    agent.stop().await;
    assert_eq!(setting.site.requests(DESCRIPTION), asked);
}

/// Runs an agent against what is on the server, until it has looked twice. It must go on as it is.
async fn assert_refused(setting: &Setting, reason: &str) {
    let agent = setting.start();
    setting.reports("old").await;
    setting.site.asked(DESCRIPTION, 2).await;
    assert_eq!(agent.launched(), (None, false));
    agent.stop().await;
    let log = setting.log();
    assert!(log.contains(reason), "expected `{reason}` in {log}");
    let versions = fs::read_dir(setting.path("state/versions")).unwrap().flatten();
    let names: Vec<_> =
        versions.map(|entry| entry.file_name()).filter(|name| name != "lock" && name != "last_check").collect();
    assert!(names.is_empty(), "{names:?}");
    assert_eq!(setting.last_seen_ms("new").await, None);
}

/// Together, since each mostly waits.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_newer_release_is_refused() {
    tokio::join!(
        a_program_that_was_tampered_with_is_refused(),
        a_description_that_was_tampered_with_is_refused(),
        a_release_signed_with_another_key_is_refused(),
        an_older_release_is_left_where_it_is(),
        a_server_without_a_release_does_no_harm(),
    );
}

async fn a_program_that_was_tampered_with_is_refused() {
    let setting = Setting::new().await;
    setting.publish("0.2.0", &setting.script("new"));
    let mut forged = setting.script("new");
    *forged.last_mut().unwrap() = b' ';
    setting.site.put(PROGRAM, forged);
    assert_refused(&setting, "it is not the program that the description names: the SHA-256 differs").await;
    let longer = [setting.script("new"), b"\n".to_vec()].concat();
    setting.site.put(PROGRAM, longer);
    assert_refused(&setting, "is larger than the").await;
    assert!(setting.site.requests(PROGRAM) >= 2);
}

async fn a_description_that_was_tampered_with_is_refused() {
    let setting = Setting::new().await;
    setting.publish("0.2.0", &setting.script("new"));
    setting.site.put(DESCRIPTION, setting.description("0.2.1", &setting.script("new")));
    assert_refused(&setting, "its signature does not vouch for it").await;
    assert_eq!(setting.site.requests(PROGRAM), 0);
}

async fn a_release_signed_with_another_key_is_refused() {
    let mut setting = Setting::new().await;
    setting.signer = KeyPair::generate_unencrypted_keypair().unwrap();
    setting.publish("0.2.0", &setting.script("new"));
    assert_refused(&setting, "The signature was created with a different key").await;
    assert_eq!(setting.site.requests(PROGRAM), 0);
}

async fn an_older_release_is_left_where_it_is() {
    let setting = Setting::new().await;
    for version in ["0.0.9", "0.1.0", "0.1.0-rc.1", "0.1.0+rebuilt"] {
        setting.publish(version, &setting.script("new"));
        assert_refused(&setting, "agent starts").await;
    }
    assert_eq!(setting.site.requests(PROGRAM), 0);
}

async fn a_server_without_a_release_does_no_harm() {
    let setting = Setting::new().await;
    assert_refused(&setting, "the server answers 404").await;
    setting.publish("0.2.0", &setting.script("new"));
    setting.site.put(DESCRIPTION, vec![b' '; 65 * 1024]);
    assert_refused(&setting, "is larger than the 65536 bytes that it may have").await;
}

/// Publishes a release that does not work. The agent must come back, tell why, and leave that release alone.
async fn assert_goes_back(program: impl FnOnce(&Setting) -> Vec<u8>, reason: &str) {
    let setting = Setting::new().await;
    setting.configure("2s");
    let agent = setting.start();
    setting.reports("old").await;
    setting.publish("0.2.0", &program(&setting));
    let told = setting.file(&setting.version("0.2.0").join("failed")).await;
    assert!(told.contains(reason), "expected `{reason}` in {told}");
    assert!(!setting.version("0.2.0").join("plimsoll-agent").exists());
    setting.reports("old").await;
    assert_eq!(agent.launched(), (None, false));
    setting.site.asked(DESCRIPTION, 2).await;
    assert_eq!(setting.site.requests(PROGRAM), 1, "{}", setting.log());
    assert!(setting.starts().len() <= 1 && !setting.starts().into_iter().any(runs));
    let message = format!("the update to 0.2.0 failed, the agent runs 0.1.0 again: {told}");
    assert_eq!(setting.log().matches(&message).count(), 1, "{}", setting.log());

    // A better one is taken.
    setting.configure("1m");
    agent.stop().await;
    setting.publish("0.2.1", &setting.script("new"));
    let agent = setting.start();
    setting.reports("new").await;
    agent.stop().await;
}

/// Together, since each mostly waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_does_not_work_is_undone() {
    tokio::join!(
        a_release_that_ends_at_once_is_undone(),
        a_release_that_is_no_program_is_undone(),
        a_release_without_its_loader_is_undone(),
        a_release_that_hangs_and_ignores_signals_is_undone(),
        a_release_that_cannot_reach_the_broker_is_undone(),
        a_release_that_refuses_the_configuration_is_undone(),
    );
}

async fn a_release_that_ends_at_once_is_undone() {
    assert_goes_back(|_| b"#!/bin/false\n".to_vec(), "it ended before it had reported: exit status: 1").await;
}

async fn a_release_that_is_no_program_is_undone() {
    assert_goes_back(|_| b"\x7fELF\xff\xff\xff".repeat(100), "it cannot be executed: Exec format error").await;
}

async fn a_release_without_its_loader_is_undone() {
    assert_goes_back(|_| b"#!/lib/ld-of-another-system\n".to_vec(), "it cannot be executed: No such file").await;
}

async fn a_release_that_hangs_and_ignores_signals_is_undone() {
    let program = |setting: &Setting| {
        format!("#!/bin/sh\necho $$ >>'{}'\ntrap '' TERM\nexec sleep 1000\n", setting.path("starts").display())
            .into_bytes()
    };
    assert_goes_back(program, "it had not reported after 2 s").await;
}

async fn a_release_that_cannot_reach_the_broker_is_undone() {
    let program = |setting: &Setting| {
        let script = String::from_utf8(setting.script("new")).unwrap();
        script.replace(" exec ", " PLIMSOLL_NATS__URL=nats://127.0.0.1:1 exec ").into_bytes()
    };
    assert_goes_back(program, "it had not reported after 2 s").await;
}

async fn a_release_that_refuses_the_configuration_is_undone() {
    let program = |setting: &Setting| {
        let script = String::from_utf8(setting.script("new")).unwrap();
        script.replace(" exec ", " PLIMSOLL_AGENT__INTERVAL=never exec ").into_bytes()
    };
    assert_goes_back(program, "it ended before it had reported: exit status: 64").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_launcher_and_trial_and_counts_for_nothing() {
    let setting = Setting::new().await;
    setting.publish("0.2.0", &setting.script("new"));
    // The agent on trial never gets to report.
    let script = String::from_utf8(setting.script("new")).unwrap();
    setting.publish("0.2.0", script.replace(" exec ", " PLIMSOLL_NATS__URL=nats://127.0.0.1:1 exec ").as_bytes());
    for round in 1..=2 {
        let agent = setting.start();
        let trial = eventually("a trial", PATIENCE, async || setting.starts().get(round - 1).copied()).await;
        agent.stop().await;
        assert!(!runs(trial));
        assert_eq!(fs::read_to_string(setting.version("0.2.0").join("trial")).unwrap(), "0");
        assert!(!setting.version("0.2.0").join("failed").exists());
    }
    assert_eq!(setting.site.requests(PROGRAM), 1);

    // A launcher that dies takes the agent on trial along, and after a few of these the version is given up.
    for round in 3..=5 {
        fs::write(setting.path("log"), "").unwrap();
        let mut agent = setting.start();
        let trial = eventually("a trial", PATIENCE, async || setting.starts().get(round - 1).copied()).await;
        // The agent follows its launcher from when it runs, which its script does not.
        let cmdline = format!("/proc/{trial}/cmdline");
        let is_agent = async || fs::read_to_string(&cmdline).ok().filter(|line| line.starts_with(AGENT)).map(drop);
        eventually("the agent on trial", PATIENCE, is_agent).await;
        let logged = async || setting.log().contains("agent starts").then_some(());
        eventually("its first words", PATIENCE, logged).await;
        agent.signal(Signal::KILL);
        assert_eq!(agent.ended().await.signal(), Some(9));
        eventually("the end of the trial", PATIENCE, async || (!runs(trial)).then_some(())).await;
    }
    let agent = setting.start();
    setting.reports("old").await;
    let reason = setting.file(&setting.version("0.2.0").join("failed")).await;
    assert_eq!(reason, "3 trials were begun and broken off");
    agent.stop().await;
    assert_eq!(setting.starts().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_can_be_looked_for_by_hand() {
    let setting = Setting::new().await;
    let text = |output: &Output| String::from_utf8([&*output.stdout, &*output.stderr].concat()).unwrap();
    let run = async |arguments: &'static [&'static str]| tokio::task::block_in_place(|| setting.update(arguments));
    let absent = run(&["--check"]).await;
    assert_eq!(absent.status.code(), Some(70));
    assert!(text(&absent).contains("404"), "{}", text(&absent));

    setting.publish("0.2.0", b"#!/bin/false\n");
    let check = run(&["--check"]).await;
    assert_eq!((check.status.code(), &*text(&check)), (Some(0), "0.2.0 is available, 0.1.0 is installed\n"));
    assert!(!setting.path("state").exists());
    // Twice, as a version that has failed is fetched again when it is asked for.
    for _ in 0..2 {
        let fetch = run(&[]).await;
        assert_eq!(fetch.status.code(), Some(0));
        assert!(
            text(&fetch).starts_with("0.2.0 is verified and is tried at the agent's next start"),
            "{}",
            text(&fetch)
        );
        let agent = setting.start();
        setting.file(&setting.version("0.2.0").join("failed")).await;
        agent.stop().await;
    }

    setting.publish("0.1.0", b"#!/bin/false\n");
    let none = run(&[]).await;
    assert_eq!((none.status.code(), &*text(&none)), (Some(0), "0.1.0 is installed, and 0.1.0 is what is released\n"));
    fs::write(setting.path("agent.toml"), "").unwrap();
    let off = run(&[]).await;
    assert_eq!(off.status.code(), Some(70));
    assert!(text(&off).contains("set `url` and `public_key` in [update]"), "{}", text(&off));
}
