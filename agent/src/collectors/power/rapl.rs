//! Energy that processors count themselves, from /sys/class/powercap (Documentation/power/powercap/powercap.rst).

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::Figures;
use crate::{
    collectors::{
        CollectError,
        sysfs::{self, Attribute},
    },
    context::HostPaths,
    rows::Rows,
};

/// More than any processor draws: what the counter would make of being set to 0, which is not a wrap.
const MAX_PLAUSIBLE_WATTS: f64 = 100_000.0;

const DENIED: &str = "Only root may read what processors draw (CVE-2020-8694): give the agent the capability \
                      CAP_DAC_READ_SEARCH, or make `/sys/class/powercap/intel-rapl:*/energy_uj` readable for its group by a \
                      rule of udev or tmpfiles.d";

/// The zones of all processors.
#[derive(Debug)]
pub struct Rapl {
    root: PathBuf,
    zones: Vec<Zone>,
    denied: bool,
}

/// What has an energy counter of its own: a package, its cores, its memory.
#[derive(Debug)]
struct Zone {
    source: String,
    energy: Attribute,
    /// Where the counter starts at 0 again.
    range_uj: u64,
    previous: Option<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    counter_uj: u64,
    taken: Instant,
    /// The counter without its wraps.
    total_uj: u64,
}

impl Rapl {
    /// Reads the host at `paths`.
    pub fn new(paths: &HostPaths) -> Self {
        Self { root: paths.sys("class/powercap"), zones: Vec::new(), denied: false }
    }

    /// Looks for zones anew, keeping what is known of those that were there.
    pub fn scan(&mut self) -> Result<(), CollectError> {
        self.denied = false;
        let mut zones = Vec::new();
        for folder in sysfs::entries(&self.root)? {
            // Others are control types, or tell the same by other means, such as `intel-rapl-mmio:0`.
            if sysfs::file_name(&folder).is_none_or(|name| !name.starts_with("intel-rapl:")) {
                continue;
            }
            match Zone::open(&self.root, &folder) {
                Ok(zone) => zones.push(zone),
                Err(error) => self.denied |= error.kind() == io::ErrorKind::PermissionDenied,
            }
        }
        for zone in &mut zones {
            let known = self.zones.iter().find(|known| known.source == zone.source);
            zone.previous = known.and_then(|known| known.previous);
        }
        self.zones = zones;
        Ok(())
    }

    /// Adds a row a zone.
    pub fn read(&mut self, rows: &mut Rows, now: Instant) {
        for zone in &mut self.zones {
            zone.read(now).push(rows, &zone.source, "rapl");
        }
    }

    /// Whether no zone was found that may be read.
    pub fn is_empty(&self) -> bool {
        self.zones.is_empty()
    }

    /// Why zones that are there can't be read.
    pub fn note(&self) -> Option<&'static str> {
        self.denied.then_some(DENIED)
    }
}

impl Zone {
    fn open(root: &Path, folder: &Path) -> io::Result<Self> {
        let energy = Attribute::open(folder.join("energy_uj"))?;
        let range_uj = sysfs::number(folder.join("max_energy_range_uj")).and_then(|range| range.try_into().ok());
        Ok(Self { source: source(root, folder), energy, range_uj: range_uj.unwrap_or(0), previous: None })
    }

    fn read(&mut self, now: Instant) -> Figures<'static> {
        let Some(counter_uj) = self.energy.count() else {
            return Figures::default();
        };
        let passed = self.previous.and_then(|previous| {
            let passed_uj = passed_uj(previous.counter_uj, counter_uj, self.range_uj)?;
            let watts = watts(passed_uj, now.duration_since(previous.taken))?;
            Some((passed_uj, watts))
        });
        let total_uj = match (self.previous, passed) {
            (Some(previous), Some((passed_uj, _))) => previous.total_uj.saturating_add(passed_uj),
            // The first reading, or a counter that was set to 0: a counter may start anew.
            (_, None) | (None, _) => counter_uj,
        };
        self.previous = Some(Sample { counter_uj, taken: now, total_uj });
        Figures {
            power_watts: passed.map(|(_, watts)| watts),
            energy_joules_total: Some(total_uj as f64 / 1e6),
            ..Figures::default()
        }
    }
}

/// The energy between two readings of a counter that starts at 0 again after `range`; none when it went backwards for no such
/// reason.
fn passed_uj(previous: u64, current: u64, range: u64) -> Option<u64> {
    match current.checked_sub(previous) {
        Some(passed) => Some(passed),
        None => Some(range.checked_sub(previous)?.saturating_add(current)),
    }
}

/// The power of an energy over some time; none when no processor draws that much.
fn watts(energy_uj: u64, passed: Duration) -> Option<f64> {
    let seconds = passed.as_secs_f64();
    let watts = energy_uj as f64 / 1e6 / seconds;
    (seconds > 0.0 && watts <= MAX_PLAUSIBLE_WATTS).then_some(watts)
}

