"""Follows a run to its end: a live table on a terminal, one line per change elsewhere."""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.service import RPCError

from coatcheck.cli.output import emit, emit_json
from coatcheck.cli.progress import ENDED, HEADER, WORKFLOW, ProgressReader, Seen, headline, question, stage_rows, table
from coatcheck.cli.runs import FoundRun, find
from coatcheck.cli.session import UP_HINT, load_settings, open_temporal
from coatcheck.cli.voice import tell
from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.settings import Settings
from schemas.pipeline import PipelineResult, Progress, RunStatus, StageState

POLL_SECONDS: Final = 0.3
"""Short enough to look alive; a query costs a worker about 2 ms."""
AWAY_SECONDS: Final = 60.0
"""How long Temporal may be away in the middle of a run before we give up; a restart takes a few."""
_PYDANTIC_LINK: Final = re.compile(r"For further information visit \S+")
_STYLES: Final = {"done": "green", "running": "cyan", "waiting": "yellow", "failed": "red", "pending": "dim"}


class RunNotCompletedError(CoatcheckError):
    """The run ended otherwise than completed."""

    code = "run.not_completed"


async def watch_run(run: str, *, as_json: bool, data_dir: Path) -> None:
    """Follow the run called `run`.

    Raises:
        RunNotFoundError: there is none.
        RunNotCompletedError: it ended otherwise than completed.
        DependencyDownError: Temporal does not answer.
    """
    settings = load_settings(data_dir)
    client = await open_temporal(settings)
    await watch_found(client, await find(client, run), settings, as_json=as_json)


async def watch_found(client: Client, found: FoundRun, settings: Settings, *, as_json: bool) -> None:
    """Follow a run; its final table, or its result as JSON, goes to stdout.

    Raises:
        RunNotCompletedError: it ended otherwise than completed.
        DependencyDownError: Temporal was away for 60 s.
    """
    async with AsyncExitStack() as resources:
        reader = ProgressReader(client, found, settings, resources)
        ending = _Ending(client, found)
        try:
            seen, outcome = await (_follow(ending, reader) if found.is_open else _ended(ending, reader))
        except asyncio.CancelledError:
            tell(f"the run goes on; `coatcheck watch {found.workflow_id}` follows it again")
            raise
    _report(seen.progress, outcome, as_json=as_json)


async def _follow(ending: "_Ending", reader: ProgressReader) -> tuple[Seen, PipelineResult | CoatcheckError]:
    """Show every change until the run has ended."""
    console = Console(stderr=True)
    end = asyncio.create_task(ending.wait())
    try:
        with _live(console) if console.is_terminal else _Lines() as show:
            while not end.done():
                show(await reader.read())
                await asyncio.wait({end}, timeout=POLL_SECONDS)
            seen = await reader.read()
            show(seen)
        return seen, end.result()
    finally:
        end.cancel()


async def _ended(ending: "_Ending", reader: ProgressReader) -> tuple[Seen, PipelineResult | CoatcheckError]:
    """There is nothing to follow any more."""
    return await reader.read(), await ending.wait()


class _Ending:
    """Waits for the end of a run, also through a restart of Temporal and through a reset."""

    def __init__(self, client: Client, found: FoundRun) -> None:
        self._client = client
        self._found = found

    async def wait(self) -> PipelineResult | CoatcheckError:
        """The result, or what the run ended with instead.

        Raises:
            DependencyDownError: Temporal was away for 60 s.
        """
        answered = time.monotonic()
        while True:
            try:
                return await self._found.handle(self._client).result()
            except WorkflowFailureError as failure:
                if isinstance(failure.cause, TerminatedError) and await self._was_reset():
                    continue
                return _failure(failure)
            except RPCError as error:
                if time.monotonic() - answered > AWAY_SECONDS:
                    raise DependencyDownError(f"Temporal does not answer: {error.message}", hint=UP_HINT) from error
                # The wait for the result ends after a while even when all is well; an answer resets the clock.
                if await self._answers():
                    answered = time.monotonic()
                await asyncio.sleep(POLL_SECONDS)

    async def _was_reset(self) -> bool:
        latest = await find(self._client, self._found.run_key)
        moved = latest.run_id != self._found.run_id
        self._found = latest
        return moved

    async def _answers(self) -> bool:
        try:
            await self._found.handle(self._client).describe()
        except RPCError:
            return False
        return True


