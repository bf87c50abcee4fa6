//! Fans, from /sys/class/hwmon (Documentation/ABI/testing/sysfs-class-hwmon).

use std::path::PathBuf;

use super::{
    CollectError, Collector,
    hwmon::{self, Channel, Chip, SensorName},
    sysfs::{Attribute, Scans},
};
use crate::{
    context::Context,
    rows::{Rows, Tables, Value},
};

/// The attributes that tell of an alarm; a chip has one for all causes, or one for each.
const ALARMS: [&str; 3] = ["alarm", "min_alarm", "max_alarm"];

/// Reads every fan that a chip watches; a host may have none.
#[derive(Debug)]
pub struct Fan {
    chips: PathBuf,
    sensors: Vec<Sensor>,
    scans: Scans,
}

/// A fan that was found.
#[derive(Debug)]
struct Sensor {
    name: String,
    input: Attribute,
    fault: Option<Attribute>,
    alarms: Vec<Attribute>,
    runtime_status: Option<Attribute>,
    minimum_rpm: Option<f64>,
}

impl Fan {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { chips: context.paths.sys("class/hwmon"), sensors: Vec::new(), scans: Scans::default() }
    }

    fn scan(&self) -> Result<Vec<Sensor>, CollectError> {
        let chips = hwmon::chips(&self.chips)?;
        let (names, mut sensors): (Vec<_>, Vec<_>) = chips.iter().flat_map(of_chip).unzip();
        for (sensor, name) in sensors.iter_mut().zip(hwmon::tell_apart(&names)) {
            sensor.name = name;
        }
        Ok(sensors)
    }
}

impl Collector for Fan {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        if self.scans.due() {
            self.sensors = self.scan()?;
        }
        let rows = tables.only();
        self.sensors.iter().for_each(|sensor| sensor.push(rows));
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let none = "The kernel knows no fan: a virtual machine has none; on a real board the driver of the chip that watches \
                    them may have to be loaded, which `sensors-detect` of the package lm-sensors finds";
        if self.sensors.is_empty() { vec![none.to_owned()] } else { Vec::new() }
    }
}

impl Sensor {
    /// Adds the fan's row; none when nothing of it can be read. A faulty fan has no speed.
    fn push(&self, rows: &mut Rows) {
        if self.runtime_status.as_ref().is_some_and(hwmon::is_suspended) {
            return;
        }
        let fault = self.fault.as_ref().and_then(Attribute::flag);
        let speed = self.input.count().filter(|_| fault != Some(true)).map(|rpm| rpm as f64);
        let alarm = self.alarm();
        if speed.is_some() || fault.is_some() || alarm.is_some() {
            rows.push(
                &[("fan", &self.name)],
                &[
                    ("speed_rpm", speed.into()),
                    ("minimum_rpm", self.minimum_rpm.into()),
                    ("alarm", Value::Bool(alarm)),
                    ("fault", Value::Bool(fault)),
                ],
            );
        }
    }

    /// Whether one of the alarms is on; none when none can be read.
    fn alarm(&self) -> Option<bool> {
        self.alarms.iter().filter_map(Attribute::flag).reduce(|one, other| one || other)
    }
}

/// The fans of a chip, not named yet.
fn of_chip(chip: &Chip) -> Vec<(SensorName, Sensor)> {
    let channels = chip.channels("fan", &["input"]);
    let sensor = |channel: &Channel<'_>| {
        let sensor = Sensor {
            name: String::new(),
            input: channel.attribute("input")?,
            fault: channel.attribute("fault"),
            alarms: ALARMS.iter().filter_map(|alarm| channel.attribute(alarm)).collect(),
            runtime_status: chip.runtime_status(),
            // Chips have 0 here where no limit is set.
            minimum_rpm: channel.number("min").filter(|rpm| *rpm > 0).map(|rpm| rpm as f64),
        };
        Some((channel.name(), sensor))
    };
    channels.iter().filter_map(sensor).collect()
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{Column, catalog};

    use super::{super::sysfs::tests::tree, *};
    use crate::{context::HostPaths, rows::Columns};

    fn read(collector: &mut Fan) -> Columns {
        let mut tables = Tables::new(catalog::measurement("fan"));
        collector.collect(&mut tables).unwrap();
        tables.only().take()
    }

    #[test]
    fn fans_are_found_named_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let chip = "sys/class/hwmon/hwmon0";
        for (file, text) in [
            ("name", "nct6798\n"),
            ("fan1_input", "1205\n"),
            ("fan1_label", "CPU Fan\n"),
            ("fan1_min", "300\n"),
            ("fan1_alarm", "0\n"),
            ("fan2_input", "0\n"),
            ("fan2_min", "0\n"),
            ("fan2_min_alarm", "1\n"),
            ("fan2_max_alarm", "0\n"),
            ("fan3_input", "65535\n"),
            ("fan3_fault", "1\n"),
            ("fan4_input", "-1\n"),
            ("fan5_input", "fast\n"),
            ("fan5_alarm", "?\n"),
            ("pwm1", "128\n"),
        ] {
            tree(dir.path(), &[(&format!("{chip}/{file}"), text)]);
        }
        let mut fan = Fan::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        let columns = read(&mut fan);
        assert_eq!(columns.tags["fan"], ["nct6798 CPU Fan", "nct6798 fan2", "nct6798 fan3"]);
        assert_eq!(columns.fields["speed_rpm"], Column::Float(vec![Some(1205.0), Some(0.0), None]));
        assert_eq!(columns.fields["minimum_rpm"], Column::Float(vec![Some(300.0), None, None]));
        assert_eq!(columns.fields["alarm"], Column::Bool(vec![Some(false), Some(true), None]));
        assert_eq!(columns.fields["fault"], Column::Bool(vec![None, None, Some(true)]));
        assert!(fan.notes().is_empty());

        tree(dir.path(), &[("sys/class/hwmon/hwmon0/fan3_fault", "0"), ("sys/class/hwmon/hwmon0/fan3_input", "900")]);
        let columns = read(&mut fan);
        assert_eq!(columns.fields["speed_rpm"].number(2), Some(900.0));
    }

    #[test]
    fn a_host_without_fans_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut fan = Fan::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        assert!(read(&mut fan).tags["fan"].is_empty());
        assert!(fan.notes()[0].contains("lm-sensors"));
        // A chip that comes later is found then.
        tree(dir.path(), &[("sys/class/hwmon/hwmon0/name", "dell_smm"), ("sys/class/hwmon/hwmon0/fan1_input", "2000")]);
        assert!(read(&mut fan).tags["fan"].is_empty());
        fan.scans = Scans::default();
        assert_eq!(read(&mut fan).tags["fan"], ["dell_smm fan1"]);
    }
}
