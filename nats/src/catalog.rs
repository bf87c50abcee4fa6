//! The built-in measurements: what agents send, in which units, and what others call it.
//!
//! Docs and API are generated from this. OpenTelemetry names follow its semantic conventions for system metrics;
//! node_exporter names are those of its default collectors.

mod agent;
mod custom;
mod gpu;
mod hardware;
mod network;
pub mod pipeline;
mod process;
mod storage;
mod system;

use serde::Serialize;

use crate::batch::FieldType;

/// A built-in measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct MeasurementSpec {
    /// The measurement's name; also its table in the lake.
    pub name: &'static str,
    /// What it tells.
    pub description: &'static str,
    /// The tags that tell its series apart.
    pub tags: &'static [TagSpec],
    /// Its fields.
    pub fields: &'static [FieldSpec],
}

/// A tag of a measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TagSpec {
    /// The tag's name.
    pub name: &'static str,
    /// What its values are.
    pub description: &'static str,
}

/// Whether a field goes up and down or only up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldKind {
    /// A value at a time.
    Gauge,
    /// A cumulative count, which starts anew when its source does.
    Counter,
}

/// A field of a measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FieldSpec {
    /// The field's name.
    pub name: &'static str,
    /// The type of its values.
    #[serde(rename = "type")]
    pub field_type: FieldType,
    /// Gauge or counter.
    pub kind: FieldKind,
    /// The unit: `percent`, `bytes`, `seconds`, `celsius`, `watts`, `joules`, `watt_hours`, `volts`, `hertz`, `rpm`,
    /// `bytes_per_second`, `bits_per_second`, `dbm`, `count`, `bool` or `text`.
    pub unit: &'static str,
    /// What it tells.
    pub description: &'static str,
    /// The OpenTelemetry metric that holds the same.
    pub opentelemetry: Option<&'static str>,
    /// The node_exporter metric that holds the same.
    pub node_exporter: Option<&'static str>,
}

const fn tag(name: &'static str, description: &'static str) -> TagSpec {
    TagSpec { name, description }
}

const fn field(
    name: &'static str,
    field_type: FieldType,
    kind: FieldKind,
    unit: &'static str,
    description: &'static str,
    names: (&'static str, &'static str),
) -> FieldSpec {
    const fn known(name: &'static str) -> Option<&'static str> {
        if name.is_empty() { None } else { Some(name) }
    }
    FieldSpec {
        name,
        field_type,
        kind,
        unit,
        description,
        opentelemetry: known(names.0),
        node_exporter: known(names.1),
    }
}

const fn percent(name: &'static str, description: &'static str, names: (&'static str, &'static str)) -> FieldSpec {
    field(name, FieldType::Float, FieldKind::Gauge, "percent", description, names)
}

const fn bytes(name: &'static str, description: &'static str, names: (&'static str, &'static str)) -> FieldSpec {
    field(name, FieldType::Integer, FieldKind::Gauge, "bytes", description, names)
}

const fn count(name: &'static str, description: &'static str, names: (&'static str, &'static str)) -> FieldSpec {
    field(name, FieldType::Integer, FieldKind::Gauge, "count", description, names)
}

const fn total(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    names: (&'static str, &'static str),
) -> FieldSpec {
    field(name, FieldType::Integer, FieldKind::Counter, unit, description, names)
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    names: (&'static str, &'static str),
) -> FieldSpec {
    field(name, FieldType::Float, FieldKind::Gauge, unit, description, names)
}

const fn flag(name: &'static str, description: &'static str, names: (&'static str, &'static str)) -> FieldSpec {
    field(name, FieldType::Bool, FieldKind::Gauge, "bool", description, names)
}

const fn text(name: &'static str, description: &'static str, names: (&'static str, &'static str)) -> FieldSpec {
    field(name, FieldType::Text, FieldKind::Gauge, "text", description, names)
}

const fn seconds_total(
    name: &'static str,
    description: &'static str,
    names: (&'static str, &'static str),
) -> FieldSpec {
    field(name, FieldType::Float, FieldKind::Counter, "seconds", description, names)
}

/// Every built-in measurement.
pub const MEASUREMENTS: &[MeasurementSpec] = &[
    system::CPU,
    system::PRESSURE,
    system::MEMORY,
    system::LOAD,
    storage::FILESYSTEM,
    storage::DISKIO,
    storage::DIRECTORY_SIZE,
    network::NETWORK,
    network::WIFI,
    network::SOCKETS,
    hardware::TEMPERATURE,
    hardware::FAN,
    hardware::POWER,
    hardware::THROTTLE,
    gpu::GPU,
    gpu::GPU_PROCESS,
    process::PROCESS,
    process::PROCESSES,
    process::CONTAINER,
    custom::EXEC,
    custom::SCRAPE,
    agent::AGENT,
    pipeline::PLIMSOLL,
];

/// The built-in measurement of that name.
#[must_use]
pub fn measurement(name: &str) -> Option<&'static MeasurementSpec> {
    MEASUREMENTS.iter().find(|spec| spec.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;
    use crate::Name;

    #[test]
    fn each_field_about_the_pipeline_is_sent_by_a_service() {
        let described: BTreeSet<_> = pipeline::PLIMSOLL.fields.iter().map(|field| field.name).collect();
        let sent: BTreeSet<_> = pipeline::SENT.iter().flat_map(|(_, fields)| *fields).copied().collect();
        assert_eq!(described, sent);
    }

    #[test]
    fn names_units_and_kinds_follow_the_contract() {
        let mut measurements = HashSet::new();
        for spec in MEASUREMENTS {
            assert!(measurements.insert(spec.name), "{} is there twice", spec.name);
            let mut columns = HashSet::new();
            for name in spec.tags.iter().map(|t| t.name).chain(spec.fields.iter().map(|f| f.name)) {
                Name::parse(name).expect("valid name");
                assert!(columns.insert(name), "{}.{name} is there twice", spec.name);
            }
            for field in spec.fields {
                assert_eq!(field.name.ends_with("_total"), field.kind == FieldKind::Counter, "{}", field.name);
                if !matches!(field.unit, "count" | "bool" | "text") {
                    assert!(field.name.contains(field.unit), "{} does not name {}", field.name, field.unit);
                }
            }
        }
    }
}
