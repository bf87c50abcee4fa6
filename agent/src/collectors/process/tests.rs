use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use plimsoll_nats::{Column, catalog};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use tempfile::TempDir;

use super::{
    table::tests::{at, write},
    *,
};
use crate::{
    config::{CollectorsConfig, CommandDetail, ProcessConfig},
    context::HostPaths,
    rows::Columns,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A child that is killed when the test ends, however it ends.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guarded {
    /// Runs a shell script and waits until it has printed a line.
    fn ready(script: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

fn processes(paths: HostPaths, process: ProcessConfig) -> Processes {
    let config = CollectorsConfig { process, ..CollectorsConfig::default() };
    Processes::new(&Context { paths, config: Arc::new(config), ..Context::default() })
}

/// The shells of this host, none of the largest.
fn shells() -> ProcessConfig {
    ProcessConfig { top: 0, watch: vec!["sh".into()], ..ProcessConfig::default() }
}

fn tables() -> Tables {
    Tables::new(["process", "processes"].map(|name| catalog::measurement(name).unwrap()))
}

/// The rows of `process` and of `processes`.
fn sample(collector: &mut Processes) -> (Columns, Columns) {
    let mut tables = tables();
    collector.collect(&mut tables).unwrap();
    (tables.of("process").take(), tables.of("processes").take())
}

fn row_of(columns: &Columns, pid: &str) -> usize {
    columns.tags["pid"].iter().position(|other| other == pid).unwrap_or_else(|| panic!("no row of {pid}"))
}

fn text(columns: &Columns, field: &str, row: usize) -> Option<String> {
    match &columns.fields[field] {
        Column::Text(values) => values[row].clone(),
        other => panic!("{other:?}"),
    }
}

/// A host with a program of user `web`, a kernel worker and a program of an unknown user, whose name is hostile.
fn made_up() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = |path: &str, content: &[u8]| {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), content).unwrap();
    };
    file("etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:33:33::/:\n");
    write(dir.path(), 1, 100, 50, Some((4096, 512)));
    file("proc/1/status", b"Name:\tx\nUid:\t0\t33\t0\t0\n");
    file("proc/1/cmdline", b"/bin/server\0--password\0hunter2\0");
    for fd in ["proc/1/fd/0", "proc/1/fd/1", "proc/1/fd/5"] {
        fs::create_dir_all(dir.path().join("proc/1/fd")).unwrap();
        symlink("/dev/null", dir.path().join(fd)).unwrap();
    }
    file("proc/12/stat", b"12 (kworker/0:1-events) I 2 0 0 0 -1 69238880 0 0 0 0 0 9 0 0 20 0 1 0 21 0 0 0 0");
    file("proc/12/status", b"Name:\tkworker/0:1-events\nUid:\t0\t0\t0\t0\n");
    file("proc/12/cmdline", b"");
    file("proc/99/stat", b"99 (a) R (\xff\n) Z 1 99 99 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 9000 0 0 0");
    file("proc/99/status", b"Name:\tx\nUid:\t7\t4242\t7\t7\n");
    file("proc/self/stat", b"no process");
    dir
}

#[test]
fn a_made_up_host_is_told_in_full() {
    let dir = made_up();
    let config = ProcessConfig { watch: vec!["*".into()], command: CommandDetail::Full, ..ProcessConfig::default() };
    let mut collector = processes(HostPaths::new(dir.path()), config);
    let mut tables = tables();
    collector.collect_at(at(60.0), &mut tables).unwrap();
    tables.iter_mut().for_each(|rows| drop(rows.take()));
    write(dir.path(), 1, 100, 150, Some((14_096, 1_012)));
    collector.collect_at(at(65.0), &mut tables).unwrap();

    let rows = tables.of("process").take();
    let [server, worker, hostile] = ["1", "12", "99"].map(|pid| row_of(&rows, pid));
    assert_eq!(rows.tags["name"][server], "prog 1");
    assert_eq!(rows.tags["name"][worker], "kworker/0:1");
    assert_eq!(rows.tags["name"][hostile], "a) R (\u{fffd} ");
    let texts = |field: &str| [server, worker, hostile].map(|row| text(&rows, field, row).unwrap_or_default());
    assert_eq!(texts("user"), ["web", "root", "4242"]);
    assert_eq!(texts("state"), ["sleeping", "idle", "zombie"]);
    assert_eq!(texts("command"), ["/bin/server --password hunter2", "[kworker/0:1-events]", ""]);
    let number = |field: &str| rows.fields[field].number(server).unwrap();
    assert_eq!(
        ["parent_pid", "threads", "open_files", "cpu_percent", "cpu_seconds_total", "virtual_bytes"].map(number),
        [1.0, 2.0, 3.0, 20.0, 1.5, 8192.0]
    );
    assert_eq!(number("resident_bytes"), 10.0 * rustix::param::page_size() as f64);
    assert_eq!(
        ["read_bytes_total", "written_bytes_total", "read_bytes_per_second", "written_bytes_per_second"].map(number),
        [14_096.0, 1_012.0, 2_000.0, 100.0]
    );
    assert_eq!(number("started_at_seconds"), 1001.0);
    assert_eq!(rows.fields["read_bytes_total"].number(worker), None);

    let summary = tables.of("processes").take();
    let count = |field: &str| summary.fields[field].number(0).unwrap();
    assert_eq!(
        ["processes", "running", "sleeping", "idle", "zombie", "threads"].map(count),
        [3.0, 0.0, 1.0, 1.0, 1.0, 4.0]
    );
    assert_eq!(collector.notes(), [""; 0]);
}

