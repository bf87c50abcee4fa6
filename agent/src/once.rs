//! One sample of this host, for people to look at.

use std::{thread::sleep, time::Duration};

use plimsoll_nats::dead::chain;
use serde_json::{Map, Value, json};

use crate::{
    collectors::{CollectorKind, KINDS},
    config::AgentConfig,
    context::Context,
    reading::{LIMIT, Measured, Reader, Reading, ReadingError},
    rows::Columns,
};

/// How long the rates of the sample are measured.
pub const RATE_TIME: Duration = Duration::from_secs(1);

/// A collector that this build does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no collector `{name}`: expected {}", names().join(", "))]
pub struct UnknownCollector {
    /// The name given.
    pub name: String,
}

/// The names of all collectors.
#[must_use]
pub fn names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

/// Finds collectors by name, also such as are switched off; all that are switched on when none is named. Fails on the first
/// unknown name.
pub fn select(names: &[String], config: &AgentConfig) -> Result<Vec<CollectorKind>, UnknownCollector> {
    if names.is_empty() {
        return Ok(KINDS.iter().filter(|kind| config.interval_of(kind).is_some()).copied().collect());
    }
    let find = |name: &String| {
        KINDS.iter().find(|kind| kind.name == name).copied().ok_or_else(|| UnknownCollector { name: name.clone() })
    };
    names.iter().map(find).collect()
}

/// Reads each collector twice, a second apart, and returns what it tells now: by measurement, a list of
/// `{"ts": <Unix ms>, "tags": {…}, "fields": {…}}`. A collector that fails or hangs is logged and has empty lists.
#[must_use]
pub fn sample(kinds: &[CollectorKind], context: &Context) -> Value {
    let mut measurements = Map::new();
    for (kind, reading) in readings(kinds, context, LIMIT) {
        measurements.extend(kind.measurements.iter().map(|name| ((*name).to_owned(), Value::Array(Vec::new()))));
        match reading {
            Ok(reading) => measurements.extend(rows(&reading)),
            Err(error) => tracing::error!(collector = kind.name, error = %chain(&error), "collector fails"),
        }
    }
    measurements.into()
}

/// Reads each collector twice, [`RATE_TIME`] apart and one after the other, waiting for each at most `limit`. Returns the second
/// readings, with what only the first ones tell.
pub(crate) fn readings(
    kinds: &[CollectorKind],
    context: &Context,
    limit: Duration,
) -> Vec<(CollectorKind, Result<Reading, ReadingError>)> {
    let mut readers: Vec<_> = kinds.iter().map(|kind| (*kind, Reader::open(*kind, context), None)).collect();
    for (_, reader, first) in &mut readers {
        // Whatever fails here fails again below, and is reported there.
        *first = reader.as_mut().ok().and_then(|reader| reader.read(limit).ok());
    }
    sleep(RATE_TIME);
    let second = |(kind, reader, first): (CollectorKind, Result<Reader, ReadingError>, Option<Reading>)| {
        let mut reading = reader.and_then(|mut reader| reader.read(limit));
        if let (Ok(reading), Some(first)) = (&mut reading, first) {
            reading.fill_from(&first);
        }
        (kind, reading)
    };
    readers.into_iter().map(second).collect()
}

fn rows(reading: &Reading) -> impl Iterator<Item = (String, Value)> {
    reading.measured.iter().map(|Measured { measurement, time_ms, rows, columns }| {
        (measurement.to_string(), (0..*rows).map(|row| json_row(*time_ms, columns, row)).collect())
    })
}

fn json_row(ts: i64, columns: &Columns, row: usize) -> Value {
    let tags: Map<String, Value> =
        columns.tags.iter().map(|(name, values)| (name.to_string(), values[row].clone().into())).collect();
    let fields: Map<String, Value> =
        columns.fields.iter().map(|(name, column)| (name.to_string(), column.json(row))).collect();
    json!({ "ts": ts, "tags": tags, "fields": fields })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::testing::{FAILS, HANGS, PANICS, ROWS_ONCE, SILENT, VALUE_ONCE};

    #[cfg(target_os = "linux")]
    #[test]
    fn a_sample_has_a_list_of_rows_by_measurement() {
        let kinds = select(&["cpu".to_owned(), "load".to_owned()], &AgentConfig::default()).unwrap();
        let sample = sample(&kinds, &Context::default());
        assert_eq!(sample.as_object().unwrap().len(), 2);
        let total = &sample["cpu"][0];
        assert_eq!(total["tags"]["core"], "total");
        assert!(total["ts"].is_i64() && total["fields"]["usage_percent"].is_f64());
        assert_eq!(sample["load"][0]["tags"], json!({}));
    }

    #[test]
    fn bad_collectors_leave_the_others_their_rows() {
        let readings = readings(&[HANGS, PANICS, FAILS, SILENT], &Context::default(), Duration::from_millis(50));
        let works: Vec<(&str, bool)> = readings.iter().map(|(kind, reading)| (kind.name, reading.is_ok())).collect();
        assert_eq!(works, [("cpu", false), ("memory", false), ("load", false), ("wifi", true)]);
    }

    #[test]
    fn what_is_told_once_is_not_missed() {
        let temperatures = |kind| {
            let sample = sample(&[kind], &Context::default());
            let rows = sample["temperature"].as_array().unwrap().iter();
            rows.map(|row| json!([row["tags"]["sensor"], row["fields"]])).collect::<Vec<_>>()
        };
        let fields =
            |celsius: f64, critical: f64| json!({ "temperature_celsius": celsius, "critical_celsius": critical });
        assert_eq!(temperatures(VALUE_ONCE), [json!(["a", fields(50.0, 90.0)])], "a row that is gone stays so");
        assert_eq!(temperatures(ROWS_ONCE), [json!(["other", fields(1.0, 2.0)]), json!(["a", fields(40.0, 90.0)])]);
    }

    #[test]
    fn an_unknown_collector_is_told_with_those_there_are() {
        let text = select(&["cpuu".to_owned()], &AgentConfig::default()).unwrap_err().to_string();
        assert!(text.contains("`cpuu`") && text.contains("cpu, ") && text.contains("memory"), "{text}");
    }

    #[test]
    fn what_is_switched_off_is_read_only_when_it_is_named() {
        let mut config = AgentConfig::default();
        config.collectors.load.enabled = false;
        assert!(select(&[], &config).unwrap().iter().all(|kind| kind.name != "load"));
        assert_eq!(select(&["load".to_owned()], &config).unwrap().len(), 1);
    }
}
