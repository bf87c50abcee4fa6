//! Every process of the host, sample by sample: one pass over /proc/<pid>/stat, and what rates need of the pass before.
//!
//! A process is known by its id and its start, so that another that bears the id of one that has ended is a new one.
//!
//! /proc/<pid>/io costs as much as `stat` does, and is read only where it can have changed: of processes that have used processor
//! time since it was last read, since nothing is read or written without any. The kernel tells that time in ticks of 10 ms, so
//! what a process reads or writes with less is told once its tick is full, as a rate over the whole time since.

use std::{collections::HashMap, ops::Range, time::Duration};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    time::{ClockId, clock_gettime},
};

use super::{
    details::{self, IoTotals},
    folder::{ProcFolder, is_denied},
    stat::{self, State},
};
use crate::{
    collectors::{CollectError, ParseError},
    context::HostPaths,
};

/// A moment on the clocks that processes are timed by.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Time since the host's boot, suspension included, as the starts of processes are counted.
    pub since_boot: Duration,
    /// Time since 1970.
    pub since_1970: Duration,
}

impl Moment {
    /// The present.
    #[must_use]
    pub fn now() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let since_boot = Duration::new(boot.tv_sec.unsigned_abs(), u32::try_from(boot.tv_nsec).unwrap_or(0));
        Self { since_boot, since_1970: Duration::from_millis(plimsoll_nats::now_ms().unsigned_abs()) }
    }
}

/// A process at this sample.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Where its name is among the names.
    pub(super) name: Range<usize>,
    /// Where the part of the name is that stays.
    pub(super) lasting_name: Range<usize>,
    /// What it does.
    pub state: State,
    /// Id of its parent.
    pub parent: u32,
    /// Number of threads.
    pub threads: u64,
    /// When it started, in clock ticks since boot.
    pub started_ticks: u64,
    /// Processor time since its start.
    pub cpu_ticks: u64,
    /// Processor time since the previous sample, in percent of one core; none where that is not known.
    pub cpu_percent: Option<f64>,
    /// Memory that it occupies.
    pub resident_bytes: u64,
    /// Size of its address space.
    pub virtual_bytes: u64,
    /// What it has read and written; none where that was not looked at.
    pub io: Option<Io>,
}

/// What a process has read from storage and written to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Io {
    /// Since its start.
    pub totals: IoTotals,
    /// Bytes read a second since they were last looked at; none at the first look.
    pub read_bytes_per_second: Option<f64>,
    /// Bytes written a second, likewise.
    pub written_bytes_per_second: Option<f64>,
}

impl Io {
    /// Bytes read and written a second together.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        self.read_bytes_per_second.unwrap_or(0.0) + self.written_bytes_per_second.unwrap_or(0.0)
    }
}

/// How many processes are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// By state, in the order of its variants.
    states: [u64; 7],
    /// Threads of all.
    pub threads: u64,
}

impl Summary {
    /// How many processes are in a state.
    #[must_use]
    pub fn of(&self, state: State) -> u64 {
        self.states[state as usize]
    }

    /// How many processes there are.
    #[must_use]
    pub fn processes(&self) -> u64 {
        self.states.iter().sum()
    }
}

/// What is remembered of a process until the next sample.
#[derive(Debug)]
struct Known {
    started_ticks: u64,
    cpu_ticks: u64,
    /// Its processor time when its I/O was last looked at.
    cpu_ticks_at_io: u64,
    /// Its I/O then, and when that was; none where it is not known.
    io: Option<(IoTotals, Duration)>,
    /// The sample that it was last seen in.
    sample: u64,
}

/// All processes of the host.
#[derive(Debug)]
pub struct ProcessTable {
    pub(super) folder: ProcFolder,
    ticks_per_second: u64,
    page_bytes: u64,
    known: HashMap<u32, Known>,
    sample: u64,
    /// This sample's moment and the previous one's.
    now: Option<Moment>,
    previous: Option<Moment>,
    /// The time of boot since 1970, kept while it moves by less than a second: a start is told the same way each time.
    boot: Option<Duration>,
    pids: Vec<u32>,
    processes: Vec<Process>,
    names: Vec<u8>,
    summary: Summary,
    /// Whether some process could not be looked at in this sample, and whether the I/O of some could not.
    denied: bool,
    io_denied: bool,
}

