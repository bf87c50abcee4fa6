//! Input and output of block devices, from /proc/diskstats.

use std::time::{Duration, Instant};

use super::{CollectError, Collector, ParseError, proc_file::ProcFile};
use crate::{
    context::Context,
    rows::{Rows, Tables},
};

/// The kernel counts in sectors of this size, whatever the device's own (Documentation/admin-guide/iostats.rst).
const SECTOR_BYTES: u64 = 512;

/// Counters of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    name: String,
    reads: u64,
    read_sectors: u64,
    writes: u64,
    written_sectors: u64,
    in_flight: u64,
    busy_ms: u64,
}

/// Reads the counters of whole devices.
#[derive(Debug)]
pub struct DiskIo {
    file: ProcFile,
    previous: Vec<Device>,
    taken: Instant,
}

impl DiskIo {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { file: ProcFile::new(context.paths.proc("diskstats")), previous: Vec::new(), taken: Instant::now() }
    }
}

impl Collector for DiskIo {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let current = parse(self.file.read()?).map_err(|error| self.file.unparsed(error))?;
        let now = Instant::now();
        let passed = now - self.taken;
        for device in &current {
            let previous = self.previous.iter().find(|previous| previous.name == device.name);
            let busy = previous.and_then(|previous| busy_percent(previous.busy_ms, device.busy_ms, passed));
            push(rows, device, busy);
        }
        self.previous = current;
        self.taken = now;
        Ok(())
    }
}

fn push(rows: &mut Rows, device: &Device, busy_percent: Option<f64>) {
    rows.push(
        &[("device", &device.name)],
        &[
            ("read_bytes_total", device.read_sectors.saturating_mul(SECTOR_BYTES).into()),
            ("written_bytes_total", device.written_sectors.saturating_mul(SECTOR_BYTES).into()),
            ("reads_total", device.reads.into()),
            ("writes_total", device.writes.into()),
            ("busy_seconds_total", (device.busy_ms as f64 / 1000.0).into()),
            ("in_flight", device.in_flight.into()),
            ("busy_percent", busy_percent.into()),
        ],
    );
}

/// The share of the time passed with a request in flight; none when the counter went backwards, as when its 32 bits overflow.
fn busy_percent(before_ms: u64, after_ms: u64, passed: Duration) -> Option<f64> {
    let busy = after_ms.checked_sub(before_ms)?;
    let passed = passed.as_secs_f64() * 1000.0;
    (passed > 0.0).then(|| (busy as f64 / passed * 100.0).min(100.0))
}

/// Takes /proc/diskstats apart, leaving out partitions, loop devices and RAM disks.
///
/// Fails on a device with fewer than eleven counters; a partition may have four, on kernels before 2.6.25.
pub fn parse(text: &str) -> Result<Vec<Device>, ParseError> {
    let names: Vec<&str> = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)).collect();
    let mut devices = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_ascii_whitespace().skip(2);
        let Some(name) = words.next() else {
            continue;
        };
        let memory = ["loop", "ram", "zram"].iter().any(|prefix| is_numbered(name, prefix));
        if memory || names.iter().any(|whole| is_partition(name, whole)) {
            continue;
        }
        let device = Device::parse(name, words)
            .ok_or(ParseError { line: index + 1, expected: "two numbers, a name and eleven counters" })?;
        devices.push(device);
    }
    Ok(devices)
}

impl Device {
    fn parse<'a>(name: &str, mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut counters = [0_u64; 11];
        for slot in &mut counters {
            *slot = words.next()?.parse().ok()?;
        }
        let [reads, _, read_sectors, _, writes, _, written_sectors, _, in_flight, busy_ms, _] = counters;
        Some(Self { name: name.to_owned(), reads, read_sectors, writes, written_sectors, in_flight, busy_ms })
    }
}

/// Whether the kernel would give this name to a partition of that device: a `p` goes between two digits.
fn is_partition(name: &str, whole: &str) -> bool {
    if whole.ends_with(|c: char| c.is_ascii_digit()) {
        name.strip_prefix(whole).is_some_and(|rest| is_numbered(rest, "p"))
    } else {
        !whole.is_empty() && is_numbered(name, whole)
    }
}

/// Whether a name is a prefix and a number.
fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECORDED: &str = "\
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
   1       0 ram0 0 0 0 0 0 0 0 0 0 0 0
 253       0 zram0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 254       0 vda 49941 15020 10199242 87158 5352 31078 4708128 18726 3 10916 106492 5156 17 299968 590 224 16
 254       1 vda1 4000 0 10 0 5352 31078 4708128 18726 0 10916 106492
 259       0 nvme0n1 1 2 3 4 5 6 7 8 9 10 11
 259       1 nvme0n1p1 1 2 3 4 5 6 7 8 9 10 11
 252       1 dm-1 1 2 3 4 5 6 7 8 9 10 11
 252      10 dm-10 1 2 3 4 5 6 7 8 9 10 11
 202       1 xvdb1 1 2 3 4 5 6 7 8 9 10 11
";

    #[test]
    fn whole_devices_are_kept_and_others_left_out() {
        let devices = parse(RECORDED).unwrap();
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        // `xvdb1` has no whole device beside it: some hypervisors attach partitions alone.
        assert_eq!(names, ["vda", "nvme0n1", "dm-1", "dm-10", "xvdb1"]);
        let vda = &devices[0];
        assert_eq!(
            (vda.reads, vda.read_sectors, vda.writes, vda.written_sectors),
            (49_941, 10_199_242, 5_352, 4_708_128)
        );
        assert_eq!((vda.in_flight, vda.busy_ms), (3, 10_916));
    }

    #[test]
    fn busy_is_bounded_and_knows_a_counter_that_starts_anew() {
        let second = Duration::from_secs(1);
        assert_eq!(busy_percent(100, 350, second), Some(25.0));
        assert_eq!(busy_percent(100, 1_200, second), Some(100.0));
        assert_eq!(busy_percent(u64::from(u32::MAX), 5, second), None);
        assert_eq!(busy_percent(0, 0, Duration::ZERO), None);
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        assert!(parse("\n  \n8 0\n").unwrap().is_empty());
        assert_eq!(parse("8 0 sda 1 2 3").unwrap_err().line, 1);
        assert_eq!(parse("\n8 0 sda 1 2 3 4 5 6 7 8 9 x 11").unwrap_err().line, 2);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([0-9 ]{0,6}(sd|md|nvme)?[0-9p]{0,3}[ 0-9]{0,40}\n){0,6}") {
            let _ = parse(&text);
        }
    }
}
