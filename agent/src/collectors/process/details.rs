//! What is read of the processes that are told one by one: /proc/<pid>/status, cmdline and io.

use crate::config::CommandDetail;

/// Bytes that a process has fetched from storage and sent there since its start (Documentation/filesystems/proc.rst, 3.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoTotals {
    /// Fetched.
    pub read_bytes: u64,
    /// Sent, at once or later. What was deleted before it reached the disk is not taken off.
    pub written_bytes: u64,
}

/// Takes /proc/<pid>/io apart; none where a number is missing.
#[must_use]
pub fn io(text: &[u8]) -> Option<IoTotals> {
    Some(IoTotals {
        read_bytes: number_after(text, b"read_bytes:")?,
        written_bytes: number_after(text, b"write_bytes:")?,
    })
}

/// The effective user id of /proc/<pid>/status, which is what `ps` and `top` show; none where it is missing.
#[must_use]
pub fn uid(status: &[u8]) -> Option<u32> {
    let line = line_after(status, b"Uid:")?;
    number(line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(1)?)
}

/// Puts the command line of /proc/<pid>/cmdline in place of what `command` holds, without control characters.
///
/// Without arguments it ends at the first blank or control character, since programs that rename themselves join all of it. A process without
/// a command line, as of the kernel, has its name in brackets, as with `ps`.
pub fn command(cmdline: &[u8], name: &str, detail: CommandDetail, command: &mut String) {
    command.clear();
    let end = match detail {
        CommandDetail::Full => cmdline.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1),
        CommandDetail::Name => cmdline.iter().position(|byte| *byte <= b' ').unwrap_or(cmdline.len()),
    };
    if end > 0 {
        push_printable(command, &cmdline[..end]);
    } else {
        command.push('[');
        command.push_str(name);
        command.push(']');
    }
}

/// Adds bytes as text: what is no UTF-8 is replaced, and so are control characters.
pub fn push_printable(text: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        text.extend(chunk.valid().chars().map(|c| if c.is_control() { ' ' } else { c }));
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

fn line_after<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(key))
}

fn number_after(text: &[u8], key: &[u8]) -> Option<u64> {
    number(line_after(text, key)?.trim_ascii())
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IO: &[u8] = b"rchar: 7279\nwchar: 303\nsyscr: 12\nsyscw: 1\nread_bytes: 8192\nwrite_bytes: 4096\ncancelled_write_bytes: 9\n";
    const STATUS: &[u8] =
        b"Name:\tUid:\t7\nUmask:\t0022\nState:\tR (running)\nTgid:\t25414\nUid:\t1000\t33\t0\t0\nGid:\t0\t0\t0\t0\n";

    fn told(cmdline: &[u8], detail: CommandDetail) -> String {
        let mut text = "before".to_owned();
        command(cmdline, "na me", detail, &mut text);
        text
    }

    #[test]
    fn recorded_files_are_taken_apart() {
        assert_eq!(io(IO), Some(IoTotals { read_bytes: 8192, written_bytes: 4096 }));
        assert_eq!(uid(STATUS), Some(33));
    }

    #[test]
    fn what_is_missing_or_no_number_is_none() {
        for text in [b"".as_slice(), b"read_bytes: 1\n", b"read_bytes: 1\nwrite_bytes: -1", b"\xff"] {
            assert_eq!(io(text), None, "{text:?}");
        }
        for text in [b"".as_slice(), b"Uid:\t5", b"Uid:\t5\tx", b"Name:\tUid:\n"] {
            assert_eq!(uid(text), None, "{text:?}");
        }
    }

    #[test]
    fn arguments_are_told_only_when_asked_for() {
        let cmdline = b"/usr/bin/curl\0-u\0me:secret\0https://x\0";
        assert_eq!(told(cmdline, CommandDetail::Full), "/usr/bin/curl -u me:secret https://x");
        assert_eq!(told(cmdline, CommandDetail::Name), "/usr/bin/curl");
        // Joined by a program that writes its own title.
        assert_eq!(told(b"chrome --token=secret\0\0\0", CommandDetail::Name), "chrome");
        assert_eq!(told(b"chrome --token=x\0\0\0", CommandDetail::Full), "chrome --token=x");
    }

    #[test]
    fn a_process_without_a_command_line_has_its_name_in_brackets() {
        for detail in [CommandDetail::Full, CommandDetail::Name] {
            assert_eq!(told(b"", detail), "[na me]");
            assert_eq!(told(b"\0\0", detail), "[na me]");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(told(b"a\xff\x1b[31m\tb\0", CommandDetail::Full), "a\u{fffd} [31m b");
    }

    proptest! {
        #[test]
        fn whatever_follows_the_program_is_not_told(
            program in "[!-~]{1,20}",
            end in 0_u8..=b' ',
            rest in proptest::collection::vec(any::<u8>(), 0..99),
        ) {
            let cmdline = [program.as_bytes(), &[end], &rest].concat();
            prop_assert_eq!(told(&cmdline, CommandDetail::Name), program);
            prop_assert!(!told(&cmdline, CommandDetail::Full).contains(char::is_control));
        }
    }
}
