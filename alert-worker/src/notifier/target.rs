//! Whom notifications go to: each target has a lane of its own, so that one that hangs keeps nobody else waiting.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use reqwest::Url;

/// How many notifications are under way to one target at the same time.
pub(super) const LANE: usize = 4;
/// How often the failures of one target are logged.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// How long a target that no longer fails is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Scheme, host and port of an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target(String);

impl Target {
    /// The target of an address; one that is no URL is a target of its own.
    pub fn of(url: &str) -> Self {
        Self(Url::parse(url).map_or_else(|_| url.to_owned(), |url| url.origin().ascii_serialization()))
    }
}

/// The lanes that are in use. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Lanes(Arc<Mutex<HashMap<Target, usize>>>);

/// A place in a target's lane, free again on drop.
#[derive(Debug)]
pub(super) struct Place {
    lanes: Lanes,
    target: Target,
}

impl Lanes {
    /// Takes a place in a target's lane; none when [`LANE`] of them are taken.
    pub fn enter(&self, target: &Target) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(target.clone()).or_default();
        (*count < LANE).then(|| {
            *count += 1;
            Place { lanes: self.clone(), target: target.clone() }
        })
    }
}

impl Place {
    /// Whose lane this is.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.target) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.target);
            }
        }
    }
}

/// The failures of each target since they were last logged. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures(Arc<Mutex<HashMap<Target, Logged>>>);

#[derive(Debug)]
struct Logged {
    at: Instant,
    unlogged: u64,
}

impl Failures {
    /// Counts a failure. Returns how many it stands for, where it is to be logged.
    pub fn note(&self, target: &Target, now: Instant) -> Option<u64> {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, logged| now.saturating_duration_since(logged.at) < REMEMBERED);
        let Some(logged) = failures.get_mut(target) else {
            failures.insert(target.clone(), Logged { at: now, unlogged: 0 });
            return Some(1);
        };
        logged.unlogged += 1;
        if now.saturating_duration_since(logged.at) < LOG_EVERY {
            return None;
        }
        logged.at = now;
        Some(std::mem::take(&mut logged.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_scheme_host_and_port() {
        let target = Target::of("https://user:secret@Hooks.example:443/a/b?key=c");
        assert_eq!(target, Target("https://hooks.example".to_owned()));
        assert_ne!(target, Target::of("http://hooks.example/a/b"));
        assert_ne!(target, Target::of("https://hooks.example:8443/a/b"));
    }

    #[test]
    fn a_lane_takes_so_many_and_no_more() {
        let (lanes, slow, other) = (Lanes::default(), Target::of("http://slow/"), Target::of("http://other/"));
        let mut places: Vec<_> = (0..LANE).map(|_| lanes.enter(&slow).expect("a free place")).collect();
        assert!(lanes.enter(&slow).is_none());
        assert!(lanes.enter(&other).is_some());
        places.pop();
        places.extend(lanes.enter(&slow));
        assert_eq!(places.len(), LANE);
        drop(places);
        assert!(lanes.0.lock().unwrap().is_empty());
    }

    #[test]
    fn failures_of_a_target_are_logged_now_and_then() {
        let (failures, slow, other) = (Failures::default(), Target::of("http://slow/"), Target::of("http://other/"));
        let begin = Instant::now();
        let note = |target, second| failures.note(target, begin + Duration::from_secs(second));
        assert_eq!([note(&slow, 0), note(&slow, 1), note(&other, 2)], [Some(1), None, Some(1)]);
        assert_eq!([note(&slow, 59), note(&slow, 60), note(&slow, 61)], [None, Some(3), None]);
        assert_eq!(note(&slow, 60 + 3600), Some(1));
    }
}
