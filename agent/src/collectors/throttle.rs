//! How often processors ran slower to stay cool, from /sys/devices/system/cpu/cpu<n>/thermal_throttle
//! (Documentation/ABI/testing/sysfs-devices-system-cpu). The kernel counts it on Intel processors only.

use std::{
    collections::btree_map::{BTreeMap, Entry},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use plimsoll_nats::event::EventKind;

use self::episode::{Change, Episode};
use super::{
    CollectError, Collector,
    sysfs::{self, Attribute, Scans},
};
use crate::{
    context::Context,
    events::{Event, EventSink},
    rows::{Rows, Tables},
};

pub mod episode;

/// Most cores whose counters are kept open; those of further ones are opened at each reading.
const MAX_KEPT: usize = 128;

/// Reads the counters of every core and package.
#[derive(Debug)]
pub struct Throttle {
    cpus: PathBuf,
    events: EventSink,
    packages: Vec<Package>,
    scans: Scans,
}

/// A package: what sits in one socket.
#[derive(Debug)]
struct Package {
    number: String,
    own: Counters,
    cores: Vec<(String, Counters)>,
    episode: Episode,
}

/// The counters of a core or of a package.
#[derive(Debug)]
struct Counters {
    throttles: Attribute,
    /// Since Linux 5.5.
    throttled_ms: Option<Attribute>,
    /// The throttles at the previous sample.
    previous: Option<u64>,
}

impl Throttle {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            cpus: context.paths.sys("devices/system/cpu"),
            events: context.events.clone(),
            packages: Vec::new(),
            scans: Scans::default(),
        }
    }

    /// Looks for cores anew, keeping what is known of those that were there.
    fn scan(&mut self) -> Result<(), CollectError> {
        let mut packages = scan(&self.cpus)?;
        for package in &mut packages {
            if let Some(known) = self.packages.iter().find(|known| known.number == package.number) {
                package.keep(known);
            }
        }
        self.packages = packages;
        Ok(())
    }

    fn sample(&mut self, rows: &mut Rows, now: Instant) {
        for package in &mut self.packages {
            let rises = package.read(rows);
            match package.episode.observe(rises.any(), now) {
                Some(Change::Began) => self.events.emit(package.began(rises)),
                Some(Change::Ended(lasted)) => self.events.emit(package.ended(lasted)),
                None => {}
            }
        }
    }
}

impl Collector for Throttle {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        if self.scans.due() {
            self.scan()?;
        }
        self.sample(tables.only(), Instant::now());
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let none = "The kernel counts no throttling: it does so on Intel processors only, and not in virtual machines";
        if self.packages.is_empty() { vec![none.to_owned()] } else { Vec::new() }
    }
}

/// By how much the counters of a package have risen since the previous sample.
#[derive(Debug, Clone, Copy, Default)]
struct Rises {
    cores: u64,
    package: u64,
}

impl Rises {
    fn any(self) -> bool {
        self.cores > 0 || self.package > 0
    }
}

impl Package {
    /// Opens the counters that one of its processors has of the whole package.
    fn open(number: i64, counters: &Path) -> io::Result<Self> {
        let own = Counters::open(counters, "package", true)?;
        Ok(Self { number: number.to_string(), own, cores: Vec::new(), episode: Episode::default() })
    }

    /// Adds the rows of the package and its cores.
    fn read(&mut self, rows: &mut Rows) -> Rises {
        let package = self.own.push(rows, &self.number, "package");
        let cores = self.cores.iter_mut().map(|(core, counters)| counters.push(rows, &self.number, core));
        Rises { cores: cores.fold(0, u64::saturating_add), package }
    }

    fn keep(&mut self, known: &Self) {
        self.episode = known.episode;
        self.own.previous = known.own.previous;
        for (core, counters) in &mut self.cores {
            let same = known.cores.iter().find(|(known, _)| known == core);
            counters.previous = same.and_then(|(_, known)| known.previous);
        }
    }

    fn began(&self, rises: Rises) -> Event {
        let message = format!("Processor package {} began to throttle to stay cool", self.number);
        Event::new(EventKind::ThrottlingBegan, self.subject(), message)
            .with("core_throttles", rises.cores)
            .with("package_throttles", rises.package)
    }

