"""The migrated schema: the declared tables, closed sets, what each role may do, and an audit log that only grows."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from coatcheck.localstack.status import PostgresStatus
from schemas.pipeline import RunStatus

Connection = asyncpg.Connection
SEED = Path(__file__).with_name("seed_004.sql")


@pytest.fixture
async def owner(postgres_dsn: str) -> AsyncIterator["Connection[asyncpg.Record]"]:
    """A connection as the owner of the tables."""
    connection = await asyncpg.connect(postgres_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def superuser(database: PostgresStatus) -> AsyncIterator["Connection[asyncpg.Record]"]:
    """A connection to the same database as somebody who may do everything."""
    connection = await asyncpg.connect(database.superuser_dsn)
    yield connection
    await connection.close()


async def test_tables_are_exactly_those_of_the_requirements(superuser: "Connection[asyncpg.Record]") -> None:
    """The seed's own DDL, run beside ours, gives the same columns: order, types, lengths, defaults and NULLs."""
    await superuser.execute(SEED.read_text())
    query = """
        SELECT table_name, ordinal_position, column_name, data_type, character_maximum_length, column_default,
            is_nullable
        FROM information_schema.columns
        WHERE table_schema = $1
            AND table_name IN ('workflows', 'task_executions', 'events', 'agent_playground_messages')
        ORDER BY 1, 2
    """
    ours, seeds = await superuser.fetch(query, "public"), await superuser.fetch(query, "seed")
    keys = """
        SELECT conrelid::regclass::text AS name, contype, replace(pg_get_constraintdef(oid), 'seed.', '') AS definition
        FROM pg_constraint WHERE connamespace = $1::text::regnamespace AND contype IN ('p', 'f')
    """
    our_keys = {tuple(row) for row in await superuser.fetch(keys, "public")}
    seed_keys = {(row["name"].removeprefix("seed."), *list(row)[1:]) for row in await superuser.fetch(keys, "seed")}
    assert [tuple(row) for row in ours] == [tuple(row) for row in seeds]
    assert len(ours) == 58
    assert seed_keys < our_keys
    assert {name for name, *_ in our_keys - seed_keys} == {
        *("llm_turns", "llm_gateways", "tool_calls", "schema_migrations"),
        *("accounts", "transactions", "holds", "limit_usage", "run_budgets", "kept_free"),
    }


async def test_every_status_of_a_run_has_its_place(owner: "Connection[asyncpg.Record]") -> None:
    """The CHECK allows what the workflow says, and `pending`, which the requirements list."""
    for status in (*RunStatus, "pending"):
        await owner.execute("INSERT INTO workflows (workflow_id, status) VALUES ($1, $1)", str(status))
    for status in ("pending", "running", "completed", "failed", "cancelled"):
        await owner.execute(
            "INSERT INTO task_executions (execution_id, task_name, status) VALUES ($1::text, 'research', $1)", status
        )


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO workflows (workflow_id, status) VALUES ('x', 'dreaming')",
        "INSERT INTO task_executions (execution_id, task_name, status) VALUES ('x', 'x', 'waiting')",
        "INSERT INTO events (event_id, event_type, severity) VALUES ('x', 'x', 'loud')",
        "INSERT INTO agent_playground_messages (message_id, instance_id, role, content) VALUES ('x', 'x', 'boss', 'x')",
    ],
)
async def test_closed_sets_are_closed(owner: "Connection[asyncpg.Record]", statement: str) -> None:
    """Statuses, severities and roles."""
    with pytest.raises(asyncpg.CheckViolationError):
        await owner.execute(statement)


async def test_a_task_needs_its_run(owner: "Connection[asyncpg.Record]") -> None:
    """The foreign key of the requirements."""
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await owner.execute("INSERT INTO task_executions (execution_id, task_name, workflow_id) VALUES ('x', 'x', 'y')")


@pytest.mark.parametrize("role", ["owner", "superuser", "replication mode"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET severity = 'debug'",
        "UPDATE events SET severity = 'debug' WHERE false",
        "DELETE FROM events",
        "TRUNCATE events",
        "INSERT INTO events SELECT * FROM events ON CONFLICT (event_id) DO UPDATE SET event_type = 'y'",
    ],
)
async def test_events_only_grow(
    owner: "Connection[asyncpg.Record]", superuser: "Connection[asyncpg.Record]", role: str, statement: str
) -> None:
    """No change of what happened: not for the owner, not for a superuser, not as a replica applies changes."""
    await owner.execute("INSERT INTO events (event_id, event_type) VALUES ('e', 'run.started')")
    if role == "replication mode":
        await superuser.execute("SET session_replication_role = replica")
    with pytest.raises(asyncpg.RestrictViolationError, match="events is append-only"):
        await (owner if role == "owner" else superuser).execute(statement)
    rows = await owner.fetch("SELECT event_type, severity FROM events")
    assert [tuple(row) for row in rows] == [("run.started", "info")]


async def test_the_gateway_role_has_exactly_these_privileges(owner: "Connection[asyncpg.Record]") -> None:
    """Journal turns and tool calls, read briefs and owners; `test_storage_journal.py` shows the refusals."""
    tables = await owner.fetch(
        "SELECT table_name, privilege_type FROM information_schema.table_privileges WHERE grantee = 'coatcheck_gateway'"
    )
    columns = await owner.fetch(
        """
        SELECT table_name, column_name, privilege_type FROM information_schema.column_privileges
        WHERE grantee = 'coatcheck_gateway' AND table_name IN ('workflows', 'task_executions')
        """
    )
    assert {tuple(row) for row in tables} == {
        *(("llm_turns", privilege) for privilege in ("SELECT", "INSERT", "UPDATE")),
        *(("llm_gateways", privilege) for privilege in ("SELECT", "INSERT", "UPDATE")),
        *(("tool_calls", privilege) for privilege in ("SELECT", "INSERT", "UPDATE")),
        *(("agent_playground_messages", privilege) for privilege in ("SELECT", "INSERT")),
    }
    assert {tuple(row) for row in columns} == {
        *(("workflows", column, "SELECT") for column in ("workflow_id", "description", "metadata")),
        *(
            ("task_executions", column, "SELECT")
            for column in ("execution_id", "workflow_id", "agent_id", "status", "output_data")
        ),
    }
