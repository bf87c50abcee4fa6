//! Power that chips measure, from /sys/class/hwmon (Documentation/ABI/testing/sysfs-class-hwmon).

use std::path::PathBuf;

use super::{Figures, of_millionths};
use crate::{
    collectors::{
        CollectError,
        hwmon::{self, Chip},
        sysfs::Attribute,
    },
    context::HostPaths,
    rows::Rows,
};

/// What a chip may tell of a channel, the better first: the power now, or over some time before.
const INPUTS: [&str; 2] = ["input", "average"];

/// The power meters of all chips.
#[derive(Debug)]
pub struct Sensors {
    root: PathBuf,
    sensors: Vec<Sensor>,
}

#[derive(Debug)]
struct Sensor {
    source: String,
    input: Attribute,
    runtime_status: Option<Attribute>,
}

impl Sensors {
    /// Reads the host at `paths`.
    pub fn new(paths: &HostPaths) -> Self {
        Self { root: paths.sys("class/hwmon"), sensors: Vec::new() }
    }

    /// Looks for sensors anew, leaving out the chips that are told elsewhere.
    pub fn scan(&mut self, is_told: impl Fn(&str) -> bool) -> Result<(), CollectError> {
        let chips = hwmon::chips(&self.root)?;
        let (names, sensors): (Vec<_>, Vec<_>) =
            chips.iter().filter(|chip| !is_told(&chip.name)).flat_map(of_chip).unzip();
        self.sensors = sensors;
        for (sensor, name) in self.sensors.iter_mut().zip(hwmon::tell_apart(&names)) {
            sensor.source = name;
        }
        Ok(())
    }

    /// Adds a row a sensor.
    pub fn read(&self, rows: &mut Rows) {
        for sensor in &self.sensors {
            if !sensor.runtime_status.as_ref().is_some_and(hwmon::is_suspended) {
                let power_watts = sensor.input.number().map(of_millionths);
                Figures { power_watts, ..Figures::default() }.push(rows, &sensor.source, "sensor");
            }
        }
    }

    /// Whether no sensor was found.
    pub fn is_empty(&self) -> bool {
        self.sensors.is_empty()
    }
}

/// The power meters of a chip, not named yet.
fn of_chip(chip: &Chip) -> Vec<(hwmon::SensorName, Sensor)> {
    let channels = chip.channels("power", &INPUTS);
    let sensor = |channel: &hwmon::Channel<'_>| {
        let input = INPUTS.iter().find_map(|input| channel.attribute(input))?;
        Some((channel.name(), Sensor { source: String::new(), input, runtime_status: chip.runtime_status() }))
    };
    channels.iter().filter_map(sensor).collect()
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;

    use super::*;
    use crate::collectors::sysfs::tests::tree;

    #[test]
    fn the_power_now_goes_before_the_average() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &[
                ("sys/class/hwmon/hwmon0/name", "amdgpu"),
                ("sys/class/hwmon/hwmon0/power1_input", "35000000"),
                ("sys/class/hwmon/hwmon0/power1_average", "99000000"),
                ("sys/class/hwmon/hwmon0/power1_label", "PPT"),
                ("sys/class/hwmon/hwmon0/power2_average", "1500000"),
                ("sys/class/hwmon/hwmon0/power3_cap", "1"),
                ("sys/class/hwmon/hwmon0/power4_input", "much"),
            ],
        );
        let mut sensors = Sensors::new(&HostPaths::new(dir.path()));
        sensors.scan(|_| false).unwrap();
        let mut rows = Rows::new(catalog::measurement("power").unwrap());
        sensors.read(&mut rows);
        let columns = rows.take();
        assert_eq!(columns.tags["source"], ["amdgpu PPT", "amdgpu power2"]);
        assert_eq!(columns.fields["power_watts"].number(0), Some(35.0));
        assert_eq!(columns.fields["power_watts"].number(1), Some(1.5));
    }
}
