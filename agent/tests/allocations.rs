//! Sampling allocates nothing once it runs, save the payloads that it hands over.

#![cfg(target_os = "linux")]

use allocation_counter::measure;
use plimsoll_agent::{
    collectors::{CollectorKind, KINDS, Pace},
    context::{Context, HostPaths},
    encoder::{Encoder, Packer, PayloadLimit},
};
use plimsoll_nats::HostId;
use ulid::Ulid;

/// Readings in a row that must not allocate.
const STEADY: u32 = 10;
/// Within how many readings they must come: a device that appears meanwhile may take its room.
const READINGS: u32 = 200;

fn hot() -> impl Iterator<Item = &'static CollectorKind> {
    KINDS.iter().filter(|kind| kind.pace == Pace::Hot)
}

#[test]
fn hot_collectors_read_without_allocating() {
    let mut allocating = Vec::new();
    for kind in hot() {
        let (mut collector, mut tables) = (kind.open(&Context::default()), kind.tables());
        let (mut steady, mut last) = (0, 0);
        for _ in 0..READINGS {
            let allocations = measure(|| {
                tables.clear();
                collector.collect(&mut tables).expect("this host can be read");
            });
            if allocations.count_total == 0 {
                steady += 1;
            } else {
                (steady, last) = (0, allocations.count_total);
            }
            if steady == STEADY {
                break;
            }
        }
        if steady < STEADY {
            allocating.push(format!("{} allocates {last} times a reading", kind.name));
        }
    }
    assert!(allocating.is_empty(), "{allocating:#?}");
}

/// Few test hosts count throttling themselves.
#[test]
fn throttling_is_read_without_allocating() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for cpu in 0..4 {
        let folder = dir.path().join(format!("sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
        std::fs::create_dir_all(&folder).expect("a folder is made");
        for file in ["core_throttle_count", "core_throttle_total_time_ms", "package_throttle_count"] {
            std::fs::write(folder.join(file), "7\n").expect("a file is written");
        }
    }
    let kind = KINDS.iter().find(|kind| kind.name == "throttle").expect("a collector of that name");
    let context = Context { paths: HostPaths::new(dir.path()), ..Context::default() };
    let (mut collector, mut tables) = (kind.open(&context), kind.tables());
    let mut sample = || {
        tables.clear();
        collector.collect(&mut tables).expect("the host can be read");
        tables.only().len()
    };
    // The first two make room.
    assert_eq!([sample(), sample()], [5, 5]);
    let mut rows = 0;
    assert_eq!(measure(|| rows = sample()).count_total, 0);
    assert_eq!(rows, 5);
}

#[test]
fn a_sample_is_encoded_into_its_payload_alone() {
    let mut packer = Packer::default();
    for kind in hot() {
        let (mut collector, mut tables) = (kind.open(&Context::default()), kind.tables());
        collector.collect(&mut tables).expect("this host can be read");
        tables.clear();
        collector.collect(&mut tables).expect("this host can be read");
        for rows in tables.iter().filter(|rows| !rows.is_empty()) {
            let host = HostId::parse("h").expect("a host id");
            let mut encoder = Encoder::new(host, rows.measurement().clone(), Ulid::generate(), PayloadLimit::default());
            let mut messages = Vec::with_capacity(3);
            // The first one makes room.
            encoder.encode(&mut packer, 1_000, rows.frame(), &mut messages);
            let allocations = measure(|| encoder.encode(&mut packer, 2_000, rows.frame(), &mut messages));
            assert_eq!((messages.len(), allocations.count_total), (2, 1), "{}", rows.measurement());
            let allocated = usize::try_from(allocations.bytes_total).expect("a size");
            assert_eq!(allocated, messages[1].payload.len(), "{}", rows.measurement());

            for tick_ms in [3_000, 4_000] {
                encoder.gather(&mut packer, tick_ms, rows.frame(), &mut messages);
            }
            encoder.flush(&mut packer, &mut messages);
            encoder.gather(&mut packer, 5_000, rows.frame(), &mut messages);
            let allocations = measure(|| encoder.gather(&mut packer, 6_000, rows.frame(), &mut messages));
            assert_eq!((messages.len(), allocations.count_total), (3, 0), "{} gathered", rows.measurement());
        }
    }
}
