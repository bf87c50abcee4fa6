//! `plimsoll up` as its user meets it.

mod support;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use plimsoll_lake::{Access, Lake, LakeConfig};
use plimsoll_nats::testing::{TestServer, eventually};
use support::{LIMIT, Process, Up, data, failing, free_port, get, guide_block, install_crypto, python};

/// One value from the lake in a data folder.
fn lake_number(data: &Path, sql: &str) -> i64 {
    let lake = Lake::open(&LakeConfig::embedded(&data.join("lake")), Access::Read).expect("a lake");
    lake.connection().query_row(sql, [], |row| row.get(0)).expect("a number")
}

/// How many samples of `load` are committed; none also before the first commit has made the table.
fn committed(data: &Path) -> i64 {
    let lake = Lake::open(&LakeConfig::embedded(&data.join("lake")), Access::Read).expect("a lake");
    lake.connection().query_row("SELECT count(*) FROM lake.load", [], |row| row.get(0)).unwrap_or(0)
}

/// How many nats-servers run on a data folder's store.
fn brokers(data: &Path) -> usize {
    let conf = data.canonicalize().expect("a folder").join("nats/run/nats-server.conf");
    let found = Command::new("pgrep").arg("-f").arg("--").arg(format!("--config {}", conf.display())).output();
    found.expect("pgrep").stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count()
}

