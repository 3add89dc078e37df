"""What is wrong with a run."""

from pydantic import BaseModel, ConfigDict


class Violation(BaseModel):
    """One broken rule."""

    model_config = ConfigDict(frozen=True)

    rule: str
    """An invariant, or `input`, `sequence`, `forbidden`, `count`, `time`, `budget`, `judge`."""
    message: str
    sequence: int | None = None
    """Of the audit log, where it shows; `None` for what concerns the whole run."""

    def __str__(self) -> str:
        where = "" if self.sequence is None else f" (sequence {self.sequence})"
        return f"{self.rule}: {self.message}{where}"
