//! Processor time, from /proc/stat, and how fast the cores run, from cpufreq.
//!
//! Frequencies come from `scaling_cur_freq` (Documentation/admin-guide/pm/cpufreq.rst), one short reading a core and sample. Most
//! kernels answer from what they noted at the last tick. On x86, those before 5.18 interrupt the core, and put a reader that asks
//! once a second to sleep for 10 ms or more a core (`arch_freq_get_on_cpu` in arch/x86/kernel/cpu/aperfmperf.c); where readings
//! take that long, frequencies are given up.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    CollectError, Collector, ParseError,
    proc_file::{Attribute, ProcFile},
    roster::Roster,
};
use crate::{
    context::Context,
    rows::{Rows, Tables},
};

/// How long the reading of one core's frequency may take.
const PATIENCE: Duration = Duration::from_millis(2);
/// How many readings in a row may take longer, as happens to one when the agent itself has to wait for a processor.
const MOST_SLOW: u32 = 4;

/// Ticks since boot by what the processor did; guests are not counted again as user or nice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    user: u64,
    nice: u64,
    system: u64,
    idle: u64,
    iowait: u64,
    irq: u64,
    softirq: u64,
    steal: u64,
    guest: u64,
}

/// Reads processor time since the previous sample, and frequencies.
#[derive(Debug)]
pub struct Cpu {
    file: ProcFile,
    cores: Roster<Core>,
    devices: PathBuf,
    slow: SlowReadings,
}

/// What is known of one core, or of all together.
#[derive(Debug)]
struct Core {
    /// None when the core has just come.
    previous: Option<Times>,
    /// In kHz; none where the kernel has no such file.
    frequency: Option<Attribute>,
    hertz: Option<f64>,
}

impl Cpu {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            file: ProcFile::new(context.paths.proc("stat")),
            cores: Roster::default(),
            devices: context.paths.sys("devices/system/cpu"),
            slow: SlowReadings::default(),
        }
    }

    /// Reads each core's frequency. Returns the average of those that are known.
    fn read_frequencies(&mut self) -> Option<f64> {
        let (mut sum, mut count) = (0.0, 0.0);
        for core in self.cores.iter_mut().map(|entry| &mut entry.known) {
            core.hertz = None;
            let Some(frequency) = core.frequency.as_mut().filter(|_| !self.slow.too_many()) else {
                continue;
            };
            let start = Instant::now();
            core.hertz = frequency
                .number::<u32>()
                .filter(|kilohertz| *kilohertz > 0)
                .map(|kilohertz| f64::from(kilohertz) * 1e3);
            self.slow.count(start.elapsed());
            if let Some(hertz) = core.hertz {
                sum += hertz;
                count += 1.0;
            }
        }
        (count > 0.0).then_some(sum / count)
    }
}

impl Collector for Cpu {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        self.file.read()?;
        let names = lines(self.file.text()).map(|line| line.core);
        let devices = &self.devices;
        self.cores.update(names, |core| Core::meet(core, devices));
        let average = self.read_frequencies();
        let rows = tables.only();
        for (entry, line) in self.cores.iter_mut().zip(lines(self.file.text())) {
            let times = line.times().map_err(|error| self.file.unparsed(error))?;
            // A core that has just come has no previous times, and tells nothing until the next sample.
            if let Some(previous) = entry.known.previous.replace(times) {
                let hertz = if entry.name == TOTAL { average } else { entry.known.hertz };
                push(rows, &entry.name, &times.since(&previous), hertz);
            }
        }
        if self.cores.iter().any(|entry| entry.name == TOTAL) {
            Ok(())
        } else {
            Err(self.file.unparsed(ParseError { line: 0, expected: "a line `cpu` for all cores together" }))
        }
    }

    fn notes(&self) -> Vec<String> {
        if self.slow.too_many() {
            vec![
                "Frequencies are left out: this kernel makes a reader wait for each core, as those before 5.18 do."
                    .into(),
            ]
        } else if self.cores.iter().all(|entry| entry.known.frequency.is_none()) {
            vec!["Frequencies are unknown: the kernel has no cpufreq driver here, as in most virtual machines.".into()]
        } else {
            Vec::new()
        }
    }
}

impl Core {
    fn meet(core: &str, devices: &std::path::Path) -> Self {
        let path = devices.join(format!("cpu{core}/cpufreq/scaling_cur_freq"));
        Self { previous: None, frequency: path.exists().then(|| Attribute::new(path)), hertz: None }
    }
}

/// How many readings in a row took too long.
#[derive(Debug, Default)]
struct SlowReadings(u32);

impl SlowReadings {
    fn count(&mut self, took: Duration) {
        self.0 = if took > PATIENCE { self.0 + 1 } else { 0 };
    }

    /// Whether it is the kernel that is slow; stays so, since nothing is read any more.
    fn too_many(&self) -> bool {
        self.0 > MOST_SLOW
    }
}

/// The tag of all cores together.
const TOTAL: &str = "total";

/// A `cpu` line of /proc/stat.
struct Line<'a> {
    number: usize,
    /// The core's number, or [`TOTAL`].
    core: &'a str,
    ticks: &'a str,
}

