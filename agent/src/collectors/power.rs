//! Power: what processors draw by RAPL, what sensors measure, and batteries and other supplies.

use std::time::Instant;

use self::{rapl::Rapl, sensors::Sensors, supplies::Supplies};
use super::{CollectError, Collector, sysfs::Scans};
use crate::{
    context::Context,
    rows::{Rows, Tables, Value},
};

mod rapl;
mod sensors;
mod supplies;

/// Reads every source of power figures; a host may have none.
#[derive(Debug)]
pub struct Power {
    rapl: Rapl,
    sensors: Sensors,
    supplies: Supplies,
    scans: Scans,
}

/// What is known of one source at one moment. Each has some of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Figures<'a> {
    power_watts: Option<f64>,
    energy_joules_total: Option<f64>,
    voltage_volts: Option<f64>,
    online: Option<bool>,
    status: Option<&'a str>,
    capacity_percent: Option<f64>,
    stored_watt_hours: Option<f64>,
    full_watt_hours: Option<f64>,
    design_watt_hours: Option<f64>,
    cycles: Option<u64>,
}

impl Power {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            rapl: Rapl::new(&context.paths),
            sensors: Sensors::new(&context.paths),
            supplies: Supplies::new(&context.paths),
            scans: Scans::default(),
        }
    }
}

impl Collector for Power {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        if self.scans.due() {
            self.rapl.scan()?;
            self.supplies.scan()?;
            self.sensors.scan(|chip| self.supplies.has(chip))?;
        }
        let rows = tables.only();
        self.rapl.read(rows, Instant::now());
        self.sensors.read(rows);
        self.supplies.read(rows);
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.rapl.note().map(str::to_owned).into_iter().collect();
        if notes.is_empty() && self.rapl.is_empty() && self.sensors.is_empty() && self.supplies.is_empty() {
            notes.push("The kernel knows no power meter, battery or supply, as in most virtual machines".to_owned());
        }
        notes
    }
}

impl Figures<'_> {
    /// Adds the row of a source; none when nothing is known of it.
    fn push(&self, rows: &mut Rows, source: &str, kind: &str) {
        if *self == Self::default() {
            return;
        }
        rows.push(
            &[("source", source), ("kind", kind)],
            &[
                ("power_watts", self.power_watts.into()),
                ("energy_joules_total", self.energy_joules_total.into()),
                ("voltage_volts", self.voltage_volts.into()),
                ("online", Value::Bool(self.online)),
                ("status", self.status.into()),
                ("capacity_percent", self.capacity_percent.into()),
                ("stored_watt_hours", self.stored_watt_hours.into()),
                ("full_watt_hours", self.full_watt_hours.into()),
                ("design_watt_hours", self.design_watt_hours.into()),
                ("cycles_total", self.cycles.into()),
            ],
        );
    }
}

/// A quantity of a millionth each, as the kernel tells power, energy, voltage and current.
fn of_millionths(count: i64) -> f64 {
    count as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;

    use super::{super::sysfs::tests::tree, *};
    use crate::context::HostPaths;

    #[test]
    fn sources_of_all_kinds_are_rows_of_one_measurement() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &[
                ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
                ("sys/class/powercap/intel-rapl:0/energy_uj", "5000000\n"),
                ("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850\n"),
                ("sys/class/hwmon/hwmon0/name", "power_meter\n"),
                ("sys/class/hwmon/hwmon0/power1_average", "211000000\n"),
                ("sys/class/hwmon/hwmon1/name", "BAT0\n"),
                ("sys/class/hwmon/hwmon1/power1_input", "7000000\n"),
                ("sys/class/power_supply/BAT0/type", "Battery\n"),
                ("sys/class/power_supply/BAT0/power_now", "7000000\n"),
            ],
        );
        let mut power = Power::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        let mut tables = Tables::new(catalog::measurement("power"));
        power.collect(&mut tables).unwrap();
        let columns = tables.only().take();
        // The kernel also makes a chip of the battery, which would count its power twice.
        assert_eq!(columns.tags["source"], ["package-0", "power_meter power1", "BAT0"]);
        assert_eq!(columns.tags["kind"], ["rapl", "sensor", "battery"]);
        let watts: Vec<_> = (0..3).map(|row| columns.fields["power_watts"].number(row)).collect();
        assert_eq!(watts, [None, Some(211.0), Some(7.0)]);
        assert_eq!(columns.fields["energy_joules_total"].number(0), Some(5.0));
        assert!(power.notes().is_empty());
    }

    #[test]
    fn a_host_without_any_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut power = Power::new(&Context { paths: HostPaths::new(dir.path()), ..Context::default() });
        let mut tables = Tables::new(catalog::measurement("power"));
        power.collect(&mut tables).unwrap();
        assert!(tables.only().is_empty());
        assert_eq!(power.notes().len(), 1);
    }
}
