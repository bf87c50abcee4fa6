"""Checks deploy/install.sh: into a folder as for an image, and as an ordinary user into a prefix. It changes nothing else here."""

import contextlib
import functools
import hashlib
import http.server
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
UNIT = "plimsoll-agent.service"
PROGRAM = "#!/bin/sh\necho 'plimsoll-agent {}'\n"
# `make test` has it beside its Python.
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
# What `nobody` is on most systems; any user that is not root will do.
NOBODY = 65534

SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
*is-active*) [ -e "$CALLS.active" ] ;;
*"start "*) : >"$CALLS.active" ;;
*"disable --now"*) rm "$CALLS.active" ;;
esac
"""


class Installer(unittest.TestCase):
    """The release archive in a folder that every user can read."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.folder.chmod(0o755)
        self.archive = self.folder / "archive"
        self.archive.mkdir()
        for name in ("install.sh", "agent.toml"):
            shutil.copy(DEPLOY / name, self.archive)
        shutil.copytree(DEPLOY / "systemd", self.archive / "systemd")
        (self.archive / "plimsoll-agent.1").write_text("page")
        self.release("0.1.0")
        self.target = self.folder / "target"
        self.target.mkdir()
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(self.target / "home"), "TMPDIR": str(self.folder / "tmp")}
        (self.folder / "tmp").mkdir()
        (self.folder / "tmp").chmod(0o1777)

    def release(self, version: str) -> str:
        """Puts a program into the archive and returns its SHA-256."""
        program = self.archive / "plimsoll-agent"
        program.write_text(PROGRAM.format(version))
        return hashlib.sha256(program.read_bytes()).hexdigest()

    def install(self, *arguments, expected=0) -> str:
        command = ["sh", str(self.archive / "install.sh"), *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, **self.identity())
        self.assertEqual(done.returncode, expected, done.stdout + done.stderr)
        self.assertEqual(list((self.folder / "tmp").iterdir()), [], "temporary files are left")
        return done.stdout + done.stderr

    def identity(self) -> dict:
        return {}

    def files(self) -> dict[str, tuple[int, bytes, int]]:
        """Mode, content and inode of each file below the target."""
        found = {}
        for file in self.target.rglob("*"):
            if file.is_file():
                info = file.stat()
                found[str(file.relative_to(self.target))] = (stat.S_IMODE(info.st_mode), file.read_bytes(), info.st_ino)
        return found


