//! Thermal zones, from /sys/class/thermal (Documentation/ABI/testing/sysfs-class-thermal).

use std::path::{Path, PathBuf};

use crate::collectors::{
    CollectError,
    hwmon::{Chip, SensorName},
    sysfs,
};

/// A part of the host whose temperature the kernel watches.
#[derive(Debug)]
pub struct Zone {
    /// Where its attributes are.
    pub folder: PathBuf,
    kind: String,
}

/// The zones whose temperature no chip tells already.
pub fn uncovered(root: &Path, chips: &[Chip]) -> Result<Vec<Zone>, CollectError> {
    let entries = sysfs::entries(root)?.into_iter();
    let zones = entries.filter(|entry| sysfs::file_name(entry).is_some_and(|name| name.starts_with("thermal_zone")));
    let zones = zones.filter_map(|folder| Some(Zone { kind: sysfs::text(folder.join("type"))?, folder }));
    Ok(zones.filter(|zone| !zone.is_covered(chips)).collect())
}

impl Zone {
    /// The kernel makes a chip of each kind of zone, named like it with `_` for `-` (drivers/thermal/thermal_hwmon.c), save of
    /// some whose temperature another driver tells, as coretemp that of a processor's package.
    fn is_covered(&self, chips: &[Chip]) -> bool {
        let name = self.kind.replace('-', "_");
        let covers = |chip: &Chip| chip.name == name || (name == "x86_pkg_temp" && chip.name == "coretemp");
        chips.iter().any(covers)
    }

    /// The temperature in thousandths of a degree at which the host shuts down.
    pub fn critical_millicelsius(&self) -> Option<i64> {
        let is_critical = |number: &u32| {
            let kind = sysfs::text(self.trip_point(*number, "type"));
            kind.as_deref() == Some("critical")
        };
        let trips = (0_u32..).take_while(|number| self.trip_point(*number, "type").exists());
        let critical = trips.into_iter().find(is_critical)?;
        sysfs::number(self.trip_point(critical, "temp"))
    }

    /// What the zone can be called: its kind; with its number where there are several.
    pub fn name(&self) -> SensorName {
        SensorName::new(&self.kind, sysfs::file_name(&self.folder).unwrap_or_default())
    }

    fn trip_point(&self, number: u32, attribute: &str) -> PathBuf {
        self.folder.join(format!("trip_point_{number}_{attribute}"))
    }
}
