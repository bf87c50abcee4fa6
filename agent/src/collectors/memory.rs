//! Main memory and swap, from /proc/meminfo, and what the kernel does for want of memory, from /proc/vmstat.

use rustix::param::page_size;

use self::oom::OomWatch;
use super::{CollectError, Collector, ParseError, proc_file::ProcFile};
use crate::{
    context::Context,
    rows::{Tables, percent},
};

mod group_kills;
mod kernel_log;
mod oom;

/// Sizes in bytes; none where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    total: u64,
    available: u64,
    free: Option<u64>,
    buffers: Option<u64>,
    cached: Option<u64>,
    swap_total: Option<u64>,
    swap_free: Option<u64>,
    slab: Option<u64>,
    slab_reclaimable: Option<u64>,
    shared: Option<u64>,
    dirty: Option<u64>,
    writeback: Option<u64>,
    anonymous_huge: Option<u64>,
    huge_page: Option<u64>,
    /// Not a size but a number of pages, as the next.
    huge_pages: Option<u64>,
    huge_pages_free: Option<u64>,
}

/// Counts since boot; none where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    faults: Option<u64>,
    major_faults: Option<u64>,
    pages_swapped_in: Option<u64>,
    pages_swapped_out: Option<u64>,
    oom_kills: Option<u64>,
}

/// Reads main memory and swap, and tells of processes that the kernel kills.
#[derive(Debug)]
pub struct Memory {
    meminfo: ProcFile,
    vmstat: ProcFile,
    /// The most that was told: the two counts that it is the difference of are not read at one instant.
    minor_faults: u64,
    oom: OomWatch,
    notes: Vec<&'static str>,
}

impl Memory {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            meminfo: ProcFile::new(context.paths.proc("meminfo")),
            vmstat: ProcFile::new(context.paths.proc("vmstat")),
            minor_faults: 0,
            oom: OomWatch::new(context),
            notes: Vec::new(),
        }
    }

    /// Counts of nothing where the kernel has no vmstat or writes something else: sizes are told all the same.
    fn read_events(&mut self) -> MemoryEvents {
        let events = self.vmstat.read_if_present().ok().flatten().and_then(|text| parse_events(text).ok());
        self.notes.clear();
        if events.is_none() {
            self.notes.push("Page faults, swapping and OOM kills are unknown: `/proc/vmstat` cannot be read.");
        } else if events.is_some_and(|events| events.oom_kills.is_none()) {
            self.notes.push("OOM kills are unknown: the kernel is older than 4.13.");
        }
        events.unwrap_or_default()
    }

    fn count_minor_faults(&mut self, events: &MemoryEvents) -> Option<u64> {
        self.minor_faults = self.minor_faults.max(events.faults?.saturating_sub(events.major_faults?));
        Some(self.minor_faults)
    }
}

impl Collector for Memory {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let events = self.read_events();
        self.oom.see(events.oom_kills);
        let minor_faults = self.count_minor_faults(&events);
        let info = parse(self.meminfo.read()?).map_err(|error| self.meminfo.unparsed(error))?;
        let used = info.total.saturating_sub(info.available);
        let swap_used = info.swap_total.zip(info.swap_free).map(|(total, free)| total.saturating_sub(free));
        let bytes = |pages: Option<u64>| pages.map(|pages| pages.saturating_mul(page_size() as u64));
        tables.only().push(
            &[],
            &[
                ("total_bytes", info.total.into()),
                ("available_bytes", info.available.into()),
                ("used_bytes", used.into()),
                ("used_percent", percent(used, info.total).into()),
                ("free_bytes", info.free.into()),
                ("buffers_bytes", info.buffers.into()),
                ("cached_bytes", info.cached.into()),
                ("swap_total_bytes", info.swap_total.into()),
                ("swap_free_bytes", info.swap_free.into()),
                ("swap_used_bytes", swap_used.into()),
                ("swap_used_percent", swap_used.zip(info.swap_total).and_then(|(used, all)| percent(used, all)).into()),
                ("slab_bytes", info.slab.into()),
                ("slab_reclaimable_bytes", info.slab_reclaimable.into()),
                ("shared_bytes", info.shared.into()),
                ("dirty_bytes", info.dirty.into()),
                ("writeback_bytes", info.writeback.into()),
                ("anonymous_huge_bytes", info.anonymous_huge.into()),
                ("huge_page_bytes", info.huge_page.into()),
                ("huge_pages", info.huge_pages.into()),
                ("huge_pages_free", info.huge_pages_free.into()),
                ("minor_faults_total", minor_faults.into()),
                ("major_faults_total", events.major_faults.into()),
                ("swap_in_bytes_total", bytes(events.pages_swapped_in).into()),
                ("swap_out_bytes_total", bytes(events.pages_swapped_out).into()),
                ("oom_kills_total", events.oom_kills.into()),
            ],
        );
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        self.notes.iter().map(|&note| note.to_owned()).chain(self.oom.note()).collect()
    }
}

