//! How long rows are kept, by tier; a section of the configuration of whoever maintains the lake.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_nats::Name;
use serde::{Deserialize, Deserializer, de::Error};

use super::{Tier, is_reserved};

const DAY: Duration = Duration::from_secs(86_400);

/// How long rows are kept; none is for ever. Written as `7d`, `2y` or `forever`; `0s` is for ever, too.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Samples; default 7 days. Deleted by whole days.
    #[serde(deserialize_with = "span")]
    pub raw: Option<Duration>,
    /// Summaries of minutes; default 90 days. Deleted by whole days.
    #[serde(deserialize_with = "span")]
    pub minute: Option<Duration>,
    /// Summaries of hours; default 730 days. Deleted by whole months.
    #[serde(deserialize_with = "span")]
    pub hour: Option<Duration>,
    /// What holds for single measurements instead.
    pub measurements: BTreeMap<Name, TierRetention>,
}

/// How long the rows of one measurement are kept; a tier that is not named as the others are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TierRetention {
    /// Samples.
    #[serde(deserialize_with = "own_span")]
    pub raw: Option<Option<Duration>>,
    /// Summaries of minutes.
    #[serde(deserialize_with = "own_span")]
    pub minute: Option<Option<Duration>>,
    /// Summaries of hours.
    #[serde(deserialize_with = "own_span")]
    pub hour: Option<Option<Duration>>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { raw: Some(7 * DAY), minute: Some(90 * DAY), hour: Some(730 * DAY), measurements: BTreeMap::new() }
    }
}

impl Retention {
    /// How long a measurement's rows of a tier are kept; none is for ever.
    #[must_use]
    pub fn of(&self, measurement: &str, tier: Tier) -> Option<Duration> {
        let own = self.measurements.get(measurement);
        let (own, general) = match tier {
            Tier::Raw => (own.and_then(|own| own.raw), self.raw),
            Tier::Minute => (own.and_then(|own| own.minute), self.minute),
            Tier::Hour => (own.and_then(|own| own.hour), self.hour),
        };
        own.unwrap_or(general)
    }

    /// Every problem that the types don't show; `section` is where these settings stand, such as `maintenance.retention`.
    #[must_use]
    pub fn problems(&self, section: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |key: String, kept: Option<Duration>| {
            if kept.is_some_and(|kept| kept < DAY) {
                problems.push(format!("`{key}`: expected at least `1d`, or `forever`: rows are deleted by whole days"));
            }
        };
        for (tier, kept) in [("raw", self.raw), ("minute", self.minute), ("hour", self.hour)] {
            check(format!("{section}.{tier}"), kept);
        }
        for (measurement, own) in &self.measurements {
            for (tier, kept) in [("raw", own.raw), ("minute", own.minute), ("hour", own.hour)] {
                check(format!("{section}.measurements.{measurement}.{tier}"), kept.flatten());
            }
        }
        let reserved = self.measurements.keys().filter(|name| is_reserved(name));
        problems.extend(reserved.map(|name| {
            format!(
                "`{section}.measurements.{name}`: expected a measurement; its rollups are told by `minute` and `hour`"
            )
        }));
        problems
    }
}

fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "forever" {
        return Ok(None);
    }
    let span = humantime_serde::re::humantime::parse_duration(&text)
        .map_err(|error| D::Error::custom(format!("expected a span such as `7d`, or `forever`: {error}")))?;
    Ok((!span.is_zero()).then_some(span))
}

fn own_span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Duration>>, D::Error> {
    span(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Retention, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn what_is_not_named_is_as_it_is_by_default() {
        let retention =
            parse(r#"{"raw": "30d", "hour": "forever", "measurements": {"cpu": {"raw": "0s", "minute": "2d"}}}"#);
        let retention = retention.expect("is valid");
        assert_eq!(retention.problems("r"), [""; 0]);
        let of =
            |measurement| Tier::ALL.map(|tier| retention.of(measurement, tier).map(|kept| kept.as_secs() / 86_400));
        assert_eq!(of("memory"), [Some(30), Some(90), None]);
        assert_eq!(of("cpu"), [None, Some(2), None]);
        assert_eq!(parse("{}").expect("is valid"), Retention::default());
    }

    #[test]
    fn every_problem_is_told_with_its_key() {
        let retention = parse(r#"{"raw": "1h", "measurements": {"cpu_1m": {"hour": "5s"}}}"#).expect("parses");
        let problems = retention.problems("maintenance.retention").join("\n");
        for key in
            ["`maintenance.retention.raw`", "retention.measurements.cpu_1m.hour`", "retention.measurements.cpu_1m`"]
        {
            assert!(problems.contains(key), "{problems}");
        }
        for (json, message) in [
            (r#"{"raw": "a week"}"#, "such as `7d`"),
            (r#"{"raw": 7}"#, "expected a string"),
            (r#"{"day": "7d"}"#, "unknown field"),
            (r#"{"measurements": {"CPU": {}}}"#, "CPU"),
        ] {
            let error = parse(json).expect_err("is refused").to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
