//! What a real agent tells of itself and its host on `EVENTS`: each thing once, whether or not the broker is there, and whether or
//! not the agent is killed.

mod support;

use std::{fs, path::Path};

use plimsoll_nats::{
    Client,
    event::{EventKind, HostEvent},
    streams, subject,
    testing::{TestServer, eventually},
};
use support::{AgentProcess, HOST, PATIENCE, narrow_duplicate_windows, segments, state};

/// Every stored event in the stream's order; none while there is no stream.
async fn stored(client: &Client) -> Vec<HostEvent> {
    let Ok((stream, _)) = streams::open(client, streams::EVENTS).await else { return Vec::new() };
    let state = stream.cached_info().state.clone();
    let mut events = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.direct_get(sequence).await.expect("stored messages can be read");
        let event: HostEvent = serde_json::from_slice(&message.payload).expect("an event");
        assert_eq!(message.subject.as_str(), subject::event(&event.host, event.kind));
        let id = format!("{HOST}/event/{}/{}", event.epoch, event.seq);
        assert_eq!(message.headers.get("Nats-Msg-Id").map(|id| id.to_string()), Some(id));
        events.push(event);
    }
    events
}

/// The kinds by run of the agent, each run's in the order of their numbers, which are 1, 2, 3 ….
fn by_run(events: &[HostEvent]) -> Vec<Vec<EventKind>> {
    let mut runs: Vec<(ulid::Ulid, Vec<EventKind>)> = Vec::new();
    for event in events {
        if runs.last().is_none_or(|(epoch, _)| *epoch != event.epoch) {
            runs.push((event.epoch, Vec::new()));
        }
        let (_, kinds) = runs.last_mut().expect("pushed above");
        kinds.push(event.kind);
        assert_eq!(event.seq, kinds.len() as u64, "{events:?}");
    }
    runs.into_iter().map(|(_, kinds)| kinds).collect()
}

/// Waits until an event of this run is on disk.
async fn spooled(state: &Path, files: usize) {
    let spool = state.join("spool/events");
    eventually("an event on disk", PATIENCE, async || (segments(&spool).len() >= files).then_some(())).await;
}

fn pretend_reboot(state: &Path) {
    let path = state.join("boot_id");
    assert_eq!(fs::read_to_string(&path).expect("noted").trim().len(), 36);
    fs::write(path, "another-boot\n").expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_comes_once_through_kills_and_a_broker_that_is_away() {
    use EventKind::{AgentStarted, AgentStopped, Reboot};
    let mut server = TestServer::start().await;
    let url = server.url();
    server.kill();
    let (_folder, state) = state();
    // Killed with the broker away.
    let agent = AgentProcess::start(&url, &state);
    spooled(&state, 1).await;
    eventually("the boot to be noted", PATIENCE, async || state.join("boot_id").exists().then_some(())).await;
    agent.kill();
    // Stopped in order with the broker away, after a reboot.
    pretend_reboot(&state);
    let agent = AgentProcess::start(&url, &state);
    spooled(&state, 2).await;
    agent.stop().await;
    // As if that agent had been killed before it noted the boot: its event is on disk, and is not told again.
    fs::write(state.join("boot_id"), "another-boot\n").expect("written");
    server.start_again().await;
    let client = narrow_duplicate_windows(&server).await;
    let agent = AgentProcess::start(&url, &state);
    eventually("all events", PATIENCE, async || (stored(&client).await.len() >= 5).then_some(())).await;
    agent.stop().await;
    // After another reboot, with the broker there all the time.
    pretend_reboot(&state);
    let agent = AgentProcess::start(&url, &state);
    eventually("all events", PATIENCE, async || (stored(&client).await.len() >= 8).then_some(())).await;
    agent.stop().await;
    let events = stored(&client).await;
    assert_eq!(
        by_run(&events),
        [
            vec![AgentStarted],
            vec![Reboot, AgentStarted, AgentStopped],
            vec![AgentStarted, AgentStopped],
            vec![Reboot, AgentStarted, AgentStopped],
        ]
    );
    let reboot = &events[1];
    assert_eq!(reboot.attributes["previous_boot_id"], "another-boot");
    assert_eq!((&*reboot.host, reboot.subject.as_str()), (HOST, ""));
    assert_eq!(events[0].attributes["version"], env!("CARGO_PKG_VERSION"));
}

/// Killed before the disk knows that the stream has the event, so that the next run has to ask.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_stored_just_before_a_kill_comes_once() {
    let server = TestServer::start().await;
    let client = narrow_duplicate_windows(&server).await;
    let (_folder, state) = state();
    for run in 1..=5 {
        let agent = AgentProcess::start(&server.url(), &state);
        eventually("the start", PATIENCE, async || (stored(&client).await.len() >= run).then_some(())).await;
        agent.kill();
    }
    let agent = AgentProcess::start(&server.url(), &state);
    eventually("the start", PATIENCE, async || (stored(&client).await.len() >= 6).then_some(())).await;
    agent.stop().await;
    let runs = by_run(&stored(&client).await);
    assert_eq!(runs.concat(), [[EventKind::AgentStarted].repeat(6), vec![EventKind::AgentStopped]].concat());
    assert_eq!(runs.len(), 6);
}