    fn ended(&self, lasted: Duration) -> Event {
        let message = format!("Processor package {} throttles no longer", self.number);
        Event::new(EventKind::ThrottlingEnded, self.subject(), message).with("lasted_seconds", lasted.as_secs_f64())
    }

    fn subject(&self) -> String {
        format!("cpu package {}", self.number)
    }
}

impl Counters {
    /// Opens the counters of a `core` or `package`. Fails where the kernel has none.
    fn open(folder: &Path, of: &str, keep: bool) -> io::Result<Self> {
        let open = |attribute: &str| {
            let path = folder.join(format!("{of}_throttle_{attribute}"));
            if keep { Attribute::open(path) } else { Attribute::named(path) }
        };
        Ok(Self { throttles: open("count")?, throttled_ms: open("total_time_ms").ok(), previous: None })
    }

    /// Adds the row and returns by how much the throttles have risen; no row when they can't be read, as of a core that is
    /// switched off.
    fn push(&mut self, rows: &mut Rows, package: &str, core: &str) -> u64 {
        let Some(throttles) = self.throttles.count() else {
            return 0;
        };
        let throttled_ms = self.throttled_ms.as_ref().and_then(Attribute::count);
        rows.push(
            &[("package", package), ("core", core)],
            &[
                ("throttles_total", throttles.into()),
                ("throttled_seconds_total", throttled_ms.map(|ms| ms as f64 / 1000.0).into()),
            ],
        );
        let previous = self.previous.replace(throttles);
        previous.map_or(0, |previous| throttles.saturating_sub(previous))
    }
}

/// Looks for the packages and their cores. Threads of one core have the same counters, so that the first of them stands for all.
fn scan(cpus: &Path) -> Result<Vec<Package>, CollectError> {
    let mut found: BTreeMap<i64, Package> = BTreeMap::new();
    let mut kept = 0;
    for (number, cpu) in numbered(cpus)? {
        let counters = cpu.join("thermal_throttle");
        let place = |id: &str| sysfs::number(cpu.join("topology").join(id));
        let package = match found.entry(place("physical_package_id").unwrap_or(0)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => match Package::open(*new.key(), &counters) {
                Ok(package) => new.insert(package),
                Err(_) => continue,
            },
        };
        let core = place("core_id").unwrap_or(number).to_string();
        let known = package.cores.iter().any(|(known, _)| *known == core);
        if let Some(counters) = (!known).then(|| Counters::open(&counters, "core", kept < MAX_KEPT).ok()).flatten() {
            package.cores.push((core, counters));
            kept += 1;
        }
    }
    Ok(found.into_values().collect())
}

