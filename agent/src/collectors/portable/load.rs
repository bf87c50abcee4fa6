//! Load averages.

use sysinfo::System;

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    rows::Tables,
};

/// Reads load averages; a system may have none.
#[derive(Debug)]
pub struct Load;

impl Collector for Load {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let load = match System::load_average() {
            Err(sysinfo::Error::Unsupported) => return Ok(()),
            load => load.map_err(refused("the system for its load"))?,
        };
        let fields = [("load1", load.one.into()), ("load5", load.five.into()), ("load15", load.fifteen.into())];
        push(tables.only(), &[], &fields);
        Ok(())
    }
}
