//! Alert states and transitions: the messages of `ALERTS` and the values of `ALERT_STATE`, as JSON.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    HostId, Name,
    rule::{Channel, Severity},
};

/// Where an alert stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertStatus {
    /// The condition does not hold, and has not held since the series appeared.
    #[default]
    Inactive,
    /// The condition holds, for less than the rule's `for`.
    Pending,
    /// The condition has held for the rule's `for`.
    Firing,
    /// The condition held once and has ceased.
    Resolved,
    /// The series has fallen silent.
    NoData,
}

impl AlertStatus {
    /// The status as the JSON documents spell it, such as `no_data`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
            Self::NoData => "no_data",
        }
    }
}

impl fmt::Display for AlertStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One series that a rule watches: a host and a tag set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeriesKey {
    /// The host.
    pub host: HostId,
    /// All tags of the series.
    pub tags: BTreeMap<Name, String>,
}

/// A 128-bit hash of a series: equal ids mean equal series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesId(u128);

impl fmt::Display for SeriesId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl SeriesId {
    /// The id of a host and its tags, which come in ascending order of their names; `scratch` is overwritten.
    pub fn of<'a>(host: &str, tags: impl IntoIterator<Item = (&'a Name, &'a str)>, scratch: &mut Vec<u8>) -> Self {
        scratch.clear();
        let mut put = |text: &str| {
            scratch.extend_from_slice(&(text.len() as u64).to_le_bytes());
            scratch.extend_from_slice(text.as_bytes());
        };
        put(host);
        for (name, value) in tags {
            put(name);
            put(value);
        }
        Self(xxh3_128(scratch))
    }
}

impl SeriesKey {
    /// The id of this series.
    #[must_use]
    pub fn id(&self) -> SeriesId {
        SeriesId::of(&self.host, self.tags.iter().map(|(name, value)| (name, value.as_str())), &mut Vec::new())
    }
}

/// The key of an alert in `ALERT_STATE`: `<rule>.<host>.<series id in hex>`.
#[must_use]
pub fn state_key(rule: &Name, series: &SeriesKey) -> String {
    format!("{rule}.{}.{}", series.host, series.id())
}

/// A change of an alert's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// The rule's name.
    pub rule: Name,
    /// The series.
    #[serde(flatten)]
    pub series: SeriesKey,
    /// The measurement that the rule watches.
    pub measurement: Name,
    /// The field that the rule watches.
    pub field: Name,
    /// The status before.
    pub from: AlertStatus,
    /// The status from now on.
    pub to: AlertStatus,
    /// Event time of the change, Unix ms.
    pub at_ms: i64,
    /// The aggregate that decided; none for no-data.
    pub value: Option<f64>,
    /// The rule's threshold at that time.
    pub threshold: f64,
    /// How grave the rule says it is.
    pub severity: Severity,
    /// The rule's description.
    #[serde(default)]
    pub description: String,
}

/// An alert as `ALERT_STATE` holds it, under a key of its rule, host and tags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlertState {
    /// The last transition, which tells the status and its reason.
    pub transition: Transition,
    /// Unix ms since which the condition has held without a break, while pending or firing.
    pub since_ms: Option<i64>,
    /// Whether the alert has fired and not been resolved since, whatever its status.
    #[serde(default)]
    pub open: bool,
    /// Whether the transition is known to be on `ALERTS` and, where somebody is to be told, on `NOTIFY`.
    #[serde(default)]
    pub announced: bool,
}

impl Transition {
    /// Whether somebody is to be told: it fires, it is resolved, or it fell silent while it was firing.
    #[must_use]
    pub fn notifies(&self) -> bool {
        match self.to {
            AlertStatus::Firing | AlertStatus::Resolved => true,
            AlertStatus::NoData => self.from == AlertStatus::Firing,
            AlertStatus::Inactive | AlertStatus::Pending => false,
        }
    }
}

/// A notification waiting on `NOTIFY`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    /// What to tell.
    pub transition: Transition,
    /// Where to.
    pub channel: Channel,
    /// The transition in words.
    pub message: String,
}
