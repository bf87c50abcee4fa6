//! Temperature sensors.

use sysinfo::Components;

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    rows::Tables,
};

/// Reads every temperature sensor; a host may have none.
#[derive(Debug)]
pub struct Temperature;

impl Collector for Temperature {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let sensors = match Components::new_with_refreshed_list() {
            Err(sysinfo::Error::Unsupported) => return Ok(()),
            sensors => sensors.map_err(refused("the system for its sensors"))?,
        };
        for sensor in &sensors {
            // A sensor that gives no value at this moment is no error.
            let Some(celsius) = sensor.temperature().filter(|celsius| celsius.is_finite()) else { continue };
            let critical = sensor.critical().map(f64::from);
            push(
                rows,
                &[("sensor", sensor.label())],
                &[("temperature_celsius", f64::from(celsius).into()), ("critical_celsius", critical.into())],
            );
        }
        Ok(())
    }
}