impl ProcessTable {
    /// The processes of a host, none of them read yet.
    #[must_use]
    pub fn new(paths: &HostPaths) -> Self {
        Self {
            folder: ProcFolder::new(paths.at("/proc")),
            ticks_per_second: clock_ticks_per_second().max(1),
            page_bytes: page_size() as u64,
            known: HashMap::new(),
            sample: 0,
            now: None,
            previous: None,
            boot: None,
            pids: Vec::new(),
            processes: Vec::new(),
            names: Vec::new(),
            summary: Summary::default(),
            denied: false,
            io_denied: false,
        }
    }

    /// Looks at every process. One that ends meanwhile is left out.
    ///
    /// Fails when /proc cannot be listed, and when it holds no process at all.
    pub fn scan(&mut self, now: Moment) -> Result<(), CollectError> {
        self.folder.list(&mut self.pids)?;
        self.begin(now);
        for index in 0..self.pids.len() {
            self.look_at(self.pids[index]);
        }
        let sample = self.sample;
        self.known.retain(|_, known| known.sample == sample);
        if self.processes.is_empty() {
            let source = ParseError { line: 0, expected: "a readable folder for each process" };
            return Err(CollectError::Parse { path: self.folder.path().to_owned(), source });
        }
        Ok(())
    }

    /// The processes of this sample.
    #[must_use]
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The processes of this sample counted.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// The name of a process, as the kernel keeps it.
    #[must_use]
    pub fn name(&self, process: &Process) -> &[u8] {
        &self.names[process.name.clone()]
    }

    /// The name of a process without what a kernel worker works on at the moment.
    #[must_use]
    pub fn lasting_name(&self, process: &Process) -> &[u8] {
        &self.names[process.lasting_name.clone()]
    }