/// The `cpu` lines of /proc/stat, which come before all others.
fn lines(text: &str) -> impl Iterator<Item = Line<'_>> + Clone {
    text.lines().enumerate().map_while(|(index, line)| {
        let (core, ticks) = line.strip_prefix("cpu")?.split_once(' ')?;
        let core = if core.is_empty() { TOTAL } else { core };
        (core == TOTAL || core.bytes().all(|byte| byte.is_ascii_digit())).then_some(Line {
            number: index + 1,
            core,
            ticks,
        })
    })
}

impl Line<'_> {
    /// Fails with fewer than four numbers. Columns that old kernels lack count as 0.
    fn times(&self) -> Result<Times, ParseError> {
        Times::parse(self.ticks)
            .ok_or(ParseError { line: self.number, expected: "at least four numbers after the core's name" })
    }
}

impl Times {
    fn parse(text: &str) -> Option<Self> {
        let mut ticks = [0_u64; 10];
        let mut count = 0;
        for (slot, word) in ticks.iter_mut().zip(text.split_ascii_whitespace()) {
            *slot = word.parse().ok()?;
            count += 1;
        }
        let [user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice] = ticks;
        // The kernel counts guest in user and guest_nice in nice (proc_stat(5)).
        (count >= 4).then(|| Self {
            user: user.saturating_sub(guest),
            nice: nice.saturating_sub(guest_nice),
            system,
            idle,
            iowait,
            irq,
            softirq,
            steal,
            guest: guest.saturating_add(guest_nice),
        })
    }

    /// What was added to each; nothing where a counter went backwards, as idle and iowait now and then do.
    fn since(&self, previous: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(previous.user),
            nice: self.nice.saturating_sub(previous.nice),
            system: self.system.saturating_sub(previous.system),
            idle: self.idle.saturating_sub(previous.idle),
            iowait: self.iowait.saturating_sub(previous.iowait),
            irq: self.irq.saturating_sub(previous.irq),
            softirq: self.softirq.saturating_sub(previous.softirq),
            steal: self.steal.saturating_sub(previous.steal),
            guest: self.guest.saturating_sub(previous.guest),
        }
    }

    fn busy(&self) -> f64 {
        let Self { user, nice, system, irq, softirq, steal, guest, .. } = *self;
        [user, nice, system, irq, softirq, steal, guest].iter().map(|&ticks| ticks as f64).sum()
    }
}

