//! What a cgroup tells of itself (Documentation/admin-guide/cgroup-v2.rst).

/// Processor time, of `cpu.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All of it.
    pub usage_us: Option<u64>,
    /// In programs.
    pub user_us: Option<u64>,
    /// In the kernel.
    pub system_us: Option<u64>,
    /// Periods of the limit that have passed; none while the controller is off, as with the two that follow.
    pub periods: Option<u64>,
    /// Periods in which the limit was reached.
    pub throttled_periods: Option<u64>,
    /// How long threads were held back.
    pub throttled_us: Option<u64>,
}

impl Cpu {
    /// Takes `cpu.stat` apart.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut cpu = Self::default();
        for (key, value) in keyed(text) {
            match key {
                "usage_usec" => cpu.usage_us = Some(value),
                "user_usec" => cpu.user_us = Some(value),
                "system_usec" => cpu.system_us = Some(value),
                "nr_periods" => cpu.periods = Some(value),
                "nr_throttled" => cpu.throttled_periods = Some(value),
                "throttled_usec" => cpu.throttled_us = Some(value),
                _ => {}
            }
        }
        cpu
    }
}

/// Memory by kind in bytes, of `memory.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Of programs, with no file behind it.
    pub anon: Option<u64>,
    /// File cache, shared memory included.
    pub file: Option<u64>,
    /// File cache that was not needed lately.
    pub inactive_file: Option<u64>,
}

impl Memory {
    /// Takes `memory.stat` apart.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut memory = Self::default();
        for (key, value) in keyed(text) {
            match key {
                "anon" => memory.anon = Some(value),
                "file" => memory.file = Some(value),
                "inactive_file" => memory.inactive_file = Some(value),
                _ => {}
            }
        }
        memory
    }
}

/// Input and output of all block devices together, of `io.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Io {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

impl Io {
    /// Takes `io.stat` apart: a line a device, with its numbers and `key=value`. There are no lines before the first request.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut io = Self::default();
        for (key, value) in text.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse::<u64>() else {
                continue;
            };
            let sum = match key {
                "rbytes" => &mut io.read_bytes,
                "wbytes" => &mut io.written_bytes,
                "rios" => &mut io.reads,
                "wios" => &mut io.writes,
                _ => continue,
            };
            *sum = sum.saturating_add(value);
        }
        io
    }
}

/// The value of a key in a file of lines `key value`, such as `memory.events`.
#[must_use]
pub fn value_of(text: &str, key: &str) -> Option<u64> {
    keyed(text).find(|(other, _)| *other == key).map(|(_, value)| value)
}

/// The number that a file consists of; none where it says `max`, that is, no limit.
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    text.trim_ascii().parse().ok()
}

fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim_ascii().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn processor_time_is_told_with_and_without_the_controller() {
        let on = "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnice_usec 0\ncore_sched.force_idle_usec 0\n\
                  nr_periods 100\nnr_throttled 7\nthrottled_usec 350000\nnr_bursts 0\nburst_usec 0\n";
        let cpu = Cpu::parse(on);
        assert_eq!((cpu.usage_us, cpu.user_us, cpu.system_us), (Some(5_000_000), Some(3_000_000), Some(2_000_000)));
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_us), (Some(100), Some(7), Some(350_000)));
        let off = Cpu::parse("usage_usec 5\nuser_usec 3\nsystem_usec 2\n");
        assert_eq!((off.usage_us, off.periods), (Some(5), None));
    }

    #[test]
    fn memory_is_told_by_kind() {
        let text =
            "anon 1000\nfile 600\nkernel 5\ninactive_anon 7\nactive_anon 8\ninactive_file 200\nactive_file 400\n";
        assert_eq!(Memory::parse(text), Memory { anon: Some(1000), file: Some(600), inactive_file: Some(200) });
        assert_eq!(value_of("low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n", "oom_kill"), Some(1));
        assert_eq!((number("max\n"), number("512\n")), (None, Some(512)));
    }

    #[test]
    fn devices_are_summed() {
        let text = "254:0 rbytes=100 wbytes=20 rios=3 wios=4 dbytes=9 dios=9\n8:0 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=0 dios=0\n7:0 \n";
        assert_eq!(Io::parse(text), Io { read_bytes: 101, written_bytes: 22, reads: 4, writes: 5 });
        assert_eq!(Io::parse(""), Io::default());
    }

    #[test]
    fn hostile_texts_tell_nothing() {
        for text in
            ["", " ", "usage_usec", "usage_usec x", "usage_usec -1", "usage_usec 99999999999999999999", "anon\t5"]
        {
            assert_eq!((Cpu::parse(text), Memory::parse(text), number(text)), Default::default(), "{text}");
        }
        assert_eq!(Io::parse("rbytes== rbytes=-1 =5 rbytes rbytes=18446744073709551615 rbytes=9").read_bytes, u64::MAX);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "((usage_usec|anon|8:0|rbytes=)?[ a-z0-9=:\n-]{0,12}){0,8}") {
            let _ = (Cpu::parse(&text), Memory::parse(&text), Io::parse(&text), number(&text), value_of(&text, "anon"));
        }
    }
}
