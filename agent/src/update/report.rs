//! Tells how an update went: the launcher while it is tried, the broker afterwards.

use std::{fs::File, path::PathBuf, time::Duration};

use plimsoll_nats::{dead::chain, event::EventKind};
use semver::Version;

use crate::{
    collectors::KINDS,
    config::AgentConfig,
    events::{Event, EventSink},
    update::{
        launch::running_version,
        receipts::Receipts,
        versions::{Fetched, Outcome, Versions, state_dir},
    },
};

/// Collectors that yield rows on every host.
const CERTAIN: &[&str] = &["cpu", "memory", "load"];

/// Creates `mark` once the broker has acknowledged the host's record and, where `samples` are due, some of them.
pub async fn pass_trial(mark: PathBuf, receipts: Receipts, samples: bool) {
    receipts.reported(samples).await;
    match File::create(&mark) {
        Ok(_) => tracing::info!("this version has reported"),
        Err(error) => {
            tracing::error!(path = %mark.display(), error = %error, "failed to tell that this version reports")
        }
    }
}

/// Whether samples can be expected well before a trial ends: some collectors sample seldom, and some agents send seldom.
#[must_use]
pub fn samples_are_due(config: &AgentConfig) -> bool {
    let gathered = config.batch_interval();
    let intervals =
        KINDS.iter().filter(|kind| CERTAIN.contains(&kind.name)).filter_map(|kind| config.interval_of(kind));
    // A rate takes two readings.
    let sent = |interval: Duration| interval * 2 + gathered;
    intervals.min().is_some_and(|interval| sent(interval) <= config.update.report_within / 2)
}

/// Emits what became of updates since that was last told.
pub fn tell(config: &AgentConfig, events: &EventSink) {
    if config.update.url.is_none() {
        return;
    }
    if let Some(dir) = state_dir(config.state_dir.as_deref()) {
        tell_of(&Versions::new(&dir), &running_version(), events);
    }
}

fn tell_of(versions: &Versions, running: &Version, events: &EventSink) {
    for fetched in versions.all().into_iter().filter(|fetched| !fetched.is_told()) {
        let Some(event) = event(&fetched, running) else { continue };
        // Noted first: what happened once is rather told never than at each start.
        match fetched.note_told() {
            Ok(()) => events.emit(event),
            Err(error) => tracing::error!(error = %chain(&error), "{}", event.message),
        }
    }
}

/// What became of a version; none while that is open, or while another version runs in place of a good one.
fn event(fetched: &Fetched, running: &Version) -> Option<Event> {
    let (version, remark) = (fetched.version.to_string(), fetched.remark().unwrap_or_default());
    match fetched.outcome() {
        Outcome::Good if fetched.version == *running => {
            let message = format!("the agent was updated from {remark} to {version}");
            Some(Event::new(EventKind::AgentUpdated, "", message).with("version", version).with("from", remark))
        }
        Outcome::Failed => {
            let message = format!("the update to {version} failed, the agent runs {running} again: {remark}");
            let event = Event::new(EventKind::AgentUpdateFailed, "", message);
            Some(event.with("version", version).with("running", running.to_string()).with("reason", remark))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::config::{BatchConfig, Profile};

    #[test]
    fn what_became_of_an_update_is_told_once() {
        let dir = TempDir::new().unwrap();
        let versions = Versions::new(dir.path());
        let events = EventSink::default();
        for version in ["0.2.0", "0.3.0", "0.4.0"] {
            let incoming = versions.begin().unwrap();
            fs::write(incoming.program(), "").unwrap();
            incoming.keep(&Version::parse(version).unwrap(), b"", b"").unwrap();
        }
        let (old, new) = (Version::new(0, 1, 0), Version::new(0, 2, 0));
        versions.find(&new).unwrap().note_good(&old).unwrap();
        versions.find(&Version::new(0, 3, 0)).unwrap().note_failed("it ended").unwrap();

        tell_of(&versions, &old, &events);
        let told = events.take();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].kind, EventKind::AgentUpdateFailed);
        assert_eq!(told[0].message, "the update to 0.3.0 failed, the agent runs 0.1.0 again: it ended");
        assert_eq!(told[0].attributes["reason"], "it ended");

        tell_of(&versions, &new, &events);
        let told = events.take();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].message, "the agent was updated from 0.1.0 to 0.2.0");
        assert_eq!((&told[0].attributes["version"], &told[0].attributes["from"]), (&"0.2.0".into(), &"0.1.0".into()));

        tell_of(&versions, &new, &events);
        assert_eq!(events.take(), []);
    }

    #[test]
    fn samples_are_due_unless_they_come_seldom() {
        let config = AgentConfig::default();
        assert!(samples_are_due(&config));
        let seldom = |seconds| AgentConfig { interval: Some(Duration::from_secs(seconds)), ..AgentConfig::default() };
        assert!(samples_are_due(&seldom(15)) && !samples_are_due(&seldom(16)));
        assert!(!samples_are_due(&AgentConfig { profile: Profile::Light, ..AgentConfig::default() }));
        let at_once = BatchConfig { interval: Some(Duration::ZERO) };
        assert!(samples_are_due(&AgentConfig { profile: Profile::Light, batch: at_once, ..AgentConfig::default() }));
        let mut none = AgentConfig::default();
        for collector in [&mut none.collectors.cpu, &mut none.collectors.memory, &mut none.collectors.load] {
            collector.enabled = false;
        }
        assert!(!samples_are_due(&none));
    }
}
