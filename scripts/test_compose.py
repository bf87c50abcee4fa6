"""Checks compose.yaml: by the schema of the Compose Specification, and by what Plimsoll promises of its services."""

import copy
import hashlib
import json
import re
import unittest
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "deploy" / "compose-spec.schema.json"

OWN_SERVICES = {"ingest", "alert-worker", "query-api", "agent", "plimsoll"}
# Where a variable's section is read: PLIMSOLL_LAKE__S3__REGION is the field `region` there.
SETTINGS = {
    "INGEST": "ingest/src/config.rs",
    "INGEST__MAINTENANCE": "ingest/src/config.rs",
    "INGEST__MAINTENANCE__RETENTION": "lake/src/rollup/retention.rs",
    "ALERT_WORKER": "alert-worker/src/config.rs",
    "QUERY_API": "query-api/src/config.rs",
    "AGENT": "agent/src/config.rs",
    "NATS": "nats/src/client.rs",
    "LAKE": "lake/src/config.rs",
    "LAKE__S3": "lake/src/config.rs",
}
STATEFUL = {"nats": "/data", "postgres": "/var/lib/postgresql/data", "s3": "/data", "agent": "/var/lib/plimsoll"}
LAKE_USERS = {"ingest", "query-api", "plimsoll"}
# The agent listens on nothing that a check could ask; the bucket's maker and commands end by themselves.
WITHOUT_HEALTH_CHECK = {"agent", "s3-bucket", "plimsoll"}
WITHOUT_ADDRESS = {"agent", "plimsoll"}
RESTARTS = {"s3-bucket": "on-failure", "plimsoll": "no"}


