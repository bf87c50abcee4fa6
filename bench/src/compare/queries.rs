//! The five questions, as Plimsoll's API and as PromQL, and their answers.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{WEEK_PREFIX, dataset::Dataset};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// Differences that come of rounding: VictoriaMetrics keeps some 14 digits.
const TOLERANCE: f64 = 1e-9;

/// What a query yields: values by what tells them apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Answer(pub(super) BTreeMap<String, f64>);

impl Answer {
    fn insert(&mut self, key: String, value: &Value) {
        if let Some(value) = value.as_f64() {
            self.0.insert(key, value);
        }
    }

    /// In what this answer differs from another one; none where both say the same.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        if self.0.len() != other.0.len() {
            return Some(format!("{} values, the other {}", self.0.len(), other.0.len()));
        }
        self.0.iter().find_map(|(key, value)| match other.0.get(key) {
            None => Some(format!("the other has no `{key}`")),
            Some(other) if (value - other).abs() > TOLERANCE * value.abs().max(1.0) => {
                Some(format!("`{key}` is {value}, the other {other}"))
            }
            Some(_) => None,
        })
    }
}

/// What tells the values of an answer apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// There is one value.
    One,
    /// The host.
    Host,
    /// The end of the minute.
    Minute,
    /// The metric, and the time of the sample.
    Sample,
}

/// A query for stores that speak PromQL.
#[derive(Debug, Clone)]
pub(super) struct Promql {
    pub(super) text: String,
    /// First of the times at which it is evaluated, each minute up to `at_ms`; none where `at_ms` is the only one.
    pub(super) from_ms: Option<i64>,
    pub(super) at_ms: i64,
    keys: Keys,
}

/// A request to Plimsoll.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) path: String,
    pub(super) parameters: Vec<(&'static str, String)>,
    keys: Keys,
}

/// A question.
#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) name: &'static str,
    pub(super) promql: Promql,
    pub(super) api: Api,
    /// How many values the answer has.
    pub(super) values: Option<usize>,
}

