//! What other systems than Linux tell, through the `sysinfo` crate: the same measurements, with nil for what it does not know.
//!
//! Linux builds these for tests only, where they are compared with the collectors of its own.

mod cpu;
mod filesystem;
mod load;
mod memory;
mod network;
mod process;
mod temperature;

use std::time::Duration;

use plimsoll_nats::{batch::FieldType, catalog};

use super::{CollectError, CollectorKind, Pace};
use crate::rows::{Rows, Value};

/// Every collector that needs no Linux.
pub const KINDS: &[CollectorKind] = &[
    CollectorKind {
        name: "cpu",
        measurements: &["cpu"],
        pace: Pace::Hot,
        interval: None,
        open: |_| Box::new(cpu::Processors::default()),
    },
    CollectorKind {
        name: "memory",
        measurements: &["memory"],
        pace: Pace::Hot,
        interval: None,
        open: |_| Box::new(memory::Memory::default()),
    },
    CollectorKind {
        name: "load",
        measurements: &["load"],
        pace: Pace::Hot,
        interval: None,
        open: |_| Box::new(load::Load),
    },
    CollectorKind {
        name: "filesystem",
        measurements: &["filesystem"],
        pace: Pace::Slow,
        interval: None,
        open: |context| Box::new(filesystem::Filesystem::new(context)),
    },
    CollectorKind {
        name: "network",
        measurements: &["network"],
        pace: Pace::Slow,
        interval: None,
        open: |context| Box::new(network::Network::new(context)),
    },
    CollectorKind {
        name: "temperature",
        measurements: &["temperature"],
        pace: Pace::Slow,
        interval: None,
        open: |_| Box::new(temperature::Temperature),
    },
    CollectorKind {
        name: "process",
        measurements: &["process", "processes"],
        pace: Pace::Slow,
        interval: Some(Duration::from_secs(5)),
        open: |context| Box::new(process::Processes::new(context)),
    },
];

/// The error of a system that could not be asked.
fn refused(what: &'static str) -> impl FnOnce(sysinfo::Error) -> CollectError {
    move |source| CollectError::Ask { what, source: source.into() }
}