/// Takes /proc/meminfo apart. Kernels before 3.14 do not tell what is available; free, buffers and cached stand in for it.
///
/// Fails when the total is missing or a size is not a number.
pub fn parse(text: &str) -> Result<MemoryInfo, ParseError> {
    let mut info = MemoryInfo::default();
    let (mut total, mut available) = (None, None);
    for (index, line) in text.lines().enumerate() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let (slot, unit) = match key {
            "MemTotal" => (&mut total, 1024),
            "MemAvailable" => (&mut available, 1024),
            "MemFree" => (&mut info.free, 1024),
            "Buffers" => (&mut info.buffers, 1024),
            "Cached" => (&mut info.cached, 1024),
            "SwapTotal" => (&mut info.swap_total, 1024),
            "SwapFree" => (&mut info.swap_free, 1024),
            "Slab" => (&mut info.slab, 1024),
            "SReclaimable" => (&mut info.slab_reclaimable, 1024),
            "Shmem" => (&mut info.shared, 1024),
            "Dirty" => (&mut info.dirty, 1024),
            "Writeback" => (&mut info.writeback, 1024),
            "AnonHugePages" => (&mut info.anonymous_huge, 1024),
            "Hugepagesize" => (&mut info.huge_page, 1024),
            "HugePages_Total" => (&mut info.huge_pages, 1),
            "HugePages_Free" => (&mut info.huge_pages_free, 1),
            _ => continue,
        };
        let number = number(value).and_then(|number| number.checked_mul(unit));
        *slot = Some(number.ok_or(ParseError { line: index + 1, expected: "a number, of kB where it is a size" })?);
    }
    info.total = total.ok_or(ParseError { line: 0, expected: "a line `MemTotal:`" })?;
    let parts = [info.free, info.buffers, info.cached].into_iter().flatten();
    let estimate = parts.fold(0, |sum: u64, part| sum.saturating_add(part));
    info.available = available.unwrap_or(estimate).min(info.total);
    Ok(info)
}

/// Takes /proc/vmstat apart. Fails when a count is not a number.
pub fn parse_events(text: &str) -> Result<MemoryEvents, ParseError> {
    let mut events = MemoryEvents::default();
    for (index, line) in text.lines().enumerate() {
        let Some((key, value)) = line.split_once(' ') else {
            continue;
        };
        let slot = match key {
            "pgfault" => &mut events.faults,
            "pgmajfault" => &mut events.major_faults,
            "pswpin" => &mut events.pages_swapped_in,
            "pswpout" => &mut events.pages_swapped_out,
            "oom_kill" => &mut events.oom_kills,
            _ => continue,
        };
        *slot = Some(number(value).ok_or(ParseError { line: index + 1, expected: "a number" })?);
    }
    Ok(events)
}

