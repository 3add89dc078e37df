"""The export: day by day, from the audit log to whole files.

Resumable: a day that is closed and has its manifest is not read again. Crash-safe: a day is staged, looked over,
published file by file, and its manifest comes last; whoever dies in between leaves whole files, and the next export
makes the same bytes again. The days that are still open are made anew each time, as they grow.
"""

import fcntl
import json
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from coatcheck.errors import CoatcheckError
from coatcheck.objects.destinations import Destination
from coatcheck.training.auditlog import AuditLog, Bounds, DayRange
from coatcheck.training.columns import DataType, Draft, redact
from coatcheck.training.dialogues import DialogueMaker
from coatcheck.training.facts import ROUND_ENDS, RUN_ENDS
from coatcheck.training.files import PairOfFiles, Staged, text_of_manifest
from coatcheck.training.redaction import Redactor
from coatcheck.training.rows import event_row, run_row, task_row, tool_row
from coatcheck.training.scanning import FinishedScan
from schemas.events import ToolCompleted

MANIFEST_SCHEMA: Final = "coatcheck.training/1"
LIBRARIES: Final = ("detect-secrets", "phonenumbers", "kingfisher-bin")
"""Other versions may redact otherwise."""
_DIALOGUES: Final = {DataType.SFT, DataType.PREFERENCES}
LOCK_FILE: Final = "lock"


class ExportRunningError(CoatcheckError):
    """Another export uses the same staging folder."""

    code = "export.running"


@dataclass(frozen=True)
class Progress:
    """How far an export is."""

    day: date
    done: int
    """Sequences of the day's range that were read."""
    total: int


@dataclass
class DayReport:
    """What became of one day."""

    day: date
    is_closed: bool
    rows: dict[str, int] = field(default_factory=dict)
    withheld: dict[str, int] = field(default_factory=dict)
    files: list[Staged] = field(default_factory=list)
    was_done: bool = False
    """By an earlier export; nothing was read."""


