//! File systems and disks.

use super::{
    host::{Moment, Shape, Source},
    random::Random,
    rows::{Rows, Value},
    walk::Counter,
};

const BLOCK: u64 = 4096;
const SECTOR: i64 = 512;

/// Mounts that fill slowly, if at all.
pub(super) struct Filesystem {
    mounts: Vec<Mount>,
}

struct Mount {
    tags: [String; 3],
    blocks: u64,
    used_blocks: u64,
    inodes: i64,
    used_inodes: i64,
    /// Blocks written a second.
    rate: f64,
}

impl Filesystem {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        const POINTS: [(&str, &str, f64); 6] = [
            ("/", "ext4", 8.0),
            ("/boot", "ext2", 0.0),
            ("/var", "ext4", 20.0),
            ("/data", "xfs", 60.0),
            ("/home", "ext4", 0.0),
            ("/backup", "xfs", 0.0),
        ];
        let mount = |(index, (point, kind, rate)): (usize, (&str, &str, f64))| {
            let blocks = (random.within(1e6, 4e8)) as u64;
            Mount {
                tags: [format!("/dev/{}p{}", shape.disks[0], index + 1), kind.to_owned(), point.to_owned()],
                blocks,
                used_blocks: (blocks as f64 * random.within(0.05, 0.7)) as u64,
                inodes: i64::try_from(blocks / 4).unwrap_or(i64::MAX),
                used_inodes: (blocks as f64 * random.within(0.001, 0.05)) as i64,
                rate,
            }
        };
        Self { mounts: POINTS.into_iter().take(shape.mounts).enumerate().map(mount).collect() }
    }
}

impl Source for Filesystem {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        for mount in &mut self.mounts {
            // What is written is mostly written to a log that is cleared now and then.
            if random.happens(0.3 * moment.load) {
                mount.used_blocks += random.count(mount.rate * moment.seconds * moment.load);
                mount.used_inodes += i64::from(mount.rate > 0.0 && random.happens(0.1));
            }
            if mount.used_blocks > mount.blocks * 9 / 10 {
                mount.used_blocks = mount.blocks / 2;
            }
            let bytes = |blocks: u64| i64::try_from(blocks * BLOCK).unwrap_or(i64::MAX);
            let (total, used) = (bytes(mount.blocks), bytes(mount.used_blocks));
            // A twentieth is reserved for root.
            let available = total - used - total / 20;
            rows.push(
                moment.time_ms,
                &mount.tags,
                &[
                    ("total_bytes", total.into()),
                    ("used_bytes", used.into()),
                    ("available_bytes", available.into()),
                    ("used_percent", (used as f64 / (used + available) as f64 * 100.0).into()),
                    ("total_inodes", mount.inodes.into()),
                    ("used_inodes", mount.used_inodes.into()),
                    ("free_inodes", (mount.inodes - mount.used_inodes).into()),
                    ("used_inodes_percent", (mount.used_inodes as f64 / mount.inodes as f64 * 100.0).into()),
                    ("read_only", false.into()),
                    ("responding", true.into()),
                ],
            );
        }
    }
}

/// Disks, of which the first works most and the last may be idle.
pub(super) struct DiskIo {
    disks: Vec<Disk>,
}

#[derive(Default)]
struct Disk {
    name: String,
    weight: f64,
    read_sectors: Counter,
    written_sectors: Counter,
    reads: Counter,
    writes: Counter,
    busy_ms: Counter,
    read_ms: Counter,
    write_ms: Counter,
    discards: Counter,
    discarded_sectors: Counter,
    flushes: Counter,
}

impl DiskIo {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        let disk = |(index, name): (usize, &String)| {
            let weight = if index == 0 { 1.0 } else { random.pick([0.0, 0.2, 0.6]) };
            let mut grown = |rate: f64| Counter::grown(random, rate * weight);
            Disk {
                name: name.clone(),
                weight,
                read_sectors: grown(600.0),
                written_sectors: grown(3000.0),
                reads: grown(15.0),
                writes: grown(70.0),
                busy_ms: grown(30.0),
                read_ms: grown(8.0),
                write_ms: grown(90.0),
                discards: grown(0.1),
                discarded_sectors: grown(200.0),
                flushes: grown(9.0),
            }
        };
        Self { disks: shape.disks.iter().enumerate().map(disk).collect() }
    }
}

impl Source for DiskIo {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        for disk in &mut self.disks {
            let work = moment.load * disk.weight * moment.seconds;
            let (reads, writes) = (random.count(work * 12.0), random.count(work * 150.0));
            let (read_ms, write_ms) = (random.count(reads as f64 * 0.5), random.count(writes as f64 * 1.2));
            let busy_ms = ((read_ms + write_ms) / 3).min((moment.seconds * 1000.0) as u64);
            let sectors = |requests: u64, random: &mut Random| requests * (8 + 8 * random.below(6) as u64);
            let sectors_total = |counter: &mut Counter, added: u64| Value::Integer(counter.add(added) * SECTOR);
            let wait = |ms: u64, requests: u64| (requests > 0).then(|| ms as f64 / 1000.0 / requests as f64);
            disk.read_ms.add(read_ms);
            disk.write_ms.add(write_ms);
            disk.busy_ms.add(busy_ms);
            let discards = u64::from(random.happens(0.002 * work));
            let read_sectors = sectors(reads, random);
            let written_sectors = sectors(writes, random);
            // The agent divides by the time that has passed between two readings, which is never exactly a second.
            let passed_ms = moment.seconds * 1000.0 * random.within(0.9995, 1.0005);
            rows.push(
                moment.time_ms,
                &[&disk.name],
                &[
                    ("read_bytes_total", sectors_total(&mut disk.read_sectors, read_sectors)),
                    ("written_bytes_total", sectors_total(&mut disk.written_sectors, written_sectors)),
                    ("reads_total", disk.reads.add(reads).into()),
                    ("writes_total", disk.writes.add(writes).into()),
                    ("busy_seconds_total", disk.busy_ms.seconds(1000.0).into()),
                    ("in_flight", i64::from(random.happens(busy_ms as f64 / 1000.0)).into()),
                    ("busy_percent", (busy_ms as f64 / passed_ms * 100.0).min(100.0).into()),
                    ("read_seconds_total", disk.read_ms.seconds(1000.0).into()),
                    ("write_seconds_total", disk.write_ms.seconds(1000.0).into()),
                    ("read_wait_seconds", wait(read_ms, reads).into()),
                    ("write_wait_seconds", wait(write_ms, writes).into()),
                    ("discards_total", disk.discards.add(discards).into()),
                    ("discarded_bytes_total", sectors_total(&mut disk.discarded_sectors, discards * 2048)),
                    ("flushes_total", disk.flushes.add(writes / 8).into()),
                ],
            );
        }
    }

    fn reboot(&mut self) {
        for disk in &mut self.disks {
            *disk = Disk { name: std::mem::take(&mut disk.name), weight: disk.weight, ..Disk::default() };
        }
    }
}
