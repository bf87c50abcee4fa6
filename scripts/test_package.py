"""Checks the packages that deploy/package makes of the agent, with a stand-in for the program."""

import gzip
import os
import shutil
import subprocess
import tarfile
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNIT = "plimsoll-agent.service"
HELP = """Samples this host

Usage: plimsoll-agent [OPTIONS]

Options:
      --config <FILE>  Configuration file

Configuration keys:
  host = <host name>  a key
.dotted
'quoted \\ text
"""
PROGRAM = f"""#!/bin/sh
case $1 in
--version) echo 'plimsoll-agent VERSION' ;;
*) cat <<'TEXT'
{HELP}TEXT
esac
"""


class Packages(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.program = self.folder / "plimsoll-agent"
        self.write_program("0.1.0")

    def write_program(self, version: str):
        self.program.write_text(PROGRAM.replace("VERSION", version))
        self.program.chmod(0o755)

    def package(self, kind: str, out: str = "out") -> Path:
        command = [str(ROOT / "deploy" / "package"), kind, str(self.program), str(self.folder / out)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return Path(done.stdout.strip())


class ManualPage(unittest.TestCase):
    def test_holds_the_help_as_it_is(self):
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "plimsoll-agent"
            program.write_text(PROGRAM.replace("VERSION", "0.1.0"))
            program.chmod(0o755)
            page = subprocess.run([str(ROOT / "scripts" / "man-page"), str(program)], capture_output=True, text=True, check=True).stdout
        self.assertTrue(page.startswith('.TH PLIMSOLL\\-AGENT 1 "" "plimsoll\\-agent 0.1.0" "Plimsoll"\n'))
        self.assertIn(".SH SYNOPSIS\n.nf\nplimsoll\\-agent [OPTIONS]\n", page)
        self.assertIn(".SH OPTIONS\n.nf\n      \\-\\-config <FILE>  Configuration file\n", page)
        self.assertIn("\n  host = <host name>  a key\n\\&.dotted\n\\&'quoted \\e text\n.fi\n", page)


class Archive(Packages):
    def test_holds_what_the_installer_needs_and_installs(self):
        archive = self.package("archive")
        self.assertEqual(archive.name, f"plimsoll-agent-0.1.0-{os.uname().machine}-linux-gnu.tar.gz")
        with tarfile.open(archive) as opened:
            self.assertEqual({(member.uid, member.gid) for member in opened}, {(0, 0)})
            # Of our own making, and the option to be careful is missing in older Pythons.
            opened.extractall(self.folder / "unpacked")
        (unpacked,) = (self.folder / "unpacked").iterdir()
        image = self.folder / "image"
        command = ["sh", str(unpacked / "install.sh"), "--root", str(image), "--with-kernel-log"]
        subprocess.run(command, check=True, capture_output=True)
        self.assertEqual((image / "usr/local/bin/plimsoll-agent").read_bytes(), self.program.read_bytes())
        self.assertTrue((image / f"etc/systemd/system/{UNIT}.d/kernel-log.conf").is_file())
        self.assertIn("SYNOPSIS", (image / "usr/local/share/man/man1/plimsoll-agent.1").read_text())

    def test_is_the_same_each_time(self):
        self.assertEqual(self.package("archive").read_bytes(), self.package("archive", "again").read_bytes())


@unittest.skipUnless(shutil.which("dpkg-deb"), "dpkg-deb is not installed: Debian packages are made on Debian")
class Debian(Packages):
    def unpack(self, package: Path) -> Path:
        tree = Path(tempfile.mkdtemp(dir=self.folder))
        subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tree)], check=True)
        return tree

    def test_holds_everything_in_its_place(self):
        tree = self.unpack(self.package("deb"))
        files = {str(file.relative_to(tree)): file.stat().st_mode & 0o777 for file in tree.rglob("*") if file.is_file()}
        control = {f"DEBIAN/{name}": 0o755 for name in ("postinst", "prerm", "postrm")}
        control |= {f"DEBIAN/{name}": 0o644 for name in ("control", "conffiles", "md5sums")}
        data = {
            "etc/plimsoll/agent.toml": 0o644,
            "usr/bin/plimsoll-agent": 0o755,
            f"usr/lib/systemd/system/{UNIT}": 0o644,
            "usr/share/doc/plimsoll-agent/changelog.gz": 0o644,
            "usr/share/doc/plimsoll-agent/copyright": 0o644,
            "usr/share/man/man1/plimsoll-agent.1.gz": 0o644,
        }
        data |= {f"usr/share/plimsoll-agent/systemd/{name}.conf": 0o644 for name in ("nvidia", "capabilities", "kernel-log")}
        self.assertEqual(files, control | data)
        self.assertIn("\nExecStart=/usr/bin/plimsoll-agent --config /etc/plimsoll/agent.toml\n", (tree / f"usr/lib/systemd/system/{UNIT}").read_text())
        self.assertEqual((tree / "DEBIAN/conffiles").read_text(), "/etc/plimsoll/agent.toml\n")
        self.assertIn("SYNOPSIS", gzip.decompress((tree / "usr/share/man/man1/plimsoll-agent.1.gz").read_bytes()).decode())
        subprocess.run(["md5sum", "--check", "--quiet", "DEBIAN/md5sums"], cwd=tree, check=True)

    def field(self, package: Path, name: str) -> str:
        return subprocess.run(["dpkg-deb", "--field", str(package), name], check=True, capture_output=True, text=True).stdout.strip()

    def test_a_release_candidate_comes_before_its_release(self):
        self.write_program("0.2.0-rc.1")
        package = self.package("deb")
        self.assertEqual(self.field(package, "Version"), "0.2.0~rc.1")
        subprocess.run(["dpkg", "--compare-versions", "0.2.0~rc.1", "lt", "0.2.0"], check=True)

    def test_depends_on_the_oldest_libc_that_will_do(self):
        self.assertEqual(self.field(self.package("deb"), "Depends"), "adduser")
        with self.program.open("a") as program:
            program.write("# GLIBC_2.4 GLIBC_2.34 GLIBC_2.17\n")
        self.assertEqual(self.field(self.package("deb"), "Depends"), "adduser, libc6 (>= 2.34), libgcc-s1")

    def test_is_the_same_each_time(self):
        self.assertEqual(self.package("deb").read_bytes(), self.package("deb", "again").read_bytes())

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("dpkg"), "installing with dpkg, also into a folder, needs root")
    def test_installs_keeps_and_purges_in_a_folder(self):
        """Into a system of a few programs, in which dpkg runs the maintainer scripts by chroot."""
        system = self.folder / "system"
        log = system / "log"
        for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "etc", "bin", "dev"):
            (system / folder).mkdir(parents=True)
        # A file will do.
        (system / "dev/null").write_text("")
        (system / "var/lib/dpkg/status").write_text("")
        lay_out_shell(system)
        for name in ("adduser", "deluser", "chown", "dpkg-statoverride", "getent", "deb-systemd-helper"):
            stand_in = system / "bin" / name
            # The account is there once adduser was called; nothing is overridden.
            answer = {"getent": "test -e /user", "dpkg-statoverride": "false", "adduser": ": >/user", "deluser": "rm /user"}.get(name, "true")
            stand_in.write_text(f'#!/bin/sh\n[ {name} = getent ] || echo "{name} $*" >>/log\n{answer}\n')
            stand_in.chmod(0o755)

        def dpkg(*arguments) -> list[str]:
            command = ["dpkg", f"--root={system}", "--force-depends", "--force-bad-path", *map(str, arguments)]
            log.write_text("")
            environment = {**os.environ, "PATH": "/bin:/usr/bin:/sbin:/usr/sbin", "LC_ALL": "C"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            return log.read_text().splitlines()

        calls = dpkg("--install", self.package("deb"))
        self.assertIn("adduser --quiet --system --group --no-create-home --home /var/lib/plimsoll-agent plimsoll-agent", calls)
        self.assertIn("chown root:plimsoll-agent /etc/plimsoll/agent.toml", calls)
        self.assertIn(f"deb-systemd-helper enable {UNIT}", calls)
        config = system / "etc/plimsoll/agent.toml"
        self.assertEqual(config.stat().st_mode & 0o777, 0o640)
        config.write_text("host = 'mine'\n")
        (system / "var/lib/plimsoll-agent").mkdir()

        self.write_program("0.2.0")
        calls = dpkg("--install", self.package("deb"))
        self.assertFalse([call for call in calls if call.startswith("adduser")])
        self.assertIn("0.2.0", (system / "usr/bin/plimsoll-agent").read_text())
        dpkg("--remove", "plimsoll-agent")
        self.assertEqual(config.read_text(), "host = 'mine'\n")
        self.assertTrue((system / "var/lib/plimsoll-agent").is_dir())
        self.assertFalse((system / "usr/bin/plimsoll-agent").exists())
        calls = dpkg("--purge", "plimsoll-agent")
        self.assertIn("deluser --quiet --system plimsoll-agent", calls)
        self.assertFalse(config.parent.exists())
        self.assertFalse((system / "var/lib/plimsoll-agent").exists())


def lay_out_shell(system: Path):
    """A shell and the programs that maintainer scripts call, with the libraries that these need."""
    for name in ("sh", "cat", "chmod", "cp", "mkdir", "rm", "rmdir", "test"):
        program = shutil.which(name)
        shutil.copy(os.path.realpath(program), system / "bin" / name)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for word in listed.split():
            if word.startswith("/"):
                library = system / word.lstrip("/")
                library.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, library)


if __name__ == "__main__":
    unittest.main()
