//! Traffic of network interfaces.

use globset::GlobSet;
use sysinfo::{InterfaceOperationalState, Networks};

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    config,
    context::Context,
    rows::{Tables, Value},
};

/// Loopback as Linux, and as macOS and the BSDs name it.
const LOOPBACK: [&str; 2] = ["lo", "lo0"];

/// Reads the traffic of those interfaces that the settings name.
#[derive(Debug)]
pub struct Network {
    exclude: GlobSet,
    loopback: bool,
}

impl Network {
    /// Tells those that the settings of `context` name.
    pub fn new(context: &Context) -> Self {
        let config = &context.config.network;
        Self { exclude: config::path_globs(&config.exclude), loopback: config.loopback }
    }

    fn tells(&self, name: &str) -> bool {
        (self.loopback || !LOOPBACK.contains(&name)) && !self.exclude.is_match(name)
    }
}

impl Collector for Network {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let networks = Networks::new_with_refreshed_list().map_err(refused("the system for its interfaces"))?;
        for (name, traffic) in networks.iter() {
            let name = name.to_string_lossy();
            if !self.tells(&name) {
                continue;
            }
            push(
                rows,
                &[("interface", &name)],
                &[
                    ("receive_bytes_total", traffic.total_received().into()),
                    ("transmit_bytes_total", traffic.total_transmitted().into()),
                    ("receive_packets_total", traffic.total_packets_received().into()),
                    ("transmit_packets_total", traffic.total_packets_transmitted().into()),
                    ("receive_errors_total", traffic.total_errors_on_received().into()),
                    ("transmit_errors_total", traffic.total_errors_on_transmitted().into()),
                    ("up", up(traffic.operational_state())),
                    ("speed_bits_per_second", traffic.transmit_link_speed().into()),
                ],
            );
        }
        Ok(())
    }
}

fn up(state: InterfaceOperationalState) -> Value<'static> {
    match state {
        InterfaceOperationalState::Up => true.into(),
        InterfaceOperationalState::Unknown => Value::Bool(None),
        _ => false.into(),
    }
}
