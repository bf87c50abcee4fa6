//! Sensors of physical hosts, and graphics processors.

use super::{
    host::{Moment, Shape, Source},
    random::Random,
    rows::{Rows, Value},
    walk::{Counter, Walk},
};

/// A sensor a core in whole degrees, as processors tell them, and one a disk.
pub(super) struct Temperatures {
    sensors: Vec<(String, f64, Walk)>,
}

impl Temperatures {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        let cores = (0..shape.cores).map(|core| (format!("coretemp Core {core}"), 100.0));
        let disks = shape.disks.iter().map(|disk| (format!("nvme Composite {disk}"), 84.85));
        let sensors = cores.chain(disks).filter(|_| shape.bare_metal);
        Self { sensors: sensors.map(|(name, limit)| (name, limit, Walk::new(random, 30.0, 45.0, 0.4))).collect() }
    }
}

impl Source for Temperatures {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        for (sensor, limit, walk) in &mut self.sensors {
            let degrees = (walk.next(random, moment.seconds) + moment.load * 30.0).round();
            let values = [("temperature_celsius", degrees.into()), ("critical_celsius", Value::Float(*limit))];
            rows.push(moment.time_ms, &[sensor], &values);
        }
    }
}

/// Processors' energy in microjoules.
pub(super) struct Power {
    energy_uj: Counter,
    present: bool,
}

impl Power {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        Self { energy_uj: Counter::grown(random, 5e7), present: shape.bare_metal }
    }
}

impl Source for Power {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        if !self.present {
            return;
        }
        let used = ((25.0 + moment.load * 120.0 * random.within(0.9, 1.1)) * 1e6 * moment.seconds) as u64;
        self.energy_uj.add(used);
        let values = [
            ("power_watts", (used as f64 / 1e6 / (moment.seconds * random.within(0.9995, 1.0005))).into()),
            ("energy_joules_total", self.energy_uj.seconds(1e6).into()),
            ("voltage_volts", Value::Nil),
            ("online", Value::Nil),
            ("status", Value::Nil),
            ("capacity_percent", Value::Nil),
            ("stored_watt_hours", Value::Nil),
            ("full_watt_hours", Value::Nil),
            ("design_watt_hours", Value::Nil),
            ("cycles_total", Value::Nil),
        ];
        rows.push(moment.time_ms, &["package-0", "rapl"], &values);
    }

    fn reboot(&mut self) {
        self.energy_uj.reset();
    }
}

const GIB: i64 = 1 << 30;

/// Graphics processors, of the few hosts that have some.
pub(super) struct Gpus {
    gpus: Vec<Gpu>,
}

struct Gpu {
    tags: [String; 3],
    index: i64,
    used: Walk,
    celsius: Walk,
    energy_mj: Counter,
}

impl Gpus {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        let gpu = |index: usize| Gpu {
            tags: [format!("GPU-{:016x}", random.next()), "NVIDIA L40S".to_owned(), "gpu".to_owned()],
            index: index as i64,
            used: Walk::new(random, 1e3, 44e3, 30.0),
            celsius: Walk::new(random, 28.0, 40.0, 0.3),
            energy_mj: Counter::grown(random, 9e4),
        };
        Self { gpus: (0..shape.gpus).map(gpu).collect() }
    }
}

impl Source for Gpus {
    fn sample(&mut self, moment: &Moment, random: &mut Random, rows: &mut Rows) {
        for gpu in &mut self.gpus {
            let busy = (moment.load * 100.0 * random.within(0.7, 1.2)).round().min(100.0);
            let used = gpu.used.whole(random, moment.seconds) << 20;
            let total = 48 * GIB;
            let watts = (35.0 + busy * 3.0 * random.within(0.95, 1.05)).round();
            gpu.energy_mj.add((watts * 1e3 * moment.seconds) as u64);
            let clock = |idle: f64, full: f64| Value::Float(if busy > 1.0 { full } else { idle } * 1e6);
            rows.push(
                moment.time_ms,
                &gpu.tags,
                &[
                    ("index", gpu.index.into()),
                    ("pci_address", ["0000:17:00.0", "0000:65:00.0", "0000:b3:00.0"][gpu.index as usize % 3].into()),
                    ("available", true.into()),
                    ("suspended", false.into()),
                    ("mig_enabled", false.into()),
                    ("usage_percent", busy.into()),
                    ("memory_busy_percent", (busy / 2.0).round().into()),
                    ("encoder_percent", 0.0.into()),
                    ("decoder_percent", 0.0.into()),
                    ("memory_total_bytes", total.into()),
                    ("memory_used_bytes", used.into()),
                    ("memory_free_bytes", (total - used).into()),
                    ("memory_used_percent", (used as f64 / total as f64 * 100.0).into()),
                    ("temperature_celsius", (gpu.celsius.next(random, moment.seconds) + busy * 0.35).round().into()),
                    ("power_watts", watts.into()),
                    ("power_limit_watts", 350.0.into()),
                    ("energy_joules_total", gpu.energy_mj.seconds(1e3).into()),
                    ("graphics_clock_hertz", clock(210.0, 2520.0)),
                    ("sm_clock_hertz", clock(210.0, 2520.0)),
                    ("memory_clock_hertz", clock(405.0, 9001.0)),
                    ("video_clock_hertz", clock(600.0, 1965.0)),
                    ("fan_percent", Value::Nil),
                    ("fan_speed_rpm", Value::Nil),
                    ("pcie_received_bytes_per_second", (random.count(busy * 2e3) as f64 * 1024.0).into()),
                    ("pcie_sent_bytes_per_second", (random.count(busy * 1e3) as f64 * 1024.0).into()),
                    ("pcie_link_generation", 4_i64.into()),
                    ("pcie_link_width", 16_i64.into()),
                    ("throttle_reasons", "none".into()),
                    ("thermal_throttling", false.into()),
                    ("power_throttling", false.into()),
                    ("ecc_corrected_volatile_total", 0_i64.into()),
                    ("ecc_uncorrected_volatile_total", 0_i64.into()),
                    ("ecc_corrected_aggregate_total", 0_i64.into()),
                    ("ecc_uncorrected_aggregate_total", 0_i64.into()),
                    ("xid_errors_total", 0_i64.into()),
                ],
            );
        }
    }

    fn reboot(&mut self) {
        self.gpus.iter_mut().for_each(|gpu| gpu.energy_mj.reset());
    }
}