/// Adds a row of those fields that are known; the others are nil.
///
/// # Panics
/// When a name is not one of the catalog's, or a tag is missing.
fn push(rows: &mut Rows, tags: &[(&str, &str)], known: &[(&str, Value<'_>)]) {
    let measurement = rows.measurement().clone();
    let spec = catalog::measurement(&measurement).expect("rows are of a measurement of the catalog");
    for (name, _) in known {
        assert!(spec.fields.iter().any(|field| field.name == *name), "`{measurement}` has no field `{name}`");
    }
    let value = |name: &str, field_type| {
        known.iter().find(|(known, _)| *known == name).map_or_else(|| nil(field_type), |(_, value)| *value)
    };
    let fields: Vec<_> = spec.fields.iter().map(|field| (field.name, value(field.name, field.field_type))).collect();
    rows.push(tags, &fields);
}

fn nil(field_type: FieldType) -> Value<'static> {
    match field_type {
        FieldType::Float => Value::Float(None),
        FieldType::Integer => Value::Integer(None),
        FieldType::Bool => Value::Bool(None),
        FieldType::Text => Value::Text(None),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, thread::sleep};

    use super::*;
    use crate::{
        context::Context,
        rows::{Columns, Tables},
    };

    /// What the second reading of a collector tells of its first measurement.
    fn read(kind: &CollectorKind) -> Columns {
        read_of(kind, &Context::default(), kind.measurements[0])
    }

    fn read_of(kind: &CollectorKind, context: &Context, measurement: &str) -> Columns {
        let (mut collector, mut tables) = (kind.open(context), kind.tables());
        collector.collect(&mut tables).unwrap();
        tables.iter_mut().for_each(|rows| drop(rows.take()));
        sleep(sysinfo::MINIMUM_CPU_UPDATE_INTERVAL);
        collector.collect(&mut tables).unwrap();
        tables.of(measurement).take()
    }

    fn find(kinds: &[CollectorKind], name: &str) -> CollectorKind {
        *kinds.iter().find(|kind| kind.name == name).unwrap()
    }

    /// A field's values by the value of a tag.
    fn by_tag(columns: &Columns, tag: &str, field: &str) -> BTreeMap<String, Option<f64>> {
        let tags = columns.tags[tag].iter().cloned();
        tags.enumerate().map(|(row, tag)| (tag, columns.fields[field].number(row))).collect()
    }

    #[test]
    fn every_collector_reads_this_host() {
        for kind in KINDS {
            let columns = read(kind);
            let certain = matches!(kind.name, "cpu" | "memory" | "load");
            assert!(columns.fields.values().all(|column| !column.is_empty()) || !certain, "{}", kind.name);
        }
    }

    #[test]
    fn what_is_excluded_is_not_told() {
        let mut config = crate::config::CollectorsConfig::default();
        config.filesystem.exclude = vec!["/".to_owned(), "/**".to_owned()];
        config.network.exclude = vec!["*".to_owned()];
        let context = Context { config: std::sync::Arc::new(config), ..Context::default() };
        for name in ["filesystem", "network"] {
            let columns = read_of(&find(KINDS, name), &context, name);
            assert!(columns.tags.values().all(Vec::is_empty), "{:?}", columns.tags);
        }
    }

    #[test]
    fn the_largest_and_the_watched_processes_are_told() {
        let own = std::process::id().to_string();
        let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        let settings = |top, watch: &[&str]| {
            let mut config = crate::config::CollectorsConfig::default();
            (config.process.top, config.process.watch) = (top, watch.iter().map(|glob| (*glob).to_owned()).collect());
            Context { config: std::sync::Arc::new(config), ..Context::default() }
        };
        let kind = find(KINDS, "process");
        assert_eq!(read_of(&kind, &settings(0, &[]), "process").tags["pid"], [""; 0]);
        let largest = read_of(&kind, &settings(2, &[]), "process");
        assert!((1..=6).contains(&largest.tags["pid"].len()), "{:?}", largest.tags);
        if name.is_empty() {
            return;
        }
        let watched = read_of(&kind, &settings(0, &[name.trim()]), "process");
        let row = watched.tags["pid"].iter().position(|pid| *pid == own).expect("this process");
        assert!(watched.fields["resident_bytes"].number(row).is_some_and(|bytes| bytes > 0.0));
        let all = read_of(&kind, &Context::default(), "processes");
        assert!(all.fields["processes"].number(0).is_some_and(|count| count > 1.0));
        assert_eq!(all.fields["threads"].number(0), None);
    }

    #[test]
    fn the_first_reading_of_a_rate_tells_nothing() {
        let (mut collector, mut tables) = (find(KINDS, "cpu").open(&Context::default()), find(KINDS, "cpu").tables());
        collector.collect(&mut tables).unwrap();
        assert!(tables.only().is_empty());
    }

    #[test]
    fn what_a_system_does_not_tell_is_nil() {
        let memory = read(&find(KINDS, "memory"));
        assert_eq!(memory.fields["buffers_bytes"].number(0), None);
        assert!(memory.fields["total_bytes"].number(0).is_some());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_says_the_same_in_its_own_way() {
        let both = |name: &str| (read(&find(KINDS, name)), read(&find(super::super::KINDS, name)));
        let (portable, own) = both("cpu");
        assert_eq!(portable.tags["core"], own.tags["core"]);
        let (portable, own) = both("memory");
        for field in ["total_bytes", "swap_total_bytes"] {
            assert_eq!(portable.fields[field].number(0), own.fields[field].number(0), "{field}");
        }
        let near = |field: &str| {
            let (one, other) = (portable.fields[field].number(0).unwrap(), own.fields[field].number(0).unwrap());
            let total = own.fields["total_bytes"].number(0).unwrap();
            assert!((one - other).abs() < total * 0.2, "{field}: {one} and {other}");
        };
        ["available_bytes", "used_bytes", "free_bytes", "used_percent"].into_iter().for_each(near);
        let (portable, own) = both("filesystem");
        assert_eq!(
            by_tag(&portable, "mountpoint", "total_bytes").get("/"),
            by_tag(&own, "mountpoint", "total_bytes").get("/")
        );
        let (portable, own) = both("network");
        let known = |columns| by_tag(columns, "interface", "receive_bytes_total").into_keys().collect::<Vec<_>>();
        assert_eq!(known(&portable), known(&own));
    }

    #[test]
    #[should_panic(expected = "has no field `celsius`")]
    fn a_field_unknown_to_the_catalog_is_a_fault_of_the_collector() {
        let mut tables = Tables::new(catalog::measurement("temperature"));
        push(tables.only(), &[("sensor", "a")], &[("celsius", 1.0.into())]);
    }
}
