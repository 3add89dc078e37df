"""What was said in conversations, as the journal has it: for whoever shows it."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from coatcheck.storage.database import Executor, storage_errors


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a conversation."""

    turn: int
    is_answer: bool
    """The model's; else what it was told."""
    message: dict[str, Any]
    """A pydantic-ai message; of a finished task, the last one is a reference to its deliverable."""


async def conversations(executor: Executor, task_keys: Collection[str]) -> dict[str, list[Said]]:
    """Task key → its messages, in order; a task that said nothing is left out.

    Raises:
        StorageUnavailableError: PostgreSQL is away.
    """
    with storage_errors():
        rows = await executor.fetch(
            """
            SELECT asked.task_key, (said.metadata ->> 'turn')::int AS turn, said.role, said.content
            FROM unnest($1::text[]) AS asked (task_key)
            JOIN agent_playground_messages AS said ON said.instance_id = asked.task_key
            ORDER BY said.message_id
            """,
            list(task_keys),
        )
    found: dict[str, list[Said]] = {}
    for row in rows:
        said = Said(row["turn"], row["role"] == "assistant", json.loads(row["content"]))
        found.setdefault(row["task_key"], []).append(said)
    return found
