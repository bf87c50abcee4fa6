//! Which processes are told one by one.

use super::table::Process;

/// Most processes that are told because they are watched.
pub const MAX_WATCHED: usize = 500;

/// Chooses processes. Keeps its memory from sample to sample.
#[derive(Debug, Default)]
pub struct Selection {
    ranked: Vec<usize>,
    chosen: Vec<usize>,
    leaves_out: bool,
}

impl Selection {
    /// The indices of the `top` largest by processor time, by memory and by I/O, and of those that are watched; each once, in
    /// the order of the processes. What uses nothing is not among the largest.
    ///
    /// Beyond [`MAX_WATCHED`], processes are not chosen for being watched.
    pub fn choose(&mut self, processes: &[Process], top: usize, watched: impl Fn(&Process) -> bool) -> &[usize] {
        self.chosen.clear();
        self.add_largest(processes, top, |process| process.cpu_percent.unwrap_or(0.0));
        self.add_largest(processes, top, |process| process.resident_bytes as f64);
        self.add_largest(processes, top, |process| process.io.map_or(0.0, |io| io.bytes_per_second()));
        let mut watched = (0..processes.len()).filter(|index| watched(&processes[*index]));
        self.chosen.extend(watched.by_ref().take(MAX_WATCHED));
        self.leaves_out = watched.next().is_some();
        self.chosen.sort_unstable();
        self.chosen.dedup();
        &self.chosen
    }

    /// Whether the last choice left out processes that are watched.
    pub fn leaves_out(&self) -> bool {
        self.leaves_out
    }

    fn add_largest(&mut self, processes: &[Process], top: usize, size: impl Fn(&Process) -> f64) {
        self.ranked.clear();
        self.ranked.extend((0..processes.len()).filter(|index| size(&processes[*index]) > 0.0));
        if top > 0 && self.ranked.len() > top {
            self.ranked.select_nth_unstable_by(top - 1, |left, right| {
                size(&processes[*right]).total_cmp(&size(&processes[*left])).then(left.cmp(right))
            });
        }
        self.ranked.truncate(top);
        self.chosen.extend_from_slice(&self.ranked);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::collectors::process::{
        details::IoTotals,
        table::{Io, tests::process},
    };

    fn sized(pid: u32, cpu: f64, memory: u64, io: f64) -> Process {
        let totals = IoTotals::default();
        Process {
            cpu_percent: Some(cpu),
            resident_bytes: memory,
            io: Some(Io { totals, read_bytes_per_second: Some(io), written_bytes_per_second: None }),
            ..process(pid)
        }
    }

    #[test]
    fn the_largest_of_each_kind_and_the_watched_are_chosen_once() {
        let processes = [
            sized(1, 1.0, 10, 0.0),
            sized(2, 90.0, 900, 0.0),
            sized(3, 0.0, 0, 0.0),
            sized(4, 50.0, 20, 7.0),
            sized(5, 2.0, 800, 5.0),
            process(6),
        ];
        let mut selection = Selection::default();
        assert_eq!(selection.choose(&processes, 1, |_| false), [1, 3]);
        assert_eq!(selection.choose(&processes, 2, |process| process.pid == 6), [1, 3, 4, 5]);
        assert_eq!(selection.choose(&processes, 0, |process| process.pid == 3), [2]);
        assert_eq!(selection.choose(&processes, 50, |_| false), [0, 1, 3, 4]);
        assert!(!selection.leaves_out());
    }

    #[test]
    fn the_watched_are_bounded() {
        let processes: Vec<Process> = (0..600).map(process).collect();
        let mut selection = Selection::default();
        assert_eq!(selection.choose(&processes, 5, |_| true).len(), MAX_WATCHED);
        assert!(selection.leaves_out());
        assert_eq!(selection.choose(&processes, 5, |process| process.pid < 500).len(), MAX_WATCHED);
        assert!(!selection.leaves_out());
    }

    proptest! {
        #[test]
        fn the_chosen_by_processor_time_are_those_that_sorting_finds(
            shares in proptest::collection::vec(0.0..400.0_f64, 0..60),
            top in 0_usize..12,
        ) {
            let processes: Vec<Process> = shares.iter().zip(0..).map(|(share, pid)| sized(pid, *share, 0, 0.0)).collect();
            let mut expected: Vec<usize> = (0..shares.len()).filter(|index| shares[*index] > 0.0).collect();
            expected.sort_by(|left, right| shares[*right].total_cmp(&shares[*left]).then(left.cmp(right)));
            expected.truncate(top);
            expected.sort_unstable();
            let mut selection = Selection::default();
            prop_assert_eq!(selection.choose(&processes, top, |_| false), expected);
        }
    }
}
