//! Batteries, mains and other supplies, from /sys/class/power_supply (Documentation/ABI/testing/sysfs-class-power).

use std::path::{Path, PathBuf};

use super::{Figures, of_millionths};
use crate::{
    collectors::{
        CollectError,
        sysfs::{self, Attribute, Buffer},
    },
    context::HostPaths,
    rows::Rows,
};

/// The supplies of this host.
#[derive(Debug)]
pub struct Supplies {
    root: PathBuf,
    supplies: Vec<Supply>,
}

/// A supply with the attributes that its driver has. Energies and charges count in millionths of watt or ampere hours.
#[derive(Debug)]
struct Supply {
    source: String,
    kind: String,
    present: Option<Attribute>,
    online: Option<Attribute>,
    status: Option<Attribute>,
    capacity: Option<Attribute>,
    power: Option<Attribute>,
    voltage: Option<Attribute>,
    current: Option<Attribute>,
    cycles: Option<Attribute>,
    energies: [Option<Attribute>; 3],
    charges: [Option<Attribute>; 3],
    nominal_volts: Option<f64>,
}

impl Supplies {
    /// Reads the host at `paths`.
    pub fn new(paths: &HostPaths) -> Self {
        Self { root: paths.sys("class/power_supply"), supplies: Vec::new() }
    }

    /// Looks for supplies anew. Those that feed a device, such as a mouse's battery, are left out.
    pub fn scan(&mut self) -> Result<(), CollectError> {
        self.supplies = sysfs::entries(&self.root)?.iter().filter_map(|folder| Supply::open(folder)).collect();
        Ok(())
    }

    /// Adds a row a supply.
    pub fn read(&self, rows: &mut Rows) {
        for supply in &self.supplies {
            supply.read(&mut [0; _]).push(rows, &supply.source, &supply.kind);
        }
    }

    /// Whether no supply was found.
    pub fn is_empty(&self) -> bool {
        self.supplies.is_empty()
    }

    /// Whether the kernel has made a chip of that name of a supply (drivers/power/supply/power_supply_hwmon.c).
    pub fn has(&self, chip: &str) -> bool {
        self.supplies.iter().any(|supply| supply.source.replace('-', "_") == chip)
    }
}

impl Supply {
    fn open(folder: &Path) -> Option<Self> {
        let kind = sysfs::text(folder.join("type"))?;
        if sysfs::text(folder.join("scope")).as_deref() == Some("Device") {
            return None;
        }
        let attribute = |name: &str| Attribute::open(folder.join(name)).ok();
        Some(Self {
            source: sysfs::file_name(folder)?.to_owned(),
            // Older kernels tell kinds of USB apart, such as `USB_DCP`.
            kind: kind.split('_').next().unwrap_or(&kind).to_ascii_lowercase(),
            present: attribute("present"),
            online: attribute("online"),
            status: attribute("status"),
            capacity: attribute("capacity"),
            power: attribute("power_now"),
            voltage: attribute("voltage_now"),
            current: attribute("current_now"),
            cycles: attribute("cycle_count"),
            energies: ["energy_now", "energy_full", "energy_full_design"].map(attribute),
            charges: ["charge_now", "charge_full", "charge_full_design"].map(attribute),
            nominal_volts: sysfs::number(folder.join("voltage_min_design"))
                .filter(|volts| *volts > 0)
                .map(of_millionths),
        })
    }

    /// What is known at this moment; nothing of a battery that has been taken out.
    fn read<'a>(&self, status: &'a mut Buffer) -> Figures<'a> {
        if self.present.as_ref().and_then(Attribute::flag) == Some(false) {
            return Figures::default();
        }
        let voltage_volts = number(&self.voltage).map(of_millionths);
        let [stored_watt_hours, full_watt_hours, design_watt_hours] = self.watt_hours(voltage_volts);
        Figures {
            power_watts: self.watts(voltage_volts),
            energy_joules_total: None,
            voltage_volts,
            // 2 is online as well, with a voltage that can be set.
            online: number(&self.online).map(|online| online != 0),
            status: self.status.as_ref().and_then(|attribute| lower_case(attribute, status)),
            capacity_percent: number(&self.capacity).filter(|p| (0..=100).contains(p)).map(|percent| percent as f64),
            stored_watt_hours,
            full_watt_hours,
            design_watt_hours,
            // 0 says that it is not known.
            cycles: self.cycles.as_ref().and_then(Attribute::count).filter(|cycles| *cycles > 0),
        }
    }

    /// The power that flows in or out; drivers differ in whether the latter is negative, so that `status` tells which.
    fn watts(&self, voltage_volts: Option<f64>) -> Option<f64> {
        let told = number(&self.power).map(of_millionths);
        let watts = told.or_else(|| Some(number(&self.current).map(of_millionths)? * voltage_volts?));
        watts.map(f64::abs)
    }

    /// The energies; where the driver tells charges, those at the battery's nominal voltage.
    fn watt_hours(&self, voltage_volts: Option<f64>) -> [Option<f64>; 3] {
        let volts = self.nominal_volts.or(voltage_volts);
        std::array::from_fn(|index| {
            let energy = number(&self.energies[index]).map(of_millionths);
            energy.or_else(|| Some(number(&self.charges[index]).map(of_millionths)? * volts?)).filter(|wh| *wh >= 0.0)
        })
    }
}