#[tokio::test]
async fn samples_can_be_queried_at_once_and_grow_by_one_a_second() {
    install_crypto();
    let data = data();
    let up = Up::start(data.path(), &[], &[]).await;
    let host = up.host().await;
    let first = up.count(&host, "load", "load1").await;
    assert!(first >= 1);
    let started = Instant::now();
    eventually("five more samples", LIMIT, async || {
        (up.count(&host, "load", "load1").await >= first + 5).then_some(())
    })
    .await;
    let seconds = started.elapsed().as_secs_f64();
    let grown = (up.count(&host, "load", "load1").await - first) as f64;
    assert!((grown - seconds).abs() <= 2.0, "{grown} samples in {seconds} s");

    let stats = up.get(&format!("/api/stats/{host}?measurement=cpu&from=-5m")).await;
    assert_eq!(stats["complete"], true);
    let fields: Vec<&str> =
        stats["series"].as_array().expect("series").iter().filter_map(|s| s["field"].as_str()).collect();
    assert!(fields.contains(&"usage_percent") && fields.contains(&"iowait_percent"), "{fields:?}");
    for measurement in ["cpu", "memory", "load", "filesystem", "diskio", "network"] {
        let answer = get(&format!("{}/api/stats/{host}?measurement={measurement}&from=-5m", up.http)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{measurement}: {error}"));
        assert!(!answer["series"].as_array().expect("series").is_empty(), "{measurement}");
    }
    assert!(
        get(&format!("{}/api/stats/nobody?measurement=cpu", up.http)).await.expect_err("unknown host").contains("404")
    );
    up.process.stop().await;
}

#[tokio::test]
async fn the_end_commits_everything_and_a_second_start_goes_on() {
    install_crypto();
    let data = data();
    let up = Up::start(data.path(), &[], &[]).await;
    let host = up.host().await;
    eventually("some samples", LIMIT, async || (up.count(&host, "load", "load1").await >= 3).then_some(())).await;
    let before = up.count(&host, "load", "load1").await;
    up.process.stop().await;
    let committed = lake_number(data.path(), "SELECT count(*) FROM lake.load");
    assert!(committed >= before, "{committed} committed, {before} seen before the end");
    assert_eq!(lake_number(data.path(), "SELECT count(*) - count(DISTINCT ts) FROM lake.load"), 0);

    let up = Up::start(data.path(), &[], &[]).await;
    let again = up.count(&host, "load", "load1").await;
    assert!(again > committed, "the first {committed} and new ones: {again}");
    up.process.stop().await;
    assert_eq!(lake_number(data.path(), "SELECT count(*) - count(DISTINCT ts) FROM lake.load"), 0, "none twice");
}

#[tokio::test]
async fn a_killed_process_and_a_killed_broker_lose_and_double_nothing() {
    install_crypto();
    let data = data();
    let flags = [("PLIMSOLL_INGEST__COMMIT_INTERVAL", "300ms")];
    let up = Up::start(data.path(), &[], &flags).await;
    let host = up.host().await;
    let broker = Command::new("pgrep").arg("-P").arg(up.process.0.id().to_string()).output().expect("pgrep");
    let pid: i32 = String::from_utf8_lossy(&broker.stdout).trim().parse().expect("one child, the broker");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("is killed");
    let before = up.count(&host, "load", "load1").await;
    eventually("samples after the broker's death", LIMIT, async || {
        (up.count(&host, "load", "load1").await >= before + 5).then_some(())
    })
    .await;
    // Ingest gets its partitions back once the broker has given up on the clients of its former life.
    eventually("commits after the broker's death", LIMIT, async || {
        (committed(data.path()) >= before + 5).then_some(())
    })
    .await;
    let ports = up.ports;
    drop(up); // SIGKILL
    assert_eq!(brokers(data.path()), 1, "the broker has outlived its parent");
    let kept = committed(data.path());
    let up = Up::start_on(data.path(), ports, &[], &flags).await;
    assert_eq!(brokers(data.path()), 1, "one broker to a store");
    eventually("commits after the process's death", LIMIT, async || (committed(data.path()) > kept + 3).then_some(()))
        .await;
    up.process.stop().await;
    assert_eq!(brokers(data.path()), 0);
    assert_eq!(lake_number(data.path(), "SELECT count(*) - count(DISTINCT ts) FROM lake.load"), 0, "none twice");
    let gaps = "SELECT count(*) FROM (SELECT ts - lag(ts) OVER (ORDER BY ts) AS gap FROM lake.load) WHERE gap > INTERVAL 1500 MILLISECOND";
    assert!(lake_number(data.path(), gaps) <= 1, "no gap but the one between kill and start");
}

#[tokio::test]
async fn a_second_ctrl_c_ends_without_draining_and_leaves_no_broker() {
    install_crypto();
    let data = data();
    let mut up = Up::start(data.path(), &[], &[]).await;
    // A broker that does not answer keeps the drain waiting.
    let pid = std::fs::read_to_string(data.path().join("nats/run/nats-server.pid")).expect("a process id");
    let pid = rustix::process::Pid::from_raw(pid.parse().expect("a number")).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("is stopped");
    let status = eventually("the process to end", LIMIT, async || {
        up.process.signal(rustix::process::Signal::INT);
        up.process.0.try_wait().expect("a child")
    })
    .await;
    assert_eq!(status.code(), Some(130), "{status}");
    eventually("the end of the broker", LIMIT, async || (brokers(data.path()) == 0).then_some(())).await;
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_sentence() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let (http, free) = (format!("127.0.0.1:{port}"), free_port().to_string());
    let dir = data();
    let free_http = format!("127.0.0.1:{}", free_port());

    let (code, text) = failing(dir.path(), &["--http", &http, "--nats-port", &free], &[]).await;
    assert!(code != 0 && text.contains(&http) && text.contains("--http"), "{code} {text}");

    let (code, text) = failing(dir.path(), &["--http", &free_http, "--nats-port", &port.to_string()], &[]).await;
    assert!(code != 0 && text.contains(&format!("port {port}")) && text.contains("--nats-port"), "{code} {text}");

    let file = tempfile::NamedTempFile::new().expect("a file");
    let (code, text) = failing(&file.path().join("data"), &["--http", &free_http, "--nats-port", &free], &[]).await;
    assert!(code != 0 && text.contains("not writable") && text.contains("--data-dir"), "{code} {text}");

    let bad = [("PLIMSOLL_INGEST__COMMIT_INTERVAL", "1ms"), ("PLIMSOLL_AGENT__INTERVAL", "1ms")];
    let (code, text) = failing(dir.path(), &[], &bad).await;
    assert_eq!(code, 64, "{text}");
    assert!(text.contains("commit_interval") && text.contains("[agent]"), "both are named: {text}");

    let (code, text) = failing(dir.path(), &[], &[("PLIMSOLL_INGEST__COMMIT_INTREVAL", "10s")]).await;
    assert!(code == 64 && text.contains("commit_intreval"), "{code} {text}");

    let (code, text) = failing(dir.path(), &[], &[("PLIMSOLL_NATS__USER", "u")]).await;
    assert!(code == 64 && text.contains("`nats.password`"), "{code} {text}");

    let url = [("PLIMSOLL_NATS__URL", "nats://127.0.0.1:4222")];
    let (code, text) = failing(dir.path(), &["--nats-port", &free], &url).await;
    assert!(code == 64 && text.contains("`nats.url`") && text.contains("--nats-port"), "{code} {text}");

    let config = dir.path().join("plimsoll.toml");
    std::fs::write(&config, "[agent.nats]\nurl = 'nats://x'\n[ingest.lake]\nthreads = 1\n").expect("written");
    let (code, text) = failing(dir.path(), &["--config", &config.display().to_string()], &[]).await;
    assert!(code == 64 && text.contains("`agent.nats`") && text.contains("`ingest.lake`"), "{code} {text}");
    assert!(text.contains("set [nats]") && text.contains("set [lake]"), "{text}");
}

/// A key of each type of every service, as a variable.
#[tokio::test]
async fn variables_take_the_type_of_their_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let http = taken.local_addr().expect("an address").to_string();
    let dir = data();
    let variables = [
        ("PLIMSOLL_AGENT__HOST", "1001"),
        ("PLIMSOLL_AGENT__INTERVAL", "2s"),
        ("PLIMSOLL_AGENT__BUFFER_BYTES", "2097152"),
        ("PLIMSOLL_AGENT__COLLECTORS__CPU__ENABLED", "false"),
        ("PLIMSOLL_AGENT__COLLECTORS__LOAD__INTERVAL", "5s"),
        ("PLIMSOLL_INGEST__HTTP", "127.0.0.1:9301"),
        ("PLIMSOLL_INGEST__COMMIT_INTERVAL", "10s"),
        ("PLIMSOLL_INGEST__COMMIT_ROWS", "1000"),
        ("PLIMSOLL_ALERT_WORKER__HTTP", "[::1]:9302"),
        ("PLIMSOLL_QUERY_API__CONNECTIONS", "2"),
        ("PLIMSOLL_QUERY_API__TAIL_MAX_BYTES", "2097152"),
        ("PLIMSOLL_NATS__USER", "true"),
        ("PLIMSOLL_NATS__PASSWORD", "123456"),
        ("PLIMSOLL_NATS__REPLICAS", "1"),
        ("PLIMSOLL_NATS__METRICS_MAX_BYTES", "1073741824"),
        ("PLIMSOLL_LAKE__CATALOG_PASSWORD", "123456"),
        ("PLIMSOLL_LAKE__EXTENSIONS_DIR", "/1"),
        ("PLIMSOLL_LAKE__THREADS", "1"),
        ("PLIMSOLL_LAKE__BUSY_TIMEOUT_MS", "1000"),
        ("PLIMSOLL_LAKE__S3__ACCESS_KEY_ID", "42"),
        ("PLIMSOLL_LAKE__S3__SECRET_ACCESS_KEY", "0x17"),
        ("PLIMSOLL_LAKE__S3__USE_SSL", "false"),
    ];
    let (code, text) = failing(dir.path(), &["--http", &http], &variables).await;
    assert!(code == 70 && text.contains(&http), "the configuration is accepted, the address is not: {code} {text}");
}

