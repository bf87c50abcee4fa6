//! Processor time: how much of it is used, and not for what; frequencies.

use sysinfo::{Cpu, System};

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    rows::Tables,
};

/// Reads usage since the previous sample.
#[derive(Debug, Default)]
pub struct Processors {
    /// None before the first reading.
    system: Option<System>,
}

impl Collector for Processors {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let Some(system) = &mut self.system else {
            let system = self.system.insert(System::new().map_err(refused("the system for its processors"))?);
            system.refresh_cpu_all();
            return Ok(());
        };
        system.refresh_cpu_all();
        let cores = system.cpus();
        let known: Vec<f64> = cores.iter().filter_map(hertz).collect();
        let mean = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
        let fields =
            |usage, hertz: Option<f64>| [("usage_percent", percent(usage).into()), ("frequency_hertz", hertz.into())];
        push(rows, &[("core", "total")], &fields(system.global_cpu_usage(), mean));
        for (number, core) in cores.iter().enumerate() {
            push(rows, &[("core", &number.to_string())], &fields(core.usage(), hertz(core)));
        }
        Ok(())
    }
}

/// A core's frequency, which is told in MHz; none where it is not known.
fn hertz(core: &Cpu) -> Option<f64> {
    (core.frequency() > 0).then(|| core.frequency() as f64 * 1e6)
}

fn percent(usage: f32) -> f64 {
    f64::from(usage).clamp(0.0, 100.0)
}
