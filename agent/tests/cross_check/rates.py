"""What happened during the agent's second, from counters that are read all the while.

The agent tells when it took its second reading; the first was a second earlier, or somewhat more where it had to wait for a processor. A rate
is therefore known as the lowest and the highest of those between any two moments that may have been the agent's.
"""

import threading
import time
from pathlib import Path

from sources import TICKS, text

# How often counters are read.
PAUSE = 0.02
# Seconds before the agent's time in which its first reading lies: it sleeps for one second, and is delayed.
FIRST = (1.4, 0.99)
# Seconds after the agent's time in which its second reading lies: it notes the time and reads.
SECOND = (-0.005, 0.4)

CPU = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")


class Recorder:
    """Reads counters in the background."""

    def __init__(self):
        self.samples: list[tuple[float, dict]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _record(self):
        while not self._stop.wait(PAUSE):
            # The middle of the reading: what it reads is that old on average.
            before, sample = time.time(), take()
            self.samples.append(((before + time.time()) / 2, sample))

    def pairs(self, ts: float):
        """Every two samples that may have been the agent's first and second."""
        first = [sample for sample in self.samples if ts - FIRST[0] <= sample[0] <= ts - FIRST[1]]
        second = [sample for sample in self.samples if ts + SECOND[0] <= sample[0] <= ts + SECOND[1]]
        return [(before, after) for before in first for after in second]

    def found(self, ts: float, rate) -> list:
        """The rate between each two such samples; None where they tell none, as of requests when there was no request."""
        return [rate(one, other, t2 - t1) for (t1, one), (t2, other) in self.pairs(ts)]


def take() -> dict:
    sample = {"cpu": {}, "disk": {}, "process": {}}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu"):
            sample["cpu"][name[3:] or "total"] = dict(zip(CPU, map(int, ticks)))
    for path in Path("/sys/block").iterdir():
        counts = (text(path / "stat") or "").split()
        if len(counts) >= 11:
            sample["disk"][path.name] = tuple(map(int, counts[:11]))
    for path in Path("/proc").glob("[0-9]*"):
        stat, io = text(path / "stat"), text(path / "io")
        if stat is not None:
            words = stat.rpartition(")")[2].split()
            moved = dict(line.split(": ") for line in io.splitlines()) if io else {}
            sample["process"][path.name] = (
                (int(words[11]) + int(words[12])) / TICKS,
                int(moved.get("read_bytes", 0)),
                int(moved.get("write_bytes", 0)),
            )
    return sample


def cpu_percent(core: str, fields: tuple[str, ...]):
    """The share of `fields` in a core's time; guests are counted in `user` and `nice` by the kernel, and taken out."""

    def rate(one, other, _passed):
        if core not in one["cpu"] or core not in other["cpu"]:
            return None
        passed = {name: other["cpu"][core][name] - one["cpu"][core][name] for name in CPU}
        passed["user"] -= passed["guest"]
        passed["nice"] -= passed["guest_nice"]
        whole = sum(passed.values())
        return sum(passed[name] for name in fields) / whole * 100 if whole else None

    return rate


def disk_busy_percent(device: str):
    def rate(one, other, passed):
        if device not in one["disk"] or device not in other["disk"]:
            return None
        return min((other["disk"][device][9] - one["disk"][device][9]) / (passed * 10), 100)

    return rate


def disk_wait_seconds(device: str, count: int):
    """The mean wait of a request; `count` is the column of completed ones, whose time is three further on."""

    def rate(one, other, _passed):
        if device not in one["disk"] or device not in other["disk"]:
            return None
        before, after = one["disk"][device], other["disk"][device]
        requests = after[count] - before[count]
        return (after[count + 3] - before[count + 3]) / 1000 / requests if requests else None

    return rate


def process_rate(pid: str, column: int, factor: float):
    def rate(one, other, passed):
        if pid not in one["process"] or pid not in other["process"]:
            return None
        return (other["process"][pid][column] - one["process"][pid][column]) / passed * factor

    return rate
