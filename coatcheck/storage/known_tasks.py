"""`KnownTasks`: whose a task is, remembered by the process that has recorded it.

An agent reports on each round right after it, and nearly always to the core worker that recorded the round's start. So
the question whose task it is costs a look into memory, and a look into the table only after a restart or elsewhere.
Whose a task is never changes, so nothing that is remembered can be wrong.
"""

from collections.abc import Collection
from typing import Final

from coatcheck.storage.database import Pool
from coatcheck.storage.state import own_tasks

MAX_REMEMBERED: Final = 20_000
"""About 5 MB; the oldest are asked for again."""


class KnownTasks:
    """Tasks and their agents.

    Args:
        pool: Knows those that this process does not.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._agents: dict[str, str] = {}

    def note(self, task_key: str, agent: str) -> None:
        """The task is recorded as the agent's."""
        self._agents[task_key] = agent
        if len(self._agents) > MAX_REMEMBERED:
            del self._agents[next(iter(self._agents))]

    async def own(self, agent: str, task_keys: Collection[str]) -> set[str]:
        """Of these tasks, those that are recorded as the agent's.

        Raises:
            StorageUnavailableError: PostgreSQL is away, and one of them is not remembered.
        """
        remembered = {key for key in task_keys if key in self._agents}
        own = {key for key in remembered if self._agents[key] == agent}
        if len(remembered) < len(set(task_keys)):
            own |= await own_tasks(self._pool, agent, set(task_keys) - remembered)
        return own
