//! Temperature sensors, from /sys/class/hwmon (Documentation/hwmon/sysfs-interface.rst).

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{CollectError, Collector};
use crate::{context::Context, rows::Tables};

/// After how many samples the sensors are looked for anew: chips come and go with their drivers.
const SAMPLES_A_SCAN: u32 = 60;

/// A sensor that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensor {
    name: String,
    input: PathBuf,
    critical_celsius: Option<f64>,
}

/// Reads every temperature sensor; a host may have none.
#[derive(Debug)]
pub struct Temperature {
    root: PathBuf,
    sensors: Vec<Sensor>,
    samples: u32,
}

impl Temperature {
    /// Reads the host of `context`.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self { root: context.paths.sys("class/hwmon"), sensors: Vec::new(), samples: 0 }
    }
}

impl Collector for Temperature {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        if self.samples.is_multiple_of(SAMPLES_A_SCAN) {
            self.sensors = scan(&self.root)?;
        }
        self.samples = self.samples.wrapping_add(1);
        for sensor in &self.sensors {
            // A sensor that gives no value at this moment, as of a sleeping disk, is no error.
            if let Some(celsius) = fs::read_to_string(&sensor.input).ok().and_then(|text| parse(&text)) {
                rows.push(
                    &[("sensor", &sensor.name)],
                    &[("temperature_celsius", celsius.into()), ("critical_celsius", sensor.critical_celsius.into())],
                );
            }
        }
        Ok(())
    }
}

/// Degrees Celsius of a text in thousandths; none when it is not a number.
#[must_use]
pub fn parse(text: &str) -> Option<f64> {
    let thousandths: i32 = text.trim().parse().ok()?;
    Some(f64::from(thousandths) / 1000.0)
}

/// Looks for sensors below a folder. None are found where the folder is missing.
fn scan(root: &Path) -> Result<Vec<Sensor>, CollectError> {
    let mut sensors = Vec::new();
    let mut names = HashSet::new();
    for chip in entries(root)? {
        let Some(chip_name) = trimmed(&chip.join("name")) else {
            continue;
        };
        let chip_inputs = entries(&chip)?.into_iter().filter(|path| input_prefix(path).is_some());
        for input in chip_inputs {
            let sibling =
                |suffix: &str| input.with_file_name(format!("{}{suffix}", input_prefix(&input).unwrap_or("")));
            let label = trimmed(&sibling("_label")).or_else(|| input_prefix(&input).map(str::to_owned));
            let mut name = format!("{chip_name} {}", label.unwrap_or_default());
            // Two chips of one kind, as of two disks, are told apart by their device.
            if !names.insert(name.clone()) {
                name = format!("{name} {}", device(&chip));
                names.insert(name.clone());
            }
            let critical_celsius =
                trimmed(&sibling("_crit")).and_then(|text| parse(&text)).filter(|celsius| *celsius > 0.0);
            sensors.push(Sensor { name, input, critical_celsius });
        }
    }
    Ok(sensors)
}

/// `temp1` of `temp1_input`; none of other files.
fn input_prefix(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix("_input").filter(|prefix| prefix.starts_with("temp"))
}

/// What the chip belongs to, such as `nvme0`; else the chip's own folder.
fn device(chip: &Path) -> String {
    let target = fs::canonicalize(chip.join("device")).unwrap_or_else(|_| chip.to_owned());
    target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The entries of a folder in an order that stays; none where it is missing.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, CollectError> {
    let wrong = |source| CollectError::Read { path: folder.to_owned(), source };
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error)),
    };
    let mut paths = listing.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(wrong)?;
    paths.sort();
    Ok(paths)
}

fn trimmed(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use plimsoll_nats::catalog;

    use super::*;

    fn chip(root: &Path, folder: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(root.join(folder)).unwrap();
        for (name, text) in files {
            fs::write(root.join(folder).join(name), text).unwrap();
        }
    }

    #[test]
    fn sensors_are_found_named_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let nvme =
            [("name", "nvme\n"), ("temp1_input", "38850\n"), ("temp1_label", "Composite\n"), ("temp1_crit", "84850\n")];
        chip(dir.path(), "hwmon0", &nvme);
        chip(dir.path(), "hwmon1", &nvme);
        chip(
            dir.path(),
            "hwmon2",
            &[("name", "acpitz"), ("temp2_input", "-5000"), ("temp2_crit", "0"), ("in0_input", "1")],
        );
        chip(dir.path(), "hwmon3", &[("name", "broken"), ("temp1_input", "")]);
        chip(dir.path(), "hwmon4", &[("temp1_input", "1000")]);

        let mut tables = Tables::new(catalog::measurement("temperature"));
        let mut collector = Temperature { root: dir.path().to_owned(), ..Temperature::new(&Context::default()) };
        collector.collect(&mut tables).unwrap();
        let columns = tables.only().take();
        assert_eq!(columns.tags["sensor"], ["nvme Composite", "nvme Composite hwmon1", "acpitz temp2"]);
        let field = |name: &str| (0..3).map(|row| columns.fields[name].number(row)).collect::<Vec<_>>();
        assert_eq!(field("temperature_celsius"), [Some(38.85), Some(38.85), Some(-5.0)]);
        assert_eq!(field("critical_celsius"), [Some(84.85), Some(84.85), None]);
    }

    #[test]
    fn a_host_without_sensors_is_no_error() {
        assert_eq!(scan(Path::new("/nowhere/at/all")).unwrap(), []);
    }

    #[test]
    fn hostile_readings_are_no_number() {
        for text in ["", "x", "99999999999", "1.5", "NaN"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
