//! What this host is made of.

use std::{fs, net::IpAddr};

use nix::{
    ifaddrs::{InterfaceAddress as SystemAddress, getifaddrs},
    net::if_::InterfaceFlags,
    sys::socket::SockaddrStorage,
};
use plimsoll_nats::host::{InterfaceAddress, Inventory};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::context::HostPaths;

/// Asks the system for the inventory; parts that it does not know are none.
#[must_use]
pub fn read(paths: &HostPaths) -> Inventory {
    let refreshes =
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refreshes).ok();
    let cpus = system.as_ref().map(System::cpus).unwrap_or_default();
    // In a container the system would tell of that, and of the image that it was made from.
    let (host_name, os) = if paths.is_elsewhere() {
        (file_line(paths, "/etc/hostname"), os_release(paths))
    } else {
        (host_name(), System::long_os_version().ok())
    };
    Inventory {
        host_name,
        os,
        kernel: System::kernel_version().ok(),
        arch: Some(System::cpu_arch()),
        cpu_model: cpus.first().map(|cpu| cpu.brand().trim().to_owned()).filter(|brand| !brand.is_empty()),
        cpu_count: u64::try_from(cpus.len()).ok().filter(|count| *count > 0),
        memory_bytes: system.as_ref().map(System::total_memory).filter(|bytes| *bytes > 0),
        boot_time_seconds: System::boot_time().ok(),
        addresses: addresses(paths),
    }
}

/// The host name as the system knows it.
#[must_use]
pub fn host_name() -> Option<String> {
    System::host_name().ok().filter(|name| !name.is_empty())
}

/// The addresses by which the host can be reached at this moment, in order; none where the agent is in another network than the
/// host, as in a container without the host's.
#[must_use]
pub fn addresses(paths: &HostPaths) -> Vec<InterfaceAddress> {
    if !paths.shares_network() {
        return Vec::new();
    }
    let mut addresses: Vec<_> = getifaddrs().into_iter().flatten().filter_map(|entry| address(paths, entry)).collect();
    addresses.sort_unstable();
    addresses
}

/// None of loopback, of what is no address of the internet, and of those that reach no further than the next router.
fn address(paths: &HostPaths, entry: SystemAddress) -> Option<InterfaceAddress> {
    if entry.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        return None;
    }
    let address = ip(&entry.address?)?;
    if matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()) {
        return None;
    }
    let prefix = entry.netmask.as_ref().and_then(ip).map_or(0, prefix);
    let mac = mac(paths, &entry.interface_name);
    Some(InterfaceAddress { interface: entry.interface_name, address, prefix, mac })
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

fn prefix(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    u8::try_from(ones).unwrap_or(u8::MAX)
}

/// Tunnels have none, and say so by zeroes or an empty file.
fn mac(paths: &HostPaths, interface: &str) -> Option<String> {
    let address = fs::read_to_string(paths.sys("class/net").join(interface).join("address")).ok()?;
    let address = address.trim();
    address.chars().any(|digit| !matches!(digit, '0' | ':')).then(|| address.to_owned())
}

fn file_line(paths: &HostPaths, path: &str) -> Option<String> {
    let text = fs::read_to_string(paths.at(path)).ok()?;
    Some(text.trim().to_owned()).filter(|line| !line.is_empty())
}

/// The operating system's name for people (os-release(5)).
fn os_release(paths: &HostPaths) -> Option<String> {
    let text =
        ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(paths.at(path)).ok())?;
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_known() {
        let inventory = read(&HostPaths::default());
        assert!(inventory.host_name.is_some());
        assert!(inventory.kernel.is_some());
        assert_eq!(inventory.arch.as_deref(), Some(std::env::consts::ARCH));
        let count = std::thread::available_parallelism().unwrap().get();
        assert!(inventory.cpu_count.unwrap() >= count as u64);
    }

    /// What the agent is reached by is what it sends from, wherever that goes; no packet is sent.
    #[test]
    fn the_address_that_others_see_is_among_those_told() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_err() {
            println!("skipped: this host has no route to other hosts");
            return;
        }
        let seen = socket.local_addr().unwrap().ip();
        let addresses = addresses(&HostPaths::default());
        let told = addresses.iter().find(|told| told.address == seen).expect("the address");
        assert!((1..=32).contains(&told.prefix), "{told:?}");
        assert!(addresses.iter().all(|told| !told.address.is_loopback()));
        assert!(addresses.is_sorted());
    }

    #[test]
    fn a_host_seen_through_a_folder_tells_its_own_name_and_no_other_network() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/hostname"), "web-1\n").unwrap();
        fs::write(root.path().join("etc/os-release"), "ID=x\nPRETTY_NAME=\"Some Linux 3\"\n").unwrap();
        let inventory = read(&HostPaths::new(root.path()));
        assert_eq!((inventory.host_name.as_deref(), inventory.os.as_deref()), (Some("web-1"), Some("Some Linux 3")));
        assert!(inventory.addresses.is_empty());
    }

    #[test]
    fn hardware_addresses_of_zeroes_are_none() {
        let root = tempfile::tempdir().unwrap();
        let paths = HostPaths::new(root.path());
        let folder = paths.sys("class/net/eth0");
        fs::create_dir_all(&folder).unwrap();
        for (text, expected) in
            [("52:54:00:12:34:56\n", Some("52:54:00:12:34:56")), ("00:00:00:00:00:00\n", None), ("\n", None)]
        {
            fs::write(folder.join("address"), text).unwrap();
            assert_eq!(mac(&paths, "eth0").as_deref(), expected);
        }
        assert_eq!(mac(&paths, "eth1"), None);
    }

    #[test]
    fn masks_become_prefixes() {
        let of = |mask: &str| prefix(mask.parse().unwrap());
        assert_eq!((of("255.255.255.0"), of("255.255.255.255"), of("0.0.0.0"), of("ffff:ffff::")), (24, 32, 0, 32));
    }
}
