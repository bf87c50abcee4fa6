//! The wall clock as the contract counts it.

use std::time::{SystemTime, UNIX_EPOCH};

/// The present in Unix ms, by this machine's clock.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Unix ns, as the broker tells when it stored a message, in ms.
#[must_use]
pub fn unix_ms(nanos: i128) -> i64 {
    i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)
}
