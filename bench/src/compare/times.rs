//! How long answers take.

use std::time::Duration;

/// How often the same query is asked once everything is warm.
pub(super) const REPEATS: usize = 5;

/// Times of a query.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    /// In a process that has just started.
    pub(super) first: Duration,
    /// Median of those after it.
    pub(super) warm: Duration,
    pub(super) peak_bytes: u64,
}

pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
