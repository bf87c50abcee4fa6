//! Input and output of block devices, from /proc/diskstats (Documentation/admin-guide/iostats.rst).

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use plimsoll_nats::event::EventKind;

use super::{
    CollectError, Collector, ParseError,
    proc_file::ProcFile,
    roster::{Entry, Roster},
};
use crate::{
    context::Context,
    events::{Event, EventSink},
    rows::{Rows, Tables},
};

/// The kernel counts in sectors of this size, whatever the device's own.
const SECTOR_BYTES: u64 = 512;

/// Counters of one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    reads: u64,
    read_sectors: u64,
    read_ms: u64,
    writes: u64,
    written_sectors: u64,
    write_ms: u64,
    in_flight: u64,
    busy_ms: u64,
    /// Kernels before 4.18 do not tell.
    discards: Option<u64>,
    discarded_sectors: Option<u64>,
    /// Kernels before 5.5 do not tell.
    flushes: Option<u64>,
}

/// Reads the counters of whole devices, and tells of those that are gone.
#[derive(Debug)]
pub struct DiskIo {
    file: ProcFile,
    devices: Roster<Device>,
    taken: Instant,
    blocks: PathBuf,
    events: EventSink,
}

/// What is known of a line of diskstats.
#[derive(Debug)]
struct Device {
    /// Whether it is told: not if it is a partition, or in memory.
    told: bool,
    /// Whether there is hardware, or what a hypervisor passes off as such, behind it.
    physical: bool,
    previous: Option<Counters>,
}

impl DiskIo {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            file: ProcFile::new(context.paths.proc("diskstats")),
            devices: Roster::default(),
            taken: Instant::now(),
            blocks: context.paths.sys("block"),
            events: context.events.clone(),
        }
    }
}

impl Collector for DiskIo {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        self.file.read()?;
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.taken, now);
        let names = lines(self.file.text()).map(|line| line.name);
        let blocks = &self.blocks;
        let gone = self.devices.update(names.clone(), |name| Device::meet(name, names.clone(), blocks));
        gone.iter().filter(|entry| entry.known.physical).for_each(|entry| self.events.emit(is_gone(entry)));
        let rows = tables.only();
        for (entry, line) in self.devices.iter_mut().zip(lines(self.file.text())).filter(|(entry, _)| entry.known.told)
        {
            let counters = line.counters().map_err(|error| self.file.unparsed(error))?;
            let previous = entry.known.previous.replace(counters);
            push(rows, &entry.name, &counters, previous.map(|previous| Rates::between(&previous, &counters, passed)));
        }
        Ok(())
    }
}

impl Device {
    fn meet<'a>(name: &str, mut all: impl Iterator<Item = &'a str>, blocks: &Path) -> Self {
        let memory = ["loop", "ram", "zram"].iter().any(|prefix| is_numbered(name, prefix));
        let told = !memory && !all.any(|whole| is_partition(name, whole));
        // The link leads to where the device hangs: device-mapper, RAID and their like in `devices/virtual/block`.
        let made_up =
            fs::read_link(blocks.join(name)).is_ok_and(|path| path.to_string_lossy().contains("/virtual/block/"));
        Self { told, physical: told && !made_up, previous: None }
    }
}

fn is_gone(entry: &Entry<Device>) -> Event {
    let name = &entry.name;
    Event::new(EventKind::DiskGone, name.clone(), format!("the disk `{name}` is gone"))
}

/// What happened since the previous sample; none where it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Rates {
    busy_percent: Option<f64>,
    read_wait_seconds: Option<f64>,
    write_wait_seconds: Option<f64>,
}

impl Rates {
    fn between(before: &Counters, after: &Counters, passed: Duration) -> Self {
        Self {
            busy_percent: busy_percent(before.busy_ms, after.busy_ms, passed),
            read_wait_seconds: mean_seconds((before.read_ms, after.read_ms), (before.reads, after.reads)),
            write_wait_seconds: mean_seconds((before.write_ms, after.write_ms), (before.writes, after.writes)),
        }
    }
}

