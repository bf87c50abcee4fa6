//! How often this member has tried each notification.
//!
//! The broker counts deliveries, among them those that were put off because the target was busy. So attempts are counted
//! here, in memory: after a restart, or where members share the queue, a notification is tried more often, never less.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// How many notifications are counted at most; beyond that the oldest count begins anew.
const MOST: usize = 100_000;

/// A notification's place on its stream, and when it was stored there in Unix ns: a wiped stream counts from 1 again.
pub(super) type Id = (u64, i128);

/// The counts. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempts(Arc<Mutex<BTreeMap<Id, u64>>>);

impl Attempts {
    /// Counts an attempt; returns 1 for the first one.
    pub fn begin(&self, id: Id) -> u64 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= MOST && !counts.contains_key(&id) {
            counts.pop_first();
        }
        let count = counts.entry(id).or_default();
        *count += 1;
        *count
    }

    /// Forgets a notification that is not tried again.
    pub fn end(&self, id: Id) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_for_each_notification_until_its_end() {
        let attempts = Attempts::default();
        assert_eq!([attempts.begin((1, 0)), attempts.begin((1, 0)), attempts.begin((2, 0))], [1, 2, 1]);
        attempts.end((1, 0));
        assert_eq!([attempts.begin((1, 0)), attempts.begin((1, 9))], [1, 1]);
    }

    #[test]
    fn counts_are_bounded() {
        let attempts = Attempts::default();
        for sequence in 0..=MOST as u64 {
            attempts.begin((sequence, 0));
        }
        assert_eq!([attempts.begin((MOST as u64, 0)), attempts.begin((0, 0))], [2, 1]);
    }
}