def _failure(failure: WorkflowFailureError) -> CoatcheckError:
    cause = failure.cause
    if isinstance(cause, CancelledError):
        return RunNotCompletedError("the run was cancelled")
    if isinstance(cause, TerminatedError):
        return RunNotCompletedError(f"the run was terminated: {cause.message}")
    kind = f" ({cause.type})" if isinstance(cause, ApplicationError) and cause.type else ""
    text = " ".join(_PYDANTIC_LINK.sub("", str(getattr(cause, "message", cause))).split())
    return RunNotCompletedError(f"the run failed: {text}{kind}")


def _report(progress: Progress | None, outcome: PipelineResult | CoatcheckError, *, as_json: bool) -> None:
    if as_json:
        emit_json(outcome if isinstance(outcome, PipelineResult) else progress)
    elif progress is not None:
        emit(table(progress))
    if isinstance(outcome, CoatcheckError):
        raise outcome
    if outcome.status is not RunStatus.COMPLETED:
        raise RunNotCompletedError(f"the run was {outcome.status}: {outcome.reason}")


# --- display ------------------------------------------------------------------------------------------------------


class _live:  # noqa: N801  used like a function
    """A table on the terminal that is redrawn in place and goes away at the end."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Callable[[Seen], None]:
        self._live.start()
        return lambda seen: self._live.update(_drawing(seen), refresh=True)

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def _drawing(seen: Seen) -> Table | Text:
    if seen.progress is None:
        return Text(f"waiting for the first stage ({seen.source})", style="dim")
    drawing = Table(box=None, caption=_caption(seen, seen.progress), caption_justify="left", padding=(0, 2, 0, 0))
    *shown, _ = HEADER  # the subjects would not fit into 80 columns; the final table has them
    for name in shown:
        drawing.add_column(name, no_wrap=True)
    for row in stage_rows(seen.progress, datetime.now(UTC)):
        drawing.add_row(*row[: len(shown)], style=_STYLES[row[HEADER.index("state")]])
    return drawing


def _caption(seen: Seen, progress: Progress) -> str:
    lines = [headline(progress), *question(progress)]
    return "\n".join(lines if seen.source == WORKFLOW else [*lines, seen.source])


class _Lines:
    """One line on stderr per change, with the time."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._source = WORKFLOW

    def __enter__(self) -> Callable[[Seen], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        pass

    def _show(self, seen: Seen) -> None:
        if seen.source != self._source:
            self._source = seen.source
            note = "the workflow answers again" if seen.source == WORKFLOW else seen.source
            tell(f"{datetime.now(UTC):%H:%M:%S} {note}")
        for when, line in changes(seen.progress, datetime.now(UTC)) if seen.progress else []:
            if line not in self._told:
                self._told.add(line)
                tell(line if line.startswith("hint:") else f"{when:%H:%M:%S} {line}")


def changes(progress: Progress, now: datetime) -> list[tuple[datetime, str]]:
    """What is worth a line, in order of time; each is worded so that it is the same until something changes."""
    lines: list[tuple[datetime, str]] = []
    for row in progress.stages:
        if row.started_at is None:
            continue
        lines.append((row.started_at, f"{row.stage}: {row.agent} works on round {row.round}"))
        if row.seconds is not None:
            verdict = f", {row.verdict}" if row.verdict else ""
            how = "ended unfinished after" if row.state is StageState.FAILED else "done in"
            line = f"{row.stage}: round {row.round} {how} {row.seconds:.1f} s{verdict}: {row.summary}"
            lines.append((row.started_at + timedelta(seconds=row.seconds), line.removesuffix(": ")))
    lines.sort(key=lambda pair: pair[0])
    lines += [(now, line) for line in question(progress)]
    if progress.status in ENDED:
        lines.append((now, f"the run is {progress.status}"))
    elif progress.status is RunStatus.PAUSED:
        lines.append((now, "the run is paused; `coatcheck resume` lets it go on"))
    return lines