fn push(rows: &mut Rows, name: &str, counters: &Counters, rates: Option<Rates>) {
    let rates = rates.unwrap_or_default();
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
    let seconds = |ms: u64| (ms as f64 / 1000.0).into();
    rows.push(
        &[("device", name)],
        &[
            ("read_bytes_total", bytes(counters.read_sectors).into()),
            ("written_bytes_total", bytes(counters.written_sectors).into()),
            ("reads_total", counters.reads.into()),
            ("writes_total", counters.writes.into()),
            ("busy_seconds_total", seconds(counters.busy_ms)),
            ("in_flight", counters.in_flight.into()),
            ("busy_percent", rates.busy_percent.into()),
            ("read_seconds_total", seconds(counters.read_ms)),
            ("write_seconds_total", seconds(counters.write_ms)),
            ("read_wait_seconds", rates.read_wait_seconds.into()),
            ("write_wait_seconds", rates.write_wait_seconds.into()),
            ("discards_total", counters.discards.into()),
            ("discarded_bytes_total", counters.discarded_sectors.map(bytes).into()),
            ("flushes_total", counters.flushes.into()),
        ],
    );
}

/// The share of the time passed with a request in flight; none when the counter went backwards, as when its 32 bits overflow.
fn busy_percent(before_ms: u64, after_ms: u64, passed: Duration) -> Option<f64> {
    let busy = after_ms.checked_sub(before_ms)?;
    let passed = passed.as_secs_f64() * 1000.0;
    (passed > 0.0).then(|| (busy as f64 / passed * 100.0).min(100.0))
}

/// How long a request took on average, of a time and a count that are given before and after; none when there was no request, or
/// one of them went backwards.
fn mean_seconds(ms: (u64, u64), count: (u64, u64)) -> Option<f64> {
    let (ms, count) = (ms.1.checked_sub(ms.0)?, count.1.checked_sub(count.0)?);
    (count > 0).then(|| ms as f64 / 1000.0 / count as f64)
}

/// A line of /proc/diskstats.
struct Line<'a> {
    number: usize,
    name: &'a str,
    counters: &'a str,
}

/// The lines of /proc/diskstats that name a device.
fn lines(text: &str) -> impl Iterator<Item = Line<'_>> + Clone {
    text.lines().enumerate().filter_map(|(index, line)| {
        let mut rest = line;
        let mut word = || {
            let (word, after) = rest.trim_ascii_start().split_once(' ').unwrap_or((rest.trim_ascii(), ""));
            rest = after;
            Some(word).filter(|word| !word.is_empty())
        };
        let (_major, _minor, name) = (word()?, word()?, word()?);
        Some(Line { number: index + 1, name, counters: rest })
    })
}

impl Line<'_> {
    /// Fails with fewer than eleven counters; a partition may have four, on kernels before 2.6.25.
    fn counters(&self) -> Result<Counters, ParseError> {
        Counters::parse(self.counters)
            .ok_or(ParseError { line: self.number, expected: "two numbers, a name and eleven counters" })
    }
}

impl Counters {
    fn parse(text: &str) -> Option<Self> {
        let mut counters = [0_u64; 17];
        let mut count = 0;
        for (slot, word) in counters.iter_mut().zip(text.split_ascii_whitespace()) {
            *slot = word.parse().ok()?;
            count += 1;
        }
        let newer = |index: usize| (index < count).then(|| counters[index]);
        (count >= 11).then(|| Self {
            reads: counters[0],
            read_sectors: counters[2],
            read_ms: counters[3],
            writes: counters[4],
            written_sectors: counters[6],
            write_ms: counters[7],
            in_flight: counters[8],
            busy_ms: counters[9],
            discards: newer(11),
            discarded_sectors: newer(13),
            flushes: newer(15),
        })
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
    use std::os::unix::fs::symlink;

    use plimsoll_nats::{Column, catalog};
    use proptest::prelude::*;

    use super::*;
    use crate::{context::HostPaths, rows::Columns};

    /// Columns of 6.18 (17), of 4.18 (15) and of older kernels (11).
    const RECORDED: &str = "\
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
   1       0 ram0 0 0 0 0 0 0 0 0 0 0 0
 253       0 zram0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 254       0 vda 49941 15020 10199242 87158 5352 31078 4708128 18726 3 10916 106492 5156 17 299968 590 224 16
 254       1 vda1 4000 0 10 0 5352 31078 4708128 18726 0 10916 106492
 259       0 nvme0n1 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
 259       1 nvme0n1p1 1 2 3 4 5 6 7 8 9 10 11
 252       1 dm-1 1 2 3 4 5 6 7 8 9 10 11
 252      10 dm-10 1 2 3 4 5 6 7 8 9 10 11
 202       1 xvdb1 1 2 3 4 5 6 7 8 9 10 11
";

    /// A host made of a folder.
    struct Host {
        dir: tempfile::TempDir,
        context: Context,
        diskio: DiskIo,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("proc")).unwrap();
            let context = Context { paths: HostPaths::new(dir.path()), ..Context::default() };
            Self { diskio: DiskIo::new(&context), dir, context }
        }

