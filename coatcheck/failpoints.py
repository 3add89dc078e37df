"""Named points, before and after each effect, where a test can make the process die or wait.

Random process kills find none of the bugs that matter; deaths at chosen points do. The points are compiled into
every effect and off unless `COATCHECK_FAILPOINTS` is set, for instance to

    agent.after_publish=kill*1,llm.after_provider=delay:2.5,state.before_record=kill%10

`kill` ends the process with SIGKILL, `delay:SECONDS` waits, `error` raises. `*N` fires at
most N times over all processes that share `COATCHECK_FAILPOINTS_DIR`, `%P` with a probability of P percent.
"""

import asyncio
import os
import random
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

POINTS: Final[frozenset[str]] = frozenset(
    {
        "state.before_record",
        "state.before_turns",
        "state.after_record",
        "events.before_store",
        "reconcile.before_events",
        "reconcile.after_events",
        "reconcile.after_rows",
        "archive.before_store",
        "archive.before_record",
        "archive.after_store",
        "projector.before_insert",
        "projector.after_insert",
        "tracer.before_send",
        "tracer.after_send",
        "agent.before_turn",
        "agent.after_turn",
        "agent.before_publish",
        "agent.after_publish",
        "artifact.before_put",
        "artifact.after_chunks",
        "artifact.after_put",
        "command.before_run",
        "command.after_run",
        "checks.before_run",
        "checks.after_run",
        "llm.before_claim",
        "llm.after_claim",
        "llm.before_journal",
        "llm.after_journal",
        "tools.before_queue",
        "tools.after_queue",
        "tools.before_claim",
        "tools.after_claim",
        "tools.after_call",
        "tools.after_outcome",
        "tools.after_result",
        "tools.after_ack",
        "ledger.before_reserve",
        "ledger.after_reserve",
        "ledger.before_settle",
        "ledger.after_settle",
    }
)


class FailpointError(RuntimeError):
    """Raised by a point that is set to `error`."""


@dataclass(frozen=True)
class _Rule:
    action: str
    seconds: float = 0
    times: int | None = None
    percent: float = 100


@cache
def _rules() -> dict[str, _Rule]:
    text = os.environ.get("COATCHECK_FAILPOINTS", "")
    return dict(_parse(item) for item in text.split(",") if item.strip())


def _parse(item: str) -> tuple[str, _Rule]:
    name, _, rule = item.strip().partition("=")
    if name not in POINTS:
        raise ValueError(f"unknown failpoint {name!r}; there are {', '.join(sorted(POINTS))}")
    rule, _, percent = rule.partition("%")
    rule, _, times = rule.partition("*")
    action, _, seconds = rule.partition(":")
    if action not in {"kill", "delay", "error"}:
        raise ValueError(f"failpoint {name}: unknown action {action!r}")
    return name, _Rule(action, float(seconds or 0), int(times) if times else None, float(percent or 100))


def _fires(name: str, rule: _Rule) -> bool:
    if rule.percent < 100 and random.random() * 100 >= rule.percent:  # noqa: S311, PLR2004  chance, not a secret
        return False
    return rule.times is None or any(_take(name, number) for number in range(rule.times))


def _take(name: str, number: int) -> bool:
    """Take one of the allowed firings; a file, since the process that fires may not live to remember it."""
    folder = Path(os.environ["COATCHECK_FAILPOINTS_DIR"])
    try:
        (folder / f"{name}.{number}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


async def failpoint(name: str) -> None:
    """Die, wait or raise here if a test says so; nothing otherwise."""
    rule = _rules().get(name)
    if rule is None or not _fires(name, rule):
        return
    if rule.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if rule.action == "error":
        raise FailpointError(name)
    await asyncio.sleep(rule.seconds)