class Exporter:
    """Exports training data.

    Args:
        log: The audit log.
        dialogues: Makes chats of a run.
        redactor: Takes secrets out of rows.
        scan: Looks over what is finished.
        destination: Where the files go.
        staging: A folder of our own for files that nobody may see yet.
    """

    def __init__(
        self,
        log: AuditLog,
        *,
        dialogues: DialogueMaker,
        redactor: Redactor,
        scan: FinishedScan,
        destination: Destination,
        staging: Path,
    ) -> None:
        self._log = log
        self._dialogues = dialogues
        self._redactor = redactor
        self._scan = scan
        self._destination = destination
        self._staging = staging

    async def export(
        self,
        types: Sequence[DataType] = tuple(DataType),
        *,
        since: date | None = None,
        until: date | None = None,
        tell: Callable[[Progress], None] = lambda _: None,
    ) -> list[DayReport]:
        """Export what is there now, from the first to the last day.

        Raises:
            ExportRunningError: another export is under way.
            ExportRefusedError: a finished file of a day shows a secret; earlier days are published.
            DestinationError: the destination cannot be written to.
            DependencyDownError: a server is away; export again to go on.
        """
        with self._alone():
            bounds = await self._log.bounds()
            days = await self._log.days(bounds, since=since, until=until)
            return [report for day in days if (report := await self._day(day, bounds, types, tell)) is not None]

    async def _day(
        self, day: date, bounds: Bounds, types: Sequence[DataType], tell: Callable[[Progress], None]
    ) -> DayReport | None:
        """One day; `None` when it has no row yet."""
        manifest = self._manifest(day)
        missing = [kind for kind in types if not manifest["types"].get(kind, {}).get("closed")]
        if not missing:
            return DayReport(day, is_closed=True, was_done=True)
        span = await self._log.range_of(day, bounds)
        report = await self._stage(span, missing, tell)
        if not report.rows and not span.is_closed:
            return None
        self._publish(report, span, missing, manifest)
        return report

    async def _stage(self, span: DayRange, types: Sequence[DataType], tell: Callable[[Progress], None]) -> DayReport:
        """Write the day's rows where nobody sees them."""
        folder = self._staging / "day"
        shutil.rmtree(folder, ignore_errors=True)
        files: dict[DataType, PairOfFiles] = {}
        report = DayReport(span.day, span.is_closed)
        try:
            async for sequence, draft in self._drafts(span, types):
                tell(Progress(span.day, sequence - span.first + 1, span.last - span.first + 1))
                if (kind := draft.data_type) not in types:
                    continue
                if kind not in files:
                    files[kind] = PairOfFiles(folder, kind, f"{kind}_{span.day.isoformat()}")
                files[kind].write(redact(draft, self._redactor))
            for kind in sorted(files):
                report.files += files[kind].finish()
                report.rows[kind], report.withheld[kind] = files[kind].rows, files[kind].withheld
        finally:
            for pair in files.values():
                pair.close()
        if report.files:
            self._scan.check(folder, report.files)
        return report

    async def _drafts(self, span: DayRange, types: Sequence[DataType]) -> AsyncGenerator[tuple[int, Draft]]:
        """Every row of the day with the sequence of its event, in order."""
        async for stored in self._log.read(span):
            yield stored.sequence, event_row(stored)
            if isinstance(stored.event, ROUND_ENDS):
                run = await self._log.facts(stored.event.correlation_id, span.last)
                said = stored.event.payload
                yield stored.sequence, task_row(stored, run, run.round_of(said.stage, said.round))
            elif isinstance(stored.event, ToolCompleted):
                run = await self._log.facts(stored.event.correlation_id, span.last)
                yield stored.sequence, tool_row(stored, stored.event, run)
            elif isinstance(stored.event, RUN_ENDS):
                run = await self._log.facts(stored.event.correlation_id, span.last)
                if run.ended != stored.sequence:
                    continue  # it went on after a reset, and ends later
                yield stored.sequence, run_row(stored, run)
                if _DIALOGUES & set(types):
                    async for draft in self._dialogues.rows(stored, run):
                        yield stored.sequence, draft

    def _publish(self, report: DayReport, span: DayRange, types: Sequence[DataType], manifest: dict[str, Any]) -> None:
        """The files, and last the manifest that vouches for them."""
        for file in report.files:
            self._destination.put(file.path, file.source)
        for kind in types:
            if kind in report.rows or span.is_closed:
                manifest["types"][kind] = {
                    "closed": span.is_closed,
                    "first_sequence": span.first,
                    "last_sequence": span.last,
                    "rows": report.rows.get(kind, 0),
                    "withheld": report.withheld.get(kind, 0),
                    "files": {
                        file.path: {"sha256": file.sha256, "bytes": file.bytes}
                        for file in report.files
                        if file.path.startswith(f"{kind}/")
                    },
                    "made_with": {name: version(name) for name in LIBRARIES},
                }
        staged = self._staging / "manifest.json"
        staged.write_bytes(text_of_manifest(manifest))
        self._destination.put(manifest_path(report.day), staged)

    def _manifest(self, day: date) -> dict[str, Any]:
        found = self._destination.get(manifest_path(day))
        if found is not None:
            try:
                manifest = json.loads(found)
                if manifest["schema"] == MANIFEST_SCHEMA and isinstance(manifest["types"], dict):
                    return dict(manifest)
            except (ValueError, TypeError, KeyError):
                pass  # somebody else's file, or an older form: made anew
        return {"schema": MANIFEST_SCHEMA, "day": day.isoformat(), "types": {}}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the staging folder; the lock goes with the process, whatever ends it."""
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._staging / LOCK_FILE).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ExportRunningError(
                    "another export is under way", hint=f"it uses {self._staging}; wait until it has ended"
                ) from error
            try:
                yield
            finally:
                shutil.rmtree(self._staging / "day", ignore_errors=True)


def manifest_path(day: date) -> str:
    """Where a day's manifest lies."""
    return f"manifests/manifest_{day.isoformat()}.json"
