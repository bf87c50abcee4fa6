"""How each field of each measurement is held against what others read.

`FIELDS` has an entry for every field that a host may yield: one that is not in it fails the comparison by its name.
"""

from dataclasses import dataclass
from typing import Callable

import rates
from sources import PROTOCOL_COUNTERS, TCP_STATES

MIB = 1024 * 1024


@dataclass
class Between:
    """Lies between the lowest and highest of the other readings before, during and after the agent's, give or take the tolerance."""

    absolute: float = 0
    relative: float = 0
    # Whether the agent may leave it out now and then.
    or_nil: bool = False


@dataclass
class Same:
    """Is one of the other readings."""


@dataclass
class Rate:
    """Lies between the lowest and highest rate that fits the agent's moments, give or take the tolerance."""

    rate: Callable
    absolute: float


@dataclass
class Unchecked:
    """Cannot be held against anything."""

    reason: str


EXACT = Between()
# What is moved while all is read; other programs build and write meanwhile.
MOVING = Between(absolute=64 * MIB, relative=0.02)
# Values of the agent are read a little before or after the others', and counters are kept by core and folded now and then.
COUNTER = Between()


def shares(*fields):
    # Two of a second's hundred ticks a core, and what the window's edges add.
    return Rate(lambda key: rates.cpu_percent(key[0], fields), 3)


IDLE = ("idle", "iowait")
BUSY = tuple(name for name in rates.CPU if name not in IDLE)
NO_HARDWARE = "needs hardware that tells of itself; recorded trees test it in the collector"

NO_GPU = "needs an NVIDIA graphics processor"

# The tags of each measurement that make a row's key, where they are not all.
KEYS = {"filesystem": ("mountpoint",), "process": ("pid",)}

