//! What an interface is and how it stands.

use std::{fs, path::Path};

use crate::collectors::proc_file::Attribute;

/// `ARPHRD_*` of include/uapi/linux/if_arp.h.
const ETHERNET: u32 = 1;
const INFINIBAND: u32 = 32;
const LOOPBACK: u32 = 772;
/// `IFF_UP` of include/uapi/linux/if.h: the interface was not switched off.
const SWITCHED_ON: u32 = 1;

/// How an interface lost its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// By itself: nothing answers at the other end.
    CarrierLost,
    /// By an administrator.
    SwitchedOff,
    /// With the interface.
    Vanished,
}

/// An interface's folder in /sys/class/net.
#[derive(Debug)]
pub struct Link {
    /// None where there is no such folder.
    kind: Option<&'static str>,
    /// The number that an interface keeps when it is renamed.
    index: Option<u32>,
    state: Attribute,
    carrier: Attribute,
    flags: Attribute,
    /// None where the kernel makes a speed up, as for virtual interfaces.
    speed: Option<Attribute>,
    up: Option<bool>,
    speed_bits_per_second: Option<u64>,
}

impl Link {
    /// An interface that has just come.
    pub fn meet(folder: &Path) -> Self {
        let kind = kind(folder);
        let attribute = |name| Attribute::new(folder.join(name));
        // Bonds are virtual too, and have the sum of their members' speeds.
        let has_speed = kind != Some("virtual") || folder.join("bonding").exists();
        Self {
            kind,
            index: attribute("ifindex").number(),
            state: attribute("operstate"),
            carrier: attribute("carrier"),
            flags: attribute("flags"),
            speed: has_speed.then(|| attribute("speed")),
            up: None,
            speed_bits_per_second: None,
        }
    }

    /// Reads how the interface stands; its speed only with `speed`, or when it has come up. Returns how the link was lost, if it
    /// was there at the previous look and is of a kind whose loss matters.
    pub fn look(&mut self, speed: bool) -> Option<Change> {
        let before = std::mem::replace(&mut self.up, is_up(&mut self.state, &mut self.carrier));
        if self.up != Some(true) {
            self.speed_bits_per_second = None;
        } else if speed || before != self.up {
            self.speed_bits_per_second = self.speed.as_mut().and_then(read_speed);
        }
        let lost = before == Some(true) && self.up == Some(false) && self.matters();
        lost.then(|| if self.is_switched_on() { Change::CarrierLost } else { Change::SwitchedOff })
    }

    /// What it is: `ethernet`, `wifi`, `infiniband`, `loopback`, `virtual` or `other`.
    pub fn kind(&self) -> Option<&'static str> {
        self.kind
    }

    /// Whether packets can pass.
    pub fn up(&self) -> Option<bool> {
        self.up
    }

    /// The speed that was agreed on with the other end.
    pub fn speed_bits_per_second(&self) -> Option<u64> {
        self.speed_bits_per_second
    }

    /// Whether it was there when last seen, and that it vanished matters.
    pub fn is_missed(&self) -> bool {
        self.matters() && self.up == Some(true)
    }

    /// Whether both are one interface under two names.
    pub fn is_same(&self, other: &Self) -> bool {
        self.index.is_some() && self.index == other.index
    }

    /// Virtual interfaces come and go with containers and tunnels.
    fn matters(&self) -> bool {
        !matches!(self.kind, Some("virtual" | "loopback"))
    }

    /// Also when that is not known.
    fn is_switched_on(&mut self) -> bool {
        let flags = self.flags.read().and_then(|flags| u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok());
        flags.is_none_or(|flags| flags & SWITCHED_ON != 0)
    }
}

fn kind(folder: &Path) -> Option<&'static str> {
    let number: u32 = Attribute::new(folder.join("type")).number()?;
    Some(match number {
        LOOPBACK => "loopback",
        _ if folder.join("wireless").exists() || folder.join("phy80211").exists() => "wifi",
        _ if fs::symlink_metadata(folder.join("device")).is_err() => "virtual",
        ETHERNET => "ethernet",
        INFINIBAND => "infiniband",
        _ => "other",
    })
}

/// Where a driver does not keep the state, as many of virtual interfaces, the carrier tells (Documentation/networking/operstates.rst).
fn is_up(state: &mut Attribute, carrier: &mut Attribute) -> Option<bool> {
    match state.read()? {
        "up" => Some(true),
        "unknown" => Some(carrier.read() == Some("1")),
        _ => Some(false),
    }
}

/// Megabits become bits. A driver that does not know says -1, which old kernels write without its sign.
fn read_speed(speed: &mut Attribute) -> Option<u64> {
    let megabits: u32 = speed.number()?;
    (megabits > 0 && megabits < u32::MAX).then(|| u64::from(megabits) * 1_000_000)
}
