//! What one graphics processor tells at one moment.

use nvml_wrapper::{
    Device,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor},
    error::NvmlError,
};

use super::processes::{self, Process};

/// The reasons for which a processor that has work runs slower than it should: heat, and the supply's emergency brake. A power
/// limit that is reached is everyday life.
const SLOWDOWN: ThrottleReasons = ThrottleReasons::HW_SLOWDOWN
    .union(ThrottleReasons::HW_THERMAL_SLOWDOWN)
    .union(ThrottleReasons::SW_THERMAL_SLOWDOWN)
    .union(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN);
const THERMAL: ThrottleReasons = ThrottleReasons::HW_THERMAL_SLOWDOWN.union(ThrottleReasons::SW_THERMAL_SLOWDOWN);
const POWER: ThrottleReasons = ThrottleReasons::SW_POWER_CAP.union(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN);

/// What stays the same of a graphics processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The identifier that it keeps wherever it is plugged in.
    pub uuid: String,
    /// The product's name.
    pub name: String,
    /// The number that `nvidia-smi` shows; it may change when the host boots.
    pub index: Option<u32>,
}

/// All that was told; what a processor does not support is none.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The processor as a whole.
    pub gauges: Gauges,
    /// Its MIG instances.
    pub instances: Vec<Instance>,
    /// What runs on it.
    pub processes: Vec<Process>,
}

/// A part of a processor that MIG has set apart.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its own identifier.
    pub uuid: String,
    /// What is known of it: memory.
    pub gauges: Gauges,
}

/// Figures in the units of the measurement's fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gauges {
    pub mig_enabled: Option<bool>,
    pub usage_percent: Option<f64>,
    pub memory_busy_percent: Option<f64>,
    pub encoder_percent: Option<f64>,
    pub decoder_percent: Option<f64>,
    pub memory_total_bytes: Option<u64>,
    pub memory_used_bytes: Option<u64>,
    pub memory_free_bytes: Option<u64>,
    pub temperature_celsius: Option<f64>,
    pub power_watts: Option<f64>,
    pub power_limit_watts: Option<f64>,
    pub energy_joules_total: Option<f64>,
    pub clocks_hertz: [Option<f64>; 4],
    pub fan_percent: Option<f64>,
    pub fan_speed_rpm: Option<f64>,
    pub pcie_received_bytes_per_second: Option<f64>,
    pub pcie_sent_bytes_per_second: Option<f64>,
    pub pcie_link_generation: Option<u64>,
    pub pcie_link_width: Option<u64>,
    pub throttling: Option<Throttling>,
    pub ecc: Ecc,
}

/// Why the clocks are held down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttling {
    /// The reasons, separated by commas; `none` when there is none.
    pub reasons: String,
    /// Whether heat is one.
    pub thermal: bool,
    /// Whether power is one.
    pub power: bool,
    /// Whether it is out of the ordinary.
    pub slowdown: bool,
}

/// Memory errors, since the driver was loaded and over the processor's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ecc {
    pub corrected_volatile: Option<u64>,
    pub uncorrected_volatile: Option<u64>,
    pub corrected_aggregate: Option<u64>,
    pub uncorrected_aggregate: Option<u64>,
}

/// Reads who a processor is. Fails when it does not even tell its UUID.
pub fn identify(device: &Device<'_>) -> Result<Identity, NvmlError> {
    let uuid = device.uuid()?;
    let name = device.name().unwrap_or_else(|_| "unknown".to_owned());
    Ok(Identity { uuid, name, index: device.index().ok() })
}

/// Reads all that a processor tells.
///
/// Fails when the processor is lost or must be reset; what it does not support is no failure.
pub fn read(device: &Device<'_>) -> Result<Reading, NvmlError> {
    let mut asked = Asked { device, failed: None };
    let gauges = gauges(&mut asked);
    let (instances, processes) = if gauges.mig_enabled == Some(true) {
        instances(&mut asked)
    } else {
        (Vec::new(), processes::read(&mut asked, None))
    };
    match asked.failed {
        Some(error) => Err(error),
        None => Ok(Reading { gauges, instances, processes }),
    }
}

/// A processor that is asked until it turns out that it no longer answers at all.
pub struct Asked<'a, 'nvml> {
    device: &'a Device<'nvml>,
    failed: Option<NvmlError>,
}

impl<'nvml> Asked<'_, 'nvml> {
    /// The answer; none when it is not supported, or when the processor is gone: then it is not bothered further, as each
    /// question to one that has fallen off the bus can take long.
    pub fn ask<T>(&mut self, question: impl FnOnce(&Device<'nvml>) -> Result<T, NvmlError>) -> Option<T> {
        if self.failed.is_some() {
            return None;
        }
        match question(self.device) {
            Ok(answer) => Some(answer),
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => {
                self.failed = Some(error);
                None
            }
            Err(_) => None,
        }
    }

    /// Asks a part of the processor in the same way.
    fn part<T>(&mut self, part: &Device<'nvml>, ask: impl FnOnce(&mut Asked<'_, 'nvml>) -> T) -> T {
        let mut asked = Asked { device: part, failed: self.failed.take() };
        let answer = ask(&mut asked);
        self.failed = asked.failed;
        answer
    }
}

