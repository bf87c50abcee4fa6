//! Temperature sensors: those of chips, and thermal zones that no chip covers.

use std::path::PathBuf;

use self::zones::Zone;
use super::{
    CollectError, Collector,
    hwmon::{self, Chip, SensorName},
    sysfs::{Attribute, Scans},
};
use crate::{
    context::Context,
    rows::{Rows, Tables},
};

mod zones;

/// What nothing is colder than; drivers tell less when they have no reading.
const ABSOLUTE_ZERO_MILLICELSIUS: i64 = -273_150;

/// Reads every temperature sensor; a host may have none.
#[derive(Debug)]
pub struct Temperature {
    chips: PathBuf,
    zones: PathBuf,
    sensors: Vec<Sensor>,
    scans: Scans,
}

/// A sensor that was found.
#[derive(Debug)]
struct Sensor {
    name: String,
    input: Attribute,
    /// 1 while the sensor is broken or not connected.
    fault: Option<Attribute>,
    runtime_status: Option<Attribute>,
    critical_celsius: Option<f64>,
}

impl Temperature {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            chips: context.paths.sys("class/hwmon"),
            zones: context.paths.sys("class/thermal"),
            sensors: Vec::new(),
            scans: Scans::default(),
        }
    }

    fn scan(&self) -> Result<Vec<Sensor>, CollectError> {
        let chips = hwmon::chips(&self.chips)?;
        let zones = zones::uncovered(&self.zones, &chips)?;
        let found: Vec<(SensorName, Sensor)> =
            chips.iter().flat_map(of_chip).chain(zones.into_iter().filter_map(of_zone)).collect();
        let (names, mut sensors): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        for (sensor, name) in sensors.iter_mut().zip(hwmon::tell_apart(&names)) {
            sensor.name = name;
        }
        Ok(sensors)
    }
}

impl Collector for Temperature {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        if self.scans.due() {
            self.sensors = self.scan()?;
        }
        let rows = tables.only();
        self.sensors.iter().for_each(|sensor| sensor.push(rows));
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let none = "The kernel knows no temperature sensor: a virtual machine seldom has one; on a real board its driver may \
                    have to be loaded, which `sensors-detect` of the package lm-sensors finds";
        if self.sensors.is_empty() { vec![none.to_owned()] } else { Vec::new() }
    }
}

impl Sensor {
    /// Adds the sensor's row; none while it has no reading, as of a disk that sleeps.
    fn push(&self, rows: &mut Rows) {
        let asleep = self.runtime_status.as_ref().is_some_and(hwmon::is_suspended);
        let faulty = || self.fault.as_ref().and_then(Attribute::flag).unwrap_or(false);
        if asleep || faulty() {
            return;
        }
        if let Some(celsius) = self.input.number().and_then(celsius) {
            rows.push(
                &[("sensor", &self.name)],
                &[("temperature_celsius", celsius.into()), ("critical_celsius", self.critical_celsius.into())],
            );
        }
    }
}

/// The temperature sensors of a chip, not named yet.
fn of_chip(chip: &Chip) -> Vec<(SensorName, Sensor)> {
    let channels = chip.channels("temp", &["input"]);
    let sensor = |channel: &hwmon::Channel<'_>| {
        let sensor = Sensor {
            name: String::new(),
            input: channel.attribute("input")?,
            fault: channel.attribute("fault"),
            runtime_status: chip.runtime_status(),
            critical_celsius: channel.number("crit").and_then(critical_celsius),
        };
        Some((channel.name(), sensor))
    };
    channels.iter().filter_map(sensor).collect()
}

fn of_zone(zone: Zone) -> Option<(SensorName, Sensor)> {
    let sensor = Sensor {
        name: String::new(),
        input: Attribute::open(zone.folder.join("temp")).ok()?,
        fault: None,
        runtime_status: None,
        critical_celsius: zone.critical_millicelsius().and_then(critical_celsius),
    };
    Some((zone.name(), sensor))
}

/// Degrees of thousandths of a degree; none where it can't be a temperature.
fn celsius(thousandths: i64) -> Option<f64> {
    (thousandths >= ABSOLUTE_ZERO_MILLICELSIUS).then_some(thousandths as f64 / 1000.0)
}

