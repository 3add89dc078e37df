"""Shows the roster: once, or on every change until Ctrl-C."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text
from temporalio.client import Client

from activities.queues import queue_state
from coatcheck.cli.output import columns, emit, emit_json
from coatcheck.cli.roster import AgentLine, Roster
from coatcheck.cli.screen import age
from coatcheck.cli.session import load_settings, open_nats, open_temporal, temporal_errors
from coatcheck.cli.voice import tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError
from coatcheck.settings import Settings
from schemas.agent_state import AgentTask

TICK_SECONDS: Final = 1.0
"""Ages grow without a change; nothing is asked of a server for that."""
TEMPORAL_SECONDS: Final = 3.0
"""For the question whether work waits for an agent that is away; a courtesy."""
AGAIN_SECONDS: Final = 15.0
_HEADER: Final = ("agent", "role", "state", "working on", "since", "models", "heard")

Show = Callable[[Sequence[AgentLine], str], None]
"""Shows the lines and a remark, empty when all is well."""


async def agents(*, watch: bool, as_json: bool, data_dir: Path) -> None:
    """Print the roster; with `watch`, follow it until Ctrl-C.

    Raises:
        DependencyDownError: NATS does not answer at the beginning.
        ConfigError: the configuration file has a mistake.
    """
    settings = load_settings(data_dir)
    team = load_config(settings.config_file)
    async with open_nats(settings) as client, Roster(client, team, settings.models or team.models) as roster:
        queues = _Queues(settings)
        if watch:
            with _shown(as_json=as_json) as show:
                await _follow(roster, queues, show)
        lines = await queues.warn(roster.lines())
        if as_json:
            emit_json(lines)
        else:
            emit(_table(lines, datetime.now(UTC)))
            for line in lines:
                if line.warning:
                    tell(f"warning: {line.warning}")


async def _follow(roster: Roster, queues: "_Queues", show: Show) -> None:
    while True:
        roster.changed.clear()
        is_fresh = await roster.keep_up()
        lines = await queues.warn(roster.lines())
        show(lines, "" if is_fresh else f"NATS does not answer; this is {roster.age_seconds:.0f} s old")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_SECONDS):
                await roster.changed.wait()


class _Queues:
    """Asks Temporal about the agents that no worker stands for: when one more is missing, and now and then."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._warnings: dict[str, str] = {}
        self._asked: frozenset[str] = frozenset()
        self._again_at = 0.0

    async def warn(self, lines: Sequence[AgentLine]) -> list[AgentLine]:
        """The lines, with a warning for an agent whose work waits for a worker."""
        absent = frozenset(line.agent for line in lines if line.state in {"away", "none"})
        if absent != self._asked or (absent and time.monotonic() >= self._again_at):
            self._asked, self._again_at = absent, time.monotonic() + AGAIN_SECONDS
            with contextlib.suppress(CoatcheckError, TimeoutError):
                async with asyncio.timeout(TEMPORAL_SECONDS):
                    self._warnings = await self._ask(absent)
        return [line.model_copy(update={"warning": self._warnings.get(line.agent)}) for line in lines]

    async def _ask(self, absent: frozenset[str]) -> dict[str, str]:
        if not absent:
            return {}
        client = self._client or await open_temporal(self._settings)
        self._client = client
        with temporal_errors():
            states = await asyncio.gather(*(queue_state(client, agent) for agent in sorted(absent)))
        return {
            state.agent: f"work waits for {state.agent}, and no worker of it says that it lives"
            for state in states
            if state.waiting
        }


# --- display ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _shown(*, as_json: bool) -> Generator[Show]:
    if as_json or not sys.stdout.isatty():
        yield _Lines(as_json=as_json).show
        return
    with Live(console=Console(), auto_refresh=False) as live:
        yield lambda lines, remark: live.update(_drawing(lines, remark), refresh=True)


def _drawing(lines: Sequence[AgentLine], remark: str) -> Text:
    notes = [f"warning: {line.warning}" for line in lines if line.warning] + [remark] * bool(remark)
    return Text("\n".join([_table(lines, datetime.now(UTC)).rstrip("\n"), *notes]), no_wrap=True, overflow="ellipsis")


class _Lines:
    """A line on stdout per agent that has changed, with the time; a remark when it comes and when it is over."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._told: dict[str, str] = {}
        self._was_fresh = True

    def show(self, lines: Sequence[AgentLine], remark: str) -> None:
        """Print what differs from the last time."""
        if (not remark) != self._was_fresh:
            self._was_fresh = not remark
            tell(f"{datetime.now(UTC):%H:%M:%S} {remark or 'NATS answers again'}")
        for line in lines:
            said = _sentence(line)
            if self._told.get(line.agent) != said:
                self._told[line.agent] = said
                if self._as_json:
                    emit_json(line, indent=None)
                else:
                    emit(f"{datetime.now(UTC):%H:%M:%S} {said}")


def _sentence(line: AgentLine) -> str:
    """What makes one state of an agent differ from another; ages are not part of it."""
    parts = [f"{line.agent}: {line.state}"]
    if line.tasks:
        parts.append(", ".join(_task(task) for task in line.tasks[:3]) + _more(line, 3))
    parts += [f"{model} {state.partition(' ')[0]}" for model, state in line.breakers.items() if state != "closed"]
    if line.workers_away and line.workers_present:
        parts.append(f"{line.workers_away} of its workers away")
    if line.warning:
        parts.append(f"warning: {line.warning}")
    return "; ".join(parts)


def _table(lines: Sequence[AgentLine], now: datetime) -> str:
    return columns(_HEADER, [_row(line, now) for line in lines])


def _row(line: AgentLine, now: datetime) -> list[str]:
    return [
        line.agent,
        line.role,
        line.state + (f" (and {line.workers_away} away)" if line.workers_away and line.workers_present else ""),
        _task(line.tasks[0]) + _more(line, 1) if line.tasks else "-",
        age(line.since, now) if line.since else "-",
        _models(line),
        f"{age(line.last_heartbeat, now)} ago" if line.last_heartbeat else "never",
    ]


def _task(task: AgentTask) -> str:
    attempt = f", attempt {task.attempt}" if task.attempt > 1 else ""
    return f"{task.feature}: {task.stage}, round {task.round}{attempt}"


def _more(line: AgentLine, shown: int) -> str:
    return f" (+{line.task_count - shown})" if line.task_count > shown else ""


def _models(line: AgentLine) -> str:
    closed = [model for model, state in line.breakers.items() if state == "closed"]
    others = [f"{model}: {state}" for model, state in line.breakers.items() if state != "closed"]
    return "; ".join([*others, *(["closed"] if closed else [])]) or "-"