fn gauges(gpu: &mut Asked<'_, '_>) -> Gauges {
    let utilization = gpu.ask(|device| device.utilization_rates());
    let clock =
        |gpu: &mut Asked<'_, '_>, clock| gpu.ask(|device| device.clock_info(clock)).map(|mhz| f64::from(mhz) * 1e6);
    let pcie = |gpu: &mut Asked<'_, '_>, counter| {
        // NVML tells KB/s.
        gpu.ask(|device| device.pcie_throughput(counter)).map(|kilobytes| f64::from(kilobytes) * 1000.0)
    };
    let milli = |value: u32| f64::from(value) / 1000.0;
    let fans = fans(gpu);
    Gauges {
        mig_enabled: gpu.ask(|device| device.mig_mode()).map(|mode| mode.current == 1),
        usage_percent: utilization.as_ref().map(|rates| f64::from(rates.gpu)),
        memory_busy_percent: utilization.as_ref().map(|rates| f64::from(rates.memory)),
        encoder_percent: gpu.ask(|device| device.encoder_utilization()).map(|info| f64::from(info.utilization)),
        decoder_percent: gpu.ask(|device| device.decoder_utilization()).map(|info| f64::from(info.utilization)),
        temperature_celsius: gpu.ask(|device| device.temperature(TemperatureSensor::Gpu)).map(f64::from),
        power_watts: gpu.ask(|device| device.power_usage()).map(milli),
        power_limit_watts: gpu.ask(|device| device.enforced_power_limit()).map(milli),
        energy_joules_total: gpu.ask(|device| device.total_energy_consumption()).map(|mj| mj as f64 / 1000.0),
        clocks_hertz: [Clock::Graphics, Clock::SM, Clock::Memory, Clock::Video].map(|kind| clock(gpu, kind)),
        fan_percent: fans.0,
        fan_speed_rpm: fans.1,
        pcie_received_bytes_per_second: pcie(gpu, PcieUtilCounter::Receive),
        pcie_sent_bytes_per_second: pcie(gpu, PcieUtilCounter::Send),
        pcie_link_generation: gpu.ask(|device| device.current_pcie_link_gen()).map(u64::from),
        pcie_link_width: gpu.ask(|device| device.current_pcie_link_width()).map(u64::from),
        throttling: gpu.ask(|device| device.current_throttle_reasons()).map(throttling),
        ecc: ecc(gpu),
        ..memory(gpu)
    }
}

fn memory(gpu: &mut Asked<'_, '_>) -> Gauges {
    let memory = gpu.ask(|device| device.memory_info());
    Gauges {
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_free_bytes: memory.as_ref().map(|memory| memory.free),
        ..Gauges::default()
    }
}

/// Percent and revolutions per minute of the fastest fan.
fn fans(gpu: &mut Asked<'_, '_>) -> (Option<f64>, Option<f64>) {
    // Older drivers know one fan and no number of fans.
    let count = gpu.ask(|device| device.num_fans()).unwrap_or(1);
    let mut fastest = |speed: fn(&Device<'_>, u32) -> Result<u32, NvmlError>| {
        (0..count).filter_map(|fan| gpu.ask(|device| speed(device, fan))).max().map(f64::from)
    };
    (fastest(|device, fan| device.fan_speed(fan)), fastest(|device, fan| device.fan_speed_rpm(fan)))
}

fn ecc(gpu: &mut Asked<'_, '_>) -> Ecc {
    use {EccCounter::*, MemoryError::*};
    let mut errors = |error, counter| gpu.ask(|device| device.total_ecc_errors(error, counter));
    Ecc {
        corrected_volatile: errors(Corrected, Volatile),
        uncorrected_volatile: errors(Uncorrected, Volatile),
        corrected_aggregate: errors(Corrected, Aggregate),
        uncorrected_aggregate: errors(Uncorrected, Aggregate),
    }
}

fn throttling(reasons: ThrottleReasons) -> Throttling {
    let names: Vec<String> = reasons.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect();
    Throttling {
        reasons: if names.is_empty() { "none".to_owned() } else { names.join(",") },
        thermal: reasons.intersects(THERMAL),
        power: reasons.intersects(POWER),
        slowdown: reasons.intersects(SLOWDOWN),
    }
}

/// The MIG instances with what runs on them.
fn instances(gpu: &mut Asked<'_, '_>) -> (Vec<Instance>, Vec<Process>) {
    let count = gpu.ask(|device| device.mig_device_count()).unwrap_or(0);
    let mut instances = Vec::new();
    let mut processes = Vec::new();
    for index in 0..count {
        // Not every number has an instance.
        let Some(part) = gpu.ask(|device| device.mig_device_by_index(index)) else {
            continue;
        };
        let Some(uuid) = gpu.part(&part, |part| part.ask(|device| device.uuid())) else {
            continue;
        };
        processes.extend(gpu.part(&part, |part| processes::read(part, Some(&uuid))));
        instances.push(Instance { uuid, gauges: gpu.part(&part, memory) });
    }
    (instances, processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_as_text_and_by_cause() {
        let none = throttling(ThrottleReasons::NONE);
        assert_eq!((none.reasons.as_str(), none.thermal, none.power, none.slowdown), ("none", false, false, false));
        let capped = throttling(ThrottleReasons::SW_POWER_CAP | ThrottleReasons::GPU_IDLE);
        assert_eq!((capped.reasons.as_str(), capped.power, capped.slowdown), ("gpu_idle,sw_power_cap", true, false));
        let hot = throttling(ThrottleReasons::HW_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN);
        assert_eq!((hot.reasons.as_str(), hot.thermal, hot.slowdown), ("hw_slowdown,hw_thermal_slowdown", true, true));
        let all = throttling(ThrottleReasons::all());
        assert!(all.reasons.contains("applications_clocks_setting") && !all.reasons.contains("user_defined"));
    }
}
