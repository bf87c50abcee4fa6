//! Chips that monitor hardware, from /sys/class/hwmon (Documentation/ABI/testing/sysfs-class-hwmon).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    CollectError,
    sysfs::{self, Attribute, Buffer},
};

/// A chip: a folder of attributes such as `temp1_input`.
#[derive(Debug, Clone)]
pub struct Chip {
    /// What its driver calls it, such as `nvme`.
    pub name: String,
    folder: PathBuf,
    files: Vec<String>,
}

/// One sensor of a chip, such as its `temp1`.
#[derive(Debug, Clone)]
pub struct Channel<'a> {
    chip: &'a Chip,
    prefix: String,
}

/// What a sensor can be called, from short to long. The last form is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SensorName([String; 3]);

/// Finds the chips below a folder. None are found where it is missing; what has no name is no chip.
pub fn chips(root: &Path) -> Result<Vec<Chip>, CollectError> {
    let mut chips = Vec::new();
    for entry in sysfs::entries(root)? {
        // Old drivers have their attributes one level below.
        let folder = [entry.clone(), entry.join("device")].into_iter().find(|folder| folder.join("name").exists());
        // A chip that goes while it is looked at is no error.
        if let Some(chip) = folder.and_then(Chip::open) {
            chips.push(chip);
        }
    }
    Ok(chips)
}

impl Chip {
    fn open(folder: PathBuf) -> Option<Self> {
        let name = sysfs::text(folder.join("name"))?;
        let files = sysfs::entries(&folder).ok()?;
        let files = files.iter().filter_map(|path| sysfs::file_name(path)).map(str::to_owned).collect();
        Some(Self { name, folder, files })
    }

    /// The channels of a kind, such as `temp`, that have one of the attributes, such as `input`.
    pub fn channels(&self, kind: &str, attributes: &[&str]) -> Vec<Channel<'_>> {
        let mut prefixes: Vec<&str> = self.files.iter().filter_map(|file| channel(file, kind, attributes)).collect();
        prefixes.sort_unstable_by_key(|prefix| (prefix.len(), *prefix));
        prefixes.dedup();
        prefixes.into_iter().map(|prefix| Channel { chip: self, prefix: prefix.to_owned() }).collect()
    }

    /// Whether its device is suspended, told by this attribute; none where the kernel does not suspend it.
    ///
    /// Asking the sensor of a suspended device would wake it.
    pub fn runtime_status(&self) -> Option<Attribute> {
        let power = self.folder.join("device/power");
        // `on` keeps a device awake (Documentation/ABI/testing/sysfs-devices-power).
        sysfs::text(power.join("control")).filter(|control| control == "auto")?;
        Attribute::open(power.join("runtime_status")).ok()
    }

    /// What the chip belongs to, such as `nvme0`; else the chip's own folder.
    fn device(&self) -> String {
        let target = fs::canonicalize(self.folder.join("device")).unwrap_or_else(|_| self.folder.clone());
        sysfs::file_name(&target).unwrap_or_default().to_owned()
    }
}

impl Channel<'_> {
    /// An attribute such as `input`; none where the channel does not have it or it may not be read.
    pub fn attribute(&self, suffix: &str) -> Option<Attribute> {
        Attribute::open(self.path(suffix)).ok()
    }

    /// The number of an attribute that does not change, such as `crit`.
    pub fn number(&self, suffix: &str) -> Option<i64> {
        sysfs::number(self.path(suffix))
    }

    /// What the sensor can be called: chip and label; with the device, as two chips of one kind have it; with the folder.
    pub fn name(&self) -> SensorName {
        let label = sysfs::text(self.path("label")).unwrap_or_else(|| self.prefix.clone());
        let short = format!("{} {label}", self.chip.name);
        let folder = sysfs::file_name(&self.chip.folder).unwrap_or_default();
        let device = format!("{short} {}", self.chip.device());
        let own = format!("{short} {folder}/{}", self.prefix);
        SensorName([short, device, own])
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.chip.folder.join(format!("{}_{suffix}", self.prefix))
    }
}

impl SensorName {
    /// The name of a sensor that is no chip's: its kind, and what tells it from others of the kind.
    pub fn new(kind: &str, device: &str) -> Self {
        let long = format!("{kind} {device}");
        Self([kind.to_owned(), long.clone(), long])
    }
}