def problems(compose: dict) -> list[str]:
    """Every problem of a compose file, one line each."""
    schema = json.loads(SCHEMA.read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors(compose)
    found = [f"schema: {'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    services = compose.get("services", {})
    if not isinstance(services, dict):
        return found
    for name in sorted((OWN_SERVICES | STATEFUL.keys()) - services.keys()):
        found.append(f"{name}: is not there")
    for name, service in services.items():
        expected = RESTARTS.get(name, "unless-stopped")
        if service.get("restart") != expected:
            found.append(f"{name}: restart policy is not {expected}")
        if "healthcheck" not in service and name not in WITHOUT_HEALTH_CHECK:
            found.append(f"{name}: no health check")
        if "container_name" in service:
            found.append(f"{name}: a container name keeps it from being scaled")
        found += [f"{name}: port {port} is not on loopback" for port in service.get("ports", []) if not str(port).startswith("127.0.0.1:")]
        found += volume_problems(name, service, compose.get("volumes", {}))
        found += dependency_problems(name, service, services)
    found += [f"{name}: {problem}" for name in OWN_SERVICES & services.keys() for problem in own_problems(name, services[name])]
    return found


def volume_problems(name: str, service: dict, declared: dict) -> list[str]:
    found = []
    mounts = [str(volume).split(":") for volume in service.get("volumes", [])]
    for source, *_ in mounts:
        if source.startswith("./"):
            if not (ROOT / source).is_file():
                found.append(f"{name}: mounts `{source}`, which the repository does not hold")
        elif not source.startswith("/") and source not in declared:
            found.append(f"{name}: volume `{source}` is not declared")
    target = STATEFUL.get(name)
    if target and not any(mount[1:2] == [target] and mount[0] in declared for mount in mounts):
        found.append(f"{name}: no named volume on {target}")
    return found


def dependency_problems(name: str, service: dict, services: dict) -> list[str]:
    found = []
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            found.append(f"{name}: depends on `{other}`, which is not there")
        elif how["condition"] == "service_started":
            found.append(f"{name}: does not wait until `{other}` is healthy")
        elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
            found.append(f"{name}: waits for the health of `{other}`, which has no check")
    return found


def own_problems(name: str, service: dict) -> list[str]:
    found = []
    build = service.get("build", {})
    dockerfile = ROOT / build.get("dockerfile", "Dockerfile")
    targets = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile.read_text(), re.MULTILINE) if dockerfile.is_file() else []
    if build.get("target") != name or name not in targets:
        found.append("is not built from the target of its name")
    if service.get("cap_drop") != ["ALL"]:
        found.append("does not drop all capabilities")
    environment = service.get("environment", {})
    if "nats://" not in environment.get("PLIMSOLL_NATS__URL", ""):
        found.append("has no address of the broker")
    if name in LAKE_USERS and not {"PLIMSOLL_LAKE__CATALOG", "PLIMSOLL_LAKE__DATA_PATH"} <= environment.keys():
        found.append("does not know the lake")
    found += setting_problems(name, environment)
    if name == "plimsoll" and service.get("profiles") != ["tools"]:
        found.append("starts with the services")
    if name not in WITHOUT_ADDRESS:
        key = f"PLIMSOLL_{name.upper().replace('-', '_')}__HTTP"
        port = environment.get(key, "").rpartition(":")[2]
        check = " ".join(service.get("healthcheck", {}).get("test", []))
        if not port or f":{port}/readyz" not in check:
            found.append(f"its health check does not ask /readyz on the port of {key}")
    if name == "agent":
        found += agent_problems(service, environment)
    if name == "ingest" and service.get("ports"):
        found.append("a published port keeps it from being scaled")
    return found


def setting_problems(name: str, environment: dict) -> list[str]:
    """Variables that the service does not read: it would refuse them or, worse, go by its defaults."""
    found = []
    own = {name.upper().replace("-", "_"), "NATS"} | ({"LAKE"} if name in LAKE_USERS else set())
    for variable in environment:
        section, _, field = variable.removeprefix("PLIMSOLL_").rpartition("__")
        source = SETTINGS.get(section)
        if section.partition("__")[0] not in own:
            found.append(f"{variable} is another service's")
        elif source is None or not re.search(rf"^    pub {field.lower()}: ", (ROOT / source).read_text(), re.MULTILINE):
            found.append(f"{variable} is no setting")
    return found


def agent_problems(service: dict, environment: dict) -> list[str]:
    """What keeps the agent from seeing its host, or lets it do more than see."""
    found = []
    root = environment.get("PLIMSOLL_AGENT__HOST_ROOT", "")
    mounts = [str(volume).split(":") for volume in service.get("volumes", [])]
    options = next((mount[2].split(",") for mount in mounts if mount[:2] == ["/", root] and len(mount) == 3), None)
    if options is None:
        found.append("the host's root is not mounted where PLIMSOLL_AGENT__HOST_ROOT says")
    elif sorted(options) != ["ro", "rslave"]:
        found.append("the host's root is not mounted read-only with what is mounted later")
    found += [f"does not share the host's {key}" for key in ("pid", "network_mode") if service.get(key) != "host"]
    if service.get("read_only") is not True:
        found.append("its own files are not read-only")
    if "no-new-privileges:true" not in service.get("security_opt", []):
        found.append("may gain privileges")
    state = environment.get("PLIMSOLL_AGENT__STATE_DIR", "")
    if not state.startswith(f"{STATEFUL['agent']}/"):
        found.append("keeps its state outside of its volume")
    return found


class ComposeFile(unittest.TestCase):
    def setUp(self):
        self.compose = yaml.safe_load((ROOT / "compose.yaml").read_text())

    def broken(self, *path):
        """A copy, and the mapping in it that `path` leads to."""
        compose = copy.deepcopy(self.compose)
        place = compose
        for key in path:
            place = place[key]
        return compose, place

    def test_is_right(self):
        self.assertEqual(problems(self.compose), [])

    def test_the_schema_is_the_one_noted(self):
        notice = (ROOT / "deploy" / "compose-spec.schema.NOTICE").read_text()
        self.assertIn(hashlib.sha256(SCHEMA.read_bytes()).hexdigest(), notice)

    def test_lake_users_share_one_lake(self):
        def lake(name: str) -> dict:
            environment = self.compose["services"][name]["environment"]
            return {key: value for key, value in environment.items() if key.startswith("PLIMSOLL_LAKE__")}

        for name in LAKE_USERS:
            self.assertEqual(lake(name), lake("ingest"))

    def test_all_name_one_broker_and_as_many_replicas(self):
        environments = {name: self.compose["services"][name]["environment"] for name in OWN_SERVICES}
        for name, environment in environments.items():
            self.assertRegex(environment["PLIMSOLL_NATS__URL"], r"^\$\{PLIMSOLL_NATS_URL:-nats://[a-z0-9.]+:4222\}$")
            if name != "agent":
                self.assertEqual(environment["PLIMSOLL_NATS__REPLICAS"], "${PLIMSOLL_NATS_REPLICAS:-1}")

    def test_each_break_is_found(self):
        breaks = [
            ("schema", ("services", "ingest"), lambda ingest: ingest.update(restrat="always")),
            ("schema", ("services", "nats", "healthcheck"), lambda check: check.update(retries=[])),
            ("schema", (), lambda compose: compose.update(services=[])),
            ("alert-worker: is not there", ("services",), lambda services: services.pop("alert-worker")),
            ("query-api: restart policy", ("services", "query-api"), lambda service: service.pop("restart")),
            ("postgres: no health check", ("services", "postgres"), lambda service: service.pop("healthcheck")),
            ("no check", ("services", "nats"), lambda service: service.pop("healthcheck")),
            ("ingest: a container name", ("services", "ingest"), lambda service: service.update(container_name="ingest")),
            ("ingest: a published port", ("services", "ingest"), lambda service: service.update(ports=["127.0.0.1:9301:9301"])),
            ("not on loopback", ("services", "query-api"), lambda service: service.update(ports=["8080:8080"])),
            ("s3: no named volume", ("services", "s3"), lambda service: service.pop("volumes")),
            ("is not declared", ("volumes",), lambda volumes: volumes.pop("nats-data")),
            ("does not hold", ("services", "nats", "volumes"), lambda volumes: volumes.append("./nats/absent.conf:/x:ro")),
            ("which is not there", ("services", "agent", "depends_on"), lambda needs: needs.update(absent={"condition": "service_healthy"})),
            ("until `nats` is healthy", ("services", "agent", "depends_on"), lambda needs: needs.update(nats={"condition": "service_started"})),
            ("target of its name", ("services", "agent", "build"), lambda build: build.update(target="ingest")),
            ("is no setting", ("services", "ingest", "environment"), lambda variables: variables.update(PLIMSOLL_INGEST__COMMIT_SECONDS="9")),
            ("is no setting", ("services", "query-api", "environment"), lambda variables: variables.update(PLIMSOLL_LAKE__S3__BUCKET="x")),
            ("is another service's", ("services", "alert-worker", "environment"), lambda variables: variables.update(PLIMSOLL_INGEST__HTTP="x")),
            ("plimsoll: starts with the services", ("services", "plimsoll"), lambda service: service.pop("profiles")),
            ("plimsoll: restart policy is not no", ("services", "plimsoll"), lambda service: service.update(restart="unless-stopped")),
            ("does not know the lake", ("services", "query-api", "environment"), lambda variables: variables.pop("PLIMSOLL_LAKE__CATALOG")),
            ("is not mounted where", ("services", "agent", "environment"), lambda variables: variables.update(PLIMSOLL_AGENT__HOST_ROOT="/")),
            ("is not mounted where", ("services", "agent", "volumes"), lambda volumes: volumes.pop(0)),
            ("is not mounted read-only", ("services", "agent"), lambda service: service.update(volumes=["/:/host:rslave", "agent-data:/var/lib/plimsoll"])),
            ("share the host's pid", ("services", "agent"), lambda service: service.pop("pid")),
            ("share the host's network_mode", ("services", "agent"), lambda service: service.pop("network_mode")),
            ("not read-only", ("services", "agent"), lambda service: service.pop("read_only")),
            ("may gain privileges", ("services", "agent"), lambda service: service.pop("security_opt")),
            ("outside of its volume", ("services", "agent", "environment"), lambda variables: variables.pop("PLIMSOLL_AGENT__STATE_DIR")),
            ("does not ask /readyz", ("services", "ingest", "environment"), lambda variables: variables.update(PLIMSOLL_INGEST__HTTP="0.0.0.0:1")),
        ]
        for expected, path, damage in breaks:
            with self.subTest(expected):
                compose, place = self.broken(*path)
                damage(place)
                self.assertTrue(any(expected in problem for problem in problems(compose)), problems(compose))


if __name__ == "__main__":
    unittest.main()
