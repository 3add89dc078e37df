"""Log lines as `logs.JsonFormatter` writes them, read again and shown to people."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ValidationError

from schemas.workflow_ids import feature_of, session_of

_LOOKS_LIKE_JSON: Final = b"{"


class LogLine(BaseModel):
    """One line of one process."""

    time: datetime
    level: str
    process: str
    logger: str
    message: str
    run: str | None = None
    """Run key."""
    task: str | None = None
    """Task key."""
    trace_id: str | None = None
    span_id: str | None = None
    exception: str | None = None

    @classmethod
    def parse(cls, line: bytes) -> Self | None:
        """The line; `None` when it is something else, such as what a program in C has to say."""
        if not line.startswith(_LOOKS_LIKE_JSON):
            return None
        try:
            return cls.model_validate_json(line)
        except ValidationError:
            return None

    def is_about(self, name: str) -> bool:
        """Whether it is about the run, the workflow id or the feature of that name."""
        if self.run is None:
            return False
        workflow_id = session_of(self.run)
        return name in {self.run, workflow_id, feature_of(workflow_id)}

    def shown(self) -> str:
        """For people: `23:27:45.123 agents INFO backend-2: …`, and the stack below it."""
        about = f" {self.task.rpartition('/')[2]}" if self.task else ""
        text = f"{self.time:%H:%M:%S.%f}"[:-3] + f" {self.process} {self.level}{about}: {self.message}"
        return f"{text}\n{self.exception}" if self.exception else text


def read_lines(paths: Iterable[Path]) -> Iterator[LogLine]:
    """Every line of these files that can be read, file by file; one that does not exist is left out."""
    for path in paths:
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line in file:
                if (read := LogLine.parse(line)) is not None:
                    yield read


def readable(line: str) -> str:
    """One line of a log for people, whatever form it has."""
    read = LogLine.parse(line.encode("utf-8", "replace"))
    return read.shown() if read else line
