//! Processor time: how much of it is used, and not for what.

use sysinfo::System;

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    rows::Tables,
};

/// Reads usage since the previous sample.
#[derive(Debug, Default)]
pub struct Cpu {
    /// None before the first reading.
    system: Option<System>,
}

impl Collector for Cpu {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let Some(system) = &mut self.system else {
            let system = self.system.insert(System::new().map_err(refused("the system for its processors"))?);
            system.refresh_cpu_usage();
            return Ok(());
        };
        system.refresh_cpu_usage();
        push(rows, &[("core", "total")], &[("usage_percent", percent(system.global_cpu_usage()).into())]);
        for (number, core) in system.cpus().iter().enumerate() {
            push(rows, &[("core", &number.to_string())], &[("usage_percent", percent(core.usage()).into())]);
        }
        Ok(())
    }
}

fn percent(usage: f32) -> f64 {
    f64::from(usage).clamp(0.0, 100.0)
}
