//! Custom metrics: real commands, a real exporter, real sockets, the real agent and a real broker.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    net::UdpSocket,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use plimsoll_nats::{
    Batch, Client, streams,
    subject::MetricSubject,
    testing::{TestServer, eventually},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// An agent's process, killed on drop.
struct Agent {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Agent {
    /// Starts an agent on a configuration file that holds `config`. Its built-in collectors keep silent.
    fn start(server: &TestServer, folder: &Path, config: &str) -> Self {
        let path = folder.join("agent.toml");
        std::fs::write(&path, format!("host = 'test-host'\ninterval = '1h'\n{config}")).expect("written");
        let mut child = agent(&path).env("PLIMSOLL_NATS__URL", server.url()).spawn().expect("starts");
        let (lines, said) =
            (BufReader::new(child.stderr.take().expect("piped")).lines(), Arc::<Mutex<String>>::default());
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *heard.lock().expect("no panic") += &format!("{line}\n");
            }
        });
        Self { child, said }
    }

    /// How often the log names a text.
    fn said(&self, text: &str) -> usize {
        self.said.lock().expect("no panic").matches(text).count()
    }

    async fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("takes a signal");
        let status = eventually("the agent's end", PATIENCE, async || self.child.try_wait().expect("a child")).await;
        assert!(status.success(), "{status}: {}", self.said.lock().expect("no panic"));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"));
    command
        .arg("--config")
        .arg(config)
        .env("PLIMSOLL_AGENT__STATE_DIR", config.with_file_name("state"))
        .env("PLIMSOLL_NATS__METRICS_MAX_BYTES", (512 * 1024 * 1024).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A row as JSON: its tags and fields that have a value.
type Row = Value;

/// Every stored row by measurement, in the stream's order, with the time of each.
async fn stored(client: &Client) -> BTreeMap<String, Vec<(i64, Row)>> {
    let mut rows: BTreeMap<String, Vec<(i64, Row)>> = BTreeMap::new();
    let Ok((stream, _)) = streams::metrics(client).await else { return rows };
    let state = stream.cached_info().state.clone();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.direct_get(sequence).await.expect("stored messages can be read");
        let subject = MetricSubject::parse(&message.subject).expect("stored under a subject of the contract");
        let batch = Batch::decode(&subject.host, &subject.measurement, Some(&message.headers), &message.payload);
        let batch = batch.expect("a valid batch");
        let of_measurement = rows.entry(batch.measurement.to_string()).or_default();
        of_measurement.extend((0..batch.rows()).map(|row| (batch.times[row], as_json(&batch, row))));
    }
    rows
}

fn as_json(batch: &Batch, row: usize) -> Row {
    let tags = batch.tags.iter().map(|(name, values)| (name.to_string(), values[row].clone().into()));
    let fields = batch.fields.iter().map(|(name, column)| (name.to_string(), column.json(row)));
    Value::Object(tags.chain(fields).filter(|(_, value)| !value.is_null()).collect())
}

/// Waits until so many rows of a measurement that `wanted` selects are stored, and returns them.
async fn rows(client: &Client, measurement: &str, count: usize, wanted: impl Fn(&Row) -> bool) -> Vec<(i64, Row)> {
    let what = format!("{count} rows of {measurement}");
    eventually(&what, PATIENCE, async || {
        let rows = stored(client).await.remove(measurement)?;
        let rows: Vec<_> = rows.into_iter().filter(|(_, row)| wanted(row)).collect();
        (rows.len() >= count).then_some(rows)
    })
    .await
}

