//! Main memory and swap.

use sysinfo::System;

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    rows::{Tables, percent},
};

/// Reads main memory and swap.
#[derive(Debug, Default)]
pub struct Memory {
    system: Option<System>,
}

impl Collector for Memory {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let system = match &mut self.system {
            Some(system) => system,
            None => self.system.insert(System::new().map_err(refused("the system for its memory"))?),
        };
        system.refresh_memory();
        let (total, available) = (system.total_memory(), system.available_memory());
        let used = total.saturating_sub(available);
        let (swap_total, swap_free) = (system.total_swap(), system.free_swap());
        let swap_used = swap_total.saturating_sub(swap_free);
        push(
            tables.only(),
            &[],
            &[
                ("total_bytes", total.into()),
                ("available_bytes", available.into()),
                ("used_bytes", used.into()),
                ("used_percent", percent(used, total).into()),
                ("free_bytes", system.free_memory().into()),
                ("swap_total_bytes", swap_total.into()),
                ("swap_free_bytes", swap_free.into()),
                ("swap_used_bytes", swap_used.into()),
                ("swap_used_percent", percent(swap_used, swap_total).into()),
            ],
        );
        Ok(())
    }
}
