use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use plimsoll_nats::catalog;
use tempfile::TempDir;

use super::*;
use crate::{
    config::{CollectorsConfig, ContainerConfig},
    context::HostPaths,
    rows::Columns,
};

const PATIENCE: Duration = Duration::from_secs(30);
const WEB: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const JOB: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// A host with a cgroup v2 tree and the socket of an engine.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Self { dir };
        host.write("", "cgroup.controllers", "cpu io memory pids\n");
        host.write("system.slice/docker.service", "cpu.stat", "usage_usec 99\n");
        host.write("user.slice/user-0.slice/session-1.scope", "cpu.stat", "usage_usec 99\n");
        host
    }

    fn write(&self, cgroup: &str, file: &str, text: &str) {
        let folder = self.dir.path().join("sys/fs/cgroup").join(cgroup);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file), text).unwrap();
    }

    fn remove(&self, cgroup: &str) {
        fs::remove_dir_all(self.dir.path().join("sys/fs/cgroup").join(cgroup)).unwrap();
    }

    fn docker(&self, id: &str) -> String {
        let cgroup = format!("system.slice/docker-{id}.scope");
        self.write(&cgroup, "cpu.stat", "usage_usec 1000000\nuser_usec 600000\nsystem_usec 400000\n");
        cgroup
    }

    fn listen(&self) -> UnixListener {
        fs::create_dir_all(self.dir.path().join("run")).unwrap();
        UnixListener::bind(self.dir.path().join("run/docker.sock")).unwrap()
    }

    fn collector(&self) -> Containers {
        let container = ContainerConfig { sockets: vec!["/run/docker.sock".into()], ..ContainerConfig::default() };
        let config = CollectorsConfig { container, ..CollectorsConfig::default() };
        let paths = HostPaths::new(self.dir.path());
        Containers::new(&Context { paths, config: Arc::new(config), ..Context::default() })
    }
}

fn sample(collector: &mut Containers) -> Columns {
    let mut tables = Tables::new(catalog::measurement("container"));
    collector.collect(&mut tables).unwrap();
    tables.only().take()
}

/// Samples until a condition holds: an answer that comes late is told with a later sample.
fn sample_until(collector: &mut Containers, is_so: impl Fn(&Columns) -> bool) -> Columns {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let columns = sample(collector);
        if is_so(&columns) {
            return columns;
        }
        assert!(Instant::now() < deadline, "{columns:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Answers each question by `answer`, counting them. Ends with the test's process.
fn serve(listener: UnixListener, answer: impl Fn(&mut UnixStream, usize) + Send + 'static) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            assert!(request.starts_with("GET /containers/json?all=true HTTP/1.0\r\n"), "{request}");
            answer(&mut stream, counter.fetch_add(1, Ordering::SeqCst));
        }
    });
    asked
}

fn list() -> String {
    format!(
        r#"[{{"Id":"{WEB}","Names":["/web"],"Image":"nginx:1.27","State":"running"}},
            {{"Id":"{JOB}","Names":["/job"],"Image":"busybox","State":"running"}}]"#
    )
}

#[test]
fn a_container_is_told_in_full() {
    let host = Host::new();
    let cgroup = host.docker(WEB);
    for (file, text) in [
        (
            "cpu.stat",
            "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 1500000\n",
        ),
        ("memory.current", "1000\n"),
        ("memory.max", "4096\n"),
        ("memory.stat", "anon 300\nfile 600\ninactive_file 250\n"),
        ("memory.swap.current", "7\n"),
        ("memory.events", "low 0\noom 3\noom_kill 2\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=1 rios=1 wios=1\n"),
        ("pids.current", "5\n"),
        ("pids.max", "max\n"),
    ] {
        host.write(&cgroup, file, text);
    }
    let columns = sample(&mut host.collector());
    let tags = ["container_id", "name", "image", "runtime"].map(|tag| columns.tags[tag].clone());
    assert_eq!(tags, [[&WEB[..12]], [""], [""], ["docker"]]);
    let number = |field: &str| columns.fields[field].number(0);
    for (field, expected) in [
        ("cpu_percent", None),
        ("cpu_usage_seconds_total", Some(5.0)),
        ("cpu_user_seconds_total", Some(3.0)),
        ("cpu_system_seconds_total", Some(2.0)),
        ("cpu_periods_total", Some(10.0)),
        ("cpu_throttled_periods_total", Some(4.0)),
        ("cpu_throttled_seconds_total", Some(1.5)),
        ("memory_used_bytes", Some(1000.0)),
        ("memory_limit_bytes", Some(4096.0)),
        ("memory_working_set_bytes", Some(750.0)),
        ("memory_anon_bytes", Some(300.0)),
        ("memory_file_bytes", Some(600.0)),
        ("swap_used_bytes", Some(7.0)),
        ("oom_kills_total", Some(2.0)),
        ("read_bytes_total", Some(11.0)),
        ("written_bytes_total", Some(21.0)),
        ("reads_total", Some(2.0)),
        ("writes_total", Some(3.0)),
        ("pids", Some(5.0)),
        ("pids_limit", None),
    ] {
        assert_eq!(number(field), expected, "{field}");
    }
}