/// The same of a limit, which drivers set to 0 or below when there is none.
fn critical_celsius(thousandths: i64) -> Option<f64> {
    celsius(thousandths).filter(|celsius| *celsius > 0.0)
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;
    use proptest::prelude::*;

    use super::{super::sysfs::tests::tree, *};
    use crate::{context::HostPaths, rows::Columns};

    fn collector(root: &std::path::Path) -> Temperature {
        Temperature::new(&Context { paths: HostPaths::new(root), ..Context::default() })
    }

    fn read(collector: &mut Temperature) -> Columns {
        let mut tables = Tables::new(catalog::measurement("temperature"));
        collector.collect(&mut tables).unwrap();
        tables.only().take()
    }

    fn values(columns: &Columns, field: &str) -> Vec<Option<f64>> {
        (0..columns.tags["sensor"].len()).map(|row| columns.fields[field].number(row)).collect()
    }

    #[test]
    fn sensors_are_found_named_and_read() {
        let dir = tempfile::tempdir().unwrap();
        for chip in ["sys/class/hwmon/hwmon0", "sys/class/hwmon/hwmon1"] {
            for (file, text) in [
                ("name", "nvme\n"),
                ("temp1_input", "38850\n"),
                ("temp1_label", "Composite\n"),
                ("temp1_crit", "84850\n"),
            ] {
                tree(dir.path(), &[(&format!("{chip}/{file}"), text)]);
            }
        }
        tree(
            dir.path(),
            &[
                ("sys/class/hwmon/hwmon2/name", "acpitz"),
                ("sys/class/hwmon/hwmon2/temp2_input", "-5000"),
                ("sys/class/hwmon/hwmon2/temp2_crit", "0"),
                ("sys/class/hwmon/hwmon2/in0_input", "1"),
                ("sys/class/hwmon/hwmon3/name", "broken"),
                ("sys/class/hwmon/hwmon3/temp1_input", ""),
                ("sys/class/hwmon/hwmon3/temp2_input", "-274000"),
                ("sys/class/hwmon/hwmon3/temp3_input", "x"),
                ("sys/class/hwmon/hwmon3/temp4_input", "127000"),
                ("sys/class/hwmon/hwmon3/temp4_fault", "1"),
                ("sys/class/hwmon/hwmon4/temp1_input", "1000"),
            ],
        );
        let mut collector = collector(dir.path());
        let columns = read(&mut collector);
        assert_eq!(columns.tags["sensor"], ["nvme Composite hwmon0", "nvme Composite hwmon1", "acpitz temp2"]);
        assert_eq!(values(&columns, "temperature_celsius"), [Some(38.85), Some(38.85), Some(-5.0)]);
        assert_eq!(values(&columns, "critical_celsius"), [Some(84.85), Some(84.85), None]);
        assert!(collector.notes().is_empty());

        tree(
            dir.path(),
            &[("sys/class/hwmon/hwmon2/temp2_input", "40000"), ("sys/class/hwmon/hwmon0/temp1_input", "")],
        );
        let columns = read(&mut collector);
        assert_eq!(columns.tags["sensor"], ["nvme Composite hwmon1", "acpitz temp2"]);
        assert_eq!(values(&columns, "temperature_celsius"), [Some(38.85), Some(40.0)]);
    }

    #[test]
    fn zones_are_read_where_no_chip_covers_them() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &[
                ("sys/class/thermal/cooling_device0/type", "Processor"),
                ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
                ("sys/class/thermal/thermal_zone0/temp", "45277\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_0_type", "passive\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_0_temp", "80000\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_1_type", "critical\n"),
                ("sys/class/thermal/thermal_zone0/trip_point_1_temp", "110000\n"),
                ("sys/class/thermal/thermal_zone1/type", "gpu-thermal\n"),
                ("sys/class/thermal/thermal_zone1/temp", "x"),
            ],
        );
        let columns = read(&mut collector(dir.path()));
        assert_eq!(columns.tags["sensor"], ["cpu-thermal"]);
        assert_eq!(values(&columns, "temperature_celsius"), [Some(45.277)]);
        assert_eq!(values(&columns, "critical_celsius"), [Some(110.0)]);

        // With CONFIG_THERMAL_HWMON the kernel makes a chip of the zone.
        tree(
            dir.path(),
            &[("sys/class/hwmon/hwmon0/name", "cpu_thermal"), ("sys/class/hwmon/hwmon0/temp1_input", "45000")],
        );
        let columns = read(&mut collector(dir.path()));
        assert_eq!(columns.tags["sensor"], ["cpu_thermal temp1"]);
    }

    #[test]
    fn a_sleeping_device_is_not_woken() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &[
                ("sys/class/hwmon/hwmon0/name", "drivetemp"),
                ("sys/class/hwmon/hwmon0/temp1_input", "30000"),
                ("sys/class/hwmon/hwmon0/device/power/control", "auto"),
                ("sys/class/hwmon/hwmon0/device/power/runtime_status", "suspended"),
            ],
        );
        let mut collector = collector(dir.path());
        assert!(read(&mut collector).tags["sensor"].is_empty());
        tree(dir.path(), &[("sys/class/hwmon/hwmon0/device/power/runtime_status", "active")]);
        assert_eq!(read(&mut collector).tags["sensor"], ["drivetemp temp1"]);
    }

    #[test]
    fn chips_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut collector = collector(dir.path());
        assert!(read(&mut collector).tags["sensor"].is_empty());
        assert_eq!(collector.notes().len(), 1);
        let chip = [("sys/class/hwmon/hwmon0/name", "k10temp"), ("sys/class/hwmon/hwmon0/temp1_input", "50000")];
        tree(dir.path(), &chip);
        collector.scans = Scans::default();
        assert_eq!(read(&mut collector).tags["sensor"], ["k10temp temp1"]);
        std::fs::remove_dir_all(dir.path().join("sys/class/hwmon/hwmon0")).unwrap();
        collector.scans = Scans::default();
        assert!(read(&mut collector).tags["sensor"].is_empty());
    }

    proptest! {
        #[test]
        fn no_reading_is_below_absolute_zero(thousandths in any::<i64>()) {
            prop_assert!(celsius(thousandths).is_none_or(|celsius| celsius >= -273.15));
            prop_assert!(critical_celsius(thousandths).is_none_or(|celsius| celsius > 0.0));
        }
    }
}
