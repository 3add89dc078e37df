"""Which day an event belongs to, and how rows become bytes."""

import csv
import io
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.messaging.events import StoredEvent
from coatcheck.training.auditlog import GRACE, day_of
from coatcheck.training.columns import DataType, column_names
from coatcheck.training.files import PairOfFiles, read_csv_cell
from schemas.events import UnknownEvent

RUN = "feature/x/0199c2f0"
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001


def stored(occurred_at: datetime, stored_at: datetime) -> StoredEvent:
    """An event that happened at one time and was stored at another."""
    event = UnknownEvent(
        event_id="e",
        event_type="run.dreamt",
        source="core",
        entity_id=RUN,
        correlation_id=RUN,
        session_id="s",
        occurred_at=occurred_at,
    )
    return StoredEvent(1, stored_at, "s", {}, event)


@pytest.mark.parametrize(
    ("occurred", "arrived", "day"),
    [
        ("2026-11-21T10:00", "2026-11-21T10:00", "2026-11-21"),
        ("2026-11-21T23:59", "2026-11-22T05:00", "2026-11-21"),
        ("2026-11-21T23:59", "2026-11-22T07:00", "2026-11-22"),
        ("2026-11-01T12:00", "2026-11-22T03:00", "2026-11-21"),
        ("2027-01-01T12:00", "2026-11-22T03:00", "2026-11-22"),
    ],
    ids=["at once", "told after midnight", "told too late", "told weeks late", "by a clock that is ahead"],
)
def test_an_event_belongs_to_the_day_it_happened_while_that_is_open(occurred: str, arrived: str, day: str) -> None:
    """Later it belongs to a day that still is, so that finished files stay as they are."""
    times = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (occurred, arrived)]
    assert day_of(stored(*times)) == date.fromisoformat(day)


@given(MOMENTS, MOMENTS)
def test_no_event_comes_for_a_day_that_is_closed(occurred: datetime, arrived: datetime) -> None:
    """Closed: the log has gone on for longer than the grace after its end."""
    day = day_of(stored(occurred, arrived))
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    assert arrived < end + GRACE
    assert day <= arrived.date()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "'=1", "''", "a=1"])
def test_no_text_begins_as_a_formula(tmp_path: Path, text: str) -> None:
    """Not in the CSV, whatever a model wrote; and it can be read back."""
    pair = PairOfFiles(tmp_path, DataType.TOOL_EXECUTIONS, "t")
    pair.write(dict.fromkeys(column_names(DataType.TOOL_EXECUTIONS)) | {"error": text, "seconds": -1.5})
    pair.finish()
    with (tmp_path / "tool_executions" / "t.csv").open(newline="", encoding="utf-8") as table:
        [cells] = csv.DictReader(table)
    assert not cells["error"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert read_csv_cell(DataType.TOOL_EXECUTIONS, "error", cells["error"]) == text
    assert cells["seconds"] == "-1.5", "a number is none"


@given(st.lists(st.one_of(st.none(), st.text(max_size=20), st.integers(), st.booleans()), min_size=1, max_size=8))
def test_a_cell_reads_back_as_what_was_written(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    """Whatever a person or a model wrote; no cell begins as a formula."""
    folder = tmp_path_factory.mktemp("files")
    pair = PairOfFiles(folder, DataType.TOOL_EXECUTIONS, "t")
    rows = [dict.fromkeys(column_names(DataType.TOOL_EXECUTIONS)) | {"error": value} for value in values]
    writable = [row for row in rows if _can_be_stored(row["error"])]
    for row in writable:
        pair.write(row)
    pair.finish()
    lines = (folder / "tool_executions" / "t.jsonl").read_bytes().decode().split("\n")[:-1]
    assert [json.loads(line)["error"] for line in lines] == [row["error"] for row in writable]
    table = list(csv.reader(io.StringIO((folder / "tool_executions" / "t.csv").read_bytes().decode(), newline="")))
    index = table[0].index("error")
    for cells, row in zip(table[1:], writable, strict=True):
        back = read_csv_cell(DataType.TOOL_EXECUTIONS, "error", cells[index])
        if isinstance(row["error"], str):
            assert not cells[index].startswith(("=", "+", "-", "@", "\t", "\r"))
            assert back == (row["error"] or None)


def _can_be_stored(value: object) -> bool:
    """Lone surrogates are gone before a row is written."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def test_a_row_has_exactly_its_columns(tmp_path: Path) -> None:
    """One that lacks a column is a fault and not an empty cell."""
    pair = PairOfFiles(tmp_path, DataType.SFT, "t")
    with pytest.raises(KeyError):
        pair.write({"sequence": 1})
    pair.close()
