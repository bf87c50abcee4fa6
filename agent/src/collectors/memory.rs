//! Main memory and swap, from /proc/meminfo.

use super::{CollectError, Collector, ParseError, proc_file::ProcFile};
use crate::{
    context::Context,
    rows::{Tables, percent},
};

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryInfo {
    total: u64,
    available: u64,
    free: u64,
    buffers: u64,
    cached: u64,
    swap_total: u64,
    swap_free: u64,
}

/// Reads main memory and swap.
#[derive(Debug)]
pub struct Memory {
    file: ProcFile,
}

impl Memory {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { file: ProcFile::new(context.paths.proc("meminfo")) }
    }
}

impl Collector for Memory {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let info = parse(self.file.read()?).map_err(|error| self.file.unparsed(error))?;
        let used = info.total.saturating_sub(info.available);
        let swap_used = info.swap_total.saturating_sub(info.swap_free);
        rows.push(
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
                ("swap_used_percent", percent(swap_used, info.swap_total).into()),
            ],
        );
        Ok(())
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
        let slot = match key {
            "MemTotal" => total.insert(0),
            "MemAvailable" => available.insert(0),
            "MemFree" => &mut info.free,
            "Buffers" => &mut info.buffers,
            "Cached" => &mut info.cached,
            "SwapTotal" => &mut info.swap_total,
            "SwapFree" => &mut info.swap_free,
            _ => continue,
        };
        *slot = kilobytes(value).ok_or(ParseError { line: index + 1, expected: "a number of kB" })?;
    }
    info.total = total.ok_or(ParseError { line: 0, expected: "a line `MemTotal:`" })?;
    let estimate = info.free.saturating_add(info.buffers).saturating_add(info.cached);
    info.available = available.unwrap_or(estimate).min(info.total);
    Ok(info)
}

fn kilobytes(value: &str) -> Option<u64> {
    let number: u64 = value.split_ascii_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;
    use proptest::prelude::*;

    use super::*;

    const RECORDED: &str = "\
MemTotal:       24684084 kB
MemFree:        18161096 kB
MemAvailable:   22906176 kB
Buffers:           39904 kB
Cached:          4834584 kB
SwapCached:            0 kB
SwapTotal:       2097148 kB
SwapFree:        2097100 kB
HugePages_Total:       0
";

    #[test]
    fn a_recorded_text_is_taken_apart() {
        let info = parse(RECORDED).unwrap();
        assert_eq!(info.total, 24_684_084 * 1024);
        assert_eq!(info.available, 22_906_176 * 1024);
        assert_eq!((info.swap_total - info.swap_free) / 1024, 48);
    }

    #[test]
    fn an_old_kernel_without_available_gets_an_estimate() {
        let info = parse("MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 5 kB\nCached: 20 kB\n").unwrap();
        assert_eq!(info.available, 35 * 1024);
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        assert_eq!(parse("MemFree: 1 kB").unwrap_err(), ParseError { line: 0, expected: "a line `MemTotal:`" });
        assert_eq!(parse("MemTotal: 1 kB\nMemFree:").unwrap_err().line, 2);
        assert_eq!(parse("MemTotal: 99999999999999999999 kB").unwrap_err().line, 1);
        assert_eq!(parse("MemTotal: 18446744073709551615 kB").unwrap_err().line, 1);
    }

    #[test]
    fn the_total_is_the_one_that_others_see() {
        let system = crate::inventory::read();
        let mut tables = Tables::new(catalog::measurement("memory"));
        Memory::new(&Context::default()).collect(&mut tables).unwrap();
        let total = tables.only().take().fields["total_bytes"].number(0).unwrap();
        assert_eq!(total, system.memory_bytes.unwrap() as f64);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "((MemTotal|MemFree|Cached)?:? ?[0-9]{0,21}( kB)?\n){0,6}") {
            let _ = parse(&text);
        }
    }
}