fn is_job(job: &str) -> impl Fn(&Row) -> bool {
    move |row| row["job"] == job
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_sampled_and_broken_ones_hurt_nobody() {
    let (server, folder) = (TestServer::start().await, TempDir::new().unwrap());
    let client = server.client().await;
    let lines = folder.path().join("lines");
    std::fs::write(
        &lines,
        "raid,disk=sda errors=3i,temperature=41.5,ok=true,state=\"in sync\"\nraid,disk=sdb errors=0i,ok=false\n\
         not a line\nraid errors=1i\n",
    )
    .unwrap();
    let document = folder.path().join("document");
    std::fs::write(&document, r#"{"queue": {"length": 7, "oldest": 1.25}, "healthy": true}"#).unwrap();
    let config = format!(
        "[[exec]]\nname = 'lines'\ncommand = ['/bin/cat', '{}']\ninterval = '1s'\n\
         [[exec]]\nname = 'mail'\ncommand = ['/bin/cat', '{}']\ninterval = '1s'\nformat = 'json'\n\
         [[exec]]\nname = 'hangs'\ncommand = ['/bin/sh', '-c', 'echo stuck >&2; sleep 1000']\ninterval = '1s'\ntimeout = '500ms'\n\
         [[exec]]\nname = 'garbage'\ncommand = ['/bin/sh', '-c', 'head -c 5000 /dev/urandom']\ninterval = '1s'\n\
         [[exec]]\nname = 'no_json'\ncommand = ['/bin/echo', '{{']\ninterval = '1s'\nformat = 'json'\n\
         [[exec]]\nname = 'floods'\ncommand = ['/usr/bin/yes', 'm x=1']\ninterval = '1s'\n\
         [[exec]]\nname = 'fails'\ncommand = ['/bin/sh', '-c', 'echo m x=1; exit 3']\ninterval = '1s'\n\
         [[exec]]\nname = 'absent'\ncommand = ['/nowhere/program']\ninterval = '1s'\n",
        lines.display(),
        document.display()
    );
    let agent = Agent::start(&server, folder.path(), &config);
    let of_lines = rows(&client, "raid", 9, |_| true).await;
    let (first_ms, _) = of_lines[0];
    assert_eq!(first_ms % 1000, 0, "the tick is the time");
    let first: Vec<Row> = of_lines.iter().filter(|(ms, _)| *ms == first_ms).map(|(_, row)| row.clone()).collect();
    let expected = [
        json!({"disk": "sda", "errors": 3, "temperature": 41.5, "ok": true, "state": "in sync"}),
        json!({"disk": "sdb", "errors": 0, "ok": false}),
        json!({"errors": 1}),
    ];
    assert_eq!(first, expected);
    for (_, row) in rows(&client, "mail", 2, |_| true).await {
        assert_eq!(row, json!({"queue_length": 7.0, "queue_oldest": 1.25, "healthy": true}));
    }
    for (job, values, refused) in [("lines", 7, 1), ("mail", 3, 0)] {
        for (_, row) in rows(&client, "exec", 2, is_job(job)).await {
            assert_eq!((&row["up"], &row["values"], &row["refused"]), (&json!(true), &json!(values), &json!(refused)));
            assert!(row["duration_seconds"].as_f64().unwrap() > 0.0);
        }
    }
    for job in ["hangs", "garbage", "no_json", "floods", "fails", "absent"] {
        for (_, row) in rows(&client, "exec", 2, is_job(job)).await {
            assert_eq!((&row["up"], &row["values"]), (&json!(false), &json!(0)), "{job}");
        }
        assert!(agent.said(&format!("exec `{job}`")) > 0, "{job} is reported");
    }
    assert!(!stored(&client).await.contains_key("m"), "what a failed command printed is not sent");
    assert_eq!(agent.said("the command did not end within 0.5 s"), 1, "each failure is reported when it begins");
    assert!(agent.said("stuck") == 1 && agent.said("line 3, column 6: expected `=`") == 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_the_agent() {
    let (server, folder) = (TestServer::start().await, TempDir::new().unwrap());
    let file = folder.path().join("pids");
    let script = format!("sleep 1000 & echo $$ $! > {}; wait", file.display());
    let config =
        format!("[[exec]]\nname = 'waits'\ncommand = ['/bin/sh', '-c', '{script}']\ninterval = '1s'\ntimeout = '1h'\n");
    let agent = Agent::start(&server, folder.path(), &config);
    let pids = eventually("the command", PATIENCE, async || {
        std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n'))
    })
    .await;
    let lives = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    };
    assert_eq!(pids.split_whitespace().filter(|pid| lives(pid)).count(), 2);
    agent.stop().await;
    eventually("the end of the command", PATIENCE, async || (!pids.split_whitespace().any(lives)).then_some(())).await;
}

/// Runs an agent whose configuration must be refused, and returns what it says.
async fn refused(config: &Path, variables: &[(&str, &str)]) -> (ExitStatus, String) {
    let mut child = agent(config).envs(variables.iter().copied()).spawn().expect("starts");
    let status = eventually("the agent to give up", PATIENCE, async || child.try_wait().expect("a child")).await;
    let mut text = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    (status, text)
}

#[tokio::test]
async fn no_variable_names_a_command() {
    let folder = TempDir::new().unwrap();
    let (marker, config) = (folder.path().join("marker"), folder.path().join("agent.toml"));
    let evil = format!("[{{name=\"x\", command=[\"touch\", \"{}\"], interval=\"100ms\"}}]", marker.display());
    for text in ["", "[[exec]]\nname = 'good'\ncommand = ['/bin/true']\n"] {
        std::fs::write(&config, text).unwrap();
        for variables in [
            vec![("PLIMSOLL_AGENT__EXEC", evil.as_str())],
            vec![("PLIMSOLL_AGENT__EXEC", "")],
            vec![("PLIMSOLL_AGENT__EXEC__0__NAME", "x"), ("PLIMSOLL_AGENT__EXEC__0__COMMAND", "[touch, x]")],
            vec![("PLIMSOLL_AGENT__EXEC__NAME", "x")],
        ] {
            let (status, said) = refused(&config, &variables).await;
            assert_eq!(status.code(), Some(64), "{variables:?}: {said}");
            assert!(said.contains("`exec`: expected [[exec]] tables in the configuration file"), "{said}");
            assert!(said.contains("(from PLIMSOLL_AGENT__EXEC"), "{said}");
        }
        let (status, said) = refused(&config, &[("PLIMSOLL_AGENT__SCRAPE", "http://x")]).await;
        assert!(status.code() == Some(64) && said.contains("`scrape`: expected [[scrape]] tables"), "{said}");
    }
    assert!(!marker.exists());
}

/// An exporter that serves a good page and several bad ones, until dropped.
struct Exporter {
    address: std::net::SocketAddr,
    /// Bytes of the endless page that were taken, at most of one scrape.
    taken: Arc<AtomicUsize>,
}

const PAGE: &str = r#"# HELP pg_stat_database_numbackends Number of backends
# TYPE pg_stat_database_numbackends gauge
pg_stat_database_numbackends{datid="1",datname="a \"b\""} 7
pg_stat_database_numbackends{datid="2",datname="c"} 0.5
# TYPE pg_stat_database_xact_commit counter
pg_stat_database_xact_commit{datid="1",datname="a \"b\""} 1.2345678901234567e+15
# TYPE http_seconds histogram
http_seconds_bucket{le="0.1"} 3 1395066363000
http_seconds_bucket{le="+Inf"} 4
http_seconds_sum 0.25
http_seconds_count 4
broken{
MixedCase_thing{Label="x",host="db"} -1e-7
nothing NaN
"#;

impl Exporter {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, taken) = (listener.local_addr().expect("an address"), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&counted)));
            }
        });
        Self { address, taken }
    }
}

