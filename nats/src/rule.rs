//! Alert rules: the values of the `RULES` bucket, as JSON.

use std::{collections::BTreeMap, time::Duration};

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::Name;

/// Longest window or `for` of a rule.
pub const MAX_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// A threshold rule: the aggregate of a field over a sliding window, compared with a threshold.
///
/// A window is `(t - window, t]` in event time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The rule's id; also its key in `RULES`.
    pub name: Name,
    /// What it means, for the reader of a notification.
    #[serde(default)]
    pub description: String,
    /// Hosts that it watches, as a glob such as `web-*`; default all.
    #[serde(default = "all_hosts")]
    pub hosts: String,
    /// The measurement to watch.
    pub measurement: Name,
    /// The field to watch.
    pub field: Name,
    /// Only series whose tags have these values; default all series.
    #[serde(default)]
    pub tags: BTreeMap<Name, String>,
    /// How a window becomes one number; default `last`.
    #[serde(default)]
    pub aggregate: Aggregate,
    /// Length of the window, such as `5m`; default `1m`.
    #[serde(default = "one_minute", with = "humantime_serde")]
    pub window: Duration,
    /// How the number is compared with the threshold.
    pub compare: Comparison,
    /// What the number is compared with, in the field's unit.
    pub threshold: f64,
    /// How long the comparison must hold before the alert fires; default 0.
    #[serde(default, rename = "for", with = "humantime_serde")]
    pub hold: Duration,
    /// How long a series may be silent before its state is no-data; default `1m`.
    #[serde(default = "one_minute", with = "humantime_serde")]
    pub no_data_after: Duration,
    /// How grave it is; default `warning`.
    #[serde(default)]
    pub severity: Severity,
    /// Where transitions are sent.
    #[serde(default)]
    pub notify: Vec<Channel>,
    /// Whether the rule is evaluated; default true.
    #[serde(default = "enabled")]
    pub enabled: bool,
}

/// How a window becomes one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregate {
    /// The newest value.
    #[default]
    Last,
    /// The mean.
    Avg,
    /// The smallest value.
    Min,
    /// The largest value.
    Max,
}

/// How the aggregate is compared with the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Comparison {
    /// Above the threshold.
    #[serde(rename = ">")]
    Above,
    /// At the threshold or above.
    #[serde(rename = ">=")]
    AtLeast,
    /// Below the threshold.
    #[serde(rename = "<")]
    Below,
    /// At the threshold or below.
    #[serde(rename = "<=")]
    AtMost,
}

impl Comparison {
    /// Whether `value` compares so with `threshold`.
    #[must_use]
    pub fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::Above => value > threshold,
            Self::AtLeast => value >= threshold,
            Self::Below => value < threshold,
            Self::AtMost => value <= threshold,
        }
    }
}

/// How grave an alert is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look.
    #[default]
    Warning,
    /// Somebody must act.
    Critical,
}

/// Where a notification goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Channel {
    /// An HTTP POST of the transition as JSON.
    Webhook {
        /// The `http://` or `https://` address.
        url: String,
    },
}

/// Why a rule cannot be accepted; `field` names the key of the JSON document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("`{field}`: {expected}")]
pub struct RuleError {
    /// The offending key.
    pub field: &'static str,
    /// What was expected.
    pub expected: String,
}

impl Rule {
    /// Checks what the types don't: returns every problem found.
    pub fn validate(&self) -> Result<(), Vec<RuleError>> {
        let mut errors = Vec::new();
        let mut fail = |field, expected: String| errors.push(RuleError { field, expected });
        if let Err(error) = Glob::new(&self.hosts) {
            fail("hosts", format!("expected a glob such as `web-*`: {}", error.kind()));
        }
        if self.window.is_zero() || self.window > MAX_WINDOW {
            fail("window", "expected a duration above 0 and up to 24h, such as `5m`".to_owned());
        }
        if self.hold > MAX_WINDOW {
            fail("for", "expected a duration up to 24h, such as `30s`".to_owned());
        }
        if self.no_data_after.is_zero() || self.no_data_after > MAX_WINDOW {
            fail("no_data_after", "expected a duration above 0 and up to 24h, such as `1m`".to_owned());
        }
        if !self.threshold.is_finite() {
            fail("threshold", "expected a finite number".to_owned());
        }
        for Channel::Webhook { url } in &self.notify {
            if !(url.starts_with("http://") || url.starts_with("https://")) {
                fail("notify", "expected a webhook `url` that begins with `http://` or `https://`".to_owned());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// The matcher of the hosts; none when the glob is invalid.
    #[must_use]
    pub fn host_matcher(&self) -> Option<GlobMatcher> {
        Glob::new(&self.hosts).ok().map(|glob| glob.compile_matcher())
    }
}

fn all_hosts() -> String {
    "*".to_owned()
}

fn one_minute() -> Duration {
    Duration::from_secs(60)
}

fn enabled() -> bool {
    true
}
