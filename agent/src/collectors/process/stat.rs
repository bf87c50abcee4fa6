//! What a process is and does, from /proc/<pid>/stat (Documentation/filesystems/proc.rst, table 1-4).

use crate::collectors::ParseError;

/// `PF_KTHREAD` of include/linux/sched.h, in the field `flags`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What a process does at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Runs or waits for a processor.
    Running,
    /// Waits for something to happen.
    Sleeping,
    /// Waits and takes no signal, mostly for I/O.
    Blocked,
    /// A kernel thread with nothing to do.
    Idle,
    /// Stopped by a signal or a debugger.
    Stopped,
    /// Has ended, and its parent has not asked how.
    Zombie,
    /// Another, such as parked.
    Other,
}

impl State {
    fn parse(letter: &[u8]) -> Self {
        match letter {
            b"R" => Self::Running,
            b"S" => Self::Sleeping,
            b"D" => Self::Blocked,
            b"I" => Self::Idle,
            b"T" | b"t" => Self::Stopped,
            b"Z" => Self::Zombie,
            _ => Self::Other,
        }
    }

    /// The state as rows spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Sleeping => "sleeping",
            Self::Blocked => "blocked",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
            Self::Zombie => "zombie",
            Self::Other => "other",
        }
    }
}

/// The fields of the line that are of use here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'a> {
    /// The program's name: any bytes, also blanks and parentheses.
    pub name: &'a [u8],
    /// What it does.
    pub state: State,
    /// Id of the parent.
    pub parent: u32,
    /// Whether it is a thread of the kernel.
    pub is_kernel_thread: bool,
    /// Processor time since its start, in clock ticks.
    pub cpu_ticks: u64,
    /// Number of threads.
    pub threads: u64,
    /// When it started, in clock ticks since boot.
    pub started_ticks: u64,
    /// Size of its address space.
    pub virtual_bytes: u64,
    /// Memory pages that it occupies.
    pub resident_pages: u64,
}

/// Takes the line of a process apart. The name ends at the last parenthesis, since only numbers follow it.
///
/// Fails on a line without a name in parentheses, and on one whose numbers are missing or none.
pub fn parse(line: &[u8]) -> Result<Stat<'_>, ParseError> {
    let name = name_of(line).ok_or(ParseError { line: 1, expected: "a name in parentheses" })?;
    // An id and `(` come before the name, `)` after it.
    let start = name.as_ptr().addr() - line.as_ptr().addr();
    numbers_of(name, &line[start + name.len() + 1..])
        .ok_or(ParseError { line: 1, expected: "a state and 21 numbers after the name" })
}

fn name_of(line: &[u8]) -> Option<&[u8]> {
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    line.get(open + 1..close)
}

