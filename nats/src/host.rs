//! What the `HOSTS` bucket holds: one record a host.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::HostId;

/// A host as its agent last described it; the value of `HOSTS/<host>`, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The host.
    pub host: HostId,
    /// Unix time in ms at which the agent wrote this record.
    pub last_seen_ms: i64,
    /// How often the agent writes the record, in ms; a host is online until three times that have passed.
    pub heartbeat_ms: i64,
    /// Version of the agent.
    pub agent_version: String,
    /// What the host is made of.
    pub inventory: Inventory,
}

/// What a host is made of. Every part may be unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inventory {
    /// The host name as the system knows it.
    pub host_name: Option<String>,
    /// Operating system and its version, such as `Debian GNU/Linux 12`.
    pub os: Option<String>,
    /// Kernel version.
    pub kernel: Option<String>,
    /// Processor architecture, such as `x86_64`.
    pub arch: Option<String>,
    /// Processor model.
    pub cpu_model: Option<String>,
    /// Logical processors.
    pub cpu_count: Option<u64>,
    /// Main memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Unix time in seconds at which the host booted.
    pub boot_time_seconds: Option<u64>,
    /// Addresses by which the host can be reached, by interface; loopback and IPv6 link-local ones are left out.
    pub addresses: Vec<InterfaceAddress>,
}

/// An address of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The interface, such as `eth0`.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// How many bits of the address are the network's.
    pub prefix: u8,
    /// The interface's hardware address, such as `52:54:00:12:34:56`; none where it has none.
    pub mac: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_of_an_older_agent_has_no_addresses() {
        let inventory: Inventory = serde_json::from_str(r#"{"host_name": "web-1"}"#).unwrap();
        assert_eq!(inventory.addresses, []);
    }

    #[test]
    fn addresses_are_texts_in_json() {
        let address = InterfaceAddress {
            interface: "eth0".to_owned(),
            address: "10.0.0.7".parse().unwrap(),
            prefix: 24,
            mac: None,
        };
        let json = serde_json::json!({ "interface": "eth0", "address": "10.0.0.7", "prefix": 24, "mac": null });
        assert_eq!(serde_json::to_value(&address).unwrap(), json);
    }
}