#[tokio::test]
async fn any_collector_makes_it_ready() {
    install_crypto();
    let dir = data();
    let without_memory = [("PLIMSOLL_AGENT__COLLECTORS__MEMORY__ENABLED", "false")];
    let up = Up::start(dir.path(), &[], &without_memory).await;
    up.process.stop().await;
}

#[tokio::test]
async fn one_data_directory_serves_one_process() {
    install_crypto();
    let dir = data();
    let up = Up::start(dir.path(), &[], &[]).await;
    let (code, text) = failing(dir.path(), &["--http", &format!("127.0.0.1:{}", free_port())], &[]).await;
    assert!(code != 0 && text.contains("in use"), "{code} {text}");
    up.process.stop().await;
}

#[tokio::test]
async fn a_running_broker_is_used_and_the_agent_can_be_left_out() {
    install_crypto();
    let broker = TestServer::start().await;
    let url = broker.url();
    for (flags, variables) in [
        (vec!["--no-agent", "--nats-url", &url], vec![]),
        (vec!["--no-agent"], vec![("PLIMSOLL_NATS__URL", url.as_str())]),
    ] {
        let dir = data();
        let up = Up::start(dir.path(), &flags, &variables).await;
        assert_eq!(up.get("/api/clients").await["clients"], serde_json::json!([]));
        assert!(!dir.path().join("nats").exists(), "no broker of its own");
        up.process.stop().await;
    }
}

