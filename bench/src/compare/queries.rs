//! The five questions, in SQL and in PromQL, and their answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{WEEK_PREFIX, dataset::Dataset};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// Differences that come of rounding: VictoriaMetrics keeps some 14 digits.
const TOLERANCE: f64 = 1e-9;

/// What a query yields: values by what tells them apart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer(pub(super) BTreeMap<String, f64>);

impl Answer {
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

/// A question.
#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) name: &'static str,
    pub(super) promql: Promql,
    /// Its first column is the key, where there is one beside values.
    pub(super) sql: String,
    /// How many values the answer has.
    pub(super) values: Option<usize>,
}

/// The questions: of one host's week, and of a fleet's day after it.
pub(super) fn queries(week: &Dataset, fleet: &Dataset) -> Vec<Query> {
    let time = |ms: i64| format!("epoch_ms({ms}::BIGINT)::TIMESTAMP_MS");
    let within = |from: i64, to: i64| format!("ts >= {} AND ts < {}", time(from), time(to));
    let (start, noon, end) = (week.start_ms(), week.end_ms(), fleet.end_ms());
    let host = format!("{WEEK_PREFIX}00000");
    let one_host = format!("host = '{host}' AND core = 'total'");
    let at = |text: &str, from_ms: Option<i64>, at_ms: i64, keys: Keys| {
        // A range of PromQL contains its end and not its start, one of SQL here the other way round.
        Promql { text: text.to_owned(), from_ms: from_ms.map(|ms| ms - 1), at_ms: at_ms - 1, keys }
    };
    let minutes = Some(fleet.start_ms() + MINUTE_MS);
    let minute = format!("epoch_ms(date_trunc('minute', ts)) + {MINUTE_MS}");
    let day = within(fleet.start_ms(), end);
    let seconds = usize::try_from((noon - start) / 1000).unwrap_or(0);
    let fields: Vec<String> = CPU_FIELDS.iter().map(|field| format!("{field}_percent")).collect();
    let length = format!("{}s", (noon - start) / 1000);
    vec![
        Query {
            name: "one host's 7-day p95 at 1 s",
            promql: at(
                &format!("quantile_over_time(0.95, cpu_usage_percent{{host=\"{host}\",core=\"total\"}}[{length}])"),
                None,
                noon,
                Keys::One,
            ),
            sql: format!(
                "SELECT quantile_cont(usage_percent, 0.95) FROM lake.cpu WHERE {one_host} AND {}",
                within(start, noon)
            ),
            values: Some(1),
        },
        Query {
            name: "last hour of one host at 1 s, 10 fields",
            promql: at(
                &format!("{{__name__=~\"cpu_.+_percent\",host=\"{host}\",core=\"total\"}}[1h]"),
                None,
                noon,
                Keys::Sample,
            ),
            sql: format!(
                "SELECT epoch_ms(ts) AS time, {} FROM lake.cpu WHERE {one_host} AND {} ORDER BY ts",
                fields.join(", "),
                within(noon - HOUR_MS, noon)
            ),
            values: Some(CPU_FIELDS.len() * seconds.min(3600)),
        },
        Query {
            name: "per-minute average over the fleet, 24 h",
            promql: at("avg(avg_over_time(cpu_usage_percent{core=\"total\"}[1m]))", minutes, end, Keys::Minute),
            sql: format!(
                "SELECT {minute} AS minute, avg(usage_percent) FROM lake.cpu WHERE core = 'total' AND {day} GROUP BY 1"
            ),
            values: usize::try_from((end - fleet.start_ms()) / MINUTE_MS).ok(),
        },
        Query {
            name: "top 10 hosts by memory now",
            promql: at("topk(10, memory_used_percent)", None, end, Keys::Host),
            sql: format!(
                "SELECT host, arg_max(used_percent, ts) AS used FROM lake.memory WHERE {} GROUP BY host ORDER BY used DESC LIMIT 10",
                within(end - 5 * MINUTE_MS, end)
            ),
            values: Some(fleet.fleet.hosts.min(10)),
        },
        Query {
            name: "hosts over 90 % CPU by minute, 24 h",
            promql: at("count(avg_over_time(cpu_usage_percent{core=\"total\"}[1m]) > 90)", minutes, end, Keys::Minute),
            sql: format!(
                "SELECT minute, count(*)::DOUBLE FROM (SELECT {minute} AS minute FROM lake.cpu WHERE core = 'total' AND {day} \
                 GROUP BY minute, host HAVING avg(usage_percent) > 90) GROUP BY minute"
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

    /// The values of rows that SQL has yielded: a key, where there is one, and values by their columns.
    pub(super) fn answer_of_rows(&self, columns: &[String], rows: &[(String, Vec<Option<f64>>)]) -> Answer {
        let mut answer = Answer::default();
        for (key, values) in rows {
            for (column, value) in columns.iter().zip(values) {
                let Some(value) = value else { continue };
                let key = if self.keys == Keys::Sample { format!("{column} {key}") } else { key.clone() };
                answer.0.insert(key, *value);
            }
        }
        answer
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

    #[test]
    fn rows_and_responses_of_the_same_content_are_the_same_answer() {
        let minutes = json!({"result": [{"metric": {}, "values": [[59.999, "1.5"], [119.999, "2"]]}]});
        let rows = [("60000".to_owned(), vec![Some(1.5)]), ("120000".to_owned(), vec![Some(2.0)])];
        let by_minute = promql(Keys::Minute);
        assert_eq!(by_minute.answer(&minutes), by_minute.answer_of_rows(&["avg".to_owned()], &rows));

        let samples = json!({"result": [
            {"metric": {"__name__": "cpu_user_percent"}, "values": [[1, "7"]]},
            {"metric": {"__name__": "cpu_idle_percent"}, "values": [[1, "8"], [2, "9"]]},
        ]});
        let columns = ["idle_percent".to_owned(), "user_percent".to_owned()];
        let rows = [("1000".to_owned(), vec![Some(8.0), Some(7.0)]), ("2000".to_owned(), vec![Some(9.0), None])];
        let by_sample = promql(Keys::Sample);
        assert_eq!(by_sample.answer(&samples), by_sample.answer_of_rows(&columns, &rows));

        let hosts = json!({"result": [{"metric": {"host": "a"}, "value": [1, "3"]}]});
        assert_eq!(promql(Keys::Host).answer(&hosts), answer(&[("a", 3.0)]));
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
