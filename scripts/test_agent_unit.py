"""Checks the agent's systemd unit and its drop-ins: by systemd-analyze where it is installed, and by what Plimsoll promises."""

import itertools
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

SYSTEMD = Path(__file__).resolve().parent.parent / "deploy" / "systemd"
UNIT = "plimsoll-agent.service"
DROP_INS = ("nvidia", "capabilities", "kernel-log")
# In tenths; what the issue of the agent asks for is below 2.5.
STRICT = 24
# With everything that an administrator may add.
LOOSEST = 26


def settings(*files: Path) -> dict[str, list[str]]:
    """The values of each key, in the order in which systemd reads them."""
    found: dict[str, list[str]] = {}
    for file in files:
        for line in file.read_text().splitlines():
            if line and not line.startswith(("#", "[")):
                key, _, value = line.partition("=")
                found.setdefault(key, []).append(value)
    return found


def drop_in(name: str) -> Path:
    return SYSTEMD / f"{UNIT}.d" / f"{name}.conf"


class Unit(unittest.TestCase):
    def setUp(self):
        self.unit = settings(SYSTEMD / UNIT)

    def test_runs_as_its_own_user_without_any_privilege(self):
        self.assertEqual(self.unit["User"], ["plimsoll-agent"])
        self.assertNotIn("DynamicUser", self.unit)
        self.assertNotIn("SupplementaryGroups", self.unit)
        for key in ("CapabilityBoundingSet", "AmbientCapabilities"):
            self.assertEqual(self.unit[key], [""], key)
        for key in ("NoNewPrivileges", "PrivateDevices", "MemoryDenyWriteExecute", "RestrictSUIDSGID"):
            self.assertEqual(self.unit[key], ["yes"], key)

    def test_cannot_listen_on_a_port(self):
        self.assertEqual(self.unit["SocketBindDeny"], ["any"])

    def test_writes_to_its_own_folders_alone(self):
        self.assertEqual(self.unit["ProtectSystem"], ["strict"])
        self.assertNotIn("ReadWritePaths", self.unit)
        for key in ("StateDirectory", "RuntimeDirectory"):
            self.assertEqual(self.unit[key], ["plimsoll-agent"])

    def test_leaves_collectors_what_they_read(self):
        # The unit's comments name the collector that each of these would blind.
        for key in ("ProtectProc", "ProcSubset", "PrivateUsers", "PrivateNetwork", "IPAddressDeny", "RootDirectory", "NoExecPaths"):
            self.assertNotIn(key, self.unit)
            self.assertIn(f"{key}=", (SYSTEMD / UNIT).read_text(), "the reason why it is missing")
        self.assertEqual(self.unit["ProtectHome"], ["read-only"])
        self.assertEqual(set(self.unit["RestrictAddressFamilies"][0].split()), {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"})

    def test_devices_are_reached_by_drop_ins_alone(self):
        self.assertNotIn("DeviceAllow", self.unit)
        self.assertEqual(self.unit["DevicePolicy"], ["closed"])
        for name, device in (("nvidia", "nvidia"), ("kernel-log", "kmsg")):
            added = settings(drop_in(name))
            self.assertEqual((added["PrivateDevices"], added["DevicePolicy"]), (["no"], ["closed"]))
            self.assertTrue(all(device in allowed for allowed in added["DeviceAllow"]), added)
        self.assertNotIn("DeviceAllow", settings(drop_in("capabilities")))

    def test_capabilities_are_named_with_their_use(self):
        for name in ("capabilities", "kernel-log"):
            added = settings(drop_in(name))
            self.assertEqual(added["CapabilityBoundingSet"], added["AmbientCapabilities"])
            for capability in added["AmbientCapabilities"][0].split():
                self.assertIn(capability, {"CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_SYSLOG"})
        self.assertNotIn("AmbientCapabilities", settings(drop_in("nvidia")))

    def test_every_drop_in_is_known(self):
        self.assertEqual({file.stem for file in (SYSTEMD / f"{UNIT}.d").iterdir()}, set(DROP_INS))


@unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed: Debian package systemd")
class Analysis(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def lay_out(self, drop_ins) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        (folder / f"{UNIT}.d").mkdir()
        shutil.copy(SYSTEMD / UNIT, folder)
        for name in drop_ins:
            shutil.copy(drop_in(name), folder / f"{UNIT}.d")
        return folder / UNIT

    def analyze(self, *arguments) -> subprocess.CompletedProcess:
        return subprocess.run(["systemd-analyze", "--no-pager", *map(str, arguments)], capture_output=True, text=True)

    def exposure(self, unit: Path, threshold: int) -> subprocess.CompletedProcess:
        done = self.analyze("security", "--offline=yes", f"--threshold={threshold}", unit)
        if "unrecognized option" in done.stderr:
            self.skipTest("this systemd-analyze is older than 250 and cannot look at a unit that is not loaded")
        return done

    def test_exposure_is_below_what_is_asked_for(self):
        for count in range(len(DROP_INS) + 1):
            for chosen in itertools.combinations(DROP_INS, count):
                threshold = LOOSEST if {"capabilities", "kernel-log"} <= set(chosen) else STRICT
                with self.subTest(chosen=chosen):
                    done = self.exposure(self.lay_out(chosen), threshold)
                    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_weaker_unit_is_found(self):
        unit = self.lay_out([])
        text = re.sub(r"^(ProtectSystem|NoNewPrivileges|CapabilityBoundingSet|SystemCallFilter)=.*\n", "", unit.read_text(), flags=re.MULTILINE)
        unit.write_text(text)
        self.assertNotEqual(self.exposure(unit, STRICT).returncode, 0)

    def test_systemd_understands_every_line(self):
        unit = self.lay_out(DROP_INS)
        text = re.sub(r"^(Documentation=).*$", "", unit.read_text(), flags=re.MULTILINE)
        unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", text, flags=re.MULTILINE))
        done = self.analyze("verify", unit)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        unit.write_text(unit.read_text().replace("[Service]", "[Service]\nProtectEverything=yes"))
        self.assertIn("ProtectEverything", self.analyze("verify", unit).stderr)


if __name__ == "__main__":
    unittest.main()