/// The guide's script, run as a user would: with public packages and nothing of ours.
#[tokio::test]
async fn the_guides_python_subscriber_prints_live_cpu() {
    use std::io::{BufRead, BufReader};
    install_crypto();
    let dir = data();
    let up = Up::start(dir.path(), &[], &[]).await;
    let host = up.host().await;
    let script = guide_block("python");
    assert!(script.lines().count() <= 17, "short enough to be read");
    let mut child = Command::new(python())
        .arg("-c")
        .arg(script)
        .env("NATS_URL", &up.nats)
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let _python = Process(child);
    let lines = tokio::task::spawn_blocking(move || stdout.lines().take(3).collect::<Result<Vec<_>, _>>());
    let lines = tokio::time::timeout(LIMIT, lines).await.expect("in time").expect("no panic").expect("text");
    let mut times = Vec::new();
    for line in &lines {
        let [name, time, usage] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(name, host);
        times.push(time.parse::<i64>().expect("a time"));
        assert!((0.0..=100.0).contains(&usage.parse::<f64>().expect("a number")), "{line}");
    }
    assert_eq!(times[2] - times[0], 2000, "one a second: {lines:?}");
    up.process.stop().await;
}

/// The guide's SQL, run by another DuckDB while the pipeline runs. The extensions come from their files instead of the network.
#[tokio::test]
async fn the_guides_sql_reads_the_lake_while_it_is_written() {
    install_crypto();
    let dir = data();
    let data = dir.path().join("data");
    let up = Up::start(&data, &[], &[("PLIMSOLL_INGEST__COMMIT_INTERVAL", "200ms")]).await;
    let host = up.host().await;
    let folder =
        std::env::var("PLIMSOLL_DUCKDB_EXTENSIONS").expect("cargo's configuration, written by `make tools`, sets it");
    let sql = guide_block("sql")
        .replace("INSTALL ducklake;", &format!("LOAD '{folder}/ducklake.duckdb_extension';"))
        .replace("INSTALL sqlite;", &format!("LOAD '{folder}/sqlite_scanner.duckdb_extension';"));
    let script =
        "import duckdb, sys\nfor row in duckdb.connect().execute(sys.argv[1]).fetchall(): print(*row, sep='|')";
    let read = async || {
        let output =
            Command::new(python()).args(["-c", script, &sql]).current_dir(dir.path()).output().expect("python runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut totals = text.lines().filter(|line| line.starts_with(&format!("{host}|total|")));
        totals.next().and_then(|line| line.split('|').nth(2)?.parse::<i64>().ok())
    };
    let first = eventually("rows in the lake", LIMIT, read).await;
    eventually("more rows", LIMIT, async || read().await.filter(|rows| *rows > first)).await;
    up.process.stop().await;
}

/// Each service as a process of its own, as on a fleet.
#[tokio::test]
async fn the_services_run_alone_and_together_make_the_pipeline() {
    install_crypto();
    let broker = TestServer::start().await;
    let dir = data();
    let folder = Path::new(env!("CARGO_BIN_EXE_plimsoll")).parent().expect("a folder");
    let catalog = format!("sqlite:{}", dir.path().join("lake/catalog.sqlite").display());
    let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let start = |name: &str, variables: &[(&str, String)]| {
        let binary = folder.join(name);
        assert!(binary.is_file(), "run `cargo build --workspace --bins` first: {}", binary.display());
        let version = Command::new(&binary).arg("--version").output().expect("runs");
        assert!(String::from_utf8_lossy(&version.stdout).starts_with(name), "{version:?}");
        let help = Command::new(&binary).arg("--help").output().expect("runs");
        assert!(
            String::from_utf8_lossy(&help.stdout).contains("PLIMSOLL_NATS__URL"),
            "{name} --help names the variables"
        );
        let child = Command::new(&binary)
            .env("PLIMSOLL_LOG", "error")
            .env("PLIMSOLL_NATS__URL", broker.url())
            .env("PLIMSOLL_NATS__METRICS_MAX_BYTES", (512 * 1024 * 1024).to_string())
            .envs(variables.iter().map(|(key, value)| (*key, value.as_str())))
            .stdin(Stdio::null())
            .spawn();
        Process(child.expect("starts"))
    };
    let address = |index: usize| format!("127.0.0.1:{}", ports[index]);
    let lake = [
        ("PLIMSOLL_LAKE__CATALOG", catalog),
        ("PLIMSOLL_LAKE__DATA_PATH", dir.path().join("lake/data").display().to_string()),
    ];
    let with_lake = |mut own: Vec<(&'static str, String)>| {
        own.extend(lake.iter().cloned());
        own
    };
    let services = [
        start("plimsoll-query-api", &with_lake(vec![("PLIMSOLL_QUERY_API__HTTP", address(0))])),
        start("plimsoll-alert-worker", &[("PLIMSOLL_ALERT_WORKER__HTTP", address(1))]),
        start(
            "plimsoll-ingest",
            &with_lake(vec![
                ("PLIMSOLL_INGEST__HTTP", address(2)),
                ("PLIMSOLL_INGEST__COMMIT_INTERVAL", "200ms".to_owned()),
            ]),
        ),
        start(
            "plimsoll-agent",
            &[
                ("PLIMSOLL_AGENT__HOST", "lonely".to_owned()),
                ("PLIMSOLL_AGENT__STATE_DIR", dir.path().join("agent").display().to_string()),
            ],
        ),
    ];
    let text = async |url: String| reqwest::Client::builder().no_proxy().build().ok()?.get(url).send().await.ok();
    for index in 0..3 {
        for path in ["healthz", "readyz", "metrics"] {
            eventually(&format!("{path} of service {index}"), LIMIT, async || {
                text(format!("http://{}/{path}", address(index))).await.filter(|answer| answer.status().is_success())
            })
            .await;
        }
    }
    eventually("samples through all of them", LIMIT, async || {
        let stats = get(&format!("http://{}/api/stats/lonely?measurement=load&field=load1", address(0))).await.ok()?;
        (stats["series"][0]["count"].as_i64()? >= 3).then_some(())
    })
    .await;
    for service in services {
        service.stop().await;
    }
    assert!(lake_number(dir.path(), "SELECT count(*) FROM lake.load") >= 3);
}
