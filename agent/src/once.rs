//! One sample of this host, for people to look at.

use std::{thread::sleep, time::Duration};

use plimsoll_nats::{dead::chain, now_ms};
use serde_json::{Map, Value, json};

use crate::{
    collectors::{CollectError, Collector, CollectorKind, KINDS},
    context::Context,
    rows::Columns,
};

/// How long the rates of the sample are measured.
const RATE_TIME: Duration = Duration::from_secs(1);

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

/// Finds collectors by name; all of them when none is named. Fails on the first unknown name.
pub fn select(names: &[String]) -> Result<Vec<CollectorKind>, UnknownCollector> {
    if names.is_empty() {
        return Ok(KINDS.to_vec());
    }
    let find = |name: &String| {
        KINDS.iter().find(|kind| kind.name == name).copied().ok_or_else(|| UnknownCollector { name: name.clone() })
    };
    names.iter().map(find).collect()
}

/// Reads each collector twice, a second apart, and returns the second reading: by measurement, a list of
/// `{"ts": <Unix ms>, "tags": {…}, "fields": {…}}`. A collector that fails is logged and has empty lists.
#[must_use]
pub fn sample(kinds: &[CollectorKind], context: &Context) -> Value {
    let mut opened: Vec<(CollectorKind, Box<dyn Collector>)> =
        kinds.iter().map(|kind| (*kind, kind.open(context))).collect();
    for (kind, collector) in &mut opened {
        // Whatever fails here fails again below, and is reported there.
        let _ = collector.collect(&mut kind.tables());
    }
    sleep(RATE_TIME);
    let mut measurements = Map::new();
    for (kind, collector) in &mut opened {
        measurements.extend(kind.measurements.iter().map(|name| ((*name).to_owned(), Value::Array(Vec::new()))));
        match read(*kind, collector.as_mut()) {
            Ok(read) => measurements.extend(read),
            Err(error) => tracing::error!(collector = kind.name, error = %chain(&error), "collector fails"),
        }
    }
    measurements.into()
}

fn read(kind: CollectorKind, collector: &mut dyn Collector) -> Result<Vec<(String, Value)>, CollectError> {
    let ts = now_ms();
    let mut tables = kind.tables();
    collector.collect(&mut tables)?;
    let json = |(count, columns): (usize, Columns)| (0..count).map(|row| json_row(ts, &columns, row)).collect();
    Ok(tables.iter_mut().map(|rows| (rows.measurement().to_string(), json((rows.len(), rows.take())))).collect())
}

fn json_row(ts: i64, columns: &Columns, row: usize) -> Value {
    let tags: Map<String, Value> =
        columns.tags.iter().map(|(name, values)| (name.to_string(), values[row].clone().into())).collect();
    let fields: Map<String, Value> =
        columns.fields.iter().map(|(name, column)| (name.to_string(), column.json(row))).collect();
    json!({ "ts": ts, "tags": tags, "fields": fields })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_a_list_of_rows_by_measurement() {
        let kinds = select(&["cpu".to_owned(), "load".to_owned()]).unwrap();
        let sample = sample(&kinds, &Context::default());
        assert_eq!(sample.as_object().unwrap().len(), 2);
        let total = &sample["cpu"][0];
        assert_eq!(total["tags"]["core"], "total");
        assert!(total["ts"].is_i64() && total["fields"]["usage_percent"].is_f64());
        assert_eq!(sample["load"][0]["tags"], json!({}));
    }

    #[test]
    fn an_unknown_collector_is_told_with_those_there_are() {
        let text = select(&["cpuu".to_owned()]).unwrap_err().to_string();
        assert!(text.contains("`cpuu`") && text.contains("cpu, pressure, memory, load"), "{text}");
    }
}
