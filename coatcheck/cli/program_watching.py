"""Follows a program to its end: a live table with a bar on a terminal, one line per change elsewhere."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coatcheck.cli.output import emit, emit_json
from coatcheck.cli.program_view import HEADER, ProgramReader, SeenProgram, headline, is_over, not_through, rows, table
from coatcheck.cli.voice import tell
from coatcheck.cli.watching import AWAY_SECONDS, RunNotCompletedError
from coatcheck.errors import DependencyDownError
from schemas.program import FeatureLine, FeatureState

POLL_SECONDS: Final = 0.5
"""A query of 500 features costs a worker some 5 ms."""
BESIDES_ROWS: Final = 6
"""Lines of the screen that the bar, the headline, the header and the prompt need."""
_FIRST: Final = (FeatureState.WAITING, FeatureState.RUNNING)
_LAST: Final = (FeatureState.PENDING, FeatureState.COMPLETED)
_STYLES: Final = {
    FeatureState.PENDING: "dim",
    FeatureState.RUNNING: "cyan",
    FeatureState.WAITING: "yellow",
    FeatureState.COMPLETED: "green",
}
_FAILED_STYLE: Final = "red"


async def follow(reader: ProgramReader, *, as_json: bool) -> None:
    """Show every change until the program has ended; the final table, or JSON, goes to stdout.

    Raises:
        RunNotCompletedError: it was cancelled, terminated or failed, or a feature did not go through.
        DependencyDownError: Temporal or every core worker was away for 60 s.
    """
    console = Console(stderr=True)
    try:
        with _Screen(console) if console.is_terminal else _Lines() as show:
            seen = await _patiently(reader)
            show(seen)
            while not is_over(seen):
                await asyncio.sleep(POLL_SECONDS)
                seen = await _patiently(reader)
                show(seen)
    except asyncio.CancelledError:
        tell(f"the program goes on; `coatcheck program watch {reader.name}` follows it again")
        raise
    report(seen, as_json=as_json)
    if seen.status != "completed":
        raise RunNotCompletedError(f"the program was {seen.status}" if not seen.error else seen.error)
    if failed := not_through(seen):
        raise RunNotCompletedError(f"{failed} of {len(seen.features)} features did not go through")


async def _patiently(reader: ProgramReader) -> SeenProgram:
    """Look again while Temporal or the workers are being restarted."""
    since = time.monotonic()
    while True:
        try:
            return await reader.read()
        except DependencyDownError:
            if time.monotonic() - since > AWAY_SECONDS:
                raise
            await asyncio.sleep(POLL_SECONDS)


def report(seen: SeenProgram, *, as_json: bool) -> None:
    """The table or JSON on stdout, and on stderr what a person can do about features that wait."""
    if as_json:
        emit_json(seen)
        return
    emit(table(seen))
    if waiting := next((line for line in seen.features if line.state is FeatureState.WAITING), None):
        tell(f"hint: `coatcheck progress {waiting.feature}` shows what is asked of a person")


class _Screen:
    """A table on the terminal that is redrawn in place and goes away at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Callable[[SeenProgram], None]:
        self._live.start()
        return lambda seen: self._live.update(drawing(seen, self._console.height - BESIDES_ROWS), refresh=True)

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def drawing(seen: SeenProgram, most_rows: int) -> Group:
    """The bar, the headline, and as many features as the screen has room for: who works or waits goes first."""
    if not seen.features:
        return Group(Text("waiting for a core worker to take the program up", style="dim"))
    ended = sum(line.state not in (FeatureState.PENDING, *_FIRST) for line in seen.features)
    grid = Table(box=None, padding=(0, 2, 0, 0))
    for name in HEADER:
        grid.add_column(name, no_wrap=True)
    shown = in_view(seen.features, max(most_rows, 1))
    for line, row in zip(shown, rows(shown), strict=True):
        grid.add_row(*map(Text, row), style=_STYLES.get(line.state, _FAILED_STYLE))
    more = Text(f"… and {len(seen.features) - len(shown)} more" if len(shown) < len(seen.features) else "", style="dim")
    bar = Table.grid()  # a bar alone does not end its line
    bar.add_row(ProgressBar(total=len(seen.features), completed=ended, width=60))
    return Group(bar, Text(headline(seen)), grid, more)


def in_view(lines: list[FeatureLine], most: int) -> list[FeatureLine]:
    """At most `most` features: those that wait, that work, that did not go through, then the others."""
    order = [*_FIRST, *(state for state in FeatureState if state not in (*_FIRST, *_LAST)), *_LAST]
    return sorted(lines, key=lambda line: order.index(line.state))[:most]


class _Lines:
    """One line on stderr per change, with the time."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def __enter__(self) -> Callable[[SeenProgram], None]:
        return self._show

    def __exit__(self, *_: object) -> None:
        pass

    def _show(self, seen: SeenProgram) -> None:
        now = f"{datetime.now(UTC):%H:%M:%S}"
        for name, text in changes(seen).items():
            if self._told.get(name) != text:
                self._told[name] = text
                tell(f"{now} {text}")


def changes(seen: SeenProgram) -> dict[str, str]:
    """What is worth a line, by what it is about; each is the same until something changes."""
    lines = {line.feature: _told(line) for line in seen.features if line.state is not FeatureState.PENDING}
    if seen.status == "paused":
        lines[""] = f"the program is paused; `coatcheck program resume {seen.name}` lets it go on"
    elif seen.status != "running":
        lines[""] = f"the program is {seen.status}"
    return lines


def _told(line: FeatureLine) -> str:
    text = f"{line.feature}: {line.state}" + (f": {line.reason}" if line.reason else "")
    return f"{text}; `coatcheck progress {line.feature}` asks" if line.state is FeatureState.WAITING else text