class Image(Installer):
    BASE = {"usr/local/bin/plimsoll-agent", "usr/local/share/man/man1/plimsoll-agent.1", "etc/plimsoll/agent.toml", f"etc/systemd/system/{UNIT}"}

    def run_in_image(self, *arguments, expected=0) -> str:
        return self.install("--root", self.target, *arguments, expected=expected)

    def add_card(self, vendor: str, device_class: str):
        device = self.target / "sys/bus/pci/devices/0000:01:00.0"
        device.mkdir(parents=True, exist_ok=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(device_class + "\n")

    def names(self) -> set[str]:
        return {name for name in self.files() if not name.startswith("sys/")}

    def test_everything_is_put_in_place(self):
        text = self.run_in_image("--nats-url", "nats://broker.example.org:4222,tls://[::1]:4222")
        files = self.files()
        self.assertEqual(files.keys(), self.BASE)
        self.assertEqual({files[name][0] for name in self.BASE - {"etc/plimsoll/agent.toml"}}, {0o755, 0o644})
        self.assertEqual(files["usr/local/bin/plimsoll-agent"][:2], (0o755, PROGRAM.format("0.1.0").encode()))
        self.assertEqual(files["etc/plimsoll/agent.toml"][0], 0o640)
        self.assertIn(b'\nurl = "nats://broker.example.org:4222,tls://[::1]:4222"\n', files["etc/plimsoll/agent.toml"][1])
        self.assertEqual(files[f"etc/systemd/system/{UNIT}"][1], (DEPLOY / "systemd" / UNIT).read_bytes())
        for name in self.BASE:
            self.assertIn(f"wrote      {self.target}/{name}\n", text)

    def test_a_second_run_changes_nothing(self):
        self.run_in_image()
        before = self.files()
        text = self.run_in_image()
        self.assertEqual(self.files(), before)
        self.assertNotIn("wrote", text)

    def test_an_upgrade_replaces_the_program_and_keeps_the_configuration(self):
        self.run_in_image()
        config = self.target / "etc/plimsoll/agent.toml"
        config.write_text("host = 'mine'\n")
        before = self.files()
        running = (self.target / "usr/local/bin/plimsoll-agent").open("rb")
        self.addCleanup(running.close)
        text = self.run_in_image("--sha256", self.release("0.2.0").upper(), "--nats-url", "nats://other:4222")
        after = self.files()
        self.assertEqual(after["usr/local/bin/plimsoll-agent"][1], PROGRAM.format("0.2.0").encode())
        # A program that runs is not written to: another file takes its name.
        self.assertNotEqual(after["usr/local/bin/plimsoll-agent"][2], before["usr/local/bin/plimsoll-agent"][2])
        self.assertEqual(running.read(), PROGRAM.format("0.1.0").encode())
        self.assertEqual(after["etc/plimsoll/agent.toml"], before["etc/plimsoll/agent.toml"])
        self.assertIn('set its url to "nats://other:4222" yourself', text)

    def test_a_program_with_another_checksum_changes_nothing(self):
        good = self.release("0.1.0")
        self.run_in_image()
        before = self.files()
        self.release("0.2.0")
        text = self.run_in_image("--sha256", good, expected=1)
        self.assertIn("nothing is changed: its SHA-256 is", text)
        self.assertEqual(self.files(), before)

    def test_a_missing_part_changes_nothing(self):
        for part in ("plimsoll-agent", "agent.toml", f"systemd/{UNIT}"):
            with self.subTest(part):
                kept = (self.archive / part).read_bytes()
                (self.archive / part).unlink()
                self.assertIn("unpack the whole release archive", self.run_in_image(expected=1))
                self.assertEqual(self.files(), {})
                (self.archive / part).write_bytes(kept)

    def test_devices_are_opened_only_where_a_card_is(self):
        drop_in = f"etc/systemd/system/{UNIT}.d/nvidia.conf"
        for vendor, device_class in (("0x8086", "0x030000"), ("0x10de", "0x040300")):
            self.add_card(vendor, device_class)
            self.run_in_image()
            self.assertNotIn(drop_in, self.names())
        self.add_card("0x10de", "0x030200")
        self.run_in_image()
        self.assertIn(drop_in, self.names())
        self.add_card("0x1002", "0x030000")
        self.run_in_image()
        self.assertNotIn(drop_in, self.names(), "the card is gone")
        self.add_card("0x10de", "0x030000")
        self.run_in_image()
        (self.target / drop_in).write_text("# mine")
        self.add_card("0x1002", "0x030000")
        self.run_in_image()
        self.assertIn(drop_in, self.names(), "what the administrator changed stays")

    def test_privileges_are_given_when_asked_for(self):
        self.run_in_image("--with-capabilities", "--with-kernel-log")
        for name in ("capabilities", "kernel-log"):
            installed = self.target / f"etc/systemd/system/{UNIT}.d/{name}.conf"
            self.assertEqual(installed.read_bytes(), (DEPLOY / "systemd" / f"{UNIT}.d" / f"{name}.conf").read_bytes())

    def test_another_prefix_is_in_the_unit(self):
        self.run_in_image("--prefix", "/opt/plimsoll")
        self.assertIn("\nExecStart=/opt/plimsoll/bin/plimsoll-agent ", (self.target / f"etc/systemd/system/{UNIT}").read_text())
        self.assertTrue((self.target / "opt/plimsoll/bin/plimsoll-agent").is_file())
        self.run_in_image("--prefix", "/opt/plimsoll", "--purge")
        self.assertEqual(self.files(), {})

    def test_an_uninstall_keeps_configuration_and_state(self):
        self.add_card("0x10de", "0x030000")
        self.run_in_image("--with-capabilities", "--with-kernel-log")
        own = self.target / f"etc/systemd/system/{UNIT}.d/override.conf"
        own.write_text("[Service]\n")
        state = self.target / "var/lib/plimsoll-agent/spool"
        state.mkdir(parents=True)
        (state / "1").write_text("sample")
        self.run_in_image("--uninstall")
        kept = {"etc/plimsoll/agent.toml", "var/lib/plimsoll-agent/spool/1", f"etc/systemd/system/{UNIT}.d/override.conf"}
        self.assertEqual(self.names(), kept)
        self.run_in_image("--uninstall")
        self.assertEqual(self.names(), kept)

    def test_a_purge_leaves_only_what_is_not_ours(self):
        self.run_in_image()
        (self.target / "etc/plimsoll/plimsoll.env").write_text("of another service")
        (self.target / "var/lib/plimsoll-agent").mkdir(parents=True)
        text = self.run_in_image("--purge")
        self.assertEqual(self.names(), {"etc/plimsoll/plimsoll.env"})
        self.assertFalse((self.target / "var/lib/plimsoll-agent").exists())
        self.assertIn("removed    ", text)
        self.assertNotIn("kept", text)
        self.assertNotIn("removed", self.run_in_image("--purge"))

    def test_the_debian_package_is_left_alone(self):
        listed = self.target / "var/lib/dpkg/info/plimsoll-agent.list"
        listed.parent.mkdir(parents=True)
        listed.write_text("")
        self.assertIn("upgrade it with apt", self.run_in_image(expected=1))

    def test_wrong_options_are_refused_before_anything_happens(self):
        for arguments, text in (
            (["--sha256", "abc"], "64 hexadecimal digits"),
            (["--sha256", "g" * 64], "64 hexadecimal digits"),
            (["--url", "https://example.org/agent"], "--url needs --sha256"),
            (["--url", "http://example.org/agent", "--sha256", "0" * 64], "--url expects https"),
            (["--url", "https://example.org/agent", "--binary", "x"], "exclude each other"),
            (["--nats-url", 'nats://x"\nhost = "y'], "--nats-url expects"),
            (["--nats-url", "http://x"], "--nats-url expects"),
            (["--prefix", "relative"], "absolute path"),
            (["--prefix", "/with space"], "without spaces"),
            (["--binary"], "needs a value"),
            (["--instal"], "unknown option --instal"),
        ):
            with self.subTest(arguments):
                self.assertIn(text, self.run_in_image(*arguments, expected=64))
                self.assertEqual(self.files(), {})

    def test_the_help_names_every_option(self):
        text = self.install("--help")
        script = (self.archive / "install.sh").read_text()
        parsed = script.split("while [ $# -gt 0 ]")[1].split("unknown option")[0]
        for option in {word for word in parsed.replace("|", " ").replace(")", " ").split() if word.startswith("--")}:
            self.assertIn(f"  {option}", text)

    @unittest.skipUnless(shutil.which("curl") or shutil.which("wget"), "neither curl nor wget is installed")
    def test_a_program_is_fetched_and_verified(self):
        sha256 = self.release("0.3.0")
        program = self.archive / "plimsoll-agent"
        (self.folder / "site").mkdir()
        program.rename(self.folder / "site" / "agent")
        with server(self.folder / "site") as address:
            self.assertIn("failed to fetch", self.run_in_image("--url", f"{address}/absent", "--sha256", sha256, expected=1))
            text = self.run_in_image("--url", f"{address}/agent", "--sha256", "0" * 64, expected=1)
            self.assertIn(f"its SHA-256 is {sha256}", text)
            self.assertEqual(self.files(), {})
            self.run_in_image("--url", f"{address}/agent", "--sha256", sha256)
        self.assertEqual(self.files()["usr/local/bin/plimsoll-agent"][1], PROGRAM.format("0.3.0").encode())


class User(Installer):
    """An ordinary user, which whoever is root becomes for this."""

    def setUp(self):
        super().setUp()
        if os.geteuid() == 0:
            os.chown(self.target, NOBODY, NOBODY)
        self.prefix = self.target / "prefix"

    def identity(self) -> dict:
        return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}

    def give_systemd(self) -> Path:
        """A stand-in for systemctl that notes how it is called."""
        (self.folder / "bin").mkdir()
        systemctl = self.folder / "bin" / "systemctl"
        systemctl.write_text(SYSTEMCTL)
        systemctl.chmod(0o755)
        calls = self.target / "calls"
        self.environment |= {"PATH": f"{self.folder}/bin:{self.environment['PATH']}", "CALLS": str(calls)}
        return calls

    def without_systemd(self):
        (self.folder / "bin").mkdir()
        systemctl = self.folder / "bin" / "systemctl"
        systemctl.write_text("#!/bin/sh\nexit 1\n")
        systemctl.chmod(0o755)
        self.environment["PATH"] = f"{self.folder}/bin:{self.environment['PATH']}"

    def test_a_prefix_holds_everything(self):
        self.without_systemd()
        text = self.install("--prefix", self.prefix, "--nats-url", "nats://broker:4222")
        files = self.files()
        self.assertEqual(files.keys(), {"prefix/bin/plimsoll-agent", "prefix/share/man/man1/plimsoll-agent.1", "prefix/etc/plimsoll/agent.toml"})
        self.assertTrue((self.prefix / "var/lib/plimsoll-agent").is_dir())
        config = files["prefix/etc/plimsoll/agent.toml"][1].decode()
        self.assertTrue(config.startswith(f'state_dir = "{self.prefix}/var/lib/plimsoll-agent"\n'))
        self.assertIn('\nurl = "nats://broker:4222"\n', config)
        self.assertIn(f"start it with: {self.prefix}/bin/plimsoll-agent --config {self.prefix}/etc/plimsoll/agent.toml", text)
        self.assertIn("plimsoll-agent 0.1.0", text)
        self.install("--prefix", self.prefix, "--uninstall")
        self.assertEqual(self.files().keys(), {"prefix/etc/plimsoll/agent.toml"})
        self.install("--prefix", self.prefix, "--purge")
        self.assertEqual(self.files(), {})
        self.assertFalse((self.prefix / "var/lib/plimsoll-agent").exists())

    def test_the_home_is_the_default(self):
        self.without_systemd()
        self.install()
        self.assertTrue((self.target / "home/.local/bin/plimsoll-agent").is_file())

    def test_a_program_that_does_not_run_here_is_refused(self):
        self.without_systemd()
        self.install("--prefix", self.prefix)
        before = self.files()
        (self.archive / "plimsoll-agent").write_bytes(b"\x7fELF of another machine")
        self.assertIn("does not run on this host", self.install("--prefix", self.prefix, expected=1))
        self.assertEqual(self.files(), before)

    def test_the_user_unit_is_enabled_started_and_restarted_after_a_change(self):
        calls = self.give_systemd()

        def called() -> list[str]:
            lines = calls.read_text().splitlines()
            calls.write_text("")
            return [line.replace("--user ", "").replace("--quiet ", "") for line in lines if "show-environment" not in line and "is-active" not in line]

        text = self.install("--prefix", self.prefix)
        unit = self.target / "home/.config/systemd/user" / UNIT
        self.assertIn(f"\nExecStart={self.prefix}/bin/plimsoll-agent --config {self.prefix}/etc/plimsoll/agent.toml\n", unit.read_text())
        self.assertEqual(called(), ["daemon-reload", f"enable {UNIT}", f"start {UNIT}"])
        self.assertIn("loginctl enable-linger", text)
        self.install("--prefix", self.prefix)
        self.assertEqual(called(), ["daemon-reload", f"enable {UNIT}"])
        self.release("0.2.0")
        self.install("--prefix", self.prefix)
        self.assertEqual(called(), ["daemon-reload", f"enable {UNIT}", f"restart {UNIT}"])
        self.install("--prefix", self.prefix, "--purge")
        self.assertEqual(called(), [f"disable --now {UNIT}", "daemon-reload"])
        self.assertEqual(self.files().keys(), {"calls"})

        text = self.install("--prefix", self.prefix, "--no-start")
        self.assertEqual(called(), ["daemon-reload"])
        self.assertIn("start it with: systemctl --user enable --now plimsoll-agent", text)


class Script(unittest.TestCase):
    FILES = ("install.sh", "package", "debian/postinst", "debian/prerm", "debian/postrm")

    def test_is_plain_shell(self):
        for name in self.FILES:
            shell = "bash" if name == "package" else "sh"
            done = subprocess.run([shell, "-n", str(DEPLOY / name)], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""), name)

    @unittest.skipUnless(SHELLCHECK, "shellcheck is not installed: `make test` runs this in an environment that has it")
    def test_has_no_fault_that_shellcheck_finds(self):
        done = subprocess.run([SHELLCHECK, *(str(DEPLOY / name) for name in self.FILES)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout)


@contextlib.contextmanager
def server(folder: Path):
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


if __name__ == "__main__":
    unittest.main()
