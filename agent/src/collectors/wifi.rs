//! Wireless links, from /proc/net/wireless.
//!
//! The kernel may ask the device for each line, and waits for its answer; so this collector is a slow one. Drivers that the
//! kernel's wireless extensions do not reach, such as those of Wi-Fi 7 devices, have no line. Bit rates are not in this file.

use std::{fs, path::PathBuf};

use super::{CollectError, Collector, ParseError, proc_file::ProcFile};
use crate::{context::Context, rows::Tables};

/// What the kernel writes for a noise that it does not know.
const UNKNOWN_NOISE: f64 = -256.0;

/// One wireless link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WirelessLink<'a> {
    interface: &'a str,
    /// As the driver scales it.
    quality: f64,
    /// Below 0 in dBm, else as the driver scales it.
    level: f64,
    noise: f64,
    /// Packets thrown away, by reason.
    discards: u64,
    missed_beacons: u64,
}

/// Reads the state of wireless links.
#[derive(Debug)]
pub struct Wifi {
    file: ProcFile,
    classes: PathBuf,
    told: usize,
}

impl Wifi {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            file: ProcFile::new(context.paths.own("net/wireless")),
            classes: context.paths.sys("class/net"),
            told: 0,
        }
    }

    /// How many interfaces are wireless.
    fn count_interfaces(&self) -> usize {
        let entries = fs::read_dir(&self.classes).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().join("phy80211").exists()).count()
    }
}

impl Collector for Wifi {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        self.told = 0;
        if self.file.read_if_present()?.is_none() {
            return Ok(());
        }
        for link in parse(self.file.text()) {
            let link = link.map_err(|error| self.file.unparsed(error))?;
            let decibels = |level: f64| (level < 0.0 && level > UNKNOWN_NOISE).then_some(level);
            rows.push(
                &[("interface", link.interface)],
                &[
                    ("signal_dbm", decibels(link.level).into()),
                    ("noise_dbm", decibels(link.noise).into()),
                    ("link_quality", link.quality.into()),
                    ("discarded_packets_total", link.discards.into()),
                    ("missed_beacons_total", link.missed_beacons.into()),
                ],
            );
            self.told += 1;
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let note = "Some wireless interfaces are left out: they are not connected, or the kernel has no wireless extensions \
                    (CONFIG_CFG80211_WEXT) for their driver.";
        (self.count_interfaces() > self.told).then(|| note.to_owned()).into_iter().collect()
    }
}

/// Takes /proc/net/wireless apart. An item fails when an interface has fewer numbers than the kernel writes.
pub fn parse(text: &str) -> impl Iterator<Item = Result<WirelessLink<'_>, ParseError>> {
    // Two lines of headings come first.
    let lines = text.lines().enumerate().skip(2).filter(|(_, line)| !line.trim_ascii().is_empty());
    lines.map(|(index, line)| {
        let expected = "`interface:`, a status, three levels and six counts";
        parse_line(line).ok_or(ParseError { line: index + 1, expected })
    })
}

fn parse_line(line: &str) -> Option<WirelessLink<'_>> {
    let (interface, rest) = line.rsplit_once(':')?;
    let mut words = rest.split_ascii_whitespace().skip(1);
    // A dot behind a level says that it is new since the last reading.
    let mut level = || words.next()?.trim_end_matches('.').parse::<f64>().ok().filter(|level| level.is_finite());
    let (quality, level, noise) = (level()?, level()?, level()?);
    let mut discards = 0_u64;
    for _ in 0..5 {
        discards = discards.saturating_add(words.next()?.parse().ok()?);
    }
    let missed_beacons = words.next()?.parse().ok()?;
    Some(WirelessLink { interface: interface.trim_ascii(), quality, level, noise, discards, missed_beacons })
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{Column, catalog};
    use proptest::prelude::*;

    use super::*;
    use crate::context::HostPaths;

    const HEADINGS: &str = "\
Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
";
    /// A driver of today, one that scales its level itself, and one that has not measured yet.
    const LINKS: &str = "\
wlp2s0: 0000   54.  -56.  -256        0      1      0      2     36        4
  ath0: 0000   40.   180.   161.      0      0      0      0      0        0
 wlan1: 0000    0     0      0        0      0      0      0      0        0
";

    fn host(text: Option<&str>) -> (tempfile::TempDir, Wifi) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc/1/net")).unwrap();
        if let Some(text) = text {
            fs::write(dir.path().join("proc/1/net/wireless"), text).unwrap();
        }
        let wifi = Wifi::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        (dir, wifi)
    }

    #[test]
    fn each_link_has_a_row_and_decibels_only_where_they_are_such() {
        let (_dir, mut wifi) = host(Some(&format!("{HEADINGS}{LINKS}")));
        let mut tables = Tables::new(catalog::measurement("wifi"));
        wifi.collect(&mut tables).unwrap();
        let columns = tables.only().take();
        assert_eq!(columns.tags["interface"], ["wlp2s0", "ath0", "wlan1"]);
        assert_eq!(columns.fields["signal_dbm"], Column::Float(vec![Some(-56.0), None, None]));
        assert_eq!(columns.fields["noise_dbm"], Column::Float(vec![None; 3]));
        assert_eq!(columns.fields["link_quality"], Column::Float(vec![Some(54.0), Some(40.0), Some(0.0)]));
        assert_eq!(columns.fields["discarded_packets_total"], Column::Integer(vec![Some(39), Some(0), Some(0)]));
        assert_eq!(columns.fields["missed_beacons_total"], Column::Integer(vec![Some(4), Some(0), Some(0)]));
    }

    #[test]
    fn without_wireless_extensions_there_is_no_row_and_with_an_interface_a_note() {
        let (dir, mut wifi) = host(None);
        let mut tables = Tables::new(catalog::measurement("wifi"));
        wifi.collect(&mut tables).unwrap();
        assert!(tables.only().is_empty() && wifi.notes().is_empty());
        fs::create_dir_all(dir.path().join("sys/class/net/wlan0/phy80211")).unwrap();
        assert!(wifi.notes()[0].contains("CONFIG_CFG80211_WEXT"));
    }

    #[test]
    fn hostile_texts_are_refused_with_their_place() {
        let wrong_line = |text: &str| parse(text).find_map(Result::err).map(|error| error.line);
        assert_eq!(wrong_line(""), None);
        assert_eq!(wrong_line(&format!("{HEADINGS}wlan0 0000 54. -56. -256 0 0 0 0 0 0")), Some(3));
        assert_eq!(wrong_line(&format!("{HEADINGS}\nwlan0: 0000 nan -56. -256 0 0 0 0 0 0")), Some(4));
        assert_eq!(wrong_line(&format!("{HEADINGS}wlan0: 0000 54. -56. -256 0 0 0 0 0")), Some(3));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([a-z:]{0,5}[ 0-9.-]{0,40}\n){0,6}") {
            let _ = parse(&text).count();
        }
    }
}
