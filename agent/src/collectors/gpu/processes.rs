//! What runs on a graphics processor.

use std::collections::BTreeMap;

use nvml_wrapper::{
    enums::device::UsedGpuMemory,
    error::NvmlError,
    struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample},
};
use plimsoll_nats::now_ms;

use super::reading::Asked;

/// A process that uses a graphics processor.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The MIG instance that it runs on.
    pub instance: Option<String>,
    /// `compute`, `graphics` or both.
    pub kind: &'static str,
    /// Memory of the processor that it uses.
    pub used_bytes: Option<u64>,
    /// How much of the processor it uses; none when the processor does not tell.
    pub utilization: Option<Utilization>,
}

/// The share of time that parts of the processor worked for a process, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Utilization {
    pub usage_percent: f64,
    pub memory_busy_percent: f64,
    pub encoder_percent: f64,
    pub decoder_percent: f64,
}

/// How far back utilisation is looked for: the driver takes it at least once in this time, in microseconds.
const PERIOD_US: u64 = 1_000_000;

/// Reads the processes, in the order of their numbers; none where they are not told.
pub fn read(gpu: &mut Asked<'_, '_>, instance: Option<&str>) -> Vec<Process> {
    let compute = gpu.ask(|device| device.running_compute_processes()).unwrap_or_default();
    let graphics = gpu.ask(|device| device.running_graphics_processes()).unwrap_or_default();
    if compute.is_empty() && graphics.is_empty() {
        return Vec::new();
    }
    let now_us = u64::try_from(now_ms()).unwrap_or(0).saturating_mul(1000);
    let told = gpu.ask(|device| match device.process_utilization_stats(now_us.saturating_sub(PERIOD_US)) {
        // No process has worked since.
        Err(NvmlError::NotFound) => Ok(Vec::new()),
        told => told,
    });
    let mut processes = merged(&compute, &graphics);
    for process in &mut processes {
        process.instance = instance.map(str::to_owned);
        process.utilization = told.as_ref().map(|samples| utilization(process.pid, samples));
    }
    processes
}

/// Each process once, whatever it does.
fn merged(compute: &[ProcessInfo], graphics: &[ProcessInfo]) -> Vec<Process> {
    let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
    let both = compute.iter().map(|info| (info, "compute")).chain(graphics.iter().map(|info| (info, "graphics")));
    for (info, kind) in both {
        let used_bytes = match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        let process = processes.entry(info.pid).or_insert_with(|| Process {
            pid: info.pid,
            instance: None,
            kind,
            used_bytes: None,
            utilization: None,
        });
        if process.kind != kind {
            process.kind = "compute,graphics";
        }
        // Both lists tell the same memory of a process that is in both.
        process.used_bytes = process.used_bytes.max(used_bytes);
    }
    processes.into_values().collect()
}

/// The newest utilisation of a process. The driver tells only of those that have worked, so that one of which it tells nothing
/// has not.
fn utilization(pid: u32, samples: &[ProcessUtilizationSample]) -> Utilization {
    let newest = samples.iter().filter(|sample| sample.pid == pid).max_by_key(|sample| sample.timestamp);
    let percent = |value: u32| f64::from(value.min(100));
    newest.map_or_else(Utilization::default, |sample| Utilization {
        usage_percent: percent(sample.sm_util),
        memory_busy_percent: percent(sample.mem_util),
        encoder_percent: percent(sample.enc_util),
        decoder_percent: percent(sample.dec_util),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pid: u32, used_gpu_memory: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: None, compute_instance_id: None }
    }

    #[test]
    fn a_process_of_both_kinds_is_one_process() {
        let compute = [info(7, UsedGpuMemory::Used(5)), info(3, UsedGpuMemory::Unavailable)];
        let graphics = [info(7, UsedGpuMemory::Used(5)), info(9, UsedGpuMemory::Used(1))];
        let told: Vec<_> =
            merged(&compute, &graphics).iter().map(|process| (process.pid, process.kind, process.used_bytes)).collect();
        assert_eq!(told, [(3, "compute", None), (7, "compute,graphics", Some(5)), (9, "graphics", Some(1))]);
    }

    #[test]
    fn the_newest_utilisation_counts_and_none_is_nought() {
        let sample = |pid, timestamp, sm_util| ProcessUtilizationSample {
            pid,
            timestamp,
            sm_util,
            mem_util: 1,
            enc_util: 2,
            dec_util: 400,
        };
        let samples = [sample(7, 10, 50), sample(7, 30, 70), sample(7, 20, 90), sample(8, 40, 5)];
        let busy = utilization(7, &samples);
        assert_eq!((busy.usage_percent, busy.encoder_percent, busy.decoder_percent), (70.0, 2.0, 100.0));
        assert_eq!(utilization(9, &samples), Utilization::default());
    }
}