fn numbers_of<'a>(name: &'a [u8], rest: &[u8]) -> Option<Stat<'a>> {
    let mut words = rest.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let state = State::parse(words.next()?);
    let parent = number(words.next()?)?;
    // Process group, session, terminal and its process group.
    let flags: u64 = number(words.nth(4)?)?;
    // Four counts of page faults.
    let user: u64 = number(words.nth(4)?)?;
    let system: u64 = number(words.next()?)?;
    // Times of ended children, priority and niceness.
    let threads = number(words.nth(4)?)?;
    // A timer that is no longer used.
    let started_ticks = number(words.nth(1)?)?;
    let virtual_bytes = number(words.next()?)?;
    let resident_pages: i64 = number(words.next()?)?;
    Some(Stat {
        name,
        state,
        parent,
        is_kernel_thread: flags & KERNEL_THREAD != 0,
        cpu_ticks: user.saturating_add(system),
        threads,
        started_ticks,
        virtual_bytes,
        resident_pages: u64::try_from(resident_pages).unwrap_or(0),
    })
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// The part of a kernel worker's name that stays: what it works on at the moment follows a `+` or `-` after the id.
#[must_use]
pub fn lasting_name(name: &[u8], is_kernel_thread: bool) -> &[u8] {
    let is_worker = is_kernel_thread && name.starts_with(b"kworker/") && !name.starts_with(b"kworker/R-");
    let end = name.iter().position(|byte| matches!(byte, b'+' | b'-')).filter(|_| is_worker);
    &name[..end.unwrap_or(name.len())]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECORDED: &[u8] =
        b"25413 (cat) R 25408 25408 21549 0 -1 4194304 100 0 0 0 7 5 0 0 20 0 1 0 1207864 3133440 381 \
18446744073709551615 94698763603968 94698763623849 140724331392240 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0\n";
    const RECORDED_WORKER: &[u8] =
        b"11 (kworker/u8:0-events_unbound) I 2 0 0 0 -1 69238880 0 0 0 0 0 9 0 0 20 0 1 0 21 0 0 \
18446744073709551615 0 0 0 0 0 0 0 2147483647 0 0 0 0 17 1 0 0 0 0 0\n";

    fn named(name: &[u8]) -> Vec<u8> {
        [b"7 (", name, b") S 1 7 7 0 -1 0 0 0 0 0 1 2 0 0 20 0 3 0 400 8192 -2\n"].concat()
    }

    #[test]
    fn recorded_lines_are_taken_apart() {
        let cat = parse(RECORDED).unwrap();
        assert_eq!(
            (cat.name, cat.state, cat.parent, cat.is_kernel_thread),
            (b"cat".as_slice(), State::Running, 25_408, false)
        );
        assert_eq!((cat.cpu_ticks, cat.threads, cat.started_ticks), (12, 1, 1_207_864));
        assert_eq!((cat.virtual_bytes, cat.resident_pages), (3_133_440, 381));
        let worker = parse(RECORDED_WORKER).unwrap();
        assert_eq!((worker.state, worker.is_kernel_thread, worker.resident_pages), (State::Idle, true, 0));
        assert_eq!(lasting_name(worker.name, true), b"kworker/u8:0");
    }

    #[test]
    fn names_may_hold_anything() {
        for name in [b"a b".as_slice(), b") S 1 (", b"((sd-pam))", b"x\ny", b"\xff\xfe", b"", b") R 9 9 9 9 9 9 9 9"] {
            let line = named(name);
            let stat = parse(&line).unwrap();
            assert_eq!((stat.name, stat.state, stat.parent, stat.threads), (name, State::Sleeping, 1, 3), "{name:?}");
            // What the kernel could not count at once may be negative for a moment.
            assert_eq!((stat.cpu_ticks, stat.started_ticks, stat.resident_pages), (3, 400, 0));
        }
    }

    #[test]
    fn only_a_worker_of_the_kernel_loses_what_it_works_on() {
        assert_eq!(lasting_name(b"kworker/0:1H+kblockd", true), b"kworker/0:1H");
        // A rescuer's name does not change.
        assert_eq!(lasting_name(b"kworker/R-netns", true), b"kworker/R-netns");
        assert_eq!(lasting_name(b"kworker/0:1-x", false), b"kworker/0:1-x");
        assert_eq!(lasting_name(b"systemd-udevd", false), b"systemd-udevd");
    }

    #[test]
    fn hostile_lines_are_refused() {
        for line in [b"".as_slice(), b"7", b"7 (", b"7 )x(", b"7 (x)", b"7 (x) S", b"7 (x) S 1 7 7 0 -1 y"] {
            assert!(parse(line).is_err(), "{line:?}");
        }
        let cut = named(b"x");
        for end in 0..cut.len() - 3 {
            assert!(parse(&cut[..end]).is_err(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_read_back(name in proptest::collection::vec(any::<u8>(), 0..64)) {
            let line = named(&name);
            prop_assert_eq!(parse(&line).unwrap().name, &name);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(line in "[0-9]{0,3} ?\\(?[ a-z()]{0,9}\\)?( -?[0-9RS]{1,20}){0,30}") {
            let _ = parse(line.as_bytes());
        }
    }
}