        fn read(&mut self, text: &str) -> Result<Columns, CollectError> {
            fs::write(self.dir.path().join("proc/diskstats"), text).unwrap();
            let mut tables = Tables::new(catalog::measurement("diskio"));
            self.diskio.collect(&mut tables)?;
            Ok(tables.only().take())
        }
    }

    #[test]
    fn whole_devices_are_kept_and_others_left_out() {
        let columns = Host::new().read(RECORDED).unwrap();
        // `xvdb1` has no whole device beside it: some hypervisors attach partitions alone.
        assert_eq!(columns.tags["device"], ["vda", "nvme0n1", "dm-1", "dm-10", "xvdb1"]);
        let vda = |field: &str| columns.fields[field].number(0).unwrap();
        assert_eq!((vda("reads_total"), vda("writes_total"), vda("in_flight")), (49_941.0, 5_352.0, 3.0));
        assert_eq!((vda("read_bytes_total"), vda("written_bytes_total")), (5_222_011_904.0, 2_410_561_536.0));
        assert_eq!((vda("read_seconds_total"), vda("write_seconds_total")), (87.158, 18.726));
        assert_eq!((vda("busy_seconds_total"), vda("discarded_bytes_total")), (10.916, 153_583_616.0));
    }

    #[test]
    fn what_old_kernels_do_not_count_is_nil() {
        let columns = Host::new().read(RECORDED).unwrap();
        let discards = Column::Integer(vec![Some(5156), Some(12), None, None, None]);
        assert_eq!(columns.fields["discards_total"], discards);
        assert_eq!(columns.fields["flushes_total"], Column::Integer(vec![Some(224), None, None, None, None]));
    }

    #[test]
    fn waits_are_means_since_the_previous_sample() {
        let mut host = Host::new();
        let first = host.read("8 0 sda 10 0 0 100 5 0 0 50 0 0 0").unwrap();
        assert_eq!(first.fields["read_wait_seconds"], Column::Float(vec![None]));
        let second = host.read("8 0 sda 14 0 0 110 5 0 0 50 0 0 0").unwrap();
        assert_eq!(second.fields["read_wait_seconds"], Column::Float(vec![Some(0.0025)]));
        assert_eq!(second.fields["write_wait_seconds"], Column::Float(vec![None]));
        assert!(second.fields["busy_percent"].number(0).is_some());
        assert_eq!(mean_seconds((9, 5), (1, 2)), None);
        assert_eq!(mean_seconds((5, 9), (2, 1)), None);
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
    fn a_disk_that_goes_is_told_once_and_what_is_no_disk_is_not() {
        let mut host = Host::new();
        let blocks = host.dir.path().join("sys/block");
        fs::create_dir_all(&blocks).unwrap();
        symlink("../devices/virtual/block/dm-1", blocks.join("dm-1")).unwrap();
        symlink("../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", blocks.join("nvme0n1")).unwrap();
        host.read(RECORDED).unwrap();
        let left: String =
            RECORDED.lines().filter(|line| line.contains("ram0")).map(|line| format!("{line}\n")).collect();
        assert_eq!(host.read(&left).unwrap().tags["device"].len(), 0);
        let mut gone: Vec<String> = host.context.events.take().into_iter().map(|event| event.subject).collect();
        gone.sort_unstable();
        // Of `dm-10` nothing is known but that it is listed as a whole device.
        assert_eq!(gone, ["dm-10", "nvme0n1", "vda", "xvdb1"]);
        host.read(&left).unwrap();
        host.read(RECORDED).unwrap();
        assert!(host.context.events.take().is_empty());
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        let wrong_line = |text: &str| match Host::new().read(text) {
            Err(CollectError::Parse { source, .. }) => source.line,
            other => panic!("{other:?}"),
        };
        assert!(Host::new().read("\n  \n8 0\n").unwrap().tags["device"].is_empty());
        assert_eq!(wrong_line("8 0 sda"), 1);
        assert_eq!(wrong_line("8 0 sda 1 2 3"), 1);
        assert_eq!(wrong_line("\n8 0 sda 1 2 3 4 5 6 7 8 9 x 11"), 2);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([0-9 ]{0,6}(sd|md|nvme)?[0-9p]{0,3}[ 0-9]{0,40}\n){0,6}") {
            lines(&text).for_each(|line| drop(line.counters()));
        }
    }
}
