"""Data on stdout: JSON for programs, aligned columns for people. Talk goes through `voice`.

Columns are plain text that is never cut or wrapped, so that a line can be piped to `grep` and a subject copied.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

SMALLEST_COST: Final = Decimal("0.0001")
"""The last digit of a cost that is shown."""


def emit(text: str) -> None:
    """Write text to stdout, with a final newline; lone surrogates are written as escapes instead of failing."""
    line = text if text.endswith("\n") else text + "\n"
    sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def emit_json(value: Any, *, indent: int | None = 2) -> None:
    """Write a model, or anything made of models and plain values, to stdout as JSON; `None` for one line."""
    from pydantic_core import to_json  # noqa: PLC0415  `--help` must not wait for it

    sys.stdout.buffer.write(to_json(value, indent=indent) + b"\n")
    sys.stdout.buffer.flush()


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart, without trailing blanks; every row as long as the header."""
    lines = [tuple(name.upper() for name in header), *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded) + "\n"


def cost(value: Decimal | None) -> str:
    """Dollars; a price that is not known is not the same as free, nor is one that is very small."""
    if value is None:
        return "unknown"
    return "<$0.0001" if 0 < value < SMALLEST_COST else f"${value:.4f}"


def moment(value: datetime | None) -> str:
    """A time in UTC, to the second."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if value else ""


def one_line(text: str, limit: int = 200) -> str:
    """The first line that says something, at most `limit` characters."""
    line = next((stripped for part in text.splitlines() if (stripped := part.strip())), "")
    return line if len(line) <= limit else line[: limit - 1] + "…"
