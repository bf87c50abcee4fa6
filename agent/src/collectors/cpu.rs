//! Processor time, from /proc/stat.

use super::{CollectError, Collector, ParseError, proc_file::ProcFile};
use crate::{
    context::Context,
    rows::{Rows, Tables},
};

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

/// The times of one core, or of all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreTimes {
    /// The core's number; none for all cores together.
    pub core: Option<u32>,
    /// What it did.
    pub times: Times,
}

/// Reads processor time since the previous sample.
#[derive(Debug)]
pub struct Cpu {
    file: ProcFile,
    previous: Vec<CoreTimes>,
}

impl Cpu {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { file: ProcFile::new(context.paths.proc("stat")), previous: Vec::new() }
    }
}

impl Collector for Cpu {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let current = parse(self.file.read()?).map_err(|error| self.file.unparsed(error))?;
        for CoreTimes { core, times } in &current {
            // A core that has just come has no previous times, and tells nothing until the next sample.
            if let Ok(index) = self.previous.binary_search_by_key(core, |previous| previous.core) {
                push(rows, *core, &times.since(&self.previous[index].times));
            }
        }
        self.previous = current;
        Ok(())
    }
}

/// Takes the `cpu` lines of /proc/stat apart, sorted by core. Columns that old kernels lack count as 0.
///
/// Fails when the line of all cores is missing, and on a line with fewer than four numbers.
pub fn parse(text: &str) -> Result<Vec<CoreTimes>, ParseError> {
    let mut cores = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_ascii_whitespace();
        let Some(core) = words.next().and_then(|word| word.strip_prefix("cpu")) else {
            continue;
        };
        let core = match core {
            "" => None,
            number => match number.parse() {
                Ok(number) => Some(number),
                // Another line that happens to begin so.
                Err(_) => continue,
            },
        };
        let times = Times::parse(words)
            .ok_or(ParseError { line: index + 1, expected: "at least four numbers after the core's name" })?;
        cores.push(CoreTimes { core, times });
    }
    cores.sort_by_key(|times| times.core);
    match cores.first() {
        Some(CoreTimes { core: None, .. }) => Ok(cores),
        _ => Err(ParseError { line: 0, expected: "a line `cpu` for all cores together" }),
    }
}

impl Times {
    fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut ticks = [0_u64; 10];
        let mut count = 0;
        for (slot, word) in ticks.iter_mut().zip(words) {
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
fn push(rows: &mut Rows, core: Option<u32>, passed: &Times) {
    let all = passed.busy() + passed.idle as f64 + passed.iowait as f64;
    if all <= 0.0 {
        return;
    }
    let share = |ticks: f64| (ticks / all * 100.0).clamp(0.0, 100.0).into();
    let number = core.map(|number| number.to_string());
    rows.push(
        &[("core", number.as_deref().unwrap_or("total"))],
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
        ],
    );
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;
    use proptest::prelude::*;

    use super::*;

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

    fn rows_between(before: &[CoreTimes], after: &[CoreTimes]) -> Rows {
        let mut rows = Rows::new(catalog::measurement("cpu").unwrap());
        for (before, after) in before.iter().zip(after) {
            push(&mut rows, after.core, &after.times.since(&before.times));
        }
        rows
    }

    #[test]
    fn guests_are_not_counted_twice() {
        let cores = parse(RECORDED).unwrap();
        assert_eq!(cores.iter().map(|times| times.core).collect::<Vec<_>>(), [None, Some(0), Some(1)]);
        let times = cores[0].times;
        assert_eq!((times.user, times.nice, times.guest), (5700, 100, 500));
    }

    #[test]
    fn shares_since_the_previous_sample_add_up() {
        let before = parse("cpu 100 0 100 800 0 0 0 0 0 0").unwrap();
        let after = parse("cpu 140 10 120 820 10 0 0 0 20 0").unwrap();
        let columns = rows_between(&before, &after).take();
        let percent = |field: &str| columns.fields[field].number(0).unwrap();
        assert_eq!(columns.tags["core"], ["total"]);
        assert_eq!((percent("user_percent"), percent("guest_percent"), percent("nice_percent")), (20.0, 20.0, 10.0));
        assert_eq!((percent("idle_percent"), percent("iowait_percent"), percent("usage_percent")), (20.0, 10.0, 70.0));
    }

    #[test]
    fn a_core_that_comes_goes_or_stands_still_yields_no_row() {
        let mut cpu = Cpu {
            previous: parse("cpu 1 1 1 1\ncpu0 1 1 1 1\ncpu1 1 1 1 1").unwrap(),
            ..Cpu::new(&Context::default())
        };
        let dir = tempfile::tempdir().unwrap();
        cpu.file = ProcFile::new(dir.path().join("stat"));
        std::fs::write(dir.path().join("stat"), "cpu 2 1 1 1\ncpu0 1 1 1 1\ncpu2 9 9 9 9").unwrap();
        let mut tables = Tables::new(catalog::measurement("cpu"));
        cpu.collect(&mut tables).unwrap();
        assert_eq!(tables.only().take().tags["core"], ["total"]);
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        assert_eq!(parse("").unwrap_err().line, 0);
        assert_eq!(parse("cpu0 1 2 3 4").unwrap_err().line, 0);
        assert_eq!(parse("cpu  1 2 3 4\ncpu0 1 2").unwrap_err().line, 2);
        assert_eq!(parse("cpu  1 2 x 4").unwrap_err().line, 1);
        assert_eq!(parse("cpu  1 2 3 4").unwrap().len(), 1);
    }

    fn any_times() -> impl Strategy<Value = Times> {
        proptest::collection::vec(any::<u64>(), 10).prop_map(|ticks| {
            Times::parse(ticks.iter().map(u64::to_string).collect::<Vec<_>>().iter().map(String::as_str)).unwrap()
        })
    }

    proptest! {
        #[test]
        fn no_share_is_ever_negative_above_100_or_nan(before in any_times(), after in any_times()) {
            let core = |times| [CoreTimes { core: None, times }];
            let columns = rows_between(&core(before), &core(after)).take();
            for column in columns.fields.values() {
                for row in 0..column.len() {
                    let value = column.number(row).unwrap();
                    prop_assert!((0.0..=100.0).contains(&value));
                }
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(cpu|cpu[0-9]|x)?[ 0-9\n-]{0,60}") {
            let _ = parse(&text);
        }
    }
}
