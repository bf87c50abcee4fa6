//! The spool of a real agent before a real broker: nothing that was on disk is lost or doubled, however often the agent or the
//! broker is killed, and whatever the disk does.

mod support;

use std::{fs, io::Write as _, path::Path, process::Command};

use plimsoll_nats::{
    Batch, HostId, Name, catalog, streams, subject,
    testing::{Proxy, Swallow, TestServer, eventually},
};
use support::{
    AgentProcess, HOST, PATIENCE, assert_each_once, assert_in_order, assert_no_gaps, drained, metrics_spool,
    narrow_duplicate_windows, segments, spool_batches, spooled, state, stored, stored_count,
};
use ulid::Ulid;

/// Waits until the spool has grown by so many bytes.
async fn grown(state: &Path, by: u64) {
    let size = || segments(&metrics_spool(state)).iter().map(|path| path.metadata().map_or(0, |file| file.len())).sum();
    let before: u64 = size();
    eventually("the spool to grow", PATIENCE, async || (size() >= before + by).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_killed_while_the_broker_is_away_lose_nothing() {
    let mut server = TestServer::start().await;
    let (_folder, state) = state();
    let url = server.url();
    server.kill();
    for _ in 0..4 {
        let agent = AgentProcess::start(&url, &state);
        grown(&state, 20_000).await;
        agent.kill();
    }
    let expected = spooled(&state);
    let epochs: std::collections::BTreeSet<Ulid> = expected.iter().map(|key| key.0).collect();
    assert_eq!(epochs.len(), 4);
    assert_no_gaps(&expected);
    server.start_again().await;
    let client = narrow_duplicate_windows(&server).await;
    drained(AgentProcess::start(&url, &state), &state).await;
    let stored = stored(&client).await;
    assert_each_once(&stored, &expected);
    assert_no_gaps(&stored);
    assert_in_order(&stored, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_everything_leaves_nothing_on_disk() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (_folder, state) = state();
    let agent = AgentProcess::start(&server.url(), &state);
    eventually("samples", PATIENCE, async || (stored_count(&client).await > 40).then_some(())).await;
    // The first samples may have come before the connection. From then on no segment is ever made, as the cursor would tell.
    let cursor = || fs::read_to_string(metrics_spool(&state).join("cursor")).expect("a cursor");
    eventually("an empty spool", PATIENCE, async || cursor().contains(r#""segments":{}"#).then_some(())).await;
    let before = (cursor(), stored_count(&client).await);
    eventually("more samples", PATIENCE, async || (stored_count(&client).await > before.1 + 100).then_some(())).await;
    assert_eq!(cursor(), before.0);
    agent.stop().await;
    assert_no_gaps(&stored(&client).await);
}

/// Publishes go on to arrive and their acks do not: what the stream has is in doubt, and on disk before the agent is killed.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_acks_are_missing_loses_and_doubles_nothing() {
    let server = TestServer::start().await;
    let client = narrow_duplicate_windows(&server).await;
    let proxy = Proxy::start(server.url()).await;
    let (_folder, state) = state();
    let mut expected = Vec::new();
    for _ in 0..3 {
        let agent = AgentProcess::start(&proxy.url, &state);
        let before = stored_count(&client).await;
        eventually("samples", PATIENCE, async || (stored_count(&client).await > before + 40).then_some(())).await;
        proxy.swallow(Swallow::Answers);
        grown(&state, 5_000).await;
        agent.kill();
        expected.extend(spooled(&state));
        proxy.cut();
    }
    drained(AgentProcess::start(&proxy.url, &state), &state).await;
    let stored = stored(&client).await;
    assert_each_once(&stored, &expected);
    assert_no_gaps(&stored);
}

/// Kills agents while they drain a long backlog, past the duplicate window, so that only asking keeps from doubles.
#[tokio::test(flavor = "multi_thread")]
async fn agents_killed_while_they_drain_double_nothing() {
    let server = TestServer::start().await;
    let client = narrow_duplicate_windows(&server).await;
    let (_folder, state) = state();
    let mut expected = spool_batches(&state, Ulid::generate(), &["sim_a", "sim_b", "sim_c"], 1..=3000);
    expected.extend(spool_batches(&state, Ulid::generate(), &["sim_a", "sim_b"], 1..=1500));
    let (all, mut caught) = (expected.len() as u64, 0);
    for part in 1..=6 {
        let agent = AgentProcess::start(&server.url(), &state);
        let goal = all * part / 8;
        eventually("a part of the backlog", PATIENCE, async || (stored_count(&client).await > goal).then_some(()))
            .await;
        agent.kill();
        caught += usize::from(!segments(&metrics_spool(&state)).is_empty());
    }
    assert!(caught >= 3, "only {caught} agents were killed while they drained");
    drained(AgentProcess::start(&server.url(), &state), &state).await;
    let stored = stored(&client).await;
    assert_each_once(&stored, &expected);
    assert_in_order(&stored, &expected);
}

/// What is sampled now is not kept waiting by a long backlog, and the backlog comes beside it.
#[tokio::test(flavor = "multi_thread")]
async fn live_samples_pass_a_long_backlog() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (_folder, state) = state();
    let expected = spool_batches(&state, Ulid::generate(), &["sim_a", "sim_b", "sim_c", "sim_d"], 1..=5000);
    drained(AgentProcess::start(&server.url(), &state), &state).await;
    let stored = stored(&client).await;
    assert_each_once(&stored, &expected);
    let last_of_backlog = stored.iter().rposition(|key| expected.contains(key)).expect("the backlog");
    let live_before = stored[..last_of_backlog].iter().filter(|key| !key.1.starts_with("sim_")).count();
    assert!(live_before > 0, "no live sample came before the end of the backlog");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_wiped_gets_all_that_was_not_acknowledged() {
    let mut server = TestServer::start().await;
    let client = server.client().await;
    let (_folder, state) = state();
    spool_batches(&state, Ulid::generate(), &["sim_a", "sim_b"], 1..=4000);
    let agent = AgentProcess::start(&server.url(), &state);
    eventually("a part", PATIENCE, async || (stored_count(&client).await > 3000).then_some(())).await;
    agent.kill();
    let expected = spooled(&state);
    assert!(!expected.is_empty());
    server.wipe();
    server.start_again().await;
    let client = narrow_duplicate_windows(&server).await;
    drained(AgentProcess::start(&server.url(), &state), &state).await;
    assert_each_once(&stored(&client).await, &expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_segments_cost_what_is_damaged_and_no_more() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (_folder, state) = state();
    let spool = metrics_spool(&state);
    let mut expected = Vec::new();
    // Each makes a segment of its own.
    for _ in 0..4 {
        expected.push(spool_batches(&state, Ulid::generate(), &["sim_a"], 1..=50));
    }
    let files = segments(&spool);
    assert_eq!(files.len(), 4);
    let rewrite = |index: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(&files[index]).expect("a segment");
        change(&mut bytes);
        fs::write(&files[index], bytes).expect("written");
    };
    // A bit of a record in the middle.
    rewrite(0, &|bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    });
    // The tail is torn.
    rewrite(1, &|bytes| bytes.truncate(bytes.len() - 7));
    // The header and the first record are gone.
    rewrite(2, &|bytes| bytes[..40].fill(0xff));
    let next = |number: u64| spool.join(format!("{number:020}.seg"));
    fs::write(next(900), "").expect("written");
    fs::write(next(901), [0x5a; 3000]).expect("written");
    let mut newer = b"PLIMSPOL\x09\0\0\0".to_vec();
    newer.extend_from_slice(&crc32fast::hash(&newer).to_le_bytes());
    fs::write(next(902), &newer).expect("written");

    let agent = AgentProcess::start(&server.url(), &state);
    eventually("all but the newer segment to go", PATIENCE, async || (segments(&spool) == [next(902)]).then_some(()))
        .await;
    let stored = stored(&client).await;
    let count = |keys: &[support::Key]| keys.iter().filter(|key| stored.contains(key)).count();
    assert_eq!(expected.iter().map(|keys| count(keys)).collect::<Vec<_>>(), [49, 49, 49, 50]);
    assert_each_once(&stored, &[]);
    assert_eq!(fs::read(next(902)).expect("kept"), newer);
    let log = agent.log();
    assert!(log.contains("a segment of the spool is damaged") && log.contains("later version"), "{log}");

    // The agent tells of the damage in its own measurement: the record, the header with its record, and the garbage.
    let batch = eventually("the agent's measurement", PATIENCE, async || own_measurement(&client).await).await;
    let spec = catalog::measurement("agent").expect("in the catalog");
    assert_eq!(batch.fields.len(), spec.fields.len());
    assert_eq!(batch.fields["corrupt_records_total"].number(0), Some(5.0));
    assert!(batch.fields["published_batches_total"].number(0) >= Some(197.0));
    agent.stop().await;
}

async fn own_measurement(client: &plimsoll_nats::Client) -> Option<Batch> {
    let (host, agent) = (HostId::parse(HOST).expect("valid"), Name::parse("agent").expect("valid"));
    let (stream, _) = streams::metrics(client).await.ok()?;
    let message = stream.direct_get_last_for_subject(subject::stored(&host, &agent)).await.ok()?;
    Batch::decode(&host, &agent, Some(&message.headers), &message.payload).ok()
}

/// The agent before a broker that is away, under a shell that limits what it may write; then the broker comes.
async fn with_a_full_disk(shell: &str) {
    let mut server = TestServer::start().await;
    let url = server.url();
    server.kill();
    let (_folder, state) = state();
    fs::create_dir_all(&state).expect("a folder");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", shell, "sh"]);
    if !shell.contains("mount") {
        command = Command::new("sh");
        command.args(["-c", shell, "sh"]);
    }
    command.arg(&state).arg(env!("CARGO_BIN_EXE_plimsoll-agent"));
    let agent = AgentProcess::start_by(command, &url, &state);
    eventually("the spool to be full", PATIENCE, async || {
        agent.log().contains("the spool cannot be written").then_some(())
    })
    .await;
    // Samples that find no room on disk.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(agent.log().matches("the spool cannot be written").count(), 1, "it is told once: {}", agent.log());
    server.start_again().await;
    let client = narrow_duplicate_windows(&server).await;
    eventually("samples", PATIENCE, async || (stored_count(&client).await > 0).then_some(())).await;
    let now = stored_count(&client).await;
    eventually("live samples", PATIENCE, async || (stored_count(&client).await > now + 500).then_some(())).await;
    let log = agent.log();
    agent.stop().await;
    let stored = stored(&client).await;
    assert_each_once(&stored, &[]);
    assert_no_gaps(&stored);
    assert!(!log.contains("are lost\n") && !log.contains("oldest batches are lost"), "{log}");
}

/// A disk of 192 KiB: a tmpfs in a mount namespace of the agent's own, which needs no privilege where the system allows user
/// namespaces. Where it does not, the next test has to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_nothing_while_memory_lasts() {
    let allowed = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        return;
    }
    with_a_full_disk(r#"mount -t tmpfs -o size=192k tmpfs "$1" && exec "$2""#).await;
}

/// A limit on the size of files, which the kernel enforces for everybody: a write past it is cut short and then refused, as on a
/// full disk. The signal that would come with it must be ignored.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_cannot_grow_costs_nothing_while_memory_lasts() {
    with_a_full_disk(r#"trap '' XFSZ; ulimit -f 128; exec "$2""#).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_is_told_and_samples_go_on() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (_folder, state) = state();
    fs::File::create(&state).expect("a file").write_all(b"in the way").expect("written");
    let agent = AgentProcess::start(&server.url(), &state);
    eventually("samples", PATIENCE, async || (stored_count(&client).await > 40).then_some(())).await;
    assert_eq!(agent.log().matches("the state folder cannot be written").count(), 1, "{}", agent.log());
    agent.stop().await;
    assert_no_gaps(&stored(&client).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_state_folder_is_refused() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (_folder, state) = state();
    let first = AgentProcess::start(&server.url(), &state);
    eventually("samples", PATIENCE, async || (stored_count(&client).await > 0).then_some(())).await;
    let second = AgentProcess::start(&server.url(), &state);
    assert_eq!(second.end().await, Some(70));
    let log = first.log();
    assert!(log.contains("in use by another agent") && log.contains("PLIMSOLL_AGENT__STATE_DIR"), "{log}");
    first.stop().await;
}

/// A spool of another host id, as after a host was renamed, is sent under the id that it was sampled for.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_spooled_under_another_host_id_keeps_it() {
    let server = TestServer::start().await;
    let client = server.client().await;
    let (_folder, state) = state();
    let expected = spool_batches(&state, Ulid::generate(), &["sim_a"], 1..=20);
    let mut command = Command::new("sh");
    command.args(["-c", "PLIMSOLL_AGENT__HOST=renamed exec \"$1\"", "sh", env!("CARGO_BIN_EXE_plimsoll-agent")]);
    drained(AgentProcess::start_by(command, &server.url(), &state), &state).await;
    assert_each_once(&stored(&client).await, &expected);
    let (stream, _) = streams::metrics(&client).await.expect("the stream");
    let filter = subject::stored_filter(&HostId::parse(HOST).expect("valid"), &Name::parse("sim_a").expect("valid"));
    let first = stream.raw_message_builder().sequence(1).next_by_subject(&filter).send().await.expect("a message");
    assert!(first.subject.contains(HOST), "{}", first.subject);
}
