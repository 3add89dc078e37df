"""Reads the audit log as NATS's `observer`; the table is only written here, by a rebuild."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from coatcheck.cli.output import columns, emit, emit_json, moment, one_line
from coatcheck.cli.progress import ENDED
from coatcheck.cli.runs import find_record, split_run_key
from coatcheck.cli.session import load_settings, open_database, open_nats
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.errors import CoatcheckError, StorageUnavailableError
from coatcheck.events.dead_letters import DeadLetter, read_dead_letters
from coatcheck.events.monitoring import BackboneStatus, backbone_status
from coatcheck.events.rebuilding import rebuild
from coatcheck.messaging.events import EventLog, StoredEvent
from coatcheck.settings import Settings
from schemas.events import EVENT_TYPES

QUIET_SECONDS: Final = 1.0
"""Without a further event after a run has ended, before `--follow` ends too: its last turns are told after it."""
_HEADER: Final = ("when", "severity", "event", "agent", "what")
_HIDDEN: Final = frozenset(
    {"run", "notice", "inherited", "inputs", "artifacts", "tool_calls", "tool_call_id", "summary", "stages", "agents"}
)
"""Parts of payloads that are for programs; hashes are too."""
_WHAT: Final = 200
"""Characters of a line's last column; `--json` has everything."""


class BackboneError(CoatcheckError):
    """There are dead letters, or the table is too far behind."""

    code = "events.unhealthy"


@dataclass(frozen=True)
class Wanted:
    """Which events of a run."""

    types: frozenset[str]
    """Empty: all."""
    from_sequence: int

    def __contains__(self, stored: StoredEvent) -> bool:
        return not self.types or stored.event.event_type in self.types


# --- one run ------------------------------------------------------------------------------------------------------


async def show(name: str, wanted: Wanted, *, follow: bool, as_json: bool, data_dir: Path) -> None:
    """Print the events of a run; with `follow`, until it ends.

    Raises:
        RunNotFoundError: no such run is recorded.
        MisuseError: there is no such event type.
        DependencyDownError: NATS does not answer, or PostgreSQL, which knows what a name means.
    """
    if unknown := sorted(wanted.types - EVENT_TYPES.keys()):
        raise MisuseError(f"there is no event type {unknown[0]!r}", hint=f"one of {', '.join(EVENT_TYPES)}")
    settings = load_settings(data_dir)
    run_key, ended = await run_key_of(settings, name)
    if not as_json:
        emit(_line(_HEADER, upper=True))
    async with open_nats(settings) as client:
        log = EventLog(client)
        if follow and not ended:
            events = _until_ended(log, settings, run_key, wanted.from_sequence)
        else:
            types = wanted.types or None
            events = log.read_run(run_key, from_sequence=wanted.from_sequence, types=types)
        async with aclosing(events) as told:
            async for stored in told:
                if stored in wanted:
                    _print(stored, as_json=as_json)


async def run_key_of(settings: Settings, name: str) -> tuple[str, bool]:
    """Run key, and whether the run has ended; a run key says the first by itself."""
    try:
        async with open_database(settings) as pool:
            record = await find_record(pool, name)
    except StorageUnavailableError:
        if split_run_key(name) is None:
            raise
        return name, False
    return record.run_key, record.status in ENDED


async def _until_ended(
    log: EventLog, settings: Settings, run_key: str, from_sequence: int
) -> AsyncGenerator[StoredEvent]:
    """Events as they come, until the run has ended and nothing more was told for a while."""
    ended, sequence = False, from_sequence
    async with aclosing(log.follow_run(run_key, from_sequence=from_sequence)) as told:
        coming = asyncio.ensure_future(anext(told))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=QUIET_SECONDS)
                if done:
                    stored = coming.result()
                    coming = asyncio.ensure_future(anext(told))
                    ended, sequence = _ends(stored, so_far=ended), stored.sequence + 1
                    yield stored
                elif ended or (await run_key_of(settings, run_key))[1]:
                    break
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
    async for stored in log.read_run(run_key, from_sequence=sequence):
        yield stored


def _ends(stored: StoredEvent, *, so_far: bool) -> bool:
    """Whether the run has ended after this event; events that do not say leave it as it was."""
    run = _payload(stored).get("run")
    return run["status"] in ENDED if isinstance(run, Mapping) and "status" in run else so_far


def _payload(stored: StoredEvent) -> dict[str, Any]:
    fields: dict[str, Any] = stored.event.model_dump(mode="json", exclude_none=True, include={"payload"})["payload"]
    return fields


