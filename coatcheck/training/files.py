"""Writes rows as JSON lines and as CSV, to a staging folder; the same rows give the same bytes."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coatcheck.training.columns import COLUMNS, DataType, Kind, column_names

FORMATS: Final = ("csv", "jsonl")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which a spreadsheet takes a text for a formula (OWASP, CSV Injection)."""


@dataclass(frozen=True)
class Staged:
    """A finished file that nobody else can see yet."""

    path: str
    """Relative, as it will be published."""
    source: Path
    sha256: str
    bytes: int


class PairOfFiles:
    """The CSV and the JSON lines of one type and day; a context manager. Holds one row in memory."""

    def __init__(self, folder: Path, data_type: DataType, stem: str) -> None:
        self._data_type = data_type
        self._names = column_names(data_type)
        self._stem = f"{data_type}/{stem}"
        self._folder = folder
        self.rows = 0
        self.withheld = 0
        for suffix in FORMATS:
            self._source(suffix).parent.mkdir(parents=True, exist_ok=True)
        self._jsonl = self._source("jsonl").open("w", encoding="utf-8", newline="\n")
        self._table = self._source("csv").open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._table, lineterminator="\r\n")  # RFC 4180; a lone CR is quoted only so
        self._csv.writerow(self._names)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; it has exactly the type's columns."""
        self._jsonl.write(_json({name: row[name] for name in self._names}) + "\n")
        self._csv.writerow([_cell(row[name]) for name in self._names])
        self.rows += 1
        self.withheld += row["withheld"] is not None

    def finish(self) -> list[Staged]:
        """Close both."""
        self.close()
        return [self._staged(suffix) for suffix in FORMATS]

    def close(self) -> None:
        """Close both; may be called again."""
        self._jsonl.close()
        self._table.close()

    def _source(self, suffix: str) -> Path:
        return self._folder / f"{self._stem}.{suffix}"

    def _staged(self, suffix: str) -> Staged:
        source = self._source(suffix)
        with source.open("rb") as reading:
            digest = hashlib.file_digest(reading, "sha256").hexdigest()
        return Staged(f"{self._stem}.{suffix}", source, digest, source.stat().st_size)


def read_csv_cell(data_type: DataType, name: str, cell: str) -> Any:
    """What `_cell` wrote, read back: for those who have only the CSV."""
    if not cell:
        return None
    if cell[0] == "'" and cell[1:2] in {*_FORMULA, "'"}:
        cell = cell[1:]
    return json.loads(cell) if COLUMNS[data_type].get(name) is Kind.JSON else cell


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _cell(value: Any) -> str:
    """Text as it is, unless a spreadsheet would compute it; then, and where it begins so itself, with an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = value if isinstance(value, str) else _json(value)
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text


def text_of_manifest(manifest: Mapping[str, Any]) -> bytes:
    """A manifest's bytes."""
    out = io.StringIO()
    json.dump(manifest, out, indent=2, sort_keys=True, ensure_ascii=False)
    return out.getvalue().encode() + b"\n"
