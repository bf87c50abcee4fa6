//! Ten minutes without a broker, from the agent's numbering to the lake: each batch is there once, however often the agent is killed.

mod support;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use plimsoll_agent::message::Message;
use plimsoll_lake::{Access, Lake, LakeConfig};
use plimsoll_nats::{
    Client, Column, streams,
    testing::{TestServer, eventually},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use support::{
    LIMIT, Process, Up, data,
    delivery::{deliver, message},
    install_crypto,
};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

/// Ten minutes at a sample a second.
const TICKS_OF_OUTAGE: u64 = 600;
/// Ticks that are taken while the backlog is drained.
const TICKS_AFTER: u64 = 120;
const KILLS: u64 = 5;
const MEASUREMENTS: [&str; 4] = ["sim_a", "sim_b", "sim_c", "sim_d"];
const FOLDER: &str = "PLIMSOLL_TEST_SIMULATION";
const BROKER: &str = "PLIMSOLL_TEST_BROKER";

/// What a simulated agent writes down, a line a batch: `planned` before it hands a batch over, `safe` once the batch is on disk or
/// with the broker.
fn note(folder: &Path, name: &str, epoch: Ulid, measurement: &str, seq: u64) {
    let mut file = File::options().create(true).append(true).open(folder.join(name)).expect("opens");
    file.write_all(format!("{epoch} {measurement} {seq}\n").as_bytes()).expect("written");
}

fn noted(folder: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(folder.join(name)).unwrap_or_default();
    // The last line may be cut short by a kill.
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
}

/// Not a test of its own, but the agent that the test starts as a process to be killed: the agent's delivery, fed with samples as
/// fast as it goes instead of one a second.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child process of another test"]
async fn simulated_agent() {
    let (Some(folder), Ok(url)) = (std::env::var_os(FOLDER).map(PathBuf::from), std::env::var(BROKER)) else { return };
    let (epoch, stop) = (Ulid::generate(), CancellationToken::new());
    let (delivery, _state) = deliver(&folder, url, &stop);
    for seq in 1.. {
        if noted(&folder, "safe").len() as u64 >= (TICKS_OF_OUTAGE + TICKS_AFTER) * MEASUREMENTS.len() as u64 {
            break;
        }
        for measurement in MEASUREMENTS {
            note(&folder, "planned", epoch, measurement, seq);
            delivery.metrics().push([batch(epoch, measurement, seq)]);
            // On disk at once while there is an outage or a backlog; else it flows, and is safe when the broker has it.
            eventually("the batch to be safe", LIMIT, async || delivery.metrics().is_safe().then_some(())).await;
            note(&folder, "safe", epoch, measurement, seq);
        }
        // The outage is as long as there are ticks for it; what comes then is sampled beside the drain.
        while noted(&folder, "safe").len() as u64 >= TICKS_OF_OUTAGE * MEASUREMENTS.len() as u64
            && !folder.join("broker-is-back").exists()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // Lives until it is killed.
    std::future::pending::<()>().await;
}

/// A row that tells its own run and number.
fn batch(epoch: Ulid, measurement: &str, seq: u64) -> Message {
    let run = Column::Text(vec![Some(epoch.to_string())]);
    message(epoch, measurement, seq, &[("epoch", run), ("seq", Column::Integer(vec![Some(seq.cast_signed())]))])
}

fn start(folder: &Path, url: &str) -> Process {
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "simulated_agent", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env(BROKER, url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    Process(child.expect("starts"))
}

/// Waits until so many batches are safe in all, and kills the agent a random moment later.
async fn kill_after(agent: Process, folder: &Path, batches: u64, random: &mut StdRng) {
    eventually("batches", LIMIT, async || (noted(folder, "safe").len() as u64 >= batches).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(random.random_range(0..50))).await;
    drop(agent);
}

async fn stored(client: &Client) -> u64 {
    let (stream, _) = streams::metrics(client).await.expect("the stream");
    stream.cached_info().state.messages
}

/// Every batch that the lake has, as it was noted.
fn in_lake(data: &Path) -> Option<Vec<String>> {
    let lake = Lake::open(&LakeConfig::embedded(&data.join("lake")), Access::Read).ok()?;
    let of = |measurement| format!("SELECT epoch || ' {measurement} ' || seq FROM lake.{measurement}");
    let sql = MEASUREMENTS.map(of).join(" UNION ALL ");
    let mut statement = lake.connection().prepare(&sql).ok()?;
    let rows = statement.query_map([], |row| row.get(0)).ok()?;
    rows.collect::<Result<_, _>>().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lake_has_every_batch_of_ten_minutes_without_a_broker_once() {
    install_crypto();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (folder, lake) = (data(), data());
    let mut server = TestServer::start().await;
    let url = server.url();
    server.kill();
    // The outage, with kills of the agent in between.
    let all = TICKS_OF_OUTAGE * MEASUREMENTS.len() as u64;
    for kill in 1..=KILLS {
        kill_after(start(folder.path(), &url), folder.path(), all * kill / KILLS, &mut random).await;
    }
    assert!(noted(folder.path(), "safe").len() as u64 >= all);
    // The broker comes back, with a memory of message ids too short to hide a double; more kills while the backlog is drained.
    server.start_again().await;
    let client = server.client().await;
    let (stream, _) = streams::metrics(&client).await.expect("the stream");
    let mut config = stream.cached_info().config.clone();
    config.duplicate_window = Duration::from_millis(100);
    client.jetstream.update_stream(config).await.expect("the window can be narrowed");
    File::create(folder.path().join("broker-is-back")).expect("created");
    for kill in 1..=KILLS {
        let agent = start(folder.path(), &url);
        let goal = all * kill / (KILLS + 1);
        eventually("a part of the backlog", LIMIT, async || (stored(&client).await >= goal).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..50))).await;
        drop(agent);
    }
    let _agent = start(folder.path(), &url);
    let up =
        Up::start(lake.path(), &["--no-agent", "--nats-url", &url], &[("PLIMSOLL_INGEST__COMMIT_INTERVAL", "200ms")])
            .await;
    let expected = all + TICKS_AFTER * MEASUREMENTS.len() as u64;
    eventually("all batches to be safe", LIMIT, async || {
        (noted(folder.path(), "safe").len() as u64 >= expected).then_some(())
    })
    .await;
    let mut safe = noted(folder.path(), "safe");
    safe.sort();
    eventually("every batch in the lake", LIMIT, async || {
        let rows = in_lake(lake.path())?;
        let rows: std::collections::BTreeSet<&String> = rows.iter().collect();
        safe.iter().all(|batch| rows.contains(batch)).then_some(())
    })
    .await;
    up.process.stop().await;
    let mut rows = in_lake(lake.path()).expect("a lake");
    rows.sort();
    let doubles: Vec<_> = rows.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(doubles.is_empty(), "{doubles:?}");
    // Between the two notes a kill may come: such a batch is there once or not at all.
    let planned = noted(folder.path(), "planned");
    let strange: Vec<_> = rows.iter().filter(|row| !planned.contains(row)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(rows.len() as u64 <= safe.len() as u64 + 2 * KILLS, "{} rows of {} batches", rows.len(), safe.len());
}
