//! Traffic of network interfaces.

use sysinfo::Networks;

use super::push;
use crate::{
    collectors::{CollectError, Collector, portable::refused},
    rows::Tables,
};

/// Loopback as Linux, and as macOS and the BSDs name it.
const LOOPBACK: [&str; 2] = ["lo", "lo0"];

/// Reads the traffic of all interfaces save loopback.
#[derive(Debug)]
pub struct Network;

impl Collector for Network {
    fn collect(&mut self, tables: &mut Tables) -> Result<(), CollectError> {
        let rows = tables.only();
        let networks = Networks::new_with_refreshed_list().map_err(refused("the system for its interfaces"))?;
        for (name, traffic) in networks.iter() {
            let name = name.to_string_lossy();
            if LOOPBACK.contains(&&*name) {
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
                ],
            );
        }
        Ok(())
    }
}
