//! When throttling begins and when it has ended, with some patience: a processor at its limit throttles on and off many times a
//! second, and that is one episode.

use std::time::{Duration, Instant};

/// How long there must be no throttling before an episode counts as ended.
pub const QUIET: Duration = Duration::from_secs(30);

/// Whether something throttles, as told by one observation after another.
#[derive(Debug, Clone, Copy, Default)]
pub struct Episode {
    state: State,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Unknown,
    Quiet,
    Throttling {
        began: Instant,
        last: Instant,
    },
}

/// What an observation changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Throttling began.
    Began,
    /// Throttling ended; it lasted so long from its first observation to its last.
    Ended(Duration),
}

impl Episode {
    /// Takes note of whether there is throttling at `now`.
    ///
    /// It begins with an observation of throttling, save the very first one, which may have begun at any time; it ends
    /// when there has been none for [`QUIET`].
    pub fn observe(&mut self, throttling: bool, now: Instant) -> Option<Change> {
        let (state, change) = match (self.state, throttling) {
            (State::Unknown, true) => (State::Throttling { began: now, last: now }, None),
            (State::Quiet, true) => (State::Throttling { began: now, last: now }, Some(Change::Began)),
            (State::Throttling { began, .. }, true) => (State::Throttling { began, last: now }, None),
            (State::Throttling { began, last }, false) if now.duration_since(last) >= QUIET => {
                (State::Quiet, Some(Change::Ended(last.duration_since(began))))
            }
            (State::Throttling { .. }, false) => (self.state, None),
            (State::Unknown | State::Quiet, false) => (State::Quiet, None),
        };
        self.state = state;
        change
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The changes of observations, one a second, of which `x` is throttling.
    fn changes(observations: &str) -> Vec<(usize, Change)> {
        let start = Instant::now();
        let mut episode = Episode::default();
        let observe = |(second, what)| {
            let change = episode.observe(what == 'x', start + Duration::from_secs(second as u64))?;
            Some((second, change))
        };
        observations.chars().enumerate().filter_map(observe).collect()
    }

    #[test]
    fn an_episode_is_told_once_however_often_it_falters() {
        let quiet = ".".repeat(31);
        assert_eq!(
            changes(&format!(".x.xx..x{quiet}")),
            [(1, Change::Began), (37, Change::Ended(Duration::from_secs(6)))]
        );
        assert_eq!(changes(&format!(".x{}x{}", ".".repeat(29), ".".repeat(29))), [(1, Change::Began)]);
    }

    #[test]
    fn what_was_there_at_first_did_not_begin_but_ends() {
        assert_eq!(changes("xxx"), []);
        assert_eq!(
            changes(&format!("xx{}x", ".".repeat(30))),
            [(31, Change::Ended(Duration::from_secs(1))), (32, Change::Began)]
        );
    }

    proptest! {
        #[test]
        fn beginnings_and_ends_take_turns(observations in "(\\.|x|\\.{30}){0,40}") {
            let changes = changes(&observations);
            for pair in changes.windows(2) {
                prop_assert_ne!(pair[0].1 == Change::Began, pair[1].1 == Change::Began);
            }
        }
    }
}