/// The questions: of one host's week, and of a fleet's day after it.
pub(super) fn queries(week: &Dataset, fleet: &Dataset) -> Vec<Query> {
    let (start, noon, end) = (week.start_ms(), week.end_ms(), fleet.end_ms());
    let host = format!("{WEEK_PREFIX}00000");
    let promql = |text: String, from_ms: Option<i64>, at_ms: i64, keys: Keys| {
        // A range of PromQL contains its end and not its start, one of Plimsoll's the other way round.
        Promql { text, from_ms: from_ms.map(|ms| ms - 1), at_ms: at_ms - 1, keys }
    };
    let api = |path: &str, (from, to): (i64, i64), keys: Keys, parameters: &[(&'static str, &str)]| {
        let given = parameters.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let times = [("from", from.to_string()), ("to", to.to_string())];
        Api { path: path.to_owned(), parameters: given.chain(times).collect(), keys }
    };
    let (minutes, day) = (Some(fleet.start_ms() + MINUTE_MS), (fleet.start_ms(), end));
    let seconds = (noon - start) / 1000;
    let fields: Vec<String> = CPU_FIELDS.iter().map(|field| format!("{field}_percent")).collect();
    let usage = ("field", "usage_percent");
    vec![
        Query {
            name: "one host's 7-day p95 at 1 s",
            promql: promql(
                format!("quantile_over_time(0.95, cpu_usage_percent{{host=\"{host}\",core=\"total\"}}[{seconds}s])"),
                None,
                noon,
                Keys::One,
            ),
            api: api(
                "/api/fleet/cpu",
                (start, noon),
                Keys::One,
                &[("hosts", &host), usage, ("agg", "p95"), ("tier", "raw"), ("tag.core", "total")],
            ),
            values: Some(1),
        },
        Query {
            name: "last hour of one host at 1 s, 10 fields",
            promql: promql(
                format!("{{__name__=~\"cpu_.+_percent\",host=\"{host}\",core=\"total\"}}[1h]"),
                None,
                noon,
                Keys::Sample,
            ),
            api: api(
                &format!("/api/metrics/{host}"),
                (noon - HOUR_MS, noon),
                Keys::Sample,
                &[("measurement", "cpu"), ("field", &fields.join(",")), ("tag.core", "total")],
            ),
            values: Some(CPU_FIELDS.len() * usize::try_from(seconds.min(3600)).unwrap_or(0)),
        },
        Query {
            name: "per-minute average over the fleet, 24 h",
            promql: promql(
                "avg(avg_over_time(cpu_usage_percent{core=\"total\"}[1m]))".to_owned(),
                minutes,
                end,
                Keys::Minute,
            ),
            api: api(
                "/api/fleet/cpu",
                day,
                Keys::Minute,
                &[usage, ("agg", "avg"), ("step", "1m"), ("tag.core", "total")],
            ),
            values: usize::try_from((end - fleet.start_ms()) / MINUTE_MS).ok(),
        },
        Query {
            name: "top 10 hosts by memory now",
            promql: promql("topk(10, memory_used_percent)".to_owned(), None, end, Keys::Host),
            api: api(
                "/api/fleet/memory",
                (end - 5 * MINUTE_MS, end),
                Keys::Host,
                &[("field", "used_percent"), ("agg", "last"), ("by", "host"), ("top", "10")],
            ),
            values: Some(fleet.fleet.hosts.min(10)),
        },
        Query {
            name: "hosts over 90 % CPU by minute, 24 h",
            promql: promql(
                "count(avg_over_time(cpu_usage_percent{core=\"total\"}[1m]) > 90)".to_owned(),
                minutes,
                end,
                Keys::Minute,
            ),
            api: api(
                "/api/fleet/cpu",
                day,
                Keys::Minute,
                &[usage, ("agg", "avg"), ("by", "host"), ("above", "90"), ("step", "1m"), ("tag.core", "total")],
            ),
            values: None,
        },
    ]
}

/// The fields of `cpu` in percent, in order of their names.
const CPU_FIELDS: [&str; 10] =
    ["guest", "idle", "iowait", "irq", "nice", "softirq", "steal", "system", "usage", "user"];

impl Promql {
    /// The values of a response's `data`.
    pub(super) fn answer(&self, data: &Value) -> Answer {
        let mut answer = Answer::default();
        for series in data["result"].as_array().into_iter().flatten() {
            let label = |name: &str| series["metric"][name].as_str().unwrap_or_default().to_owned();
            let samples = series["values"].as_array().into_iter().flatten().chain(series.get("value"));
            for sample in samples {
                let ms = (sample[0].as_f64().unwrap_or_default() * 1000.0).round() as i64;
                let Some(value) = sample[1].as_str().and_then(|value| value.parse().ok()) else { continue };
                let key = match self.keys {
                    Keys::One => String::new(),
                    Keys::Host => label("host"),
                    Keys::Minute => (ms + 1).to_string(),
                    Keys::Sample => format!("{} {ms}", label("__name__").trim_start_matches("cpu_")),
                };
                answer.0.insert(key, value);
            }
        }
        answer
    }
}

impl Api {
    /// The values of a response.
    pub(super) fn answer(&self, response: &Value) -> Answer {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut answer = Answer::default();
        // How many groups are beyond a threshold stands outside of groups, and none is what PromQL does not say.
        for point in list(&response["points"]).iter().filter(|point| point[1] != 0) {
            answer.insert(self.key(&Value::Null, point), &point[1]);
        }
        for group in list(&response["groups"]).iter().chain(&list(&response["series"])) {
            for point in list(&group["points"]) {
                answer.insert(self.key(group, &point), &point[1]);
            }
        }
        answer
    }

    fn key(&self, group: &Value, point: &Value) -> String {
        let ms = point[0].as_i64().unwrap_or_default();
        let text = |name: &str| group[name].as_str().unwrap_or_default().to_owned();
        match self.keys {
            Keys::One => String::new(),
            Keys::Host => text("host"),
            Keys::Minute => (ms + MINUTE_MS).to_string(),
            Keys::Sample => format!("{} {ms}", text("field")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn promql(keys: Keys) -> Promql {
        Promql { text: String::new(), from_ms: None, at_ms: 0, keys }
    }

    fn answer(values: &[(&str, f64)]) -> Answer {
        Answer(values.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect())
    }

    fn api(keys: Keys) -> Api {
        Api { path: String::new(), parameters: Vec::new(), keys }
    }

    #[test]
    fn answers_of_the_same_content_are_the_same() {
        let minutes = json!({"result": [{"metric": {}, "values": [[59.999, "1.5"], [119.999, "2"]]}]});
        let averages = json!({"groups": [{"tags": {}, "points": [[0, 1.5], [60_000, 2.0]]}]});
        let counts = json!({"points": [[0, 1.5, 7], [60_000, 2, 7], [120_000, 0, 7]]});
        let by_minute = promql(Keys::Minute).answer(&minutes);
        assert_eq!(by_minute, answer(&[("60000", 1.5), ("120000", 2.0)]));
        assert_eq!(by_minute, api(Keys::Minute).answer(&averages));
        assert_eq!(by_minute, api(Keys::Minute).answer(&counts));

        let samples = json!({"result": [
            {"metric": {"__name__": "cpu_user_percent"}, "values": [[1, "7"]]},
            {"metric": {"__name__": "cpu_idle_percent"}, "values": [[1, "8"], [2, "9"]]},
        ]});
        let series = json!({"series": [
            {"field": "idle_percent", "points": [[1000, 8], [2000, 9]]},
            {"field": "user_percent", "points": [[1000, 7]]},
        ]});
        let by_sample = promql(Keys::Sample).answer(&samples);
        assert_eq!(by_sample.0.len(), 3);
        assert_eq!(by_sample, api(Keys::Sample).answer(&series));

        let hosts = json!({"result": [{"metric": {"host": "a"}, "value": [1, "3"]}]});
        let groups = json!({"groups": [{"host": "a", "points": [[5, 3.0]]}]});
        assert_eq!(promql(Keys::Host).answer(&hosts), answer(&[("a", 3.0)]));
        assert_eq!(api(Keys::Host).answer(&groups), answer(&[("a", 3.0)]));
        assert_eq!(api(Keys::One).answer(&groups), answer(&[("", 3.0)]));
    }

    #[test]
    fn a_missing_other_or_more_value_is_a_difference_and_rounding_is_none() {
        let first = answer(&[("a", 1.0), ("b", 1e12)]);
        assert_eq!(first.difference(&answer(&[("a", 1.0 + 1e-12), ("b", 1e12 + 1.0)])), None);
        for other in [
            &[("a", 1.0)][..],
            &[("a", 1.0), ("c", 1e12)],
            &[("a", 1.001), ("b", 1e12)],
            &[("a", 1.0), ("b", 1e12), ("c", 0.0)],
        ] {
            assert!(first.difference(&answer(other)).is_some(), "{other:?}");
        }
    }
}
