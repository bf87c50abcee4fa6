"""Holds a sample of the agent against what other programs and Python read of this host, field by field.

    python3 agent/tests/cross_check <plimsoll-agent>

Each measurement's other readings are taken before, during and after the agent's. Prints what was compared, and ends with 1 where something
differs, where a field has no check, or where a row or field that others see is missing. `--alter` falsifies fields of the agent's sample, and adds
those that it does not have, to show that this is found.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import sources
from checks import FIELDS, KEYS, Rate, Same, Unchecked
from rates import Recorder

# Measurements whose rates are compared: each is read by a run of its own, so that a second is a second.
ALONE = ("cpu", "diskio", "process")
# Every host has these.
CERTAIN = ("cpu", "memory", "load", "filesystem")
# Readings of each source before the agent starts and after it has ended.
AROUND = 2
PATIENCE = 60

CHILD = """
import sys, time
open("/proc/self/comm", "w").write(sys.argv[1])
held = bytearray(b"x" * 32_000_000)
print("ready", flush=True)
while sys.argv[1].endswith("b"):
    pass
time.sleep(1000)
"""


class Source(threading.Thread):
    """Reads one measurement again and again."""

    def __init__(self, name: str, read):
        super().__init__(daemon=True)
        self.measurement, self._read = name, read
        self._readings: list[dict] = []
        self._first = 0
        self.error: Exception | None = None
        self._begun = 0
        self._stop_asked = threading.Event()

    def run(self):
        try:
            while not self._stop_asked.wait(0.02):
                self._begun += 1
                self._readings.append(self._read())
        except Exception as error:  # A source that fails is told by the main thread.
            self.error = error

    def wait_for_more(self):
        """Waits for readings that begin from now on."""
        wanted, deadline = self._begun + AROUND, time.monotonic() + PATIENCE
        while len(self._readings) < wanted:
            if self.error:
                raise self.error
            if time.monotonic() > deadline:
                raise TimeoutError(f"the readings of {self.measurement} take too long")
            time.sleep(0.005)

    def begin(self):
        """Counts from the last reading on: older ones would widen what a counter may be."""
        self._first = len(self._readings) - 1

    @property
    def readings(self) -> list[dict]:
        return self._readings[self._first :]

    def stop(self):
        self._stop_asked.set()
        self.join()


def collectors(agent: str, config: str) -> list[str]:
    report = subprocess.run([agent, "check", "--json", "--config", config], capture_output=True, text=True)
    return [collector["collector"] for collector in json.loads(report.stdout)["collectors"]]


def sample(agent: str, config: str) -> dict[str, list]:
    """One sample of every collector, those with rates in runs of their own at the same time."""
    known = collectors(agent, config)
    groups = [[name for name in known if name not in ALONE], *([name] for name in known if name in ALONE)]
    runs = [subprocess.Popen([agent, "once", *names, "--config", config], stdout=subprocess.PIPE) for names in groups]
    rows: dict[str, list] = {}
    for run in runs:
        rows.update(json.loads(run.communicate(timeout=PATIENCE)[0]))
    return rows


def compare_value(name: str, value, rule, key, row, readings: list[dict], recorder: Recorder) -> str | None:
    """What is wrong with a value; none where it is right."""
    if isinstance(rule, Unchecked):
        return None
    if isinstance(rule, Rate):
        found = recorder.found(row["ts"] / 1000, rule.rate(key))
        known = [rate for rate in found if rate is not None]
        if value is None and (None in found or not found):
            return None
        if not known:
            return f"is {value}, and nobody else knows it"
        low, high = min(known) - rule.absolute, max(known) + rule.absolute
    else:
        known = [reading[key].get(name) for reading in readings if key in reading]
        if value is None and getattr(rule, "or_nil", False):
            return None
        if value is None or None in known:
            same = value is None and (None in known or not known)
            return None if same else f"is {value}, others read {' or '.join(sorted(set(map(str, known)))[:4])}"
        if isinstance(rule, Same):
            return None if value in known else f"is {value!r}, others read {' or '.join(sorted(set(map(str, known)))[:4])}"
        if not known:
            return f"is {value}, and nobody else knows it"
        slack = rule.absolute + rule.relative * max(map(abs, known))
        low, high = min(known) - slack, max(known) + slack
    if value is None:
        return f"is nil, others find {low} to {high}"
    return None if low <= value <= high else f"is {value}, others find {low} to {high}"


def compare(rows: dict[str, list], found: dict[str, list[dict]], recorder: Recorder, known_rows) -> tuple[list[str], dict]:
    """Every difference, and how many values of each field were compared."""
    differences, counts = [], {}
    for measurement, measured in rows.items():
        readings = found.get(measurement, [])
        keys = []
        for row in measured:
            key = tuple(row["tags"][tag] for tag in KEYS.get(measurement, sorted(row["tags"])))
            keys.append(key)
            if not known_rows(measurement, key):
                continue
            if readings and all(key not in reading for reading in readings):
                if is_still_there(measurement, key):
                    differences.append(f"{measurement} {key}: nobody else knows the row")
                continue
            for name, value in row["fields"].items():
                rule = FIELDS.get(measurement, {}).get(name)
                if rule is None:
                    differences.append(f"{measurement}.{name} has no check: add it to agent/tests/cross_check/checks.py")
                    continue
                wrong = compare_value(name, value, rule, key, row, readings, recorder)
                if wrong:
                    differences.append(f"{measurement}.{name} {key}: {wrong}")
                if value is not None and not isinstance(rule, Unchecked):
                    counts[f"{measurement}.{name}"] = counts.get(f"{measurement}.{name}", 0) + 1
        always = set.intersection(*(set(reading) for reading in readings)) if readings else set()
        missing = sorted(key for key in always - set(keys) if must_be_told(measurement, key))
        differences += [f"{measurement} {key}: the agent does not tell the row" for key in missing]
    differences += [f"{name}: the agent tells no row" for name in CERTAIN if not rows.get(name)]
    return differences, counts


def is_still_there(measurement: str, key: tuple) -> bool:
    """Whether what a row tells of has not gone meanwhile, as other programs' mounts and interfaces do."""
    match measurement:
        case "filesystem":
            return any(line.split()[4] == key[0] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        case "diskio":
            return Path(f"/sys/class/block/{key[0]}").exists()
        case "network":
            return Path(f"/sys/class/net/{key[0]}").exists()
        case _:
            return True


def must_be_told(measurement: str, key: tuple) -> bool:
    """Whether a row that others know belongs into the agent's sample."""
    match measurement:
        case "filesystem":
            return key == ("/",)
        case "diskio":
            memory = key[0].startswith(("loop", "ram", "zram"))
            return not memory and Path(f"/sys/block/{key[0]}").exists()
        case "network":
            return Path(f"/sys/class/net/{key[0]}/device").exists()
        case "process":
            return False
        case _:
            return True


def alter(rows: dict[str, list], field: str) -> None:
    measurement, name = field.split(".")
    for row in rows[measurement]:
        value = row["fields"].get(name)
        row["fields"][name] = not value if isinstance(value, bool) else f"not {value}" if isinstance(value, str) else (value or 0) * 3 + 1e12


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("agent")
    arguments.add_argument("--alter", metavar="FIELDS", default="", help="falsify these fields, such as `load.load1,memory.free_bytes`")
    arguments.add_argument("--without", metavar="MEASUREMENTS", default="", help="leave these out: the catalog has no fields of them")
    options = arguments.parse_args()
    sources.check_tools()
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "measured"
        (measured / "below").mkdir(parents=True)
        (measured / "file").write_bytes(b"x" * 10_000)
        (measured / "below" / "link").symlink_to("../file")
        config = Path(folder) / "agent.toml"
        config.write_text(
            f"collectors.directory_size.paths = ['{measured}']\ncollectors.process.watch = ['cross-check*']\n"
            "[nats]\nurl = 'nats://127.0.0.1:1'\n"
        )
        children = [
            subprocess.Popen([sys.executable, "-c", CHILD, name], stdout=subprocess.PIPE)
            for name in ("cross-check-b", "cross-check-i")
        ]
        try:
            for child in children:
                child.stdout.readline()
            # Something for the sockets to tell.
            listener = socket.create_server(("127.0.0.1", 0))
            connections = [socket.create_connection(listener.getsockname()) for _ in range(20)]
            connections.append(listener)
            return cross_check(options, str(config), measured, {str(child.pid) for child in children})
        finally:
            for child in children:
                child.kill()
                child.wait()


def cross_check(options, config: str, measured: Path, own: set[str]) -> int:
    functions = {name: getattr(sources, name) for name in FIELDS if hasattr(sources, name)}
    functions["directory_size"] = lambda: sources.directory_size([measured])
    functions = {name: function for name, function in functions.items() if name not in options.without.split(",")}
    readers = [Source(name, function) for name, function in functions.items()]
    with Recorder() as recorder:
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.wait_for_more()
        for reader in readers:
            reader.begin()
        rows = sample(options.agent, config)
        for reader in readers:
            reader.wait_for_more()
    for reader in readers:
        reader.stop()
    for field in filter(None, options.alter.split(",")):
        alter(rows, field)
    found = {reader.measurement: reader.readings for reader in readers}
    known_rows = lambda measurement, key: measurement != "process" or key[0] in own
    differences, counts = compare(rows, found, recorder, known_rows)
    told = {key[0] for key in ((row["tags"]["pid"],) for row in rows.get("process", []))}
    if rows.get("process") and not own <= told:
        differences.append("process: the agent does not tell a watched process")
    for measurement, measured_rows in rows.items():
        compared = [name.partition(".")[2] for name in counts if name.startswith(f"{measurement}.")]
        print(f"{measurement}: {len(measured_rows)} rows, compared {', '.join(compared) or 'nothing'}")
    for difference in sorted(set(differences)):
        print(f"DIFFERS {difference}", file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except sources.MissingTool as error:
        sys.exit(str(error))
