//! What this host is made of.

use plimsoll_nats::host::Inventory;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Asks the system for the inventory; parts that it does not know are none.
#[must_use]
pub fn read() -> Inventory {
    let refreshes =
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refreshes).ok();
    let cpus = system.as_ref().map(System::cpus).unwrap_or_default();
    Inventory {
        host_name: host_name(),
        os: System::long_os_version().ok(),
        kernel: System::kernel_version().ok(),
        arch: Some(System::cpu_arch()),
        cpu_model: cpus.first().map(|cpu| cpu.brand().trim().to_owned()).filter(|brand| !brand.is_empty()),
        cpu_count: u64::try_from(cpus.len()).ok().filter(|count| *count > 0),
        memory_bytes: system.as_ref().map(System::total_memory).filter(|bytes| *bytes > 0),
        boot_time_seconds: System::boot_time().ok(),
    }
}

/// The host name as the system knows it.
#[must_use]
pub fn host_name() -> Option<String> {
    System::host_name().ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_known() {
        let inventory = read();
        assert!(inventory.host_name.is_some());
        assert!(inventory.kernel.is_some());
        assert_eq!(inventory.arch.as_deref(), Some(std::env::consts::ARCH));
        let count = std::thread::available_parallelism().unwrap().get();
        assert!(inventory.cpu_count.unwrap() >= count as u64);
    }
}
