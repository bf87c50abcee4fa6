//! The parameters `from` and `to`.

use plimsoll_nats::now_ms;

use crate::{
    params::Params,
    times::{EXPECTED_TIME, parse_time},
};

/// How far back an answer goes when nobody says.
const DEFAULT_LENGTH_MS: i64 = 3_600_000;

/// A time span `[from, to)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Its start in Unix ms, inclusive.
    pub from_ms: i64,
    /// Its end in Unix ms, exclusive: the present where the request named none.
    pub to_ms: i64,
    /// Whether the request named no end: then rows up to the newest belong to it, even ones a little ahead of this clock.
    pub open: bool,
}

impl Interval {
    /// Takes `from` (default one hour before `to`) and `to` (default the present).
    pub fn take(params: &mut Params) -> Option<Self> {
        Self::take_or(params, DEFAULT_LENGTH_MS)
    }

    /// The same with `from` so long before `to` when nobody says.
    pub fn take_or(params: &mut Params, length_ms: i64) -> Option<Self> {
        let now = now_ms();
        let to = params.optional("to", EXPECTED_TIME, |text| parse_time(text, now));
        let from = params.optional("from", EXPECTED_TIME, |text| parse_time(text, now));
        let to_ms = to.unwrap_or(now);
        let interval = Self { from_ms: from.unwrap_or((to_ms - length_ms).max(0)), to_ms, open: to.is_none() };
        if interval.from_ms >= interval.to_ms {
            params.wrong("from", "a time before `to`, which is the present unless given");
            return None;
        }
        Some(interval)
    }

    /// The end as a query takes it.
    #[must_use]
    pub fn end(&self) -> Option<i64> {
        (!self.open).then_some(self.to_ms)
    }
}