#[test]
fn a_process_that_ends_before_its_details_are_read_has_no_row() {
    let dir = made_up();
    fs::remove_file(dir.path().join("proc/1/status")).unwrap();
    let mut collector = processes(HostPaths::new(dir.path()), ProcessConfig { watch: vec!["*".into()], ..shells() });
    let mut tables = tables();
    collector.collect_at(at(60.0), &mut tables).unwrap();
    assert_eq!(tables.of("process").take().tags["pid"].len(), 2);
    assert_eq!(tables.of("processes").take().fields["processes"].number(0), Some(3.0));
}

#[test]
fn arguments_stay_on_the_host_unless_asked_for() {
    let child = Guarded::ready("echo; read x", &["hunter2"]);
    let command = |detail| {
        let mut collector = processes(HostPaths::default(), ProcessConfig { command: detail, ..shells() });
        let rows = sample(&mut collector).0;
        text(&rows, "command", row_of(&rows, &child.pid())).unwrap()
    };
    assert_eq!(command(ProcessConfig::default().command), "sh");
    assert_eq!(command(CommandDetail::Full), "sh -c echo; read x hunter2");
}

#[test]
fn a_child_is_told_with_its_files_parent_and_start() {
    let child = Guarded::ready("exec 3</dev/null 4</dev/null 5</dev/null 6</dev/null; echo; read x", &[]);
    let mut collector = processes(HostPaths::default(), shells());
    let deadline = Instant::now() + PATIENCE;
    let (rows, row) = loop {
        let rows = sample(&mut collector).0;
        let row = row_of(&rows, &child.pid());
        // It runs for a moment more after it has printed its line.
        if text(&rows, "state", row).as_deref() == Some("sleeping") {
            break (rows, row);
        }
        assert!(Instant::now() < deadline, "it never waits for its input");
    };
    let number = |field: &str| rows.fields[field].number(row).unwrap();
    let open = fs::read_dir(Path::new("/proc").join(child.pid()).join("fd")).unwrap().count();
    assert!(open >= 7);
    assert_eq!(number("open_files"), open as f64);
    assert_eq!(number("parent_pid"), f64::from(std::process::id()));
    assert_eq!(number("threads"), 1.0);
    assert!(number("resident_bytes") > 4096.0 && number("virtual_bytes") >= number("resident_bytes"));
    let now = plimsoll_nats::now_ms() as f64 / 1000.0;
    let age = now - number("started_at_seconds");
    assert!((-2.0..PATIENCE.as_secs_f64()).contains(&age), "{age}");
}