/// What a zone is called: its own name after those of the zones that it is part of, such as `package-0 core` of
/// `intel-rapl:0:1`, since each package has a zone `core`.
fn source(root: &Path, folder: &Path) -> String {
    let id = sysfs::file_name(folder).unwrap_or_default();
    let ends = id.match_indices(':').skip(1).map(|(end, _)| end).chain([id.len()]);
    let name = |end: usize| sysfs::text(root.join(&id[..end]).join("name")).unwrap_or_else(|| id[..end].to_owned());
    ends.map(name).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use plimsoll_nats::catalog;
    use proptest::prelude::*;

    use super::*;
    use crate::{collectors::sysfs::tests::tree, rows::Columns};

    fn zone(root: &Path, id: &str, name: &str, energy_uj: &str) {
        for (file, text) in [("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", "1000000000\n")] {
            tree(root, &[(&format!("sys/class/powercap/{id}/{file}"), text)]);
        }
    }

    fn read(rapl: &mut Rapl, now: Instant) -> Columns {
        let mut rows = Rows::new(catalog::measurement("power").unwrap());
        rapl.read(&mut rows, now);
        rows.take()
    }

    #[test]
    fn zones_are_named_after_those_they_are_part_of() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), &[("sys/class/powercap/intel-rapl/enabled", "1")]);
        zone(dir.path(), "intel-rapl:0", "package-0\n", "1\n");
        zone(dir.path(), "intel-rapl:0:0", "core\n", "1\n");
        zone(dir.path(), "intel-rapl:1", "package-1\n", "1\n");
        zone(dir.path(), "intel-rapl:1:0", "core\n", "1\n");
        zone(dir.path(), "intel-rapl:2", "psys\n", "1\n");
        zone(dir.path(), "intel-rapl-mmio:0", "package-0\n", "1\n");
        let mut rapl = Rapl::new(&HostPaths::new(dir.path()));
        rapl.scan().unwrap();
        let sources = read(&mut rapl, Instant::now()).tags["source"].clone();
        assert_eq!(sources, ["package-0", "package-0 core", "package-1", "package-1 core", "psys"]);
    }

    #[test]
    fn power_is_the_energy_since_the_previous_sample_also_across_a_wrap() {
        let dir = tempfile::tempdir().unwrap();
        let mut rapl = Rapl::new(&HostPaths::new(dir.path()));
        let start = Instant::now();
        let mut sample = |energy: &str, second: u64| {
            zone(dir.path(), "intel-rapl:0", "package-0", energy);
            rapl.scan().unwrap();
            let columns = read(&mut rapl, start + Duration::from_secs(second));
            let field = |name: &str| columns.fields[name].number(0);
            (field("power_watts"), field("energy_joules_total"))
        };
        assert_eq!(sample("900000000", 0), (None, Some(900.0)));
        assert_eq!(sample("950000000", 2), (Some(25.0), Some(950.0)));
        assert_eq!(sample("30000000", 4), (Some(40.0), Some(1030.0)));
        assert_eq!(sample("30000000", 4), (None, Some(30.0)));
        assert_eq!(sample("x", 5), (None, None));
        assert_eq!(sample("40000000", 5), (Some(10.0), Some(40.0)));
    }

    #[test]
    fn a_counter_out_of_its_range_is_no_power() {
        assert_eq!(passed_uj(5, 3, 10), Some(8));
        assert_eq!(passed_uj(15, 3, 10), None);
        assert_eq!(watts(u64::MAX, Duration::from_secs(1)), None);
        assert_eq!(watts(1, Duration::ZERO), None);
    }

    #[test]
    fn zones_that_may_not_be_read_are_told_with_what_would_help() {
        let dir = tempfile::tempdir().unwrap();
        zone(dir.path(), "intel-rapl:0", "package-0", "1");
        let energy = dir.path().join("sys/class/powercap/intel-rapl:0/energy_uj");
        fs::set_permissions(&energy, fs::Permissions::from_mode(0o000)).unwrap();
        // Root may read it all the same.
        let denied = fs::File::open(&energy).is_err();
        let mut rapl = Rapl::new(&HostPaths::new(dir.path()));
        rapl.scan().unwrap();
        assert_eq!((rapl.is_empty(), rapl.note().is_some()), (denied, denied));
        assert!(DENIED.contains("CAP_DAC_READ_SEARCH"));

        fs::set_permissions(&energy, fs::Permissions::from_mode(0o444)).unwrap();
        rapl.scan().unwrap();
        assert_eq!((rapl.is_empty(), rapl.note()), (false, None));
    }

    proptest! {
        #[test]
        fn energy_never_goes_backwards_and_wraps_where_it_must(
            start in 0_u64..1_000_000, steps in proptest::collection::vec(0_u64..1_000_000, 1..20),
        ) {
            const RANGE: u64 = 1_000_000;
            let (mut counter, mut total) = (start, 0);
            for step in steps {
                let next = (counter + step) % RANGE;
                total += passed_uj(counter, next, RANGE).unwrap();
                counter = next;
                prop_assert_eq!((start + total) % RANGE, counter);
            }
        }
    }
}
