//! Made-up fleets: the same for ever, and like what agents send.

use std::{collections::BTreeMap, time::Duration};

use plimsoll_bench::{
    Fleet, FleetConfig,
    fleet::MEASUREMENTS,
    points,
    wire::{ID_HEADER, Packer},
};
use plimsoll_nats::{
    Batch, HostId, Name,
    catalog::{self, FieldKind},
    subject::metrics,
};

fn config() -> FleetConfig {
    FleetConfig { hosts: 12, start_ms: 1_790_000_000_000, samples_a_batch: 4, ..FleetConfig::default() }
}

fn batches(config: FleetConfig, ticks: u64) -> Vec<Batch> {
    Fleet::new(config).expect("a fleet").rounds(ticks).flatten().collect()
}

#[test]
fn the_same_seed_makes_the_same_fleet_and_another_one_another() {
    assert_eq!(batches(config(), 30), batches(config(), 30));
    assert_ne!(batches(config(), 5), batches(FleetConfig { seed: 2, ..config() }, 5));
}

#[test]
fn how_samples_are_gathered_changes_nothing_but_the_batches() {
    let values = |samples_a_batch| {
        let mut values = BTreeMap::new();
        for batch in batches(FleetConfig { samples_a_batch, ..config() }, 30) {
            for (name, column) in &batch.fields {
                for row in (0..batch.rows()).filter(|row| !column.json(*row).is_null()) {
                    let tags: Vec<&String> = batch.tags.values().map(|tag| &tag[row]).collect();
                    let key = format!("{} {} {tags:?} {name} {}", batch.host, batch.measurement, batch.times[row]);
                    assert!(values.insert(key.clone(), column.json(row)).is_none(), "{key} is there twice");
                }
            }
        }
        values
    };
    assert_eq!(values(1), values(7));
}

#[test]
fn batches_are_what_readers_take_and_the_catalog_describes() {
    let mut packer = Packer::default();
    let mut seen = std::collections::BTreeSet::new();
    for batch in batches(FleetConfig { hosts: 40, ..config() }, 12) {
        let message = packer.pack(&batch);
        assert_eq!(message.subject, metrics(&batch.host, &batch.measurement));
        assert_eq!(message.headers().get(ID_HEADER).map(ToString::to_string), Some(batch.message_id()));
        let decoded = Batch::decode(&batch.host, &batch.measurement, Some(&message.headers()), &message.payload);
        assert_eq!(decoded.expect("a valid batch"), batch);
        let spec = catalog::measurement(&batch.measurement).expect("built in");
        assert!(batch.tags.keys().map(|tag| &**tag).eq({
            let mut tags: Vec<_> = spec.tags.iter().map(|tag| tag.name).collect();
            tags.sort_unstable();
            tags
        }));
        for (name, column) in &batch.fields {
            let field = spec.fields.iter().find(|field| field.name == &**name).expect("a field of the catalog");
            assert_eq!(column.field_type(), field.field_type, "{}.{name}", spec.name);
            for row in 0..batch.rows() {
                let percent = if field.unit == "percent" { column.number(row) } else { None };
                // A process or container may take several cores.
                assert!(percent.is_none_or(|percent| (0.0..=1600.0).contains(&percent)), "{}.{name}", spec.name);
            }
        }
        seen.insert(batch.measurement.to_string());
    }
    assert!(MEASUREMENTS.iter().all(|measurement| seen.contains(*measurement)), "{seen:?}");
}

/// How often a counter fell, by host.
fn falls(batches: &[Batch]) -> BTreeMap<HostId, std::collections::BTreeSet<i64>> {
    let mut last: BTreeMap<(HostId, Name, Vec<String>, Name), f64> = BTreeMap::new();
    let mut falls: BTreeMap<HostId, std::collections::BTreeSet<i64>> = BTreeMap::new();
    for batch in batches {
        let spec = catalog::measurement(&batch.measurement).expect("built in");
        let counters = spec.fields.iter().filter(|field| field.kind == FieldKind::Counter);
        for (name, column) in counters.filter_map(|field| batch.fields.get_key_value(field.name)) {
            for row in 0..batch.rows() {
                let tags = batch.tags.values().map(|tag| tag[row].clone()).collect();
                let Some(value) = column.number(row) else { continue };
                let before = last.insert((batch.host.clone(), batch.measurement.clone(), tags, name.clone()), value);
                if before.is_some_and(|before| value < before) {
                    falls.entry(batch.host.clone()).or_default().insert(batch.times[row]);
                }
            }
        }
    }
    falls
}

#[test]
fn counters_grow_and_fall_only_when_a_host_reboots() {
    let calm = batches(FleetConfig { reboots_a_day: 0.0, ..config() }, 300);
    assert!(falls(&calm).is_empty());
    let restless = batches(FleetConfig { reboots_a_day: 800.0, ..config() }, 300);
    let mut epochs: BTreeMap<HostId, std::collections::BTreeSet<_>> = BTreeMap::new();
    for batch in &restless {
        epochs.entry(batch.host.clone()).or_default().insert(batch.epoch);
    }
    let falls = falls(&restless);
    assert!(falls.len() > 6, "hosts reboot nearly three times in 300 s: {}", falls.len());
    for (host, times) in falls {
        // What is sampled every five seconds falls a little later than the rest.
        assert!(epochs[&host].len() > 1 && times.len() <= 5 * epochs[&host].len(), "{host}");
    }
}

#[test]
fn a_fleet_is_busy_idle_and_changing() {
    let usage: Vec<f64> = batches(FleetConfig { hosts: 100, measurements: vec!["cpu"], ..config() }, 600)
        .iter()
        .flat_map(|batch| {
            let total = |row: &usize| batch.tags["core"][*row] == "total";
            let field = &batch.fields["usage_percent"];
            (0..batch.rows()).filter(total).filter_map(|row| field.number(row)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(usage.len(), 100 * 600);
    let share = |from: f64, to: f64| {
        usage.iter().filter(|usage| (from..to).contains(*usage)).count() as f64 / usage.len() as f64
    };
    assert!(share(90.0, 100.1) > 0.002 && share(90.0, 100.1) < 0.2, "{}", share(90.0, 100.1));
    assert!(share(0.0, 30.0) > 0.2, "{}", share(0.0, 30.0));
}

#[test]
fn a_host_sends_about_as_many_points_as_a_real_one() {
    let batches = batches(FleetConfig { hosts: 100, ..config() }, 10);
    let points = batches.iter().map(points).sum::<usize>() / (100 * 10);
    // A host of two cores, measured, sends 202 a second (docs/agent-overhead.md); most here are larger.
    assert!((150..600).contains(&points), "{points} points a host and second");
}

#[test]
fn senseless_fleets_are_refused() {
    let wrong = [
        FleetConfig { hosts: 0, ..config() },
        FleetConfig { prefix: "a b".to_owned(), ..config() },
        FleetConfig { interval: Duration::ZERO, ..config() },
        FleetConfig { samples_a_batch: 100_000, ..config() },
        FleetConfig { measurements: vec!["wifi"], ..config() },
    ];
    for config in wrong {
        assert!(Fleet::new(config.clone()).is_err(), "{config:?}");
    }
}
