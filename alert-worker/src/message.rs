//! Notifications in words.

use std::time::Duration;

use humantime_serde::re::humantime::format_duration;
use plimsoll_nats::{
    alert::{AlertStatus, SeriesKey, Transition},
    rule::{Aggregate, Comparison, Rule},
};

/// A transition in one line for people, such as
/// `cpu_high is firing on web-1 {core=total}: usage_percent avg over 1m is 97.2, above 90`.
#[must_use]
pub fn message(transition: &Transition, rule: &Rule) -> String {
    let Transition { rule: name, field, to, from, .. } = transition;
    let series = series(&transition.series);
    match (to, transition.value) {
        (AlertStatus::Resolved, None) => {
            format!(
                "{name} is resolved on {series}: the rule was removed or no longer watches {field} there, it was {from}"
            )
        }
        (AlertStatus::NoData, _) | (_, None) => {
            let silence = format_duration(rule.no_data_after);
            format!("{name} has no data from {series}: {field} silent for more than {silence}, it was {from}")
        }
        (_, Some(value)) => {
            let negation = if rule.compare.holds(value, transition.threshold) { "" } else { "not " };
            let (aggregate, value) = (aggregate(rule.aggregate, rule.window), number(value));
            let (compare, threshold) = (comparison(rule.compare), transition.threshold);
            format!("{name} is {to} on {series}: {field}{aggregate} is {value}, {negation}{compare} {threshold}")
        }
    }
}

fn series(series: &SeriesKey) -> String {
    if series.tags.is_empty() {
        return series.host.to_string();
    }
    let tags: Vec<String> = series.tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{} {{{}}}", series.host, tags.join(","))
}

fn aggregate(aggregate: Aggregate, window: Duration) -> String {
    let name = match aggregate {
        Aggregate::Last => return String::new(),
        Aggregate::Avg => "avg",
        Aggregate::Min => "min",
        Aggregate::Max => "max",
    };
    format!(" {name} over {}", format_duration(window))
}

fn comparison(compare: Comparison) -> &'static str {
    match compare {
        Comparison::Above => "above",
        Comparison::AtLeast => "at least",
        Comparison::Below => "below",
        Comparison::AtMost => "at most",
    }
}

/// A number with about five significant digits, and all digits before the point.
fn number(value: f64) -> String {
    const DIGITS: i32 = 5;
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let before_point = value.abs().log10().floor().clamp(-300.0, 300.0) as i32 + 1;
    let decimals = usize::try_from((DIGITS - before_point).clamp(0, 15)).unwrap_or(0);
    let text = format!("{value:.decimals$}");
    if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let text: Vec<String> =
            [0.0, 97.2, 97.0, 2.0 / 3.0, 123_456.789, 1e9, -0.001_234_567, 99.999_99].map(number).to_vec();
        assert_eq!(text, ["0", "97.2", "97", "0.66667", "123457", "1000000000", "-0.0012346", "100"]);
    }
}
