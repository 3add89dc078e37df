"""What a review leaves for the workflow: one short mark per finding, enough to see whether rounds make progress."""

import hashlib
import re
from typing import Final, Self

from pydantic import BaseModel, ConfigDict

MAX_FINDINGS: Final = 20
"""Per round: their marks have to fit into the notice."""
_PRINT_DIGITS: Final = 6
_MARK: Final = re.compile(r"([A-Za-z0-9._-]{1,20})([!.])([0-9a-f]{6})")


class FindingMark(BaseModel):
    """One finding of one round, as `F1!3fa9c2`: its id, `!` for major or `.` for minor, and a print of its text."""

    model_config = ConfigDict(frozen=True)

    id: str
    is_major: bool
    text_print: str
    """Six hex digits over place and claim, so that an old finding is recognised under a new id."""

    @classmethod
    def of(cls, finding_id: str, *, is_major: bool, where: str, claim: str) -> Self:
        """Mark a finding; case, spaces and punctuation of its text do not matter."""
        text = " ".join(re.findall(r"\w+", f"{where} {claim}".casefold()))
        return cls(
            id=finding_id, is_major=is_major, text_print=hashlib.sha256(text.encode()).hexdigest()[:_PRINT_DIGITS]
        )

    def __str__(self) -> str:
        return f"{self.id}{'!' if self.is_major else '.'}{self.text_print}"

    @classmethod
    def parse(cls, mark: str) -> Self:
        """Read what `str` wrote.

        Raises:
            ValueError: it is not a mark.
        """
        if (match := _MARK.fullmatch(mark)) is None:
            raise ValueError(f"{mark!r} is not the mark of a finding")
        return cls(id=match[1], is_major=match[2] == "!", text_print=match[3])