fn number(value: &str) -> Option<u64> {
    value.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use plimsoll_nats::{Column, catalog};
    use proptest::prelude::*;

    use super::*;
    use crate::{context::HostPaths, rows::Columns};

    /// As of 6.18, unimportant lines left out.
    const RECORDED: &str = "\
MemTotal:       24684084 kB
MemFree:        18161096 kB
MemAvailable:   22906176 kB
Buffers:           39904 kB
Cached:          4834584 kB
SwapCached:            0 kB
SwapTotal:       2097148 kB
SwapFree:        2097100 kB
Zswap:                 0 kB
Dirty:               148 kB
Writeback:             4 kB
Shmem:              8872 kB
KReclaimable:     421340 kB
Slab:             463828 kB
SReclaimable:     421340 kB
SUnreclaim:        42488 kB
AnonHugePages:      2048 kB
HugePages_Total:      16
HugePages_Free:       12
HugePages_Rsvd:        0
Hugepagesize:       2048 kB
DirectMap1G:    25165824 kB
";
    const EVENTS: &str = "\
nr_free_pages 5989529
pswpin 3
pswpout 5
pgfault 1100
pgmajfault 100
thp_fault_alloc 7
oom_kill 2
";

    fn read(meminfo: &str, vmstat: Option<&str>) -> (Memory, Columns) {
        let dir = tempfile::tempdir().unwrap();
        let context = Context { paths: HostPaths::new(dir.path()), ..Context::default() };
        fs::create_dir(dir.path().join("proc")).unwrap();
        fs::write(context.paths.proc("meminfo"), meminfo).unwrap();
        if let Some(vmstat) = vmstat {
            fs::write(context.paths.proc("vmstat"), vmstat).unwrap();
        }
        let mut memory = Memory::new(&context);
        let mut tables = Tables::new(catalog::measurement("memory"));
        memory.collect(&mut tables).unwrap();
        (memory, tables.only().take())
    }

    #[test]
    fn a_recorded_text_is_taken_apart() {
        let info = parse(RECORDED).unwrap();
        assert_eq!(info.total, 24_684_084 * 1024);
        assert_eq!(info.available, 22_906_176 * 1024);
        assert_eq!((info.swap_total.unwrap() - info.swap_free.unwrap()) / 1024, 48);
        assert_eq!((info.slab, info.slab_reclaimable), (Some(463_828 * 1024), Some(421_340 * 1024)));
        assert_eq!((info.shared, info.dirty, info.writeback), (Some(8872 * 1024), Some(148 * 1024), Some(4096)));
        assert_eq!((info.huge_pages, info.huge_pages_free, info.huge_page), (Some(16), Some(12), Some(2 << 20)));
        assert_eq!(info.anonymous_huge, Some(2 << 20));
    }

    #[test]
    fn faults_are_told_apart_and_pages_become_bytes() {
        let (memory, columns) = read(RECORDED, Some(EVENTS));
        let count = |field: &str| columns.fields[field].number(0).unwrap() as u64;
        assert_eq!((count("minor_faults_total"), count("major_faults_total")), (1000, 100));
        let page = page_size() as u64;
        assert_eq!((count("swap_in_bytes_total"), count("swap_out_bytes_total")), (3 * page, 5 * page));
        assert_eq!(count("oom_kills_total"), 2);
        assert!(memory.notes.is_empty());
    }

    #[test]
    fn minor_faults_never_go_back() {
        let (mut memory, _) = read(RECORDED, Some(EVENTS));
        let events =
            |faults, major| MemoryEvents { faults: Some(faults), major_faults: Some(major), ..Default::default() };
        assert_eq!(memory.count_minor_faults(&events(1101, 103)), Some(1000));
        assert_eq!(memory.count_minor_faults(&events(1110, 103)), Some(1007));
    }

    #[test]
    fn what_an_old_kernel_lacks_is_nil() {
        let (memory, columns) = read("MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 5 kB\nCached: 20 kB\n", None);
        assert_eq!(columns.fields["available_bytes"].number(0), Some(35.0 * 1024.0));
        for field in ["swap_total_bytes", "swap_used_bytes", "slab_bytes", "huge_pages", "minor_faults_total"] {
            assert_eq!(columns.fields[field], Column::Integer(vec![None]), "{field}");
        }
        assert!(memory.notes()[0].contains("/proc/vmstat"));
        let (memory, _) = read(RECORDED, Some("pgfault 1\npgmajfault 0\n"));
        assert!(memory.notes()[0].contains("4.13"));
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        assert_eq!(parse("MemFree: 1 kB").unwrap_err(), ParseError { line: 0, expected: "a line `MemTotal:`" });
        assert_eq!(parse("MemTotal: 1 kB\nMemFree:").unwrap_err().line, 2);
        assert_eq!(parse("MemTotal: 99999999999999999999 kB").unwrap_err().line, 1);
        assert_eq!(parse("MemTotal: 18446744073709551615 kB").unwrap_err().line, 1);
        assert_eq!(parse_events("pgfault 1\noom_kill -1").unwrap_err().line, 2);
        assert_eq!(parse_events("").unwrap(), MemoryEvents::default());
    }

    #[test]
    fn the_total_is_the_one_that_others_see() {
        let system = crate::inventory::read(&HostPaths::default());
        let mut tables = Tables::new(catalog::measurement("memory"));
        Memory::new(&Context::default()).collect(&mut tables).unwrap();
        let total = tables.only().take().fields["total_bytes"].number(0).unwrap();
        assert_eq!(total, system.memory_bytes.unwrap() as f64);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "((MemTotal|MemFree|Cached|HugePages_Free)?:? ?[0-9]{0,21}( kB)?\n){0,6}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_text_makes_the_parser_of_events_panic(text in "((pgfault|oom_kill)? ?-?[0-9]{0,21}\n){0,6}") {
            let _ = parse_events(&text);
        }
    }
}
