"""docker-compose.yml: valid, hardened, in order; and what it mounts and runs is run here with the real programs.

No container is started: there is no engine on the machines that run the tests.
"""

import asyncio
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from pydantic import AliasChoices
from temporalio.client import Client

from coatcheck.localstack import temporal as local_temporal
from coatcheck.localstack.binaries import postgres_program, script
from coatcheck.localstack.certificates import SERVERS
from coatcheck.localstack.status import PostgresStatus, TemporalStatus
from coatcheck.settings import Settings
from schemas import search_attributes
from schemas.streams import AGENTS
from workers.temporal import check_search_attributes

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
WATCHING = ROOT / "docker-compose.observability.yml"
WORKERS = ("core", "gateway", "agents")
ONE_SHOT = ("temporal-schema", "temporal-setup", "migrate")
WRITES_ITS_ROOT = ("temporal-ui",)

VERSION = re.compile(r":(v?|version-)(\d+\.\d+(\.\d+)?(-\w+)?|\$\{COATCHECK_VERSION:-.+\})$")

Compose = Mapping[str, Any]


@pytest.fixture(scope="module")
def compose() -> Compose:
    """The file, with what it inherits."""
    loaded: Compose = yaml.safe_load(FILE.read_text())
    return loaded


@pytest.fixture(scope="module")
def watching() -> Compose:
    """What watches the stack, on top of it."""
    loaded: Compose = yaml.safe_load(WATCHING.read_text())
    return loaded


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make secrets` makes."""
    folder = tmp_path_factory.mktemp("compose")
    prepare(folder)
    return folder / "secrets"


def prepare(folder: Path) -> None:
    """Run the script that `make secrets` runs."""
    command = [ROOT / "deploy" / "compose" / "prepare.sh", folder / "secrets", folder / "data"]
    environment = {"PATH": os.environ["PATH"], "COATCHECK": str(script("coatcheck"))}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    """Ask check-jsonschema, which carries the schema of the compose specification."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_what_the_specification_says(tmp_path: Path) -> None:
    """And a slip of the pen is noticed."""
    for file in (FILE, WATCHING):
        found = validate(file)
        assert found.returncode == 0, found.stdout
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(FILE.read_text().replace("read_only: true", "read_onyl: true", 1))
    assert validate(wrong).returncode == 1


def test_every_service_is_confined(compose: Compose, watching: Compose) -> None:
    """Not root, nothing to write but what it is given, no capability, a limit, an image of one version."""
    more = {name: service for name, service in watching["services"].items() if name not in WORKERS}
    for name, service in {**compose["services"], **more}.items():
        assert service["user"] == "${COATCHECK_UID:-1000}:${COATCHECK_GID:-1000}", name
        assert service["read_only"] is (name not in WRITES_ITS_ROOT), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert VERSION.search(service["image"]), name
        if name not in ("temporal-schema", "temporal-setup"):
            assert {"mem_limit", "cpus"} <= service.keys(), name
        assert "privileged" not in service


def test_what_others_wait_for_tells_how_it_is(compose: Compose) -> None:
    """No circle; `healthy` only of what has a check, `completed` only of what ends."""
    services = compose["services"]
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    assert len(list(TopologicalSorter(waits).static_order())) == len(services)
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name, targets in waits.items():
        for target, condition in targets.items():
            ends = target in ONE_SHOT
            expected = "service_completed_successfully" if ends else "service_healthy"
            assert condition == {"condition": expected}, (name, target)
            # The workers' check is their image's.
            assert ends or "healthcheck" in services[target] or (target in WORKERS and "HEALTHCHECK" in dockerfile)
    before = set(TopologicalSorter(waits).static_order())
    assert {"core", "agents", "gateway"} <= before


def test_the_ports_are_the_seeds_and_stay_on_the_machine(compose: Compose) -> None:
    """4223 and 8223 outside (seed 003); who publishes one is on a network that has an outside."""
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published["nats-1"] == ["127.0.0.1:4223:4222", "127.0.0.1:8223:8222"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    outside = {name for name, service in compose["services"].items() if "outside" in service["networks"]}
    assert outside == {*published, "gateway"}
    assert compose["networks"] == {"coatcheck": {"internal": True}, "outside": {}}


def test_everything_that_is_mounted_is_there(compose: Compose, watching: Compose, secrets: Path) -> None:
    """Configuration in the repository, secrets only where `make secrets` puts them, readable by their owner alone."""
    known = {kind: {**compose[kind], **watching[kind]} for kind in ("secrets", "configs")}
    services = [*compose["services"].values(), *watching["services"].values()]
    here = [file["file"] for file in known["configs"].values()]
    private = [file["file"] for file in known["secrets"].values()]
    for service in services:
        names = [item if isinstance(item, str) else item["source"] for item in service.get("secrets", [])]
        assert set(names) <= known["secrets"].keys()
        assert {item["source"] for item in service.get("configs", [])} <= known["configs"].keys()
        for file in (*service.get("env_file", []), *(item.rpartition(":/")[0] for item in service.get("volumes", []))):
            (private if file.startswith("$") else here).append(file)
    assert all((ROOT / file).exists() for file in here)
    for file in private:
        variable, _, name = file.partition("}/")
        place = (secrets if "SECRETS" in variable else secrets.with_name("data")) / name
        assert stat.S_IMODE(place.stat().st_mode) in (0o600, 0o700), place


def test_what_is_measured_is_looked_at(watching: Compose) -> None:
    """The addresses that Prometheus' own files name are those of the services."""
    for worker in WORKERS:
        port = watching["services"][worker]["environment"]["OTEL_EXPORTER_PROMETHEUS_PORT"]
        assert f"{worker}:{port}" in (ROOT / "deploy" / "prometheus" / "targets" / "coatcheck.json").read_text()
        assert watching["services"][worker]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].startswith("https://otel-c")
    assert '"otel-collector:8888"' in (ROOT / "deploy" / "prometheus" / "targets" / "otelcol.json").read_text()


def test_a_worker_has_its_own_secrets_and_no_others(compose: Compose) -> None:
    """Agents have no database and no provider's key, the gateway not the owner's database."""
    held = {name: set(compose["services"][name]["secrets"]) - {"ca.pem"} for name in (*WORKERS, "migrate")}
    for name in WORKERS:
        held[name].remove("keyring.json")  # public, and everybody's
    assert held == {
        "core": {"database_url", "core.nk", "payload_keys"},
        "gateway": {"gateway_database_url", "gateway.nk", "openai_api_key", "anthropic_api_key"},
        "agents": {f"{agent}.nk" for agent in AGENTS} | {"payload_keys"},
        "migrate": {"database_url"},
    }


def test_passwords_and_keys_stay(secrets: Path) -> None:
    """A second call renews the certificates under the same authority, and nothing else."""
    before = {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()}
    prepare(secrets.parent)
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed == {f"{name}.{kind}" for name in SERVERS for kind in ("pem", "key")}


def test_no_secret_is_in_the_file(secrets: Path) -> None:
    """Nor in any other that the repository has of it."""
    texts = [path.read_text() for path in (FILE, ROOT / "Dockerfile", *(ROOT / "deploy").rglob("*")) if path.is_file()]
    for path in secrets.iterdir():
        if path.is_file() and (value := path.read_text()):
            assert not any(value in text for text in texts), path


def variables_of_settings() -> set[str]:
    """Every variable that a worker reads."""
    own = {f"COATCHECK_{name.upper()}" for name in Settings.model_fields}
    aliases = [field.validation_alias for field in Settings.model_fields.values()]
    return own | {str(name) for alias in aliases if isinstance(alias, AliasChoices) for name in alias.choices}


def test_settings_come_from_files(compose: Compose, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every worker reads them; an empty file is no key, and what is in the environment wins."""
    environment = compose["services"]["gateway"]["environment"]
    assert environment.keys() <= variables_of_settings()
    for name, value in environment.items():
        monkeypatch.setenv(name, value or "")
    monkeypatch.setenv("COATCHECK_SECRETS_DIR", str(secrets))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    settings = Settings()
    assert "sslmode=verify-full" in settings.require_database_url()
    assert settings.require_gateway_database_url().startswith("postgresql://coatcheck_gateway_login:")
    assert (settings.openai_api_key, settings.placement.replicas) == (None, 3)
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere")
    assert Settings().require_database_url() == "postgresql://elsewhere"


# --- what is mounted, with the real programs ----------------------------------------------------------------------


def test_nats_takes_its_configuration(compose: Compose, secrets: Path, tmp_path: Path) -> None:
    """Each member's environment, with the files where they are here; tests/integration runs a cluster of them."""
    for name in ("nats-server.conf", "cluster.conf"):
        shutil.copyfile(ROOT / "deploy" / "nats" / name, tmp_path / name)
    shutil.copyfile(secrets / "nats" / "accounts.conf", tmp_path / "accounts.conf")
    for member in ("nats-1", "nats-2", "nats-3"):
        environment = compose["services"][member]["environment"]
        here = {name: value.replace("/run/secrets", str(secrets / "certs")) for name, value in environment.items()}
        command = [script("nats-server"), "-t", "--config", tmp_path / "cluster.conf"]
        checked = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert f'"{member}:4222"' == environment["NATS_ADVERTISE"]
        assert member in compose["services"][member]["volumes"][0]


@pytest.fixture
def emptied(postgres_server: PostgresStatus) -> Iterator[str]:
    """The superuser's DSN; what `init.sql` makes for Temporal is gone afterwards."""
    assert postgres_server.superuser_dsn is not None
    yield postgres_server.superuser_dsn
    for statement in ("DATABASE temporal", "DATABASE temporal_visibility", "ROLE temporal"):
        psql(postgres_server.superuser_dsn, "-c", f"DROP {statement}")


def psql(dsn: str, *arguments: str, **environment: str) -> None:
    """As the image calls it."""
    command = [postgres_program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", dsn, *arguments]
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_postgres_is_filled(emptied: str, postgres_server: PostgresStatus, secrets: Path, tmp_path: Path) -> None:
    """Roles and databases, with the passwords of the files; those of the local stack are put back by its next start."""
    mine = {"postgres_temporal": "t0", "postgres_coatcheck": _password(postgres_server.dsn)}
    mine["postgres_gateway"] = _password(postgres_server.gateway_dsn)
    assert all((secrets / name).is_file() for name in mine)
    for name, value in mine.items():
        (tmp_path / name).write_text(value)
    psql(emptied, "-f", str(ROOT / "deploy" / "postgres" / "init.sql"), SECRETS_DIR=str(tmp_path))
    place = emptied.rpartition("@")[2].partition("/")[0]
    for login, database in (("temporal:t0", "temporal"), ("temporal:t0", "temporal_visibility")):
        connection = await asyncpg.connect(f"postgresql://{login}@{place}/{database}?sslmode=disable")
        await connection.execute("CREATE TABLE probe ()")
        await connection.close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(f"postgresql://temporal:t0@{place}/coatcheck?sslmode=disable")


def _password(dsn: str) -> str:
    return dsn.partition("//")[2].partition("@")[0].partition(":")[2]


async def test_postgres_understands_who_may_connect(postgres_server: PostgresStatus) -> None:
    """As the server itself reads the rules; the one of the tests was built without TLS, and says so and no more."""
    assert postgres_server.superuser_dsn is not None
    connection = await asyncpg.connect(postgres_server.superuser_dsn)
    file = Path(await connection.fetchval("SHOW hba_file"))
    present = file.read_text()
    try:
        # Only read for the view: the server goes on with what it has loaded.
        file.write_text((ROOT / "deploy" / "postgres" / "pg_hba.conf").read_text())
        rules = await connection.fetch("SELECT type, auth_method, error FROM pg_hba_file_rules ORDER BY line_number")
    finally:
        file.write_text(present)
        await connection.close()
    first, second = rules
    assert (first["type"], first["auth_method"], first["error"]) == ("local", "scram-sha-256", None)
    assert second["error"] == "hostssl record cannot match because SSL is not supported by this build"


async def test_temporal_is_set_up(compose: Compose, temporal_server: TemporalStatus, tmp_path: Path) -> None:
    """The commands, by the real program on the real server, twice: the second time there is nothing to do."""
    commands = compose["services"]["temporal-setup"]["command"][0].replace("$$", "$")
    assert all(key.name in commands for key in search_attributes.ALL)
    for number, line in enumerate(("-n default", "-n fresh")):
        text = commands.replace("-n default", line)
        environment = {
            "HOME": str(tmp_path),
            "PATH": f"{script('temporal').parent}:{os.environ['PATH']}",
            "TEMPORAL_ADDRESS": temporal_server.address,
        }
        for _ in range(number + 1):
            await asyncio.to_thread(subprocess.run, ["/bin/sh", "-euc", text], env=environment, check=True)
    await check_search_attributes(await Client.connect(temporal_server.address, namespace="fresh"))


def test_temporal_has_the_values_of_the_local_stack() -> None:
    """Except for what only the one shard of the development server needs."""
    loaded = yaml.safe_load((ROOT / "deploy" / "temporal" / "dynamic.yaml").read_text())
    values = {key: entries[0]["value"] for key, entries in loaded.items()}
    assert values == {k: v for k, v in local_temporal._DYNAMIC.items() if k != "history.transferProcessorMaxPollRPS"}