/// Seconds that a process has run on a processor, as the scheduler counts them (Documentation/scheduler/sched-stats.rst).
fn scheduled_seconds(pid: &str) -> f64 {
    let text = fs::read_to_string(Path::new("/proc").join(pid).join("schedstat")).unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// What the scheduler counts at the beginning and at the end of a sample: no moment between them is known better.
struct Bracket {
    began: (Instant, f64),
    ended: (Instant, f64),
    rows: Columns,
}

fn bracketed(collector: &mut Processes, pid: &str) -> Bracket {
    let look = || (Instant::now(), scheduled_seconds(pid));
    let began = look();
    let rows = sample(collector).0;
    Bracket { began, ended: look(), rows }
}

#[test]
fn a_busy_child_shows_the_processor_time_that_the_scheduler_gave_it() {
    /// The kernel tells the time in ticks of 10 ms, rounded at both ends.
    const TICKS: f64 = 0.03;
    let child = Guarded::ready("echo; while :; do :; done", &[]);
    let pid = child.pid();
    let mut collector = processes(HostPaths::default(), shells());
    let first = bracketed(&mut collector, &pid);
    while scheduled_seconds(&pid) - first.ended.1 < 0.6 {
        assert!(first.ended.0.elapsed() < PATIENCE, "it gets no processor");
        std::thread::yield_now();
    }
    let second = bracketed(&mut collector, &pid);
    let row = row_of(&second.rows, &pid);
    let told = second.rows.fields["cpu_percent"].number(row).unwrap() / 100.0;
    let least = (second.began.1 - first.ended.1 - TICKS) / (second.ended.0 - first.began.0).as_secs_f64();
    let most = (second.ended.1 - first.began.1 + TICKS) / (second.began.0 - first.ended.0).as_secs_f64();
    assert!((least..=most).contains(&told), "{least} {told} {most}");
    assert!(least > 0.0);
    assert_eq!(text(&second.rows, "state", row).as_deref(), Some("running"));
}

#[test]
fn a_child_that_nobody_asked_how_it_ended_is_a_zombie() {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id().to_string();
    let state = || fs::read_to_string(Path::new("/proc").join(&pid).join("stat")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !state().contains(") Z ") {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::yield_now();
    }
    let config = ProcessConfig { watch: vec!["true".into()], ..shells() };
    let (rows, summary) = sample(&mut processes(HostPaths::default(), config));
    let row = row_of(&rows, &pid);
    child.wait().unwrap();
    assert_eq!(text(&rows, "state", row).as_deref(), Some("zombie"));
    assert_eq!(text(&rows, "command", row).as_deref(), Some("[true]"));
    assert!(summary.fields["zombie"].number(0).unwrap() >= 1.0);
}

#[test]
fn hundreds_of_short_lives_break_no_rate() {
    const LIVES: usize = 300;
    let ended = Arc::new(AtomicBool::new(false));
    let churn = {
        let ended = Arc::clone(&ended);
        std::thread::spawn(move || {
            for _ in 0..LIVES / 3 {
                let children = [(); 3].map(|()| Command::new("true").spawn().unwrap());
                children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
            }
            ended.store(true, Ordering::SeqCst);
        })
    };
    let config = ProcessConfig { top: 50, watch: vec!["true".into()], ..ProcessConfig::default() };
    let mut collector = processes(HostPaths::default(), config);
    let mut samples = 0;
    while !ended.load(Ordering::SeqCst) || samples < 3 {
        let (rows, summary) = sample(&mut collector);
        samples += 1;
        let rates = ["cpu_percent", "read_bytes_per_second", "written_bytes_per_second"];
        for value in
            rates.iter().flat_map(|field| (0..rows.fields[*field].len()).map(|row| rows.fields[*field].number(row)))
        {
            assert!(value.is_none_or(|value| value.is_finite() && value >= 0.0), "{value:?}");
        }
        let count = |field: &str| summary.fields[field].number(0).unwrap();
        let states = ["running", "sleeping", "blocked", "idle", "stopped", "zombie", "other"];
        assert_eq!(states.map(count).iter().sum::<f64>(), count("processes"));
        assert!(count("threads") >= count("processes") - count("zombie"));
    }
    churn.join().unwrap();
    // What has ended is not remembered.
    sample(&mut collector);
    assert_eq!(collector.table.processes().len(), collector.table.known_len());
}

/// Does something on a thread that has no capabilities. They belong to a thread: no other test loses any.
fn unprivileged<T: Send + 'static>(deed: impl FnOnce() -> T + Send + 'static) -> T {
    let drop_and_do = || {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
        deed()
    };
    std::thread::spawn(drop_and_do).join().unwrap()
}

#[test]
fn without_capabilities_it_is_said_what_would_help() {
    let (rows, notes) = unprivileged(|| {
        let config = ProcessConfig { top: 500, ..ProcessConfig::default() };
        let mut collector = processes(HostPaths::default(), config);
        (sample(&mut collector).0, collector.notes())
    });
    let init = row_of(&rows, "1");
    assert_eq!(rows.fields["read_bytes_total"].number(init), None);
    assert!(rows.fields["threads"].number(init).is_some());
    assert!(notes.iter().any(|note| note.contains("give the agent the capability CAP_SYS_PTRACE")), "{notes:?}");
    let own = row_of(&rows, &std::process::id().to_string());
    assert!(text(&rows, "user", own).is_some());
}

#[test]
fn hidden_processes_are_noted() {
    let dir = made_up();
    let hidden = dir.path().join("proc/12/stat");
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o000)).unwrap();
    let path = dir.path().to_owned();
    let (summary, notes) = unprivileged(move || {
        let mut collector = processes(HostPaths::new(path), ProcessConfig::default());
        (sample(&mut collector).1, collector.notes())
    });
    assert_eq!(summary.fields["processes"].number(0), Some(2.0));
    assert!(notes.len() == 1 && notes[0].contains("hidepid"), "{notes:?}");
    fs::remove_dir_all(dir.path().join("proc/1")).unwrap();
    let mut collector = processes(HostPaths::new(dir.path()), ProcessConfig::default());
    sample(&mut collector);
    assert!(collector.notes()[0].contains("hidepid"), "process 1 is not there");
}