    /// Whether some processes could not be looked at.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.denied
    }

    /// Whether the I/O of some processes could not be looked at.
    #[must_use]
    pub fn is_io_denied(&self) -> bool {
        self.io_denied
    }

    /// Whether there is a process of that id.
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        self.known.contains_key(&pid)
    }

    /// How many processes are remembered for the next sample.
    #[cfg(test)]
    pub fn known_len(&self) -> usize {
        self.known.len()
    }

    /// Unix time in seconds at which a process started.
    #[must_use]
    pub fn started_at_seconds(&self, process: &Process) -> u64 {
        let millis = process.started_ticks.saturating_mul(1000) / self.ticks_per_second;
        self.boot.unwrap_or_default().saturating_add(Duration::from_millis(millis)).as_secs()
    }

    /// Processor time of a process in seconds.
    #[must_use]
    pub fn cpu_seconds(&self, process: &Process) -> f64 {
        process.cpu_ticks as f64 / self.ticks_per_second as f64
    }

    fn begin(&mut self, now: Moment) {
        self.previous = self.now.replace(now);
        self.sample += 1;
        let boot = now.since_1970.saturating_sub(now.since_boot);
        // The clocks are not read at one instant, and the wall clock is slewed.
        if self.boot.is_none_or(|kept| kept.abs_diff(boot) > Duration::from_secs(1)) {
            self.boot = Some(boot);
        }
        self.processes.clear();
        self.names.clear();
        self.summary = Summary::default();
        self.denied = false;
        self.io_denied = false;
    }

    fn look_at(&mut self, pid: u32) {
        let line = match self.folder.read(pid, "stat") {
            Ok(line) => line,
            Err(error) => {
                self.denied |= is_denied(error);
                return;
            }
        };
        // A process whose line is cut off ends at this moment.
        let Ok(stat) = stat::parse(line) else {
            return;
        };
        self.summary.states[stat.state as usize] += 1;
        self.summary.threads = self.summary.threads.saturating_add(stat.threads);
        let start = self.names.len();
        self.names.extend_from_slice(stat.name);
        let lasting = stat::lasting_name(stat.name, stat.is_kernel_thread).len();
        let process = Process {
            pid,
            name: start..self.names.len(),
            lasting_name: start..start + lasting,
            state: stat.state,
            parent: stat.parent,
            threads: stat.threads,
            started_ticks: stat.started_ticks,
            cpu_ticks: stat.cpu_ticks,
            cpu_percent: None,
            resident_bytes: stat.resident_pages.saturating_mul(self.page_bytes),
            virtual_bytes: stat.virtual_bytes,
            io: None,
        };
        self.processes.push(process);
        self.compare(self.processes.len() - 1);
    }

    /// Tells what a process has done since the previous sample.
    fn compare(&mut self, index: usize) {
        let process = &self.processes[index];
        let (pid, started_ticks, cpu_ticks) = (process.pid, process.started_ticks, process.cpu_ticks);
        let is_born_since = self.is_born_since(started_ticks);
        let previous = self.previous.map(|moment| moment.since_boot);
        let newborn = || Known {
            started_ticks,
            cpu_ticks: 0,
            // Not looked at yet.
            cpu_ticks_at_io: u64::MAX,
            io: previous.filter(|_| is_born_since).map(|moment| (IoTotals::default(), moment)),
            sample: 0,
        };
        let known = self.known.entry(pid).or_insert_with(newborn);
        let is_same = known.sample > 0 && known.started_ticks == started_ticks;
        if !is_same {
            *known = newborn();
        }
        let passed = self.now.zip(self.previous).map(|(now, before)| now.since_boot.saturating_sub(before.since_boot));
        let used = cpu_ticks.checked_sub(known.cpu_ticks).filter(|_| is_same || is_born_since);
        let is_io_due = known.cpu_ticks_at_io != cpu_ticks;
        known.cpu_ticks = cpu_ticks;
        known.sample = self.sample;
        let seconds = used.map(|ticks| ticks as f64 / self.ticks_per_second as f64);
        self.processes[index].cpu_percent = seconds
            .zip(passed)
            .filter(|(_, passed)| !passed.is_zero())
            .map(|(used, passed)| used / passed.as_secs_f64() * 100.0);
        if is_io_due {
            self.look_at_io(index);
        }
    }

    /// Whether a process started after the previous sample had begun, so that all it did was done since.
    fn is_born_since(&self, started_ticks: u64) -> bool {
        let ticks = |moment: Duration| moment.as_millis() * u128::from(self.ticks_per_second) / 1000;
        self.previous.is_some_and(|moment| u128::from(started_ticks) >= ticks(moment.since_boot))
    }

    /// Looks at what a process has read and written, unless this sample has done so.
    pub fn look_at_io(&mut self, index: usize) {
        let process = &mut self.processes[index];
        let (Some(known), Some(now)) = (self.known.get_mut(&process.pid), self.now) else {
            return;
        };
        if process.io.is_some() {
            return;
        }
        known.cpu_ticks_at_io = process.cpu_ticks;
        let totals = self.folder.read(process.pid, "io").map(details::io);
        let Ok(Some(totals)) = totals else {
            self.io_denied |= totals.is_err_and(is_denied);
            return;
        };
        let before = known.io.replace((totals, now.since_boot));
        let rate = |of: fn(&IoTotals) -> u64| {
            let (earlier, moment) = before.as_ref()?;
            let passed = now.since_boot.saturating_sub(*moment).as_secs_f64();
            let bytes = of(&totals).checked_sub(of(earlier))?;
            (passed > 0.0).then(|| bytes as f64 / passed)
        };
        process.io = Some(Io {
            totals,
            read_bytes_per_second: rate(|totals| totals.read_bytes),
            written_bytes_per_second: rate(|totals| totals.written_bytes),
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;

    use super::*;

    /// A process that does nothing.
    pub fn process(pid: u32) -> Process {
        Process {
            pid,
            name: 0..0,
            lasting_name: 0..0,
            state: State::Sleeping,
            parent: 1,
            threads: 1,
            started_ticks: 0,
            cpu_ticks: 0,
            cpu_percent: None,
            resident_bytes: 0,
            virtual_bytes: 0,
            io: None,
        }
    }

    /// Seconds since boot, which was 1000 s after 1970.
    pub fn at(seconds: f64) -> Moment {
        let since_boot = Duration::from_secs_f64(seconds);
        Moment { since_boot, since_1970: since_boot + Duration::from_secs(1000) }
    }

    /// Writes the folder of a process that started at `started_ticks`.
    pub fn write(root: &Path, pid: u32, started_ticks: u64, cpu_ticks: u64, io: Option<(u64, u64)>) {
        let folder = root.join("proc").join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        let stat =
            format!("{pid} (prog {pid}) S 1 1 1 0 -1 0 0 0 0 0 {cpu_ticks} 0 0 0 20 0 2 0 {started_ticks} 8192 10 0\n");
        fs::write(folder.join("stat"), stat).unwrap();
        let io_file = folder.join("io");
        match io {
            Some((read, written)) => {
                let text = format!("rchar: 1\nread_bytes: {read}\nwrite_bytes: {written}\ncancelled_write_bytes: 0\n");
                fs::write(io_file, text).unwrap();
            }
            None => drop(fs::remove_file(io_file)),
        }
    }

    fn end(root: &Path, pid: u32) {
        fs::remove_dir_all(root.join("proc").join(pid.to_string())).unwrap();
    }

    fn only(table: &ProcessTable) -> &Process {
        assert_eq!(table.processes().len(), 1);
        &table.processes()[0]
    }

    fn near(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < 1e-6)
    }

    #[test]
    fn rates_are_told_from_the_second_sample_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ProcessTable::new(&HostPaths::new(dir.path()));
        write(dir.path(), 7, 500, 1000, Some((100, 200)));
        table.scan(at(100.0)).unwrap();
        let first = only(&table);
        assert_eq!((first.cpu_percent, first.io.unwrap().read_bytes_per_second), (None, None));
        assert_eq!(table.name(first), b"prog 7");
        assert_eq!((table.started_at_seconds(first), table.cpu_seconds(first)), (1005, 10.0));

        write(dir.path(), 7, 500, 1250, Some((600, 200)));
        table.scan(at(105.0)).unwrap();
        let second = only(&table);
        let io = second.io.unwrap();
        assert!(near(second.cpu_percent, 50.0), "{second:?}");
        assert!(near(io.read_bytes_per_second, 100.0) && near(io.written_bytes_per_second, 0.0), "{io:?}");
        assert_eq!(io.totals, IoTotals { read_bytes: 600, written_bytes: 200 });
        assert_eq!(table.summary().of(State::Sleeping), 1);
        assert_eq!((table.summary().processes(), table.summary().threads), (1, 2));
    }

    #[test]
    fn another_process_under_the_same_id_has_no_rate_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ProcessTable::new(&HostPaths::new(dir.path()));
        write(dir.path(), 7, 500, 1000, Some((1_000_000, 0)));
        table.scan(at(100.0)).unwrap();
        // It started after the previous sample, so that all it did was done since.
        write(dir.path(), 7, 10_300, 20, Some((50, 0)));
        table.scan(at(105.0)).unwrap();
        let second = only(&table);
        assert!(near(second.cpu_percent, 4.0), "{second:?}");
        assert!(near(second.io.unwrap().read_bytes_per_second, 10.0), "{second:?}");
        // One that is older than the previous sample and yet was not seen, as when a folder was hidden: no rate.
        write(dir.path(), 7, 9_000, 9_999, Some((99_999, 0)));
        table.scan(at(110.0)).unwrap();
        let third = only(&table);
        assert_eq!((third.cpu_percent, third.io.unwrap().read_bytes_per_second), (None, None));
    }

    #[test]
    fn io_is_read_only_after_processor_time_was_used_and_its_rate_spans_the_whole_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ProcessTable::new(&HostPaths::new(dir.path()));
        write(dir.path(), 7, 500, 10, Some((0, 0)));
        table.scan(at(100.0)).unwrap();
        write(dir.path(), 7, 500, 10, Some((300, 0)));
        table.scan(at(105.0)).unwrap();
        assert_eq!(only(&table).io, None);
        write(dir.path(), 7, 500, 11, Some((1000, 0)));
        table.scan(at(110.0)).unwrap();
        assert!(near(only(&table).io.unwrap().read_bytes_per_second, 100.0));
        // Whoever is told is looked at anyway, once a sample.
        table.scan(at(115.0)).unwrap();
        write(dir.path(), 7, 500, 11, Some((1500, 0)));
        table.look_at_io(0);
        assert!(near(only(&table).io.unwrap().read_bytes_per_second, 100.0));
        write(dir.path(), 7, 500, 11, Some((9999, 0)));
        table.look_at_io(0);
        assert_eq!(only(&table).io.unwrap().totals.read_bytes, 1500);
    }

    #[test]
    fn what_ends_is_forgotten_and_what_is_half_gone_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ProcessTable::new(&HostPaths::new(dir.path()));
        for pid in [1, 2, 3] {
            write(dir.path(), pid, 500, 10, None);
        }
        table.scan(at(100.0)).unwrap();
        assert!(table.has(2) && table.processes().len() == 3);
        end(dir.path(), 2);
        fs::write(dir.path().join("proc/3/stat"), "").unwrap();
        fs::create_dir(dir.path().join("proc/4")).unwrap();
        fs::write(dir.path().join("proc/uptime"), "1 1").unwrap();
        table.scan(at(105.0)).unwrap();
        assert_eq!(only(&table).pid, 1);
        assert!(!table.has(2) && table.known.len() == 1);
    }

    #[test]
    fn a_proc_without_any_process_is_an_error_and_read_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ProcessTable::new(&HostPaths::new(dir.path()));
        assert!(matches!(table.scan(at(1.0)), Err(CollectError::Read { .. })));
        fs::create_dir(dir.path().join("proc")).unwrap();
        assert!(matches!(table.scan(at(2.0)), Err(CollectError::Parse { .. })));
        write(dir.path(), 7, 500, 1000, None);
        table.scan(at(100.0)).unwrap();
        assert_eq!(only(&table).io, None);
    }

    #[test]
    fn a_start_is_told_the_same_way_while_the_clock_is_slewed() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = ProcessTable::new(&HostPaths::new(dir.path()));
        write(dir.path(), 7, 599, 0, None);
        let mut moment = at(100.0);
        for shift in [0, 1, 20, 900] {
            moment.since_1970 = at(100.0).since_1970 + Duration::from_millis(shift);
            table.scan(moment).unwrap();
            assert_eq!(table.started_at_seconds(only(&table)), 1005, "{shift}");
        }
        moment.since_1970 = at(100.0).since_1970 + Duration::from_secs(3600);
        table.scan(moment).unwrap();
        assert_eq!(table.started_at_seconds(only(&table)), 4605);
    }

    proptest! {
        #[test]
        fn no_rate_is_ever_negative_or_nan(
            samples in proptest::collection::vec((0_u64..3, 0_u64..2000, 0_u64..500, 0_u64..500, 0.0..10.0_f64), 1..12)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut table = ProcessTable::new(&HostPaths::new(dir.path()));
            let mut now = 20.0;
            for (start, cpu, read, written, pause) in samples {
                now += pause;
                write(dir.path(), 7, start * 1100, cpu, Some((read, written)));
                table.scan(at(now)).unwrap();
                let io = only(&table).io;
                let rates = [
                    only(&table).cpu_percent,
                    io.and_then(|io| io.read_bytes_per_second),
                    io.and_then(|io| io.written_bytes_per_second),
                ];
                for rate in rates.into_iter().flatten() {
                    prop_assert!(rate.is_finite() && rate >= 0.0, "{rate}");
                }
            }
        }
    }
}
