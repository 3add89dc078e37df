"""Runs parts of the product against servers of one's own: migrations, single workers, NATS' accounts, certificates."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NoReturn

from coatcheck.cli.output import emit, emit_json
from coatcheck.cli.session import UP_HINT, load_settings
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError, StorageUnavailableError
from coatcheck.localstack.certificates import issue_certificates
from coatcheck.localstack.files import private_dir, write_private
from coatcheck.localstack.workers import ARCHIVER_WORKER, DEFAULT_WORKERS, PROJECTOR_WORKER, worker_environment
from coatcheck.messaging.accounts import ensure_keys, render_accounts
from coatcheck.settings import Settings
from coatcheck.storage.migrate import migrate

ACCOUNTS_FILE: Final = "accounts.conf"


def migrate_database(*, as_json: bool, data_dir: Path) -> None:
    """Apply the pending migrations and print their names.

    Raises:
        StorageUnavailableError: no database is known, or it does not answer.
        CoatcheckError: a migration failed.
    """
    database = load_settings(data_dir).database_url
    if database is None:
        raise StorageUnavailableError(
            f"no PostgreSQL is known: nothing was started in {data_dir} and DATABASE_URL is not set", hint=UP_HINT
        )
    applied = migrate(database.get_secret_value())
    if as_json:
        emit_json({"applied": applied})
    elif applied:
        emit("\n".join(applied))
    else:
        tell("the database is up to date")


def run_worker(
    kind: Literal["core", "agents", "gateway", "projector", "archiver"], agents: Sequence[str], *, data_dir: Path
) -> NoReturn:
    """Become a worker process, with the environment that the local stack would give it and no other secrets.

    Raises:
        MisuseError: agents were named for another kind of worker, or one does not exist.
        ConfigError: `coatcheck.toml` is wrong.
    """
    if agents and kind != "agents":
        raise MisuseError(f"a {kind} worker has no agents", hint="coatcheck worker agents roy jen")
    settings = load_settings(data_dir)
    team = load_config(settings.config_file)
    if unknown := [agent for agent in agents if agent not in team.agents]:
        raise MisuseError(f"no agent is called {unknown[0]!r}", hint=f"the agents are {', '.join(team.agents)}")
    spec = next(spec for spec in (*DEFAULT_WORKERS, PROJECTOR_WORKER, ARCHIVER_WORKER) if spec.name == kind)
    told = _connections(settings) | {"COATCHECK_CONFIG": str(settings.config_file or "")}
    environment = worker_environment(spec, told, {"COATCHECK_DATA_DIR": str(data_dir.absolute())}, team)
    # Replaced rather than imported: an agent worker's process must never have held the database's password.
    os.execve(spec.argv[0], [*spec.argv, *agents], environment)  # noqa: S606  our own program, no shell


def _connections(settings: Settings) -> dict[str, str]:
    database, gateway = settings.database_url, settings.gateway_database_url
    known = {
        "TEMPORAL_ADDRESS": settings.temporal_address,
        "TEMPORAL_NAMESPACE": settings.temporal_namespace,
        "TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(settings.temporal_ca_file) if settings.temporal_ca_file else None,
        "NATS_CA": str(settings.nats_ca_file) if settings.nats_ca_file else None,
        "NATS_URL": settings.nats_url,
        "NATS_MONITOR_URL": settings.nats_monitor_url,
        "DATABASE_URL": database.get_secret_value() if database else None,
        "GATEWAY_DATABASE_URL": gateway.get_secret_value() if gateway else None,
    }
    return {name: value for name, value in known.items() if value is not None}


def write_nats_config(out: Path, *, data_dir: Path) -> None:
    """Write `accounts.conf` into `out` and print its path; existing keys stay.

    Raises:
        CoatcheckError: the folder cannot be written to.
        ConfigError: `coatcheck.toml` is wrong.
    """
    settings = load_settings(data_dir)
    keys, team = settings.keys_dir, load_config(settings.config_file)
    try:
        users = ensure_keys(private_dir(keys), team.agents)
        path = private_dir(out) / ACCOUNTS_FILE
        write_private(path, render_accounts(users, team.streams))
    except OSError as error:
        raise CoatcheckError(f"cannot write {error.filename}: {error.strerror}") from error
    emit(str(path))
    tell(f"the keys are in {keys.absolute()}; each worker needs its own and no other")
    tell(f"hint: add `include {ACCOUNTS_FILE}` and `jetstream {{ sync_interval: always }}` to the server's file")


def write_certificates(out: Path, hosts: Sequence[str], *, days: int, as_json: bool) -> None:
    """Write an authority and a certificate per server into `out`, and print where they are.

    Raises:
        CoatcheckError: the folder cannot be written to, or a host is no name.
    """
    paths = issue_certificates(out, hosts=hosts, days=days)
    if as_json:
        emit_json({"authority": str(paths[0]), "certificates": [str(path) for path in paths[1:]]})
    else:
        emit("\n".join(map(str, paths)))
        tell(f"hint: workers and commands trust it with NATS_CA={paths[0].absolute()}")
