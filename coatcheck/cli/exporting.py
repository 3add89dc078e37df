"""Exports training data with what this machine has: the observer's connection, the rows, and every key to hide."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from coatcheck.cli.event_schemas import event_schemas, union_schema
from coatcheck.cli.output import columns, emit, emit_json
from coatcheck.cli.session import load_settings, open_database, open_nats
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError
from coatcheck.settings import Settings

STAGING: Final = "training"
_EXTRA: Final = ("detect_secrets", "kingfisher", "obstore", "phonenumbers")
_BAR: Final = 24
_HEADER: Final = ("day", "type", "rows", "withheld", "state")


async def export(
    out: str, *, types: Sequence[str], since: date | None, until: date | None, as_json: bool, data_dir: Path
) -> None:
    """Export training data and print what became of each day.

    Raises:
        MisuseError: a type that does not exist, or days that end before they begin.
        ExportRefusedError: a finished file shows a secret; nothing of its day was published.
        CoatcheckError: what the extra `training` brings is not installed, or another export is under way.
        DependencyDownError: a server or the object storage is away; the same command goes on where it was.
    """
    if since is not None and until is not None and until < since:
        raise MisuseError(f"--to {until} is before --from {since}")
    _require_extra()
    from coatcheck.gateway.claims import ClaimDesk  # noqa: PLC0415  after it is known that the extra is there
    from coatcheck.messaging.deliverables import DeliverableService  # noqa: PLC0415
    from coatcheck.objects.destinations import open_destination  # noqa: PLC0415
    from coatcheck.storage import state  # noqa: PLC0415
    from coatcheck.storage.journal import MAX_TURN, TurnJournal  # noqa: PLC0415
    from coatcheck.training.auditlog import AuditLog  # noqa: PLC0415
    from coatcheck.training.columns import DataType  # noqa: PLC0415
    from coatcheck.training.dialogues import DialogueMaker  # noqa: PLC0415
    from coatcheck.training.exporting import Exporter  # noqa: PLC0415
    from coatcheck.training.redaction import Redactor  # noqa: PLC0415
    from coatcheck.training.scanning import FinishedScan  # noqa: PLC0415

    if unknown := [name for name in types if name not in list(DataType)]:
        raise MisuseError(f"no type is called {unknown[0]!r}", hint=f"the types are {', '.join(DataType)}")
    settings = load_settings(data_dir)
    secrets = _secrets(settings)
    async with open_nats(settings) as client, open_database(settings) as pool:
        journal = TurnJournal(pool, "export")
        deliverables = DeliverableService(client, streams=load_config(settings.config_file).streams)

        async def history(task_key: str) -> list[dict[str, Any]]:
            return await journal.history(task_key, MAX_TURN + 1)

        async def read_brief(run_key: str) -> str:
            return await state.read_brief(pool, run_key)

        exporter = Exporter(
            AuditLog(client),
            dialogues=DialogueMaker(
                history=history,
                deliverables=deliverables,
                claims=ClaimDesk(deliverables=deliverables, read_brief=read_brief),
            ),
            redactor=Redactor(secrets),
            scan=FinishedScan(secrets, cache=settings.data_dir / "cache" / "kingfisher"),
            destination=open_destination(out),
            staging=settings.data_dir / "staging" / STAGING,
        )
        chosen = [DataType(name) for name in types] or list(DataType)
        reports = await exporter.export(chosen, since=since, until=until, tell=_progress_bar())
    _show(reports, out, as_json=as_json)


def schema(out: Path | None) -> None:
    """Print the union's schema, or write one file per type and remove those of types that are no more.

    Raises:
        CoatcheckError: the folder cannot be written to.
    """
    if out is None:
        emit_json(union_schema())
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = {f"{name}.schema.json": value for name, value in event_schemas().items()}
        for name, value in written.items():
            (out / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
        for path in out.glob("*.schema.json"):
            if path.name not in written:
                path.unlink()
    except OSError as error:
        raise CoatcheckError(f"cannot write {error.filename}: {error.strerror}") from error
    tell(f"{len(written)} schemas in {out}")


def _require_extra() -> None:
    if missing := [name for name in _EXTRA if find_spec(name) is None]:
        raise CoatcheckError(
            f"the extra `training` is not installed: {missing[0]} is missing", hint="pip install 'coatcheck[training]'"
        )


def _secrets(settings: Settings) -> set[str]:
    from coatcheck.training.ownsecrets import own_secrets  # noqa: PLC0415

    urls = [value.get_secret_value() for value in (settings.database_url, settings.gateway_database_url) if value]
    try:
        folders = [settings.keys_dir, *([settings.secrets_dir] if settings.secrets_dir else [])]
        return own_secrets(os.environ, folders=folders, urls=[*urls, settings.nats_url or ""])
    except OSError as error:
        raise CoatcheckError(
            f"{error.filename} cannot be read, so nobody could tell whether it gets out: {error.strerror}"
        ) from error


def _progress_bar() -> Callable[[Any], None]:
    """On stderr, redrawn when it has moved; nothing where nobody looks."""
    if not sys.stderr.isatty():
        return lambda _: None
    shown = ""

    def draw(progress: Any) -> None:
        nonlocal shown
        share = progress.done / max(1, progress.total)
        filled = int(share * _BAR)
        line = f"\r{progress.day} [{'#' * filled}{'.' * (_BAR - filled)}] {share:4.0%}"
        if line != shown:
            shown = line
            sys.stderr.write(line if progress.done < progress.total else f"{line}\n")
            sys.stderr.flush()

    return draw


def _show(reports: Sequence[Any], out: str, *, as_json: bool) -> None:
    if as_json:
        emit_json(
            [
                {
                    "day": report.day,
                    "closed": report.is_closed,
                    "was_done": report.was_done,
                    "rows": report.rows,
                    "withheld": report.withheld,
                    "files": [{"path": file.path, "sha256": file.sha256, "bytes": file.bytes} for file in report.files],
                }
                for report in reports
            ]
        )
        return
    rows = [
        [str(report.day), kind, f"{count:,}", f"{report.withheld[kind]:,}", "closed" if report.is_closed else "open"]
        for report in reports
        for kind, count in report.rows.items()
    ]
    emit(columns(_HEADER, rows))
    done = sum(report.was_done for report in reports)
    tell(f"written to {out}" + (f"; {done:,} days had been exported before" if done else ""))
