//! NVIDIA's graphics processors on the PCI bus, as the kernel knows them without touching them
//! (Documentation/ABI/testing/sysfs-bus-pci, sysfs-devices-power).

use std::{fs, path::Path};

use crate::collectors::{
    CollectError, hwmon,
    sysfs::{self, Attribute},
};

const NVIDIA: &str = "0x10de";
/// Of all display controllers: VGA, 3D and others.
const DISPLAY_CLASS: &str = "0x03";

/// A place on the bus with a graphics processor.
#[derive(Debug)]
pub struct Slot {
    /// Domain, bus, device and function, such as `0000:01:00.0`.
    pub address: String,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Whether the kernel may suspend it while nothing uses it.
    pub may_sleep: bool,
    runtime_status: Option<Attribute>,
}

/// Finds the graphics processors among the devices below a folder. None are found where it is missing.
pub fn slots(devices: &Path) -> Result<Vec<Slot>, CollectError> {
    Ok(sysfs::entries(devices)?.iter().filter_map(|device| Slot::open(device)).collect())
}

impl Slot {
    fn open(device: &Path) -> Option<Self> {
        sysfs::text(device.join("vendor")).filter(|vendor| vendor == NVIDIA)?;
        sysfs::text(device.join("class")).filter(|class| class.starts_with(DISPLAY_CLASS))?;
        let driver = fs::read_link(device.join("driver")).ok();
        Some(Self {
            address: sysfs::file_name(device)?.to_owned(),
            driver: driver.and_then(|driver| sysfs::file_name(&driver).map(str::to_owned)),
            may_sleep: sysfs::text(device.join("power/control")).as_deref() == Some("auto"),
            runtime_status: Attribute::open(device.join("power/runtime_status")).ok(),
        })
    }

    /// Whether NVML can be asked about it.
    pub fn has_nvidias_driver(&self) -> bool {
        self.driver.as_deref() == Some("nvidia")
    }

    /// Whether it is suspended, so that any question would wake it.
    pub fn is_suspended(&self) -> bool {
        self.runtime_status.as_ref().is_some_and(hwmon::is_suspended)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::collectors::sysfs::tests::tree;

    #[test]
    fn graphics_processors_are_told_from_other_functions_and_vendors() {
        let dir = tempfile::tempdir().unwrap();
        for (address, vendor, class) in [
            ("0000:01:00.0", "0x10de\n", "0x030000\n"),
            ("0000:01:00.1", "0x10de\n", "0x040300\n"),
            ("0000:02:00.0", "0x1002\n", "0x030000\n"),
            ("0000:41:00.0", "0x10de\n", "0x030200\n"),
            ("0000:42:00.0", "", "0x030200\n"),
        ] {
            tree(dir.path(), &[(&format!("{address}/vendor"), vendor), (&format!("{address}/class"), class)]);
        }
        tree(
            dir.path(),
            &[("0000:41:00.0/power/control", "auto\n"), ("0000:41:00.0/power/runtime_status", "active\n")],
        );
        symlink("../../../bus/pci/drivers/nvidia", dir.path().join("0000:41:00.0/driver")).unwrap();
        let slots = slots(dir.path()).unwrap();
        let told: Vec<_> =
            slots.iter().map(|slot| (slot.address.as_str(), slot.has_nvidias_driver(), slot.may_sleep)).collect();
        assert_eq!(told, [("0000:01:00.0", false, false), ("0000:41:00.0", true, true)]);
        assert!(!slots[1].is_suspended());
        tree(dir.path(), &[("0000:41:00.0/power/runtime_status", "suspended\n")]);
        assert!(slots[1].is_suspended());
    }

    #[test]
    fn a_host_without_a_bus_has_none() {
        assert!(slots(Path::new("/nowhere/at/all")).unwrap().is_empty());
    }
}
