"""PostgreSQL: its own programs, run directly, on TCP with passwords.

The wheel's `get_server()` is not used: it hides the process from the supervisor and ends with the interpreter.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Final

from coatcheck.errors import DependencyDownError
from coatcheck.localstack.binaries import postgres_program
from coatcheck.localstack.files import password, private_dir
from coatcheck.localstack.member import MemberSpec
from coatcheck.localstack.ports import LOOPBACK
from coatcheck.localstack.probe import command_ok
from coatcheck.localstack.status import PostgresStatus

PORTS: Final = ("postgres",)
SUPERUSER: Final = "postgres"
OWNER: Final = "coatcheck"
GATEWAY_LOGIN: Final = "coatcheck_gateway_login"
DATABASE: Final = "coatcheck"

_NOBODY: Final = 65534
_CAPABILITIES: Final = "-all,+dac_override,+dac_read_search"
"""As another user, PostgreSQL must still get through the parents of its folder, which may be 0700."""
_SETTINGS: Final = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "warning",
}


def status(data_dir: Path, port: int, *, ca_file: Path | None = None, own_port: int | None = None) -> PostgresStatus:
    """How to connect; makes missing passwords.

    Args:
        data_dir: Of the stack.
        port: For everybody.
        ca_file: Who has signed its certificate, where it is spoken to with TLS.
        own_port: The server's own, for the superuser, whose programs speak no TLS.
    """
    folder = private_dir(data_dir / "postgres")

    plain = "sslmode=disable"
    mode = f"sslmode=verify-full&sslrootcert={ca_file}" if ca_file else plain

    def dsn(role: str, database: str, port: int = port, mode: str = mode) -> str:
        secret = password(folder / f"{role}.password")
        return f"postgresql://{role}:{secret}@{LOOPBACK}:{port}/{database}?{mode}"

    return PostgresStatus(
        dsn=dsn(OWNER, DATABASE),
        gateway_dsn=dsn(GATEWAY_LOGIN, DATABASE),
        superuser_dsn=dsn(SUPERUSER, "postgres", own_port or port, plain),
    )


def member(data_dir: Path, ports: Mapping[str, int], env: Mapping[str, str]) -> MemberSpec:
    """The server with its cluster under `<data_dir>/postgres/cluster`.

    Raises:
        DependencyDownError: we are root and cannot become somebody else.
    """
    cluster = data_dir / "postgres" / "cluster"
    port = str(ports["postgres"])
    settings = [f"--{name}={value}" for name, value in {**_SETTINGS, "port": port}.items()]
    return MemberSpec(
        name="postgres",
        argv=(*_as_unprivileged(), str(postgres_program("postgres")), "-D", str(cluster), *settings),
        env=env,
        ready=partial(command_ok, str(postgres_program("pg_isready")), "-q", "-h", LOOPBACK, "-p", port),
        before_start=partial(_ensure_cluster, cluster, dict(env)),
        # "Fast" shutdown: SIGTERM would wait for the clients to leave.
        stop_signal=signal.SIGINT,
        grace_seconds=20,
    )


def ensure_database(data_dir: Path, port: int, env: Mapping[str, str]) -> None:
    """Create the roles and the database where they are missing; run after the server is ready, any number of times.

    Raises:
        DependencyDownError: PostgreSQL refused; the message carries its words.
    """
    folder = data_dir / "postgres"
    command = [str(postgres_program("psql")), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    command += ["-h", LOOPBACK, "-p", str(port), "-U", SUPERUSER, "-d", "postgres"]
    # On standard input, not as arguments, which everybody on the machine can read; they are hexadecimal digits.
    passwords = {"coatcheck_password": OWNER, "gateway_password": GATEWAY_LOGIN}
    variables = [f"\\set {name} {password(folder / f'{role}.password')}" for name, role in passwords.items()]
    script = "\n".join([*variables, _roles_sql()])
    secret = password(folder / f"{SUPERUSER}.password")
    _run(command, env={**env, "PGPASSWORD": secret}, script=script)


def _roles_sql() -> str:
    """The wheel installs `deploy/` beside the package, as it lies in a checkout."""
    folder = Path(str(files("coatcheck"))).parent / "deploy" / "postgres"
    return (folder / "include" / "roles.sql").read_text(encoding="utf-8")


def _ensure_cluster(cluster: Path, env: dict[str, str]) -> None:
    """Run initdb unless the cluster exists. It is made under another name and renamed: a crash leaves no half one."""
    if cluster.exists():
        return
    new = cluster.with_name("cluster.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    password_file = cluster.with_name(f"{SUPERUSER}.password")
    if os.geteuid() == 0:
        os.chown(new, _NOBODY, _NOBODY)
    command = [*_as_unprivileged(), str(postgres_program("initdb")), "-D", str(new), "-U", SUPERUSER]
    command += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8"]
    # The builtin provider sorts the same on every machine, whatever locales it has.
    command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    _run(command, env=env)
    new.rename(cluster)


def _as_unprivileged() -> tuple[str, ...]:
    """Prefix of a command that must not run as root; PostgreSQL refuses to."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise DependencyDownError(
            "PostgreSQL refuses to run as root, and `setpriv` (to run it as nobody) is missing",
            hint="install util-linux, or run coatcheck as an ordinary user",
        )
    ids = (f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
    return (setpriv, *ids, f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}")


def _run(command: list[str], *, env: Mapping[str, str], script: str | None = None) -> None:
    done = subprocess.run(  # noqa: S603  our own programs
        command, env=dict(env), input=script, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        name = next(part for part in map(os.path.basename, command) if part in ("initdb", "psql"))
        raise DependencyDownError(f"{name} failed: {done.stderr.strip() or done.stdout.strip()}")