def _print(stored: StoredEvent, *, as_json: bool) -> None:
    event = stored.event
    if as_json:
        place = {"sequence": stored.sequence, "stored_at": stored.stored_at}
        emit_json(place | event.model_dump(mode="json", exclude_none=True), indent=None)
        return
    said = {name: value for name, value in _payload(stored).items() if not _is_hidden(name, value)}
    what = " ".join(f"{name}={one_line(str(value), 80)}" for name, value in said.items())
    emit(_line((moment(event.occurred_at), event.severity, event.event_type, event.agent or "", one_line(what, _WHAT))))


def _is_hidden(name: str, value: object) -> bool:
    return name in _HIDDEN or name.endswith("sha256") or value in ("", None)


def _line(cells: Sequence[str], *, upper: bool = False) -> str:
    """Fixed widths, since with --follow later lines are not known yet."""
    when, severity, event, agent, what = (cell.upper() if upper else cell for cell in cells)
    return f"{when:<19}  {severity:<8}  {event:<21}  {agent:<8}  {what}".rstrip()


# --- the backbone -------------------------------------------------------------------------------------------------


async def status(*, max_lag: int, as_json: bool, data_dir: Path) -> None:
    """Print how the backbone is.

    Raises:
        BackboneError: there are dead letters, or the table is more than `max_lag` events behind.
        DependencyDownError: NATS does not answer.
    """
    async with open_nats(load_settings(data_dir)) as client:
        found = await backbone_status(client)
    if as_json:
        emit_json(found.model_dump() | {"lag": found.lag})
    else:
        emit(columns(("what", "value"), _status_rows(found)))
    if problems := backbone_problems(found, max_lag=max_lag):
        raise BackboneError("; ".join(problems), hint="`coatcheck events dead` lists dead letters")


def backbone_problems(found: BackboneStatus, *, max_lag: int) -> list[str]:
    """What somebody should look at, in words."""
    problems = []
    if found.dead_letters:
        problems.append(f"{found.dead_letters:,} dead letters")
    if found.lag > max_lag:
        problems.append(f"the table is {found.lag:,} events behind the audit log, more than {max_lag:,}")
    return problems


def traces_told(found: BackboneStatus) -> str:
    """How far traces are behind; never a problem of the backbone, since nothing waits for them."""
    return "no traces are made" if found.tracer_lag is None else f"{found.tracer_lag:,}"


def _status_rows(found: BackboneStatus) -> list[list[str]]:
    reader = "" if found.projector_exists else " (no projector has begun yet)"
    return [
        ["events in the audit log", f"{found.events:,}"],
        ["their bytes", f"{found.bytes:,}"],
        ["their sequences", f"{found.first_sequence} to {found.last_sequence}"],
        ["not in the table yet", f"{found.lag:,}{reader}"],
        ["not in traces yet", traces_told(found)],
        ["dead letters", f"{found.dead_letters:,}"],
    ]


async def dead(*, limit: int, as_json: bool, data_dir: Path) -> None:
    """Print the latest dead letters, the oldest of them first.

    Raises:
        DependencyDownError: NATS does not answer.
    """
    async with open_nats(load_settings(data_dir)) as client:
        letters = await read_dead_letters(client, latest=limit)
    if as_json:
        emit_json([asdict(letter) | {"data": letter.data.decode(errors="backslashreplace")} for letter in letters])
        return
    emit(
        columns(("number", "when", "message", "subject", "bytes", "reason"), [_dead_row(letter) for letter in letters])
    )


def _dead_row(letter: DeadLetter) -> list[str]:
    return [
        str(letter.sequence),
        moment(letter.buried_at),
        f"{letter.stream}:{letter.stream_sequence}",
        letter.subject,
        f"{len(letter.data):,}",
        one_line(letter.reason),
    ]


async def rebuild_table(*, as_json: bool, data_dir: Path) -> None:
    """Write the table anew and print what was done.

    Raises:
        DependencyDownError: a server does not answer; the table is as it was.
    """
    settings = load_settings(data_dir)
    tenth = 0

    def show_progress(read: int, events: int) -> None:
        nonlocal tenth
        if (reached := 10 * read // events) > tenth:
            tenth = reached
            tell(f"{read:,} of {events:,} events")

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_database(settings))
        client = await stack.enter_async_context(open_nats(settings))
        done = await rebuild(pool, client, progress=show_progress)
    if as_json:
        emit_json(asdict(done))
    else:
        tell(f"read {done.read:,} events, {done.first} to {done.last}, in place of {done.removed:,} rows")