/// The folders `cpu<n>` in the order of their numbers.
fn numbered(cpus: &Path) -> Result<Vec<(i64, PathBuf)>, CollectError> {
    let number = |path: &Path| sysfs::file_name(path)?.strip_prefix("cpu")?.parse().ok();
    let mut cpus: Vec<_> = sysfs::entries(cpus)?.into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    cpus.sort();
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{Column, catalog};

    use super::{super::sysfs::tests::tree, *};
    use crate::{context::HostPaths, rows::Columns};

    fn cpu(root: &Path, number: u32, (package, core): (u32, u32), counts: (u64, u64)) {
        let folder = format!("sys/devices/system/cpu/cpu{number}");
        for (file, value) in [
            ("topology/physical_package_id", u64::from(package)),
            ("topology/core_id", u64::from(core)),
            ("thermal_throttle/core_throttle_count", counts.0),
            ("thermal_throttle/core_throttle_total_time_ms", counts.0 * 500),
            ("thermal_throttle/package_throttle_count", counts.1),
        ] {
            tree(root, &[(&format!("{folder}/{file}"), &format!("{value}\n"))]);
        }
    }

    /// Two packages of one core each, the first with two threads.
    fn host(root: &Path) -> Throttle {
        tree(root, &[("sys/devices/system/cpu/cpufreq/x", ""), ("sys/devices/system/cpu/cpu3/topology/core_id", "9")]);
        cpu(root, 0, (0, 4), (2, 7));
        cpu(root, 1, (1, 4), (0, 0));
        cpu(root, 2, (0, 4), (2, 7));
        Throttle::new(&Context { paths: HostPaths::new(root), ..Context::default() })
    }

    fn read(throttle: &mut Throttle, now: Instant) -> Columns {
        let mut rows = Rows::new(catalog::measurement("throttle").unwrap());
        throttle.sample(&mut rows, now);
        rows.take()
    }

    #[test]
    fn each_core_and_package_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut throttle = host(dir.path());
        throttle.scan().unwrap();
        let columns = read(&mut throttle, Instant::now());
        assert_eq!(columns.tags["package"], ["0", "0", "1", "1"]);
        assert_eq!(columns.tags["core"], ["package", "4", "package", "4"]);
        assert_eq!(columns.fields["throttles_total"], Column::Integer(vec![Some(7), Some(2), Some(0), Some(0)]));
        assert_eq!(columns.fields["throttled_seconds_total"], Column::Float(vec![None, Some(1.0), None, Some(0.0)]));
        assert!(throttle.notes().is_empty());
    }

    #[test]
    fn an_episode_is_an_event_when_it_begins_and_when_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut throttle = host(dir.path());
        throttle.scan().unwrap();
        let start = Instant::now();
        read(&mut throttle, start);
        cpu(dir.path(), 0, (0, 4), (4, 8));
        read(&mut throttle, start + Duration::from_secs(1));
        cpu(dir.path(), 0, (0, 4), (5, 8));
        // Looking for cores anew forgets nothing.
        throttle.scan().unwrap();
        read(&mut throttle, start + Duration::from_secs(3));
        read(&mut throttle, start + Duration::from_secs(32));
        let events = throttle.events.take();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].kind, events[0].subject.as_str()), (EventKind::ThrottlingBegan, "cpu package 0"));
        assert_eq!(
            (&events[0].attributes["core_throttles"], &events[0].attributes["package_throttles"]),
            (&2.into(), &1.into())
        );

        read(&mut throttle, start + Duration::from_secs(33));
        read(&mut throttle, start + Duration::from_secs(99));
        let events = throttle.events.take();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].kind, events[0].subject.as_str()), (EventKind::ThrottlingEnded, "cpu package 0"));
        assert_eq!(events[0].attributes["lasted_seconds"], 2.0);
    }

    #[test]
    fn counts_that_were_there_before_are_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let mut throttle = host(dir.path());
        let mut tables = Tables::new(catalog::measurement("throttle"));
        throttle.collect(&mut tables).unwrap();
        throttle.collect(&mut tables).unwrap();
        // As after a core was switched off and on.
        cpu(dir.path(), 0, (0, 4), (0, 0));
        throttle.collect(&mut tables).unwrap();
        assert!(throttle.events.take().is_empty());
    }

    #[test]
    fn hostile_counters_leave_the_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut throttle = host(dir.path());
        throttle.scan().unwrap();
        for (file, text) in [("core_throttle_count", "-3"), ("package_throttle_count", "")] {
            tree(dir.path(), &[(&format!("sys/devices/system/cpu/cpu0/thermal_throttle/{file}"), text)]);
        }
        let columns = read(&mut throttle, Instant::now());
        assert_eq!(columns.tags["package"], ["1", "1"]);
    }

    #[test]
    fn a_processor_that_counts_nothing_says_so() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), &[("sys/devices/system/cpu/cpu0/topology/core_id", "0")]);
        let mut throttle = Throttle::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        let mut tables = Tables::new(catalog::measurement("throttle"));
        throttle.collect(&mut tables).unwrap();
        assert!(tables.only().is_empty());
        assert_eq!(throttle.notes().len(), 1);
    }

    #[test]
    fn beyond_what_is_kept_open_cores_are_read_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let cores = MAX_KEPT as u32 + 3;
        for number in 0..cores {
            cpu(dir.path(), number, (0, number), (u64::from(number), 0));
        }
        let mut throttle = Throttle::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        throttle.scan().unwrap();
        let columns = read(&mut throttle, Instant::now());
        assert_eq!(columns.tags["core"].len(), cores as usize + 1);
        assert_eq!(columns.fields["throttles_total"].number(cores as usize), Some(f64::from(cores - 1)));
    }
}