#[test]
fn what_a_controller_does_not_tell_is_nil() {
    let host = Host::new();
    let cgroup = host.docker(WEB);
    host.write(&cgroup, "memory.max", "max\n");
    let columns = sample(&mut host.collector());
    for field in [
        "cpu_periods_total",
        "memory_used_bytes",
        "memory_limit_bytes",
        "memory_working_set_bytes",
        "read_bytes_total",
        "pids",
    ] {
        assert_eq!(columns.fields[field].number(0), None, "{field}");
    }
    assert_eq!(columns.fields["cpu_usage_seconds_total"].number(0), Some(1.0));
}

#[test]
fn containers_come_go_and_start_anew() {
    let host = Host::new();
    let web = host.docker(WEB);
    host.write("lxc.payload.box", "cpu.stat", "usage_usec 1\n");
    let mut collector = host.collector();
    assert_eq!(sample(&mut collector).tags["container_id"], ["box", &WEB[..12]]);
    host.write(&web, "cpu.stat", "usage_usec 1500000\n");
    let columns = sample(&mut collector);
    assert!(columns.fields["cpu_percent"].number(1).unwrap() > 0.0);
    assert_eq!(columns.fields["cpu_percent"].number(0), Some(0.0));
    assert_eq!(columns.tags["name"][0], "box");

    // Another run under the same id, whose processor time may be more than that of the run before.
    fs::rename(host.dir.path().join("sys/fs/cgroup").join(&web), host.dir.path().join("kept")).unwrap();
    host.docker(WEB);
    host.write(&web, "cpu.stat", "usage_usec 9000000\n");
    assert_eq!(sample(&mut collector).fields["cpu_percent"].number(1), None);
    // A time that goes backwards, although the cgroup is the same.
    host.write(&web, "cpu.stat", "usage_usec 5\n");
    assert_eq!(sample(&mut collector).fields["cpu_percent"].number(1), None);
    host.remove(&web);
    assert_eq!(sample(&mut collector).tags["container_id"], ["box"]);
}

#[test]
fn without_a_cgroup_v2_tree_nothing_is_told_and_a_note_says_so() {
    let host = Host::new();
    host.docker(WEB);
    fs::remove_file(host.dir.path().join("sys/fs/cgroup/cgroup.controllers")).unwrap();
    let mut collector = host.collector();
    assert!(sample(&mut collector).tags["name"].is_empty());
    assert!(collector.notes()[0].contains("cgroup v2"));
}

#[test]
fn an_engine_names_its_containers_and_is_asked_only_when_one_appears() {
    let host = Host::new();
    host.docker(WEB);
    let asked = serve(host.listen(), |stream, _| {
        let body = list();
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    });
    let mut collector = host.collector();
    let columns = sample_until(&mut collector, |columns| columns.tags["name"] == ["web"]);
    assert_eq!(columns.tags["image"], ["nginx:1.27"]);
    for _ in 0..20 {
        sample(&mut collector);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    host.docker(JOB);
    sample_until(&mut collector, |columns| columns.tags["name"] == ["web", "job"]);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(collector.notes(), [""; 0]);
}

#[test]
fn an_answer_in_chunks_on_a_connection_that_stays_open_is_read() {
    let host = Host::new();
    host.docker(WEB);
    let open = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&open);
    serve(host.listen(), move |stream, _| {
        let body = list();
        let (first, second) = body.split_at(40);
        write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n", first.len())
            .unwrap();
        stream.flush().unwrap();
        write!(stream, "{:x}\r\n{second}\r\n0\r\n\r\n", second.len()).unwrap();
        kept.lock().unwrap().push(stream.try_clone().unwrap());
    });
    sample_until(&mut host.collector(), |columns| columns.tags["name"] == ["web"]);
}

