//! Alert rules: the values of the `RULES` bucket, as JSON.

use std::{collections::BTreeMap, time::Duration};

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::Name;

/// Longest glob of hosts in bytes.
pub const MAX_GLOB_BYTES: usize = 256;
/// Longest description in bytes: every transition of every series carries it.
pub const MAX_DESCRIPTION_BYTES: usize = 1024;
/// Most tags that a rule selects by.
pub const MAX_TAGS: usize = 32;
/// Most channels that a rule notifies.
pub const MAX_CHANNELS: usize = 16;
/// Longest address of a channel in bytes.
pub const MAX_URL_BYTES: usize = 2048;

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
        if self.hosts.len() > MAX_GLOB_BYTES || self.host_matcher().is_none() {
            fail("hosts", format!("expected a glob of up to {MAX_GLOB_BYTES} bytes, such as `web-*`"));
        }
        if self.description.len() > MAX_DESCRIPTION_BYTES {
            fail("description", format!("expected up to {MAX_DESCRIPTION_BYTES} bytes"));
        }
        if self.tags.len() > MAX_TAGS || self.tags.values().any(|value| value.len() > crate::batch::MAX_TAG_BYTES) {
            let limit = crate::batch::MAX_TAG_BYTES;
            fail("tags", format!("expected up to {MAX_TAGS} tags with values of up to {limit} bytes"));
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
        if self.notify.len() > MAX_CHANNELS {
            fail("notify", format!("expected up to {MAX_CHANNELS} channels"));
        }
        for Channel::Webhook { url } in &self.notify {
            let web = url.starts_with("http://") || url.starts_with("https://");
            if !web || url.len() > MAX_URL_BYTES {
                let text = "expected a webhook `url` that begins with `http://` or `https://`";
                fail("notify", format!("{text}, of up to {MAX_URL_BYTES} bytes"));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// The matcher of the hosts; none when the glob is invalid or too deep to be compiled.
    #[must_use]
    pub fn host_matcher(&self) -> Option<GlobSet> {
        // A set reports what a single matcher panics at.
        GlobSetBuilder::new().add(Glob::new(&self.hosts).ok()?).build().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(changes: serde_json::Value) -> Rule {
        let mut rule = serde_json::json!({
            "name": "busy", "measurement": "cpu", "field": "usage_percent", "compare": ">", "threshold": 90,
        });
        let changes = changes.as_object().expect("an object").clone();
        rule.as_object_mut().expect("an object").extend(changes);
        serde_json::from_value(rule).expect("a rule")
    }

    fn wrong(changes: serde_json::Value) -> Vec<&'static str> {
        rule(changes).validate().err().unwrap_or_default().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_rule_has_defaults() {
        let rule = rule(serde_json::json!({}));
        assert!(rule.validate().is_ok() && rule.host_matcher().expect("a matcher").is_match("any"));
        assert_eq!(
            (rule.window, rule.hold, rule.aggregate),
            (Duration::from_secs(60), Duration::ZERO, Aggregate::Last)
        );
    }

    #[test]
    fn every_problem_is_found() {
        let webhook = |url: String| serde_json::json!({"type": "webhook", "url": url});
        let changes = serde_json::json!({
            "hosts": "[", "description": "x".repeat(1025), "tags": {"a": "x".repeat(1025)}, "window": "0s", "for": "2d",
            "no_data_after": "0s", "notify": vec![webhook("ftp://x".to_owned())],
        });
        assert_eq!(wrong(changes), ["hosts", "description", "tags", "window", "for", "no_data_after", "notify"]);
        assert_eq!(wrong(serde_json::json!({"notify": vec![webhook("http://x".to_owned()); 17]})), ["notify"]);
        assert_eq!(wrong(serde_json::json!({"notify": [webhook(format!("http://{}", "x".repeat(2048)))]})), ["notify"]);
    }

    #[test]
    fn a_glob_too_deep_to_compile_is_refused_without_panic() {
        let nested = format!("{}web{}", "{".repeat(120), "}".repeat(120));
        for hosts in [nested, format!("{}web{}", "{".repeat(300), "}".repeat(300)), "[".repeat(200), "*".repeat(60_000)]
        {
            let rule = rule(serde_json::json!({"hosts": hosts}));
            assert!(rule.validate().is_err() || rule.host_matcher().is_some());
        }
        assert_eq!(
            wrong(serde_json::json!({"hosts": format!("{}web{}", "{".repeat(300), "}".repeat(300))})),
            ["hosts"]
        );
    }
}