/// Adds the row of a core; none when no tick has passed.
fn push(rows: &mut Rows, core: &str, passed: &Times, hertz: Option<f64>) {
    let all = passed.busy() + passed.idle as f64 + passed.iowait as f64;
    if all <= 0.0 {
        return;
    }
    let share = |ticks: f64| (ticks / all * 100.0).clamp(0.0, 100.0).into();
    rows.push(
        &[("core", core)],
        &[
            ("usage_percent", share(passed.busy())),
            ("user_percent", share(passed.user as f64)),
            ("nice_percent", share(passed.nice as f64)),
            ("system_percent", share(passed.system as f64)),
            ("iowait_percent", share(passed.iowait as f64)),
            ("irq_percent", share(passed.irq as f64)),
            ("softirq_percent", share(passed.softirq as f64)),
            ("steal_percent", share(passed.steal as f64)),
            ("guest_percent", share(passed.guest as f64)),
            ("idle_percent", share(passed.idle as f64)),
            ("frequency_hertz", hertz.into()),
        ],
    );
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use plimsoll_nats::{Column, catalog};
    use proptest::prelude::*;

    use super::*;
    use crate::{context::HostPaths, rows::Columns};

    const RECORDED: &str = "\
cpu  6100 200 1900 80000 700 10 90 50 400 100
cpu0 3000 100 900 40000 400 10 50 20 400 100
cpu1 3100 100 1000 40000 300 0 40 30 0 0
intr 34250 22 9 0 0
ctxt 1990473
btime 1062191376
cpufreq 5
procs_running 2
";

    /// A host whose /proc/stat is `before` at the first and `after` at the second reading, which is returned.
    fn read_twice(root: &Path, before: &str, after: &str) -> (Cpu, Result<Columns, CollectError>) {
        let context = Context { paths: HostPaths::new(root), ..Context::default() };
        let stat = context.paths.proc("stat");
        fs::create_dir_all(stat.parent().unwrap()).unwrap();
        let mut cpu = Cpu::new(&context);
        let mut tables = Tables::new(catalog::measurement("cpu"));
        fs::write(&stat, before).unwrap();
        let first = cpu.collect(&mut tables);
        assert!(tables.only().is_empty(), "there is nothing to compare with yet");
        fs::write(&stat, after).unwrap();
        let read = first.and_then(|()| cpu.collect(&mut tables)).map(|()| tables.only().take());
        (cpu, read)
    }

    fn rows_between(before: &str, after: &str) -> Result<Columns, CollectError> {
        read_twice(tempfile::tempdir().unwrap().path(), before, after).1
    }

    fn wrong_line(text: &str) -> usize {
        match rows_between(text, text) {
            Err(CollectError::Parse { source, .. }) => source.line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_lines_of_cores_are_found_among_others() {
        let cores: Vec<&str> = lines(RECORDED).map(|line| line.core).collect();
        assert_eq!(cores, ["total", "0", "1"]);
    }

    #[test]
    fn guests_are_not_counted_twice() {
        let times = lines(RECORDED).next().unwrap().times().unwrap();
        assert_eq!((times.user, times.nice, times.guest), (5700, 100, 500));
    }

    #[test]
    fn shares_since_the_previous_sample_add_up() {
        let columns = rows_between("cpu 100 0 100 800 0 0 0 0 0 0", "cpu 140 10 120 820 10 0 0 0 20 0").unwrap();
        let percent = |field: &str| columns.fields[field].number(0).unwrap();
        assert_eq!(columns.tags["core"], ["total"]);
        assert_eq!((percent("user_percent"), percent("guest_percent"), percent("nice_percent")), (20.0, 20.0, 10.0));
        assert_eq!((percent("idle_percent"), percent("iowait_percent"), percent("usage_percent")), (20.0, 10.0, 70.0));
    }

    #[test]
    fn the_four_columns_of_an_old_kernel_suffice() {
        let columns = rows_between("cpu 100 0 100 800", "cpu 150 0 100 850").unwrap();
        assert_eq!(columns.fields["user_percent"].number(0), Some(50.0));
        assert_eq!(columns.fields["steal_percent"].number(0), Some(0.0));
    }

    #[test]
    fn a_core_that_comes_goes_or_stands_still_yields_no_row() {
        let columns =
            rows_between("cpu 1 1 1 1\ncpu0 1 1 1 1\ncpu1 1 1 1 1", "cpu 2 1 1 1\ncpu0 1 1 1 1\ncpu2 9 9 9 9").unwrap();
        assert_eq!(columns.tags["core"], ["total"]);
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        assert_eq!(wrong_line(""), 0);
        assert_eq!(wrong_line("cpu0 1 2 3 4"), 0);
        assert_eq!(wrong_line("cpu  1 2 3 4\ncpu0 1 2"), 2);
        assert_eq!(wrong_line("cpu  1 2 x 4"), 1);
    }

    #[test]
    fn frequencies_are_told_where_the_kernel_knows_them() {
        let dir = tempfile::tempdir().unwrap();
        for (core, kilohertz) in [(0, "2400000\n"), (1, "3600000\n"), (2, "<unknown>\n")] {
            let folder = dir.path().join(format!("sys/devices/system/cpu/cpu{core}/cpufreq"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("scaling_cur_freq"), kilohertz).unwrap();
        }
        let cores = |ticks: u32| {
            (0..4).fold(format!("cpu {ticks} 0 0 0\n"), |text, core| text + &format!("cpu{core} {ticks} 0 0 0\n"))
        };
        let (cpu, columns) = read_twice(dir.path(), &cores(1), &cores(2));
        let columns = columns.unwrap();
        assert_eq!(columns.tags["core"], ["total", "0", "1", "2", "3"]);
        let expected = Column::Float(vec![Some(3.0e9), Some(2.4e9), Some(3.6e9), None, None]);
        assert_eq!(columns.fields["frequency_hertz"], expected);
        assert!(cpu.notes().is_empty());
    }

    #[test]
    fn without_cpufreq_the_notes_say_so() {
        let (cpu, columns) = read_twice(tempfile::tempdir().unwrap().path(), "cpu 1 1 1 1", "cpu 2 1 1 1");
        assert_eq!(columns.unwrap().fields["frequency_hertz"], Column::Float(vec![None]));
        assert!(cpu.notes()[0].contains("cpufreq"));
    }

    #[test]
    fn frequencies_are_given_up_only_when_one_reading_after_the_other_is_slow() {
        let mut slow = SlowReadings::default();
        for _ in 0..3 {
            (0..MOST_SLOW).for_each(|_| slow.count(PATIENCE * 2));
            assert!(!slow.too_many());
            slow.count(PATIENCE / 2);
        }
        (0..=MOST_SLOW).for_each(|_| slow.count(PATIENCE * 2));
        assert!(slow.too_many());
    }

    fn any_times() -> impl Strategy<Value = Times> {
        proptest::collection::vec(any::<u64>(), 10).prop_map(|ticks| {
            let words: Vec<String> = ticks.iter().map(u64::to_string).collect();
            Times::parse(&words.join(" ")).unwrap()
        })
    }

    proptest! {
        #[test]
        fn no_share_is_ever_negative_above_100_or_nan(before in any_times(), after in any_times()) {
            let mut rows = Rows::new(catalog::measurement("cpu").unwrap());
            push(&mut rows, TOTAL, &after.since(&before), None);
            let columns = rows.take();
            for (name, column) in columns.fields.iter().filter(|(name, _)| name.ends_with("_percent")) {
                for row in 0..column.len() {
                    let value = column.number(row).unwrap();
                    prop_assert!((0.0..=100.0).contains(&value), "{name}");
                }
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(cpu|cpu[0-9]|x)?[ 0-9\n-]{0,60}") {
            lines(&text).for_each(|line| drop(line.times()));
        }
    }
}