/// Answers one request and closes the connection.
async fn serve(mut stream: TcpStream, taken: Arc<AtomicUsize>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.split(' ').nth(1).unwrap_or_default();
    let answer = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let answer = match path {
        "/metrics" => answer("200 OK", PAGE),
        "/html" => answer("200 OK", "<html><body>hello</body></html>"),
        "/error" => answer("500 Internal Server Error", PAGE),
        "/elsewhere" => "HTTP/1.1 302 Found\r\nLocation: /metrics\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "/endless" => {
            let line = "endless_thing{label=\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"} 1\n".repeat(1000);
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n";
            let mut sent = 0;
            let mut part = head;
            while sent < 100_000_000 && stream.write_all(part.as_bytes()).await.is_ok() {
                sent += part.len();
                part = &line;
            }
            taken.fetch_max(sent, Ordering::SeqCst);
            return;
        }
        // Answers never.
        _ => return drop(stream.read(&mut [0; 16]).await),
    };
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exporters_are_scraped_and_broken_ones_hurt_nobody() {
    let (server, folder, exporter) = (TestServer::start().await, TempDir::new().unwrap(), Exporter::start().await);
    let client = server.client().await;
    let address = exporter.address;
    let entry = |name: &str, path: &str| {
        format!("[[scrape]]\nname = '{name}'\nurl = 'http://{address}/{path}'\ninterval = '1s'\ntimeout = '800ms'\n")
    };
    let broken = ["hang", "error", "endless", "html", "elsewhere"];
    let mut config = entry("postgres", "metrics") + "exclude = ['http_seconds_s*']\n";
    broken.iter().for_each(|path| config += &entry(path, path));
    // Nobody listens there.
    config += "[[scrape]]\nname = 'gone'\nurl = 'http://user:hunter2@127.0.0.1:1/metrics'\ninterval = '1s'\n";
    let agent = Agent::start(&server, folder.path(), &config);

    let of_databases = rows(&client, "pg_stat", 4, |_| true).await;
    let (first_ms, _) = of_databases[0];
    assert_eq!(first_ms % 1000, 0, "the tick is the time");
    let first: Vec<Row> = of_databases.iter().filter(|(ms, _)| *ms == first_ms).map(|(_, row)| row.clone()).collect();
    let expected = [
        json!({"job": "postgres", "datid": "1", "datname": "a \"b\"", "pg_stat_database_numbackends": 7.0,
            "pg_stat_database_xact_commit": 1_234_567_890_123_456.7}),
        json!({"job": "postgres", "datid": "2", "datname": "c", "pg_stat_database_numbackends": 0.5}),
    ];
    assert_eq!(first, expected);
    let of_http = rows(&client, "http", 3, |_| true).await;
    let first: Vec<Row> = of_http.iter().filter(|(ms, _)| *ms == of_http[0].0).map(|(_, row)| row.clone()).collect();
    let expected = [
        json!({"job": "postgres", "le": "0.1", "http_seconds_bucket": 3.0}),
        json!({"job": "postgres", "le": "+Inf", "http_seconds_bucket": 4.0}),
        json!({"job": "postgres", "http_seconds_count": 4.0}),
    ];
    assert_eq!(first, expected, "a time of its own is passed over, and the sum is left out");
    let (_, mixed) = rows(&client, "mixedcase", 1, |_| true).await.remove(0);
    assert_eq!(mixed, json!({"job": "postgres", "label": "x", "exported_host": "db", "mixedcase_thing": -1e-7}));

    for (_, row) in rows(&client, "scrape", 2, is_job("postgres")).await {
        assert_eq!((&row["up"], &row["values"], &row["refused"]), (&json!(true), &json!(7), &json!(1)));
        assert!(row["duration_seconds"].as_f64().unwrap() > 0.0);
    }
    for job in broken.into_iter().chain(["gone"]) {
        for (_, row) in rows(&client, "scrape", 2, is_job(job)).await {
            assert_eq!((&row["up"], &row["values"]), (&json!(false), &json!(0)), "{job}");
        }
    }
    for text in
        ["the exporter answered 500", "the exporter answered 302", "more than 16777216 bytes", "line 12, column 8"]
    {
        assert_eq!(agent.said(text), 1, "{text}");
    }
    assert_eq!(agent.said("hunter2"), 0, "no secret in the log");
    assert!((16_000_000..80_000_000).contains(&exporter.taken.load(Ordering::SeqCst)), "the endless page is cut off");
    agent.stop().await;
}

