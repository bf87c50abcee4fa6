//! What the stream `EVENTS` holds: things that happened to a host, each once, as JSON on `plimsoll.events.<host>.<kind>`.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::HostId;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The agent has started.
    AgentStarted,
    /// The agent has ended in an orderly way.
    AgentStopped,
    /// The agent has replaced itself by a newer release.
    AgentUpdated,
    /// A newer release did not work, and the agent went back to the one before it.
    AgentUpdateFailed,
    /// The host has booted since the agent last ran.
    Reboot,
    /// The wall clock jumped.
    ClockStep,
    /// The kernel killed a process for want of memory.
    OomKill,
    /// A processor began to run slower to stay cool or within its power limit.
    ThrottlingBegan,
    /// The throttling ended.
    ThrottlingEnded,
    /// A file system that was writable is read-only now.
    FilesystemReadOnly,
    /// A block device is gone.
    DiskGone,
    /// A network interface lost its carrier or is gone.
    LinkGone,
    /// A GPU reported an XID error.
    GpuXid,
    /// A GPU no longer answers its driver or is gone from the bus.
    GpuLost,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::AgentStarted,
        Self::AgentStopped,
        Self::AgentUpdated,
        Self::AgentUpdateFailed,
        Self::Reboot,
        Self::ClockStep,
        Self::OomKill,
        Self::ThrottlingBegan,
        Self::ThrottlingEnded,
        Self::FilesystemReadOnly,
        Self::DiskGone,
        Self::LinkGone,
        Self::GpuXid,
        Self::GpuLost,
    ];

    /// The kind of that name, as subjects and JSON spell it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The kind as subjects and JSON spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AgentStarted => "agent_started",
            Self::AgentStopped => "agent_stopped",
            Self::AgentUpdated => "agent_updated",
            Self::AgentUpdateFailed => "agent_update_failed",
            Self::Reboot => "reboot",
            Self::ClockStep => "clock_step",
            Self::OomKill => "oom_kill",
            Self::ThrottlingBegan => "throttling_began",
            Self::ThrottlingEnded => "throttling_ended",
            Self::FilesystemReadOnly => "filesystem_read_only",
            Self::DiskGone => "disk_gone",
            Self::LinkGone => "link_gone",
            Self::GpuXid => "gpu_xid",
            Self::GpuLost => "gpu_lost",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An event of a host; the payload of a message on `EVENTS`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostEvent {
    /// The host.
    pub host: HostId,
    /// Unix time in ms at which it was noticed.
    pub time_ms: i64,
    /// What kind of thing happened.
    pub kind: EventKind,
    /// What it happened to, such as a device, an interface or a process; empty when it is the host itself.
    pub subject: String,
    /// One sentence for people.
    pub message: String,
    /// Further facts, such as `pid` or `xid`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// The run of the agent that noticed it.
    pub epoch: Ulid,
    /// Counts up by one for each event of a run.
    pub seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_spelled_alike_in_subjects_and_json() {
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("a string"), kind.as_str());
            assert_eq!(EventKind::parse(kind.as_str()), Some(kind));
        }
    }

    #[test]
    fn all_kinds_are_listed() {
        let unknown = serde_json::from_str::<EventKind>("\"none\"").expect_err("unknown").to_string();
        // The text quotes the unknown one and each known one.
        assert_eq!(unknown.matches('`').count() / 2, EventKind::ALL.len() + 1, "{unknown}");
    }
}