FIELDS = {
    "cpu": {
        "usage_percent": shares(*BUSY),
        "user_percent": shares("user"),
        "nice_percent": shares("nice"),
        "system_percent": shares("system"),
        "iowait_percent": shares("iowait"),
        "irq_percent": shares("irq"),
        "softirq_percent": shares("softirq"),
        "steal_percent": shares("steal"),
        "guest_percent": shares("guest", "guest_nice"),
        "idle_percent": shares("idle"),
        # A core changes it many times a second, and one that takes long to be asked is left out.
        "frequency_hertz": Between(relative=0.5, or_nil=True),
    },
    "pressure": {
        "some_avg10_percent": Between(absolute=1),
        "full_avg10_percent": Between(absolute=1),
        "some_seconds_total": COUNTER,
        "full_seconds_total": COUNTER,
    },
    "memory": {
        "total_bytes": EXACT,
        "available_bytes": MOVING,
        "used_bytes": MOVING,
        "used_percent": Between(absolute=2),
        "free_bytes": MOVING,
        "buffers_bytes": MOVING,
        "cached_bytes": MOVING,
        "swap_total_bytes": EXACT,
        "swap_free_bytes": MOVING,
        "swap_used_bytes": MOVING,
        "swap_used_percent": Between(absolute=2),
        "slab_bytes": MOVING,
        "slab_reclaimable_bytes": MOVING,
        "shared_bytes": MOVING,
        "dirty_bytes": MOVING,
        "writeback_bytes": MOVING,
        "anonymous_huge_bytes": MOVING,
        "huge_page_bytes": EXACT,
        "huge_pages": EXACT,
        "huge_pages_free": EXACT,
        # Both are sums over the processors, which are not added up at one moment.
        "minor_faults_total": Between(absolute=1000),
        "major_faults_total": COUNTER,
        "swap_in_bytes_total": COUNTER,
        "swap_out_bytes_total": COUNTER,
        "oom_kills_total": COUNTER,
    },
    "load": {
        "load1": Between(absolute=0.01),
        "load5": Between(absolute=0.01),
        "load15": Between(absolute=0.01),
        # Changes with every wake-up.
        "runnable_tasks": Between(absolute=16),
        "tasks": Between(absolute=32),
    },
    "filesystem": {
        "total_bytes": EXACT,
        "used_bytes": MOVING,
        "available_bytes": MOVING,
        "used_percent": Between(absolute=1),
        "total_inodes": EXACT,
        "used_inodes": Between(absolute=2000),
        "free_inodes": Between(absolute=2000),
        "used_inodes_percent": Between(absolute=1),
        "read_only": Same(),
        "responding": Same(),
    },
    "diskio": {
        "read_bytes_total": COUNTER,
        "written_bytes_total": COUNTER,
        "reads_total": COUNTER,
        "writes_total": COUNTER,
        "busy_seconds_total": COUNTER,
        # Changes with every request.
        "in_flight": Between(absolute=256),
        "busy_percent": Rate(lambda key: rates.disk_busy_percent(key[0]), 5),
        "read_seconds_total": COUNTER,
        "write_seconds_total": COUNTER,
        "read_wait_seconds": Rate(lambda key: rates.disk_wait_seconds(key[0], 0), 0.01),
        "write_wait_seconds": Rate(lambda key: rates.disk_wait_seconds(key[0], 4), 0.01),
        "discards_total": COUNTER,
        "discarded_bytes_total": COUNTER,
        "flushes_total": COUNTER,
    },
    "directory_size": {
        "disk_bytes": EXACT,
        "apparent_bytes": EXACT,
        "files": EXACT,
        "directories": EXACT,
        "unreadable": EXACT,
        "partial": Same(),
        "scan_duration_seconds": Unchecked("nobody else scans as the agent does"),
    },
    "network": {
        "receive_bytes_total": COUNTER,
        "transmit_bytes_total": COUNTER,
        "receive_packets_total": COUNTER,
        "transmit_packets_total": COUNTER,
        "receive_errors_total": COUNTER,
        "transmit_errors_total": COUNTER,
        "receive_drops_total": COUNTER,
        "transmit_drops_total": COUNTER,
        "kind": Same(),
        "up": Same(),
        "speed_bits_per_second": EXACT,
    },
    "wifi": {
        name: Unchecked(NO_HARDWARE)
        for name in ("signal_dbm", "noise_dbm", "link_quality", "discarded_packets_total", "missed_beacons_total")
    },
    "sockets": {
        # Those of other programs come and go.
        **{
            name: Between(absolute=16)
            for name in ("sockets", "tcp_connections", "tcp_time_wait", "tcp_orphaned", "udp_sockets")
        },
        # Counted now and then only.
        **{f"tcp_{state}": Between(absolute=16, or_nil=True) for state in TCP_STATES.values()},
        **{name: COUNTER for name in PROTOCOL_COUNTERS.values()},
    },
    "temperature": {"temperature_celsius": Between(absolute=5), "critical_celsius": EXACT},
    "fan": {
        "speed_rpm": Between(relative=0.2),
        "minimum_rpm": EXACT,
        "alarm": Same(),
        "fault": Same(),
    },
    "power": {
        name: Unchecked(NO_HARDWARE)
        for name in (
            "power_watts",
            "energy_joules_total",
            "voltage_volts",
            "online",
            "status",
            "capacity_percent",
            "stored_watt_hours",
            "full_watt_hours",
            "design_watt_hours",
            "cycles_total",
        )
    },
    "throttle": {"throttles_total": Unchecked(NO_HARDWARE), "throttled_seconds_total": Unchecked(NO_HARDWARE)},
    "processes": {
        "processes": Between(absolute=16),
        "running": Between(absolute=16),
        "sleeping": Between(absolute=32),
        "blocked": Between(absolute=16),
        "idle": Between(absolute=32),
        "stopped": Between(absolute=4),
        "zombie": Between(absolute=16),
        "other": Between(absolute=4),
        "threads": Between(absolute=32),
    },
    "container": {
        name: Unchecked("needs containers; recorded cgroups test it in the collector")
        for name in (
            "cpu_percent",
            "cpu_usage_seconds_total",
            "cpu_user_seconds_total",
            "cpu_system_seconds_total",
            "cpu_periods_total",
            "cpu_throttled_periods_total",
            "cpu_throttled_seconds_total",
            "memory_used_bytes",
            "memory_limit_bytes",
            "memory_working_set_bytes",
            "memory_anon_bytes",
            "memory_file_bytes",
            "swap_used_bytes",
            "oom_kills_total",
            "read_bytes_total",
            "written_bytes_total",
            "reads_total",
            "writes_total",
            "pids",
            "pids_limit",
        )
    },
    "gpu": {
        name: Unchecked(NO_GPU)
        for name in (
            "index",
            "pci_address",
            "available",
            "suspended",
            "mig_enabled",
            "usage_percent",
            "memory_busy_percent",
            "encoder_percent",
            "decoder_percent",
            "memory_total_bytes",
            "memory_used_bytes",
            "memory_free_bytes",
            "memory_used_percent",
            "temperature_celsius",
            "power_watts",
            "power_limit_watts",
            "energy_joules_total",
            "graphics_clock_hertz",
            "sm_clock_hertz",
            "memory_clock_hertz",
            "video_clock_hertz",
            "fan_percent",
            "fan_speed_rpm",
            "pcie_received_bytes_per_second",
            "pcie_sent_bytes_per_second",
            "pcie_link_generation",
            "pcie_link_width",
            "throttle_reasons",
            "thermal_throttling",
            "power_throttling",
            "ecc_corrected_volatile_total",
            "ecc_uncorrected_volatile_total",
            "ecc_corrected_aggregate_total",
            "ecc_uncorrected_aggregate_total",
            "xid_errors_total",
        )
    },
    "gpu_process": {
        name: Unchecked(NO_GPU)
        for name in ("memory_used_bytes", "usage_percent", "memory_busy_percent", "encoder_percent", "decoder_percent")
    },
    "process": {
        "parent_pid": EXACT,
        "command": Same(),
        "user": Same(),
        "state": Same(),
        "threads": EXACT,
        "open_files": EXACT,
        "cpu_percent": Rate(lambda key: rates.process_rate(key[0], 0, 100), 5),
        "cpu_seconds_total": COUNTER,
        "resident_bytes": Between(absolute=MIB),
        "virtual_bytes": Between(absolute=MIB),
        "read_bytes_total": COUNTER,
        "written_bytes_total": COUNTER,
        "read_bytes_per_second": Rate(lambda key: rates.process_rate(key[0], 1, 1), 4096),
        "written_bytes_per_second": Rate(lambda key: rates.process_rate(key[0], 2, 1), 4096),
        # The clock of boot times is set by NTP meanwhile.
        "started_at_seconds": Between(absolute=2),
    },
}