fn free_udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port()
}

/// Sends `probe` until a row of its measurement is stored: from then on the listener takes what comes.
async fn listening(client: &Client, measurement: &str, mut probe: impl FnMut()) {
    eventually(&format!("the listener of {measurement}"), PATIENCE, async || {
        probe();
        stored(client).await.contains_key(measurement).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_hand_over_samples_on_udp_and_unix_sockets() {
    let (server, folder) = (TestServer::start().await, TempDir::new().unwrap());
    let client = server.client().await;
    let (statsd_port, influx_port) = (free_udp_port(), free_udp_port());
    let (statsd_path, influx_path) = (folder.path().join("statsd.sock"), folder.path().join("influx.sock"));
    // A killed agent has left its socket behind.
    drop(UnixDatagram::bind(&statsd_path).unwrap());
    let config = format!(
        "[listen]\nstatsd_udp = '127.0.0.1:{statsd_port}'\ninflux_udp = '127.0.0.1:{influx_port}'\n\
         statsd_socket = '{}'\ninflux_socket = '{}'\ninterval = '1s'\n",
        statsd_path.display(),
        influx_path.display()
    );
    let agent = Agent::start(&server, folder.path(), &config);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let over_udp = |port: u16, text: &str| {
        // Fails as long as nobody listens.
        let _ = udp.send_to(text.as_bytes(), ("127.0.0.1", port));
    };
    let unix = UnixDatagram::unbound().unwrap();
    let over_unix = |path: &Path, text: &str| {
        let _ = unix.send_to(text.as_bytes(), path);
    };
    listening(&client, "probe_su", || over_udp(statsd_port, "probe_su.x:1|c")).await;
    listening(&client, "probe_iu", || over_udp(influx_port, "probe_iu x=1")).await;
    listening(&client, "probe_sx", || over_unix(&statsd_path, "probe_sx.x:1|c")).await;
    listening(&client, "probe_ix", || over_unix(&influx_path, "probe_ix x=1")).await;

    let statsd = "NAME.requests:3|c|@0.5|#zone:a\nNAME.requests:1|c|#zone:a\nNAME.depth:7|g|#zone:a\nNAME.depth:-2|g|#zone:a\n\
                  NAME.time:4:2:3:1|ms|#zone:a\nwhat is this\nNAME.users:ann|s|#zone:a\nNAME.users:bob|s|#zone:a\ncpu.usage:1|g\n";
    over_udp(statsd_port, &statsd.replace("NAME", "app_udp"));
    over_unix(&statsd_path, &statsd.replace("NAME", "app_unix"));
    for measurement in ["app_udp", "app_unix"] {
        let (ms, row) = rows(&client, measurement, 1, |_| true).await.remove(0);
        assert_eq!(ms % 1000, 0);
        let expected = json!({
            "zone": "a", "requests_count": 7.0, "depth": 5.0, "users_unique": 2.0, "time_count": 4.0, "time_min": 1.0,
            "time_max": 4.0, "time_mean": 2.5, "time_p50": 2.0, "time_p95": 4.0, "time_p99": 4.0,
        });
        assert_eq!(row, expected, "{measurement}");
    }
    assert_eq!(agent.said("expected `:` and a value"), 2, "once for each socket");
    assert_eq!(agent.said("`cpu` is a built-in measurement"), 2);

    let minute_ago = plimsoll_nats::now_ms() - 60_000;
    let influx = format!(
        "NAME,zone=a total=3i,mean=0.1,ok=t {}\nNAME,zone=a oops\nNAME,zone=b total=4i,text=\"x y\" {}\n\
         NAME,zone=c total=5i 1\nNAME,zone=d total=6i",
        minute_ago * 1_000_000 + 999_999,
        (minute_ago + 5) * 1_000_000,
    );
    over_udp(influx_port, &influx.replace("NAME", "points_udp"));
    over_unix(&influx_path, &influx.replace("NAME", "points_unix"));
    for measurement in ["points_udp", "points_unix"] {
        let mut rows = rows(&client, measurement, 3, |_| true).await;
        rows.sort_by_key(|(ms, _)| *ms);
        assert_eq!(rows[0], (minute_ago, json!({"zone": "a", "total": 3, "mean": 0.1, "ok": true})));
        assert_eq!(rows[1], (minute_ago + 5, json!({"zone": "b", "total": 4, "text": "x y"})));
        assert_eq!(rows[2].1, json!({"zone": "d", "total": 6}));
        assert!(rows[2].0 % 1000 == 0 && rows[2].0 > minute_ago && rows.len() == 3, "{rows:?}");
    }
    assert_eq!((agent.said("line 2, column 23"), agent.said("line 2, column 24")), (1, 1));

    assert_eq!(agent.said("a time is too far"), 2);

    // What came before the end is not lost, and nothing is left behind.
    over_unix(&statsd_path, "last.words:1|c");
    over_unix(&influx_path, "last_point words=1i");
    agent.stop().await;
    let stored = stored(&client).await;
    assert_eq!(
        (&stored["last"][0].1, &stored["last_point"][0].1),
        (&json!({"words_count": 1.0}), &json!({"words": 1}))
    );
    assert!(!statsd_path.exists() && !influx_path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_bounded_and_others_are_heard() {
    let (server, folder) = (TestServer::start().await, TempDir::new().unwrap());
    let client = server.client().await;
    let (loud, quiet) = (folder.path().join("statsd.sock"), folder.path().join("influx.sock"));
    let config = format!(
        "[listen]\nstatsd_socket = '{}'\ninflux_socket = '{}'\ninterval = '1s'\n",
        loud.display(),
        quiet.display()
    );
    let agent = Agent::start(&server, folder.path(), &config);
    let unix = UnixDatagram::unbound().unwrap();
    listening(&client, "probe", || drop(unix.send_to(b"probe.x:1|c", &loud))).await;
    let stop = Arc::new(AtomicUsize::new(0));
    let (stopped, path) = (Arc::clone(&stop), loud.clone());
    let flood = thread::spawn(move || {
        let socket = UnixDatagram::unbound().unwrap();
        let mut number = 0_u64;
        while stopped.load(Ordering::SeqCst) == 0 {
            let lines: Vec<String> = (0..100).map(|at| format!("flood.x:1|c|#n:{}", number + at)).collect();
            number += 100;
            socket.send_to(lines.join("\n").as_bytes(), &path).unwrap();
        }
    });
    let reported = eventually("the report", PATIENCE, async || {
        Some(agent.said("it hands over too much at once")).filter(|count| *count > 0)
    })
    .await;
    assert_eq!(reported, 1);
    listening(&client, "quiet", || drop(unix.send_to(b"quiet x=1", &quiet))).await;
    stop.store(1, Ordering::SeqCst);
    flood.join().unwrap();
    let mut by_time: BTreeMap<i64, usize> = BTreeMap::new();
    for (ms, _) in rows(&client, "flood", 1, |_| true).await {
        *by_time.entry(ms).or_default() += 1;
    }
    assert!(by_time.values().all(|count| *count <= 5_000), "{by_time:?}");
    agent.stop().await;
}