fn number(attribute: &Option<Attribute>) -> Option<i64> {
    attribute.as_ref()?.number()
}

fn lower_case<'a>(attribute: &Attribute, buffer: &'a mut Buffer) -> Option<&'a str> {
    let length = attribute.text(buffer)?.len();
    let text = buffer.get_mut(..length)?;
    text.make_ascii_lowercase();
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::{Column, catalog};

    use super::*;
    use crate::{collectors::sysfs::tests::tree, rows::Columns};

    fn supply(root: &Path, name: &str, files: &[(&str, &str)]) {
        for (file, text) in files {
            tree(root, &[(&format!("sys/class/power_supply/{name}/{file}"), text)]);
        }
    }

    fn read(root: &Path) -> Columns {
        let mut supplies = Supplies::new(&HostPaths::new(root));
        supplies.scan().unwrap();
        let mut rows = Rows::new(catalog::measurement("power").unwrap());
        supplies.read(&mut rows);
        rows.take()
    }

    #[test]
    fn a_battery_that_tells_energy_is_read() {
        let dir = tempfile::tempdir().unwrap();
        supply(
            dir.path(),
            "BAT0",
            &[
                ("type", "Battery\n"),
                ("present", "1\n"),
                ("status", "Not charging\n"),
                ("capacity", "83\n"),
                ("energy_now", "41500000\n"),
                ("energy_full", "50000000\n"),
                ("energy_full_design", "57020000\n"),
                ("power_now", "6120000\n"),
                ("voltage_now", "12480000\n"),
                ("cycle_count", "112\n"),
            ],
        );
        supply(dir.path(), "AC", &[("type", "Mains\n"), ("online", "1\n")]);
        let columns = read(dir.path());
        assert_eq!(columns.tags["source"], ["AC", "BAT0"]);
        assert_eq!(columns.tags["kind"], ["mains", "battery"]);
        assert_eq!(columns.fields["online"], Column::Bool(vec![Some(true), None]));
        assert_eq!(columns.fields["status"], Column::Text(vec![None, Some("not charging".to_owned())]));
        assert_eq!(columns.fields["cycles_total"], Column::Integer(vec![None, Some(112)]));
        let battery = |field: &str| columns.fields[field].number(1);
        assert_eq!((battery("capacity_percent"), battery("power_watts")), (Some(83.0), Some(6.12)));
        assert_eq!((battery("stored_watt_hours"), battery("full_watt_hours")), (Some(41.5), Some(50.0)));
        assert_eq!((battery("design_watt_hours"), battery("voltage_volts")), (Some(57.02), Some(12.48)));
    }

    #[test]
    fn charge_and_current_are_turned_into_energy_and_power() {
        let dir = tempfile::tempdir().unwrap();
        supply(
            dir.path(),
            "BAT1",
            &[
                ("type", "Battery"),
                ("charge_now", "2000000"),
                ("charge_full", "4000000"),
                ("current_now", "-1500000"),
                ("voltage_now", "12000000"),
                ("voltage_min_design", "11000000"),
                ("cycle_count", "0"),
            ],
        );
        let columns = read(dir.path());
        let battery = |field: &str| columns.fields[field].number(0);
        assert_eq!((battery("stored_watt_hours"), battery("full_watt_hours")), (Some(22.0), Some(44.0)));
        assert_eq!((battery("design_watt_hours"), battery("power_watts")), (None, Some(18.0)));
        assert_eq!(battery("cycles_total"), None);
    }

    #[test]
    fn what_is_not_the_hosts_or_not_there_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        supply(dir.path(), "BAT0", &[("type", "Battery"), ("present", "0"), ("capacity", "0")]);
        supply(dir.path(), "hid-mouse", &[("type", "Battery"), ("scope", "Device"), ("capacity", "50")]);
        supply(dir.path(), "nothing", &[("online", "1")]);
        supply(dir.path(), "usb", &[("type", "USB_DCP"), ("online", "2"), ("scope", "System")]);
        let columns = read(dir.path());
        assert_eq!(columns.tags["source"], ["usb"]);
        assert_eq!(columns.tags["kind"], ["usb"]);
        assert_eq!(columns.fields["online"], Column::Bool(vec![Some(true)]));
    }

    #[test]
    fn hostile_values_are_none() {
        let dir = tempfile::tempdir().unwrap();
        supply(
            dir.path(),
            "BAT0",
            &[
                ("type", "Battery"),
                ("capacity", "101"),
                ("energy_now", "-5"),
                ("power_now", "x"),
                ("cycle_count", "-1"),
            ],
        );
        assert!(read(dir.path()).tags["source"].is_empty());
        supply(dir.path(), "BAT0", &[("status", "Full"), ("present", "?")]);
        let columns = read(dir.path());
        assert_eq!(columns.tags["source"], ["BAT0"]);
        assert_eq!(columns.fields["capacity_percent"].number(0), None);
        assert_eq!(columns.fields["stored_watt_hours"].number(0), None);
    }
}
