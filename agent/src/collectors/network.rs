//! Traffic of network interfaces, from /proc/net/dev.

use super::{CollectError, Collector, ParseError, proc_file::ProcFile};
use crate::{context::Context, rows::Tables};

/// Counters of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface<'a> {
    name: &'a str,
    receive: Counters,
    transmit: Counters,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    bytes: u64,
    packets: u64,
    errors: u64,
    drops: u64,
}

/// Reads the traffic of all interfaces save loopback.
#[derive(Debug)]
pub struct Network {
    file: ProcFile,
}

impl Network {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { file: ProcFile::new(context.paths.own("net/dev")) }
    }
}

impl Collector for Network {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        self.file.read()?;
        for Interface { name, receive, transmit } in
            parse(self.file.text()).map_err(|error| self.file.unparsed(error))?
        {
            rows.push(
                &[("interface", name)],
                &[
                    ("receive_bytes_total", receive.bytes.into()),
                    ("transmit_bytes_total", transmit.bytes.into()),
                    ("receive_packets_total", receive.packets.into()),
                    ("transmit_packets_total", transmit.packets.into()),
                    ("receive_errors_total", receive.errors.into()),
                    ("transmit_errors_total", transmit.errors.into()),
                    ("receive_drops_total", receive.drops.into()),
                    ("transmit_drops_total", transmit.drops.into()),
                ],
            );
        }
        Ok(())
    }
}

/// Takes /proc/net/dev apart, leaving loopback out. Fails on an interface with fewer than 16 numbers.
pub fn parse(text: &str) -> Result<Vec<Interface<'_>>, ParseError> {
    let mut interfaces = Vec::new();
    // Two lines of headings come first.
    for (index, line) in text.lines().enumerate().skip(2) {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = ParseError { line: index + 1, expected: "`interface:` and 16 numbers" };
        // An alias such as `eth0:1` has a colon in its name.
        let (name, counters) = line.rsplit_once(':').ok_or(wrong.clone())?;
        let name = name.trim();
        if name == "lo" {
            continue;
        }
        let (receive, transmit) = numbers(counters).ok_or(wrong)?;
        interfaces.push(Interface { name, receive, transmit });
    }
    Ok(interfaces)
}

fn numbers(text: &str) -> Option<(Counters, Counters)> {
    let mut numbers = [0_u64; 16];
    let mut words = text.split_ascii_whitespace();
    for slot in &mut numbers {
        *slot = words.next()?.parse().ok()?;
    }
    let counters = |of: &[u64]| Counters { bytes: of[0], packets: of[1], errors: of[2], drops: of[3] };
    Some((counters(&numbers[..8]), counters(&numbers[8..])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RECORDED: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    3193      29    0    0    0     0          0         0     3193      29    0    0    0     0       0          0
  eth0: 288039186   11812    1    2    0     0          0         0   842720    7567    3    4    0     0       0          0
eth0:1:5 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
";

    #[test]
    fn a_recorded_text_is_taken_apart_without_loopback() {
        let interfaces = parse(RECORDED).unwrap();
        assert_eq!(interfaces.iter().map(|interface| interface.name).collect::<Vec<_>>(), ["eth0", "eth0:1"]);
        assert_eq!(interfaces[0].receive, Counters { bytes: 288_039_186, packets: 11_812, errors: 1, drops: 2 });
        assert_eq!(interfaces[0].transmit, Counters { bytes: 842_720, packets: 7_567, errors: 3, drops: 4 });
        assert_eq!(interfaces[1].receive.bytes, 5);
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        assert!(parse("").unwrap().is_empty());
        assert_eq!(parse("a\nb\neth0: 1 2 3\n").unwrap_err().line, 3);
        assert_eq!(parse("a\nb\neth0 1 2 3\n").unwrap_err().line, 3);
        assert_eq!(parse("a\nb\n\neth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 -16\n").unwrap_err().line, 4);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([a-z:]{0,5}[ 0-9]{0,40}\n){0,6}") {
            let _ = parse(&text);
        }
    }
}
