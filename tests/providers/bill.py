"""The provider's bill: what was asked and what was answered, independent of the product. It judges "paid twice".

One JSON object per line, written with one system call on a file opened for appending: it survives a `kill -9` of the
server, and several processes may read it at any time. A call has a line `started` and, once the provider has done its
work, a line `finished`; a call that was hung up on before that has only the first.
"""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel


class BillLine(BaseModel):
    """One line."""

    event: Literal["started", "finished"]
    call_id: str
    digest: str
    """sha256 of the request's messages: the same conversation gives the same digest."""
    feature: str
    stage: str
    round: int
    turn: int
    """Counted from 1 by the answers in the conversation."""
    model: str = ""
    sdk_retry: int = 0
    """The SDK's own count of retries (`x-stainless-retry-count`); 0 when they are off."""
    step: str = ""
    """What the script let the provider do; only on `finished`."""
    paid: bool = False
    """Whether tokens were spent: true for every completion, also for one that never arrived; false for errors."""


class Bill:
    """An append-only file of `BillLine`; the lines of an earlier process stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def write(self, line: BillLine) -> None:
        """Append one line, whole or not at all."""
        os.write(self._file, line.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_bill(path: Path) -> list[BillLine]:
    """Every line so far, in the order of writing."""
    return [BillLine.model_validate_json(line) for line in path.read_text().splitlines()]


def calls(path: Path, **fields: Any) -> list[BillLine]:
    """The calls begun whose line has these fields, for instance `stage="research", turn=1`."""
    return [line for line in _matching(path, fields) if line.event == "started"]


def paid(path: Path, **fields: Any) -> list[BillLine]:
    """The completions that were paid for; those that the script spoilt are among them."""
    return [line for line in _matching(path, fields) if line.paid]


def paid_twice(path: Path) -> dict[str, int]:
    """Digest → payments, for every conversation that a usable answer was paid for more than once.

    An answer that the script spoilt on its way (cut, not JSON, empty) has to be asked for again and does not count.
    """
    counts = Counter(line.digest for line in read_bill(path) if line.paid and line.step not in SPOILT)
    return {digest: count for digest, count in counts.items() if count > 1}


SPOILT = frozenset({"cut_body", "malformed", "empty_body", "no_choices"})
"""Steps whose answer is paid for and cannot be used."""


def digest(messages: list[dict[str, Any]]) -> str:
    """Name a conversation."""
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()


def _matching(path: Path, fields: dict[str, Any]) -> list[BillLine]:
    return [line for line in read_bill(path) if all(getattr(line, name) == value for name, value in fields.items())]
