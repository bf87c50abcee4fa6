"""What other programs, and Python, read of this host: each function takes one reading of a measurement.

A reading is `{key: {field: value}}`; a key is the row's tags, in the order of their names and only those that FIELDS of `checks.py` names.
A value of None says that the host does not tell it.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

PACKAGES = {"df": "coreutils", "du": "coreutils", "free": "procps", "ip": "iproute2", "ps": "procps", "ss": "iproute2"}
PAGE = os.sysconf("SC_PAGESIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class MissingTool(Exception):
    """A program that the comparison needs is not installed."""


def check_tools() -> None:
    """Fails with the packages of programs that are missing."""
    missing = {tool: package for tool, package in PACKAGES.items() if shutil.which(tool) is None}
    if missing:
        names = ", ".join(f"`{tool}`" for tool in missing)
        raise MissingTool(f"this machine lacks {names}: install the packages {' '.join(sorted(set(missing.values())))}")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout


def text(path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def number(path, factor=1):
    found = text(path)
    try:
        return None if found is None else int(found) * factor
    except ValueError:
        return None


def percent(part, whole):
    return None if not whole else min(part / whole * 100, 100.0)


def named(path) -> dict[str, int]:
    """Lines of a name and a number, as in /proc/vmstat and /proc/meminfo; kB are told in bytes."""
    found = {}
    for line in Path(path).read_text().splitlines():
        name, value, *unit = line.replace(":", " ").split()
        found[name] = int(value) * (1024 if unit == ["kB"] else 1)
    return found


def cpu():
    cores = re.findall(r"^cpu(\d+) ", Path("/proc/stat").read_text(), re.MULTILINE)
    found = {}
    for core in cores:
        folder = f"/sys/devices/system/cpu/cpu{core}/cpufreq"
        found[(core,)] = {"frequency_hertz": number(f"{folder}/scaling_cur_freq", 1000)}
    known = [fields["frequency_hertz"] for fields in found.values() if fields["frequency_hertz"]]
    found[("total",)] = {"frequency_hertz": sum(known) / len(known) if known else None}
    return found


def pressure():
    found = {}
    for resource in ("cpu", "memory", "io"):
        lines = text(f"/proc/pressure/{resource}")
        if lines is None:
            continue
        fields = {}
        for line in lines.splitlines():
            kind, *pairs = line.split()
            figures = dict(pair.split("=") for pair in pairs)
            # Of the whole host's processors the kernel tells no `full` that means anything.
            told = kind == "some" or resource != "cpu"
            fields[f"{kind}_avg10_percent"] = float(figures["avg10"]) if told else None
            fields[f"{kind}_seconds_total"] = int(figures["total"]) / 1e6 if told else None
        found[(resource,)] = fields
    return found


def memory():
    ram, swap = (line.split()[1:] for line in run("free", "-b", "-w").splitlines()[1:3])
    total, _, free, shared, buffers, _, available = map(int, ram)
    swap_total, swap_used, swap_free = map(int, swap)
    info, events = named("/proc/meminfo"), named("/proc/vmstat")
    huge = "HugePages_Total" in info
    return {
        (): {
            "total_bytes": total,
            "available_bytes": available,
            "used_bytes": total - available,
            "used_percent": percent(total - available, total),
            "free_bytes": free,
            "buffers_bytes": buffers,
            "cached_bytes": info["Cached"],
            "swap_total_bytes": swap_total,
            "swap_free_bytes": swap_free,
            "swap_used_bytes": swap_used,
            "swap_used_percent": percent(swap_used, swap_total),
            "slab_bytes": info.get("Slab"),
            "slab_reclaimable_bytes": info.get("SReclaimable"),
            "shared_bytes": shared,
            "dirty_bytes": info.get("Dirty"),
            "writeback_bytes": info.get("Writeback"),
            "anonymous_huge_bytes": info.get("AnonHugePages"),
            "huge_page_bytes": info.get("Hugepagesize") if huge else None,
            "huge_pages": info.get("HugePages_Total"),
            "huge_pages_free": info.get("HugePages_Free"),
            "minor_faults_total": events["pgfault"] - events["pgmajfault"],
            "major_faults_total": events["pgmajfault"],
            "swap_in_bytes_total": events["pswpin"] * PAGE if "pswpin" in events else None,
            "swap_out_bytes_total": events["pswpout"] * PAGE if "pswpout" in events else None,
            "oom_kills_total": events.get("oom_kill"),
        }
    }


def load():
    load1, load5, load15 = os.getloadavg()
    running = int(re.search(r"^procs_running (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)[1])
    tasks = len(run("ps", "-eLo", "lwp=").split())
    return {(): {"load1": load1, "load5": load5, "load15": load15, "runnable_tasks": running, "tasks": tasks}}


def filesystem():
    columns = "source,fstype,size,used,avail,itotal,iused,iavail,target"
    found = {}
    for line in run("df", "--all", "--block-size=1", f"--output={columns}").splitlines()[1:]:
        _, _, *figures, target = line.split(maxsplit=8)
        size, used, available, inodes, used_inodes, free_inodes = (int(f) if f != "-" else None for f in figures)
        if not size:
            continue
        if not inodes:
            inodes = used_inodes = free_inodes = None
        found[(target,)] = {
            "total_bytes": size,
            "used_bytes": used,
            "available_bytes": available,
            "used_percent": percent(used, used + available),
            "total_inodes": inodes,
            "used_inodes": used_inodes,
            "free_inodes": free_inodes,
            "used_inodes_percent": percent(used_inodes, inodes),
            "read_only": bool(os.statvfs(target).f_flag & os.ST_RDONLY),
            "responding": True,
        }
    return found


def diskio():
    found = {}
    for path in Path("/sys/class/block").iterdir():
        counts = [int(word) for word in (text(path / "stat") or "").split()]
        if len(counts) < 11:
            continue
        later = dict(zip(("discards", "_", "discarded_sectors", "_", "flushes", "_"), counts[11:]))
        discarded = later.get("discarded_sectors")
        found[(path.name,)] = {
            "reads_total": counts[0],
            "read_bytes_total": counts[2] * 512,
            "read_seconds_total": counts[3] / 1000,
            "writes_total": counts[4],
            "written_bytes_total": counts[6] * 512,
            "write_seconds_total": counts[7] / 1000,
            "in_flight": sum(int(word) for word in text(path / "inflight").split()),
            "busy_seconds_total": counts[9] / 1000,
            "discards_total": later.get("discards"),
            "discarded_bytes_total": None if discarded is None else discarded * 512,
            "flushes_total": later.get("flushes"),
        }
    return found


def directory_size(folders=()):
    found = {}
    for folder in folders:
        entries = [Path(root) / name for root, _, files in os.walk(folder) for name in files]
        folders_in_it = [root for root, _, _ in os.walk(folder)]
        found[(str(folder),)] = {
            "disk_bytes": int(run("du", "-sx", "--block-size=1", str(folder)).split()[0]),
            "apparent_bytes": sum(entry.lstat().st_size for entry in entries),
            "files": int(run("find", str(folder), "-xdev", "!", "-type", "d", "-printf", "x").count("x")),
            "directories": len(folders_in_it),
            "unreadable": 0,
            "partial": False,
        }
    return found


def network():
    found = {}
    for link in json.loads(run("ip", "-s", "-json", "link")):
        name = link["ifname"]
        receive, transmit = link["stats64"]["rx"], link["stats64"]["tx"]
        counts = lambda field: number(f"/sys/class/net/{name}/statistics/{field}")
        speed = number(f"/sys/class/net/{name}/speed", 1_000_000)
        if link_kind(name, link["link_type"]) == "virtual" and not Path(f"/sys/class/net/{name}/bonding").exists():
            speed = None
        found[(name,)] = {
            "receive_bytes_total": receive["bytes"],
            "transmit_bytes_total": transmit["bytes"],
            "receive_packets_total": receive["packets"],
            "transmit_packets_total": transmit["packets"],
            "receive_errors_total": receive["errors"],
            "transmit_errors_total": transmit["errors"],
            # As /proc/net/dev adds them up.
            "receive_drops_total": counts("rx_dropped") + counts("rx_missed_errors"),
            "transmit_drops_total": counts("tx_dropped"),
            "speed_bits_per_second": speed if speed and speed > 0 else None,
            "kind": link_kind(name, link["link_type"]),
            "up": link["operstate"] == "UP" or (link["operstate"] == "UNKNOWN" and "LOWER_UP" in link["flags"]),
        }
    return found


def link_kind(name: str, link_type: str) -> str:
    folder = Path(f"/sys/class/net/{name}")
    if link_type == "loopback":
        return "loopback"
    if (folder / "wireless").exists() or (folder / "phy80211").exists():
        return "wifi"
    if "/virtual/" in str(folder.resolve()):
        return "virtual"
    return {"ether": "ethernet", "infiniband": "infiniband"}.get(link_type, "other")


def hwmon(prefix: str):
    """Every `<prefix><n>_input` as (chip, label, path without `_input`)."""
    for path in sorted(Path("/sys/class/hwmon").glob(f"hwmon*/{prefix}*_input")):
        stem = str(path).removesuffix("_input")
        yield text(path.parent / "name"), text(f"{stem}_label") or Path(stem).name, stem


def temperature():
    found = {}
    for chip, label, stem in hwmon("temp"):
        found.setdefault((f"{chip} {label}",), {
            "temperature_celsius": None if (raw := number(f"{stem}_input")) is None else raw / 1000,
            "critical_celsius": None if not (raw := number(f"{stem}_crit")) or raw <= 0 else raw / 1000,
        })
    return found


def fan():
    found = {}
    for chip, label, stem in hwmon("fan"):
        flag = lambda suffix: None if (raw := number(f"{stem}_{suffix}")) is None else raw != 0
        found.setdefault((f"{chip} {label}",), {
            "speed_rpm": number(f"{stem}_input"),
            "minimum_rpm": number(f"{stem}_min"),
            "alarm": flag("alarm"),
            "fault": flag("fault"),
        })
    return found


STATES = {"R": "running", "S": "sleeping", "D": "blocked", "I": "idle", "T": "stopped", "t": "stopped", "Z": "zombie"}


def processes():
    states = run("ps", "-eo", "state=").split()
    counted = {name: 0 for name in [*STATES.values(), "other"]}
    for state in states:
        counted[STATES.get(state[0], "other")] += 1
    return {(): {"processes": len(states), "threads": len(run("ps", "-eLo", "lwp=").split()), **counted}}


def process():
    boot = int(re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)[1])
    found = {}
    columns = "pid=,ppid=,nlwp=,rss=,vsz=,state=,user:40=,args="
    for line in run("ps", "-ewwo", columns).splitlines():
        pid, parent, threads, resident, virtual, state, user, command = line.split(maxsplit=7)
        stat, io = text(f"/proc/{pid}/stat"), text(f"/proc/{pid}/io")
        if stat is None:
            continue
        rest = stat.rpartition(")")[2].split()
        moved = dict(line.split(": ") for line in io.splitlines()) if io else {}
        try:
            open_files = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            open_files = None
        found[(pid,)] = {
            "parent_pid": int(parent),
            # The arguments are not told unless the configuration says so; the programs that are compared have no space in their path.
            "command": command.split()[0],
            "user": user,
            "state": STATES.get(state[0], "other"),
            "threads": int(threads),
            "open_files": open_files,
            "cpu_seconds_total": (int(rest[11]) + int(rest[12])) / TICKS,
            "resident_bytes": int(resident) * 1024,
            "virtual_bytes": int(virtual) * 1024,
            "read_bytes_total": int(moved["read_bytes"]) if moved else None,
            "written_bytes_total": int(moved["write_bytes"]) if moved else None,
            "started_at_seconds": boot + int(rest[19]) / TICKS,
        }
    return found


# States as `ss` names them and as the agent does.
TCP_STATES = {
    "ESTAB": "established",
    "SYN-SENT": "syn_sent",
    "SYN-RECV": "syn_received",
    "FIN-WAIT-1": "fin_wait1",
    "FIN-WAIT-2": "fin_wait2",
    "CLOSE-WAIT": "close_wait",
    "LAST-ACK": "last_ack",
    "CLOSING": "closing",
    "LISTEN": "listen",
}
# Counters as /proc/net/snmp and /proc/net/netstat name them and as the agent does.
PROTOCOL_COUNTERS = {
    "Tcp ActiveOpens": "tcp_active_opens_total",
    "Tcp PassiveOpens": "tcp_passive_opens_total",
    "Tcp AttemptFails": "tcp_failed_opens_total",
    "Tcp EstabResets": "tcp_established_resets_total",
    "Tcp OutRsts": "tcp_sent_resets_total",
    "Tcp InSegs": "tcp_received_segments_total",
    "Tcp OutSegs": "tcp_sent_segments_total",
    "Tcp RetransSegs": "tcp_retransmitted_segments_total",
    "Tcp InErrs": "tcp_receive_errors_total",
    "TcpExt ListenOverflows": "tcp_listen_overflows_total",
    "TcpExt ListenDrops": "tcp_listen_drops_total",
    "Udp InDatagrams": "udp_received_datagrams_total",
    "Udp OutDatagrams": "udp_sent_datagrams_total",
    "Udp NoPorts": "udp_no_port_total",
    "Udp InErrors": "udp_receive_errors_total",
    "Udp RcvbufErrors": "udp_receive_buffer_errors_total",
    "Udp SndbufErrors": "udp_send_buffer_errors_total",
}


def protocol_counters() -> dict[str, int]:
    """Pairs of lines: names, and numbers."""
    found = {}
    for path in ("/proc/net/snmp", "/proc/net/netstat"):
        lines = Path(path).read_text().splitlines()
        for names, numbers in zip(lines[::2], lines[1::2]):
            protocol, _, names = names.partition(":")
            pairs = zip(names.split(), numbers.partition(":")[2].split())
            found |= {f"{protocol} {name}": int(number) for name, number in pairs}
    return found


def sockets():
    summary = run("ss", "-s")
    tcp = re.search(r"^TCP: .*orphaned (\d+), timewait (\d+)", summary, re.MULTILINE)
    states = [line.split()[0] for line in run("ss", "-Htan").splitlines()]
    counters = protocol_counters()
    return {
        (): {
            "sockets": int(re.search(r"^Total: (\d+)", summary, re.MULTILINE)[1]),
            "tcp_connections": states.count("ESTAB") + states.count("CLOSE-WAIT"),
            "tcp_orphaned": int(tcp[1]),
            "tcp_time_wait": int(tcp[2]),
            "udp_sockets": len(run("ss", "-Hua").splitlines()),
            **{f"tcp_{name}": states.count(state) for state, name in TCP_STATES.items()},
            **{name: counters.get(counter) for counter, name in PROTOCOL_COUNTERS.items()},
        }
    }
