//! Memory of a minute of a fleet in the tail of the query API: `cargo run --release -p plimsoll-bench --example tail -- 100`, where the
//! number is that of hosts, and `batches` after it holds decoded batches instead. docs/ingest-throughput.md has the outcome.

use std::{fs, sync::Arc, time::Instant};

use plimsoll_bench::fleet::{Fleet, FleetConfig};
use plimsoll_lake::{Positions, Tail};
use plimsoll_nats::{Batch, Incarnation, PartitionId, Position, Sequence, now_ms, subject::partition_of};

const SECONDS: u64 = 60;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let hosts = args.next().map_or(Ok(100), |hosts| hosts.parse())?;
    let holds_batches = args.next().is_some_and(|word| word == "batches");
    let mut fleet = Fleet::new(FleetConfig { hosts, start_ms: now_ms(), ..FleetConfig::default() })?;
    // The fleet's own memory is not the tail's.
    fleet.sample(1, &mut Vec::new());
    let before = resident_bytes()?;
    let (tail, mut held) = (Tail::new(usize::MAX), Vec::new());
    for partition in PartitionId::all() {
        tail.reset(partition, Position::start(Incarnation(1)));
    }
    let (mut messages, mut rows, mut points, mut weight) = (0, 0, 0, 0);
    let mut pushed = std::time::Duration::ZERO;
    for _ in 0..SECONDS {
        let mut batches = Vec::new();
        fleet.sample(1, &mut batches);
        for batch in batches {
            // As they come from the stream: none of their memory is that of the fleet, and none has spare room.
            let batch = Batch::decode(&batch.host, &batch.measurement, None, &batch.encode())?;
            messages += 1;
            rows += batch.rows();
            points += batch.rows() * batch.fields.len();
            weight += batch.weight();
            let started = Instant::now();
            let batch = Arc::new(batch);
            if holds_batches {
                held.push(batch);
            } else {
                tail.push(partition_of(&batch.host), Sequence(messages), Some(batch));
            }
            pushed += started.elapsed();
        }
    }
    let taken = resident_bytes()?.saturating_sub(before);
    let bytes = if holds_batches { weight } else { tail.usage().0 };
    println!("{hosts} hosts, {SECONDS} s: {messages} messages, {rows} rows, {points} points; {:?} to push", pushed);
    println!(
        "resident {} MiB, {} bytes a message, {:.1} a point; counted {} MiB",
        taken >> 20,
        taken / messages,
        taken as f64 / points as f64,
        bytes >> 20
    );
    if !holds_batches {
        let host = plimsoll_nats::HostId::parse("host-00000")?;
        let measurement = plimsoll_nats::Name::parse("cpu")?;
        for (what, host) in [("one host's cpu", Some(&host)), ("all hosts' cpu", None)] {
            let started = Instant::now();
            let found = tail.select(&Positions::none(), host, Some(&measurement)).map_err(|_| "stale")?;
            println!("{what}: {} messages in {:?}", found.batches().len(), started.elapsed());
        }
    }
    Ok(())
}

fn resident_bytes() -> Result<u64, Box<dyn std::error::Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().next().ok_or("no number")?.parse::<u64>()? * 1024)
}
