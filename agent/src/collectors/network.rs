//! Traffic of network interfaces, from /proc/net/dev, and what they are and how they stand, from /sys/class/net
//! (Documentation/ABI/testing/sysfs-class-net).

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use globset::GlobSet;
use plimsoll_nats::event::EventKind;

use self::link::{Change, Link};
use super::{
    CollectError, Collector, ParseError,
    proc_file::ProcFile,
    roster::{Entry, Roster},
};
use crate::{
    config,
    context::Context,
    events::{Event, EventSink},
    rows::{Rows, Tables, Value},
};

mod link;

/// How often the speed is asked for: the kernel may have to ask the hardware, under a lock that all changes of interfaces take.
const SPEED_INTERVAL: Duration = Duration::from_millis(9_500);

/// Counters of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    bytes: u64,
    packets: u64,
    errors: u64,
    drops: u64,
}

/// Reads the traffic and state of interfaces, and tells of those that lose their link.
///
/// Loopback is left out unless configured, since what a host sends to itself is no use of its network.
#[derive(Debug)]
pub struct Network {
    file: ProcFile,
    interfaces: Roster<Interface>,
    classes: PathBuf,
    exclude: GlobSet,
    loopback: bool,
    speeds_read: Option<Instant>,
    events: EventSink,
}

/// What is known of an interface.
#[derive(Debug)]
struct Interface {
    /// None when it is left out.
    link: Option<Link>,
}

impl Network {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            file: ProcFile::new(context.paths.own("net/dev")),
            interfaces: Roster::default(),
            classes: context.paths.sys("class/net"),
            exclude: config::path_globs(&context.config.network.exclude),
            loopback: context.config.network.loopback,
            speeds_read: None,
            events: context.events.clone(),
        }
    }

    /// Brings the list of interfaces up to date, and tells of those that vanished while they had a link.
    fn learn(&mut self) {
        let names = lines(self.file.text()).map(|line| line.name);
        let (classes, exclude, loopback) = (&self.classes, &self.exclude, self.loopback);
        let gone = self.interfaces.update(names, |name| {
            let told = (name != "lo" || loopback) && !exclude.is_match(name);
            Interface { link: told.then(|| Link::meet(&classes.join(name))) }
        });
        for Entry { name, known } in gone {
            let Some(link) = known.link.filter(Link::is_missed) else {
                continue;
            };
            if !self.links().any(|other| other.is_same(&link)) {
                self.events.emit(link_gone(&name, Change::Vanished));
            }
        }
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.interfaces.iter().filter_map(|entry| entry.known.link.as_ref())
    }

    /// Reads how each interface stands, and tells of those that lost their link since the previous sample.
    fn look(&mut self) {
        let now = Instant::now();
        let speeds = self.speeds_read.is_none_or(|read| now - read >= SPEED_INTERVAL);
        if speeds {
            self.speeds_read = Some(now);
        }
        for entry in self.interfaces.iter_mut() {
            let Some(link) = &mut entry.known.link else {
                continue;
            };
            if let Some(change) = link.look(speeds) {
                self.events.emit(link_gone(&entry.name, change));
            }
        }
    }
}

impl Collector for Network {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        self.file.read()?;
        self.learn();
        self.look();
        let rows = tables.only();
        for (entry, line) in self.interfaces.iter().zip(lines(self.file.text())) {
            if let Some(link) = &entry.known.link {
                let (receive, transmit) = line.counters().map_err(|error| self.file.unparsed(error))?;
                push(rows, &entry.name, link, receive, transmit);
            }
        }
        Ok(())
    }
}

fn push(rows: &mut Rows, name: &str, link: &Link, receive: Counters, transmit: Counters) {
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
            ("kind", link.kind().into()),
            ("up", Value::Bool(link.up())),
            ("speed_bits_per_second", link.speed_bits_per_second().into()),
        ],
    );
}

fn link_gone(name: &str, change: Change) -> Event {
    let (message, reason) = match change {
        Change::CarrierLost => (format!("`{name}` lost its link"), "carrier_lost"),
        Change::SwitchedOff => (format!("`{name}` was switched off"), "switched_off"),
        Change::Vanished => (format!("the interface `{name}` is gone"), "vanished"),
    };
    Event::new(EventKind::LinkGone, name, message).with("reason", reason)
}

/// A line of /proc/net/dev.
struct Line<'a> {
    number: usize,
    name: &'a str,
    counters: Option<&'a str>,
}

/// The lines of interfaces in /proc/net/dev, which come after two of headings.
fn lines(text: &str) -> impl Iterator<Item = Line<'_>> + Clone {
    text.lines().enumerate().skip(2).filter(|(_, line)| !line.trim_ascii().is_empty()).map(|(index, line)| {
        // An alias such as `eth0:1` has a colon in its name.
        let (name, counters) = line.rsplit_once(':').map_or((line, None), |(name, counters)| (name, Some(counters)));
        Line { number: index + 1, name: name.trim_ascii(), counters }
    })
}

impl Line<'_> {
    /// What was received and sent. Fails with fewer than 16 numbers.
    fn counters(&self) -> Result<(Counters, Counters), ParseError> {
        let wrong = ParseError { line: self.number, expected: "`interface:` and 16 numbers" };
        self.counters.and_then(numbers).ok_or(wrong)
    }
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
mod tests;
