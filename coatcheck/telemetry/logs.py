"""Log lines that say which run and task they are about: for people on a terminal, as JSON in files, and over OTLP."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from opentelemetry._logs import Logger, LogRecord, SeverityNumber
from opentelemetry.semconv.attributes import exception_attributes
from opentelemetry.trace import TraceFlags

from coatcheck.telemetry.kinds import RUN_KEY, TASK_KEY
from coatcheck.telemetry.privacy import Privacy
from coatcheck.telemetry.scope import Scope, current_scope
from schemas.workflow_ids import run_key, task_key

OWN_LOGGERS: Final = frozenset({"coatcheck", "workers", "activities", "workflows", "schemas"})
"""Their messages are constants with the values beside them (ruff's G004), so the constant holds no content."""
_SEVERITIES: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
)


def _scope(record: logging.LogRecord) -> Scope | None:
    """What a line is about: the present work, or the activity that Temporal's own line is about."""
    if (scope := current_scope()) is not None:
        return scope
    about: dict[str, Any] = getattr(record, "temporal_activity", None) or {}
    names = [about.get(name) for name in ("workflow_id", "workflow_run_id", "activity_id")]
    if not all(names):
        return None
    workflow_id, run_id, activity_id = map(str, names)
    run = run_key(workflow_id, run_id)
    return Scope(run, task_key(run, activity_id))


def _unicode(text: str) -> str:
    """Without lone surrogates, which no reader of JSON takes, even as escapes."""
    return text.encode("utf-8", "replace").decode()


class JsonFormatter(logging.Formatter):
    """One JSON object per line, for files and for whoever collects them."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": _unicode(record.getMessage()),
        }
        if (scope := _scope(record)) is not None:
            said |= {"run": scope.run_key, "trace_id": scope.trace_id, "span_id": scope.span_id}
            if scope.task_key:
                said["task"] = scope.task_key
        if record.exc_info:
            said["exception"] = _unicode(self.formatException(record.exc_info))
        return json.dumps(said)


class TerminalFormatter(logging.Formatter):
    """For people: the run or task in front of the message."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s {process} %(levelname)s %(name)s: %(about)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the stack below it."""
        scope = _scope(record)
        record.about = f"[{scope.task_key or scope.run_key}] " if scope else ""
        return super().format(record)


class ExportingHandler(logging.Handler):
    """Hands lines to OpenTelemetry's log pipeline, as far as they may leave.

    The SDK's own handler is deprecated, and its successor would bring a second copy of the API.
    """

    def __init__(self, logger: Logger, privacy: Privacy) -> None:
        super().__init__()
        self._logger = logger
        self._privacy = privacy

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line; never blocks, never raises."""
        if record.name.startswith("opentelemetry"):
            return  # about failed exports: exporting that would go in a circle
        scope = _scope(record)
        said = LogRecord(
            timestamp=int(record.created * 1e9),
            observed_timestamp=time.time_ns(),
            trace_id=int(scope.trace_id, 16) if scope else None,
            span_id=int(scope.span_id, 16) if scope else None,
            trace_flags=TraceFlags(TraceFlags.SAMPLED) if scope else None,
            severity_text=record.levelname,
            severity_number=next(
                (mine for level, mine in _SEVERITIES if record.levelno >= level), SeverityNumber.DEBUG
            ),
            body=self._body(record),
            attributes=self._attributes(record),
        )
        self._logger.emit(said)

    def _body(self, record: logging.LogRecord) -> str:
        text = self._privacy.content(record.getMessage())
        if text is not None:
            return text
        is_constant = record.name.partition(".")[0] in OWN_LOGGERS and isinstance(record.msg, str)
        return record.msg if is_constant else "a message that may hold content"

    def _attributes(self, record: logging.LogRecord) -> dict[str, Any]:
        said = {"logger.name": record.name}
        if (scope := _scope(record)) is not None:
            said |= {RUN_KEY: scope.run_key, **({TASK_KEY: scope.task_key} if scope.task_key else {})}
        if record.exc_info and record.exc_info[0] is not None:
            said[exception_attributes.EXCEPTION_TYPE] = record.exc_info[0].__name__
            stack = self._privacy.content(logging.Formatter().formatException(record.exc_info))
            said |= {exception_attributes.EXCEPTION_STACKTRACE: stack} if stack else {}
        return said


def configure_logging(process: str, handlers: Sequence[logging.Handler] = ()) -> None:
    """Log to standard error, readable on a terminal and as JSON elsewhere, and to the given handlers besides."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(TerminalFormatter(process) if sys.stderr.isatty() else JsonFormatter(process))
    logging.basicConfig(level=logging.INFO, handlers=[stream, *handlers])
