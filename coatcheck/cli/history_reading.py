"""Rebuilds a run's past from the audit log; PostgreSQL is asked for nothing but what a name means."""

from pathlib import Path

from coatcheck.cli.event_log import run_key_of
from coatcheck.cli.output import columns, emit, emit_json, moment, one_line
from coatcheck.cli.session import load_settings, open_nats
from coatcheck.errors import CoatcheckError
from coatcheck.events.past import Past, rebuild
from coatcheck.messaging.events import EventLog


class BeforeTheRunError(CoatcheckError):
    """The run had not begun at that sequence, or the audit log does not hold its beginning any more."""

    code = "events.before_the_run"


async def show_past(name: str, *, sequence: int | None, as_json: bool, data_dir: Path) -> None:
    """Print the run as it was.

    Raises:
        BeforeTheRunError: nothing of the run is known at that sequence.
        RunNotFoundError: no such run is recorded.
        DependencyDownError: NATS does not answer.
    """
    settings = load_settings(data_dir)
    run_key, _ = await run_key_of(settings, name)
    async with open_nats(settings) as client:
        told = []
        async for stored in EventLog(client).read_run(run_key):
            if sequence is not None and stored.sequence > sequence:
                break
            told.append(stored)
    past = rebuild(told)
    if past is None:
        when = f"at sequence {sequence:,}" if sequence is not None else "in the audit log"
        raise BeforeTheRunError(
            f"{run_key} has not begun {when}", hint=f"`coatcheck events {name} --json` shows its sequences"
        )
    if as_json:
        emit_json(past)
    else:
        emit(_text(past))


def _text(past: Past) -> str:
    run = past.run
    step = f", in {run.current_step}" if run.current_step else ""
    head = [
        f"{run.feature}: {run.status}{step}, {run.completed_steps} of {run.total_steps} stages done",
        f"run {run.run_key}, after sequence {past.sequence:,} ({moment(past.at)} UTC)",
    ]
    if run.error:
        head.append(f"error: {one_line(run.error)}")
    rounds = [
        [task.stage, str(task.round), task.agent, task.status, moment(task.started_at), moment(task.completed_at)]
        for task in past.tasks
    ]
    agents = [[agent.agent, agent.state, moment(agent.since)] for agent in past.agents]
    parts = ["\n".join(head) + "\n"]
    if rounds:
        parts.append(columns(("stage", "round", "agent", "status", "started", "completed"), rounds))
    if agents:
        parts.append(columns(("agent", "state", "since"), agents))
    parts.append(f"{len(past.turns)} model turns of rounds that had ended\n")
    return "\n".join(parts)
