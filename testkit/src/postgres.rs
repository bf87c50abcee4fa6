//! A PostgreSQL server of a test's own.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use plimsoll_nats::testing::eventually;
use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use crate::{Process, ports};

/// Names the folder of PostgreSQL's programs, before any other place is looked at.
pub const BIN_VARIABLE: &str = "PLIMSOLL_POSTGRES_BIN";
/// The user that owns the databases.
pub const USER: &str = "plimsoll";
/// That user's password; it is asked for.
pub const PASSWORD: &str = "it's secret";

const LIMIT: Duration = Duration::from_secs(60);

/// A PostgreSQL on a free port of loopback. It does not wait for the disk: what a test kills are processes.
#[derive(Debug)]
pub struct TestPostgres {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
    server: Option<Process>,
}

impl TestPostgres {
    /// Makes a cluster of databases and starts its server.
    ///
    /// # Panics
    /// When there is no PostgreSQL, with what to install, and when it does not start.
    pub async fn start() -> Self {
        let bin = find().unwrap_or_else(|| {
            panic!("PostgreSQL was not found: install the Debian package postgresql, or name the folder of `initdb` in {BIN_VARIABLE}")
        });
        let dir = TempDir::new().expect("a temporary folder");
        let [port] = ports::free();
        let mut postgres = Self { bin, dir, port, server: None };
        postgres.make();
        postgres.start_again().await;
        postgres
    }

    fn make(&self) {
        if let Some((user, group)) = account() {
            chown(self.dir.path(), Some(user), Some(group)).expect("root may give a folder away");
        }
        let password_file = self.dir.path().join("password");
        fs::write(&password_file, PASSWORD).expect("written");
        let mut initdb = self.program("initdb");
        initdb.arg("--pgdata").arg(self.data()).arg("--pwfile").arg(&password_file);
        initdb.args([
            "--username",
            USER,
            "--auth",
            "scram-sha-256",
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--no-sync",
        ]);
        run(&mut initdb);
    }

    /// Starts the stopped or killed server on the same port and data, and waits until it takes connections.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_again(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).expect("a log");
        let mut command = self.program("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
        for setting in [
            &format!("port={}", self.port),
            "listen_addresses=127.0.0.1",
            "max_connections=200",
            "shared_buffers=32MB",
            "fsync=off",
            "jit=off",
        ] {
            command.arg("-c").arg(setting);
        }
        command.stdout(Stdio::null()).stderr(log);
        // The children of a server that was killed end a moment later; until then a new one refuses to start.
        eventually("PostgreSQL to start", LIMIT, async || {
            if self.server.as_mut().is_none_or(|server| server.status().is_some()) {
                self.server = Some(Process::spawn(&mut command));
            }
            self.is_ready().then_some(())
        })
        .await;
    }

    /// Kills the server: its children notice and end, nothing is written in order.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.server.take().expect("runs").kill();
    }

    /// Ends the server at once, as in a crash: whatever is under way is cut off, and recovered from the log at the next start.
    ///
    /// # Panics
    /// When it does not run or does not end.
    pub async fn crash(&mut self) {
        self.server.take().expect("runs").end_by(Signal::QUIT, LIMIT).await;
    }

    /// Stops the server in order: transactions that are under way are aborted, and the clients told.
    ///
    /// # Panics
    /// When it does not run or does not end.
    pub async fn stop(&mut self) {
        self.server.take().expect("runs").end_by(Signal::INT, LIMIT).await;
    }

    /// The port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates a database.
    ///
    /// # Panics
    /// When that fails.
    pub fn create_database(&self, name: &str) {
        run(self.client("createdb").arg(name));
    }

    /// A client that runs a statement in a database until it is dropped.
    ///
    /// # Panics
    /// When there is no `psql`.
    #[must_use]
    pub fn session(&self, database: &str, statements: &str) -> Process {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--quiet", "--dbname", database, "--command", statements]);
        Process::spawn(psql.stdout(Stdio::null()))
    }

    /// Ends all sessions of a database. One whose client was killed goes on with its statement otherwise.
    ///
    /// # Panics
    /// When that fails.
    pub fn end_sessions(&self, database: &str) {
        let statement = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'");
        run(self.client("psql").args(["--no-psqlrc", "--quiet", "--dbname", "postgres", "--command", &statement]));
    }

    fn is_ready(&self) -> bool {
        let ready = self.client("pg_isready").args(["--dbname", "postgres"]).stdout(Stdio::null()).status();
        ready.is_ok_and(|status| status.success())
    }

    fn client(&self, program: &str) -> Command {
        let mut command = self.program(program);
        let port = self.port.to_string();
        command.args(["--host", "127.0.0.1", "--port", &port, "--username", USER]).env("PGPASSWORD", PASSWORD);
        command
    }

    /// A program of PostgreSQL, as another user where the test runs as root: the server refuses that.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command.current_dir(self.dir.path()).env("LC_ALL", "C");
        if let Some((user, group)) = account() {
            command.uid(user).gid(group);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

impl Drop for TestPostgres {
    fn drop(&mut self) {
        // In order, so that its children are gone before their folder is.
        if let Some(mut server) = self.server.take() {
            server.signal(Signal::QUIT);
            for _ in 0..500 {
                if server.status().is_some() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The folder of PostgreSQL's programs: the one that the environment names, Debian's newest, or one on `PATH`.
#[must_use]
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os(BIN_VARIABLE).map(PathBuf::from);
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    debian.sort();
    let debian = debian.into_iter().rev().map(|(_, bin)| bin);
    let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let holds_all = |folder: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).is_file());
    match named {
        Some(named) => Some(named).filter(holds_all),
        None => debian.chain(on_path.unwrap_or_default()).find(holds_all),
    }
}

/// User and group id that the server runs as, where this process is root's.
fn account() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("the users");
    let ids = |name: &str| {
        let mut line = users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.split(':').skip(1);
        Some((line.next()?.parse().ok()?, line.next()?.parse().ok()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).expect("a user `postgres` or `nobody`"))
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    let name = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new(""));
    assert!(output.status.success(), "{name:?} ended with {}: {said}", output.status);
}
