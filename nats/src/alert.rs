//! Alert states and transitions: the messages of `ALERTS` and the values of `ALERT_STATE`, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{HostId, Name, rule::{Channel, Severity}};

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

/// One series that a rule watches: a host and a tag set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeriesKey {
    /// The host.
    pub host: HostId,
    /// All tags of the series.
    pub tags: BTreeMap<Name, String>,
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
}

/// A notification waiting on `NOTIFY`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    /// What to tell.
    pub transition: Transition,
    /// Where to.
    pub channel: Channel,
}