#[test]
fn garbage_is_noted_and_hurts_nothing() {
    for garbage in ["garbage\n", "HTTP/1.1 200 OK\r\n\r\n<html>", "HTTP/1.1 500 No\r\n\r\n[]"] {
        let host = Host::new();
        host.docker(WEB);
        serve(host.listen(), move |stream, _| stream.write_all(garbage.as_bytes()).unwrap());
        let mut collector = host.collector();
        let deadline = Instant::now() + PATIENCE;
        while collector.notes().is_empty() {
            assert_eq!(sample(&mut collector).tags["name"], [""]);
            assert!(Instant::now() < deadline, "{garbage}");
        }
        assert!(collector.notes()[0].contains("docker.sock"), "{:?}", collector.notes());
    }
}

#[test]
fn an_engine_that_hangs_holds_nothing_up() {
    let host = Host::new();
    host.docker(WEB);
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let held = Arc::clone(&gate);
    let asked = serve(host.listen(), move |stream, _| {
        drop(held.1.wait_while(held.0.lock().unwrap(), |open| !*open).unwrap());
        let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{}", list());
    });
    let mut collector = host.collector();
    // While nobody answers, every sample is told, and the engine is asked once.
    for _ in 0..50 {
        assert_eq!(sample(&mut collector).tags["container_id"], [&WEB[..12]]);
    }
    host.docker(JOB);
    sample_until(&mut collector, |_| asked.load(Ordering::SeqCst) > 0);
    assert_eq!(sample(&mut collector).tags["name"], ["", ""]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    sample_until(&mut collector, |columns| columns.tags["name"] == ["web", "job"]);
}

#[test]
fn a_missing_socket_is_noted_only_where_there_are_containers_to_name() {
    let host = Host::new();
    let mut collector = host.collector();
    sample(&mut collector);
    assert_eq!(collector.notes(), [""; 0]);
    host.docker(WEB);
    let deadline = Instant::now() + PATIENCE;
    while collector.notes().is_empty() {
        sample(&mut collector);
        assert!(Instant::now() < deadline);
    }
    assert!(collector.notes()[0].contains("docker.sock"), "{:?}", collector.notes());
}

/// An id that another run of this test beside this one does not have.
fn own_id() -> String {
    format!("{:08x}{:056}", std::process::id(), 0)
}

/// A cgroup of the kernel itself with a process in it; none where this machine lets nobody make one.
struct RealCgroup {
    path: PathBuf,
    child: Child,
}

impl RealCgroup {
    fn new(root: &Path) -> Option<Self> {
        let path = root.join(format!("docker-{}.scope", own_id()));
        fs::create_dir(&path).ok()?;
        let child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let real = Self { path, child };
        fs::write(real.path.join("cgroup.procs"), real.child.id().to_string()).ok()?;
        Some(real)
    }
}

impl Drop for RealCgroup {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The kernel lets go of the process a moment after it was waited for.
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.path).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_cgroup_of_the_kernel_is_told() {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let Some(root) = roots.into_iter().map(Path::new).find(|root| root.join("cgroup.controllers").exists()) else {
        return;
    };
    let Some(real) = RealCgroup::new(root) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("sys/fs")).unwrap();
    std::os::unix::fs::symlink(root, dir.path().join("sys/fs/cgroup")).unwrap();
    let host = Host { dir };
    let mut collector = host.collector();
    let id = &own_id()[..12];
    let row = |columns: &Columns| columns.tags["container_id"].iter().position(|other| other == id).unwrap();
    sample(&mut collector);
    let columns = sample_until(&mut collector, |columns| {
        columns.fields["cpu_usage_seconds_total"].number(row(columns)).unwrap() > 0.3
    });
    let busy = columns.fields["cpu_percent"].number(row(&columns)).unwrap();
    assert!(busy > 0.0, "{busy}");
    drop(real);
    assert!(!sample(&mut collector).tags["container_id"].iter().any(|other| other == id));
}