/// Gives each sensor the shortest name that no other can have, so that it keeps it in whatever order chips are found.
pub fn tell_apart(names: &[SensorName]) -> Vec<String> {
    let is_own = |form: usize, name: &str| names.iter().filter(|other| other.0[form] == name).count() == 1;
    let own = |name: &SensorName| {
        let form = (0..2).find(|form| is_own(*form, &name.0[*form])).unwrap_or(2);
        name.0[form].clone()
    };
    names.iter().map(own).collect()
}

/// Whether the device of this `runtime_status` is suspended or about to be.
pub fn is_suspended(status: &Attribute) -> bool {
    let mut buffer: Buffer = [0; _];
    matches!(status.text(&mut buffer), Some("suspended" | "suspending"))
}

/// `temp1` of `temp1_input`; none of what is not an attribute asked for.
fn channel<'a>(file: &'a str, kind: &str, attributes: &[&str]) -> Option<&'a str> {
    let (prefix, attribute) = file.split_once('_')?;
    let number = prefix.strip_prefix(kind)?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && attributes.contains(&attribute)).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::{super::sysfs::tests::tree, *};

    fn names(root: &Path, kind: &str) -> Vec<String> {
        let chips = chips(root).unwrap();
        let channels = chips.iter().flat_map(|chip| chip.channels(kind, &["input"]));
        tell_apart(&channels.map(|channel| channel.name()).collect::<Vec<_>>())
    }

    #[test]
    fn channels_are_told_by_chip_and_label() {
        let dir = tempfile::tempdir().unwrap();
        tree(
            dir.path(),
            &[
                ("hwmon0/name", "nct6798\n"),
                ("hwmon0/fan10_input", "1"),
                ("hwmon0/fan2_input", "1"),
                ("hwmon0/fan2_label", "CPU Fan\n"),
                ("hwmon0/fan3_alarm", "1"),
                ("hwmon0/fan_input", "1"),
                ("hwmon0/fanx_input", "1"),
                ("hwmon1/fan1_input", "1"),
                ("hwmon2/device/name", "old"),
                ("hwmon2/device/fan1_input", "1"),
                ("hwmon3/name", "\n"),
                ("hwmon3/fan1_input", "1"),
            ],
        );
        assert_eq!(names(dir.path(), "fan"), ["nct6798 CPU Fan", "nct6798 fan10", "old fan1"]);
    }

    #[test]
    fn sensors_of_one_name_are_all_told_by_their_device() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..2 {
            let chip = format!("hwmon{number}");
            tree(
                dir.path(),
                &[
                    (&format!("{chip}/name"), "nvme"),
                    (&format!("{chip}/temp1_input"), "1"),
                    (&format!("nvme{number}/x"), ""),
                ],
            );
            let device = dir.path().join(format!("nvme{number}"));
            std::os::unix::fs::symlink(device, dir.path().join(chip).join("device")).unwrap();
        }
        tree(dir.path(), &[("hwmon2/name", "twice"), ("hwmon2/temp1_input", "1"), ("hwmon2/temp2_input", "1")]);
        tree(dir.path(), &[("hwmon2/temp1_label", "same"), ("hwmon2/temp2_label", "same")]);
        assert_eq!(
            names(dir.path(), "temp"),
            ["nvme temp1 nvme0", "nvme temp1 nvme1", "twice same hwmon2/temp1", "twice same hwmon2/temp2"]
        );
    }

    #[test]
    fn a_device_that_may_be_suspended_is_asked_whether_it_is() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path(), &[("hwmon0/name", "drivetemp"), ("hwmon0/device/power/control", "on\n")]);
        tree(dir.path(), &[("hwmon0/device/power/runtime_status", "suspended\n")]);
        let chips = chips(dir.path()).unwrap();
        assert!(chips[0].runtime_status().is_none());
        tree(dir.path(), &[("hwmon0/device/power/control", "auto\n")]);
        let status = chips[0].runtime_status().unwrap();
        assert!(is_suspended(&status));
        tree(dir.path(), &[("hwmon0/device/power/runtime_status", "active\n")]);
        assert!(!is_suspended(&status));
    }
}
