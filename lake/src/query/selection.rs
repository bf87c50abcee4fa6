//! Which rows a query speaks of.

use std::collections::BTreeMap;

use plimsoll_nats::{HostId, Name};

use crate::sql::ident;

/// Rows of one host and measurement whose time is in `[from, to)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The host.
    pub host: HostId,
    /// The measurement.
    pub measurement: Name,
    /// Unix ms from which on, inclusive.
    pub from_ms: i64,
    /// Unix ms up to which, exclusive; `None` takes all up to the newest row.
    pub to_ms: Option<i64>,
    /// Only series whose tags have these values.
    pub tags: BTreeMap<Name, String>,
}

impl Selection {
    /// The condition of a `WHERE`, and its parameters.
    pub(super) fn condition(&self) -> (String, Vec<String>) {
        // Times stand in the text and not among the parameters, because only what the planner sees leaves out files by day.
        let mut condition = format!("host = ? AND ts >= {}", time(self.from_ms));
        if let Some(to) = self.to_ms {
            condition.push_str(&format!(" AND ts < {}", time(to)));
        }
        let mut parameters = vec![self.host.to_string()];
        for (tag, value) in &self.tags {
            condition.push_str(&format!(" AND {} = ?", ident(tag)));
            parameters.push(value.clone());
        }
        (condition, parameters)
    }
}

/// A time as a constant of the type of `ts`.
fn time(unix_ms: i64) -> String {
    /// Years 1 to 9999: what DuckDB's timestamps hold for certain.
    const RANGE: (i64, i64) = (-62_135_596_800_000, 253_402_300_799_999);
    format!("epoch_ms({}::BIGINT)::TIMESTAMP_MS", unix_ms.clamp(RANGE.0, RANGE.1))
}
