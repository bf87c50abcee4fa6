//! What the `HOSTS` bucket holds: one record a host.

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
}
