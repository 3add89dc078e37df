"""Training data from a real audit log, real deliverables and a real journal."""

import csv
import hashlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coatcheck.archive.desk import ArchiveDesk
from coatcheck.archive.shelf import open_shelf
from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus, PostgresStatus
from coatcheck.messaging.accounts import ARCHIVE, OBSERVER
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.service import serve
from coatcheck.messaging.streams import ensure_streams
from coatcheck.objects.destinations import Folder
from coatcheck.training.columns import DataType, column_names
from coatcheck.training.exporting import DayReport, ExportRunningError
from coatcheck.training.files import read_csv_cell
from coatcheck.training.scanning import ExportRefusedError, FinishedScan
from schemas.event_payloads import Scored
from schemas.events import JudgeScored
from schemas.streams import AUDIT_LOG
from schemas.subjects import archive_subject
from tests.integration.nats_clients import client_as
from tests.integration.training_lab import (
    FEATURE,
    NOW,
    RunMaker,
    Texts,
    backdated,
    every_stream,
    exporter,
    files_below,
    gather_runs,
    last_sequence,
    publish_all,
)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsStatus]:
    """A server of the test's own: its audit log has what the test puts there."""
    with LocalStack(tmp_path / "nats", servers=("nats",), workers=()) as stack:
        status = stack.status().nats
        assert status is not None
        yield status


@pytest.fixture
async def core(nats: NatsStatus) -> AsyncIterator[NatsClient]:
    """Who writes the log."""
    async with client_as(nats, "core") as client:
        await ensure_streams(client, every_stream())
        yield client


@pytest.fixture
def maker(nats: NatsStatus, database: PostgresStatus, core: NatsClient) -> RunMaker:
    """Makes whole runs."""
    return RunMaker(nats, database, core)


def rows(folder: Path, data_type: DataType) -> list[dict[str, Any]]:
    """All rows of a type, of all days in order."""
    paths = sorted((folder / data_type).glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


async def export(
    nats: NatsStatus, database: PostgresStatus | None, tmp_path: Path, name: str = "out", **options: Any
) -> list[DayReport]:
    """Export into the folder `name`."""
    async with exporter(nats, database, Folder(tmp_path / name), tmp_path / f"staging-{name}", **options) as one:
        return await one.export()


async def test_a_run_becomes_rows_of_every_type(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, tmp_path: Path
) -> None:
    """Each row with where it comes from and what became of it; the chat as the model saw and wrote it."""
    key = await maker.run(Texts())
    reports = await export(nats, database, tmp_path)
    out = tmp_path / "out"
    told = [report for report in reports if report.rows]
    assert sum(sum(report.withheld.values()) for report in told) == 0
    seen = rows(out, DataType.AGENT_EVENTS)
    assert [row["sequence"] for row in seen] == list(range(1, len(seen) + 1))
    assert {row["run"] for row in seen} == {key}

    first, second = [row for row in rows(out, DataType.AGENT_TASKS) if row["stage"] == "research"]
    assert (first["outcome"], second["outcome"], second["run_outcome"]) == ("sent_back", "accepted", "completed")
    assert (first["judge_score"], second["judge_score"]) == (0.5, 1.0)
    assert (second["tokens_in"], second["cost_usd"], second["turns"], second["tools"]) == (200, "0.002", 2, 1)
    assert second["models"] == ["openai:gpt-5-mini"]
    assert all(seen[number - 1]["run"] == key for number in second["source_sequences"])
    [tool, _] = rows(out, DataType.TOOL_EXECUTIONS)
    assert (tool["tool"], tool["turn"], tool["model"], tool["outcome"]) == (
        "read_file",
        1,
        "openai:gpt-5-mini",
        "sent_back",
    )
    [run] = rows(out, DataType.WORKFLOW_DATA)
    assert (run["run_outcome"], run["rounds"], run["feature"]) == ("completed", {"critique": 2, "research": 2}, FEATURE)

    chat, better = rows(out, DataType.SFT)
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert "Find customers by name." in chat["messages"][0]["content"]
    assert chat["messages"][1]["tool_calls"][0]["arguments"] == {"path": "notes.md"}
    assert chat["messages"][-1]["content"] == Texts().report
    assert Texts().report in better["messages"][0]["content"], "its own last round was claimed in the prompt"
    [pair] = rows(out, DataType.PREFERENCES)
    assert pair["prompt"] == chat["messages"][:1]
    assert (pair["rejected"][0]["content"], pair["chosen"][0]["content"]) == (Texts().report, Texts().better_report)
    assert (pair["rejected_task"], pair["task"]) == (f"{key}/research-1", f"{key}/research-2")


async def test_the_files_are_where_the_seed_says_and_the_manifest_vouches_for_them(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, tmp_path: Path
) -> None:
    """`{type}/{type}_YYYY-MM-DD.csv` and `.jsonl`, the same rows in both."""
    await maker.run(Texts(comment='=HYPERLINK("x")', reason="'quoted, and\nbroken"))
    await export(nats, database, tmp_path)
    out = tmp_path / "out"
    manifests = [json.loads(path.read_text()) for path in sorted((out / "manifests").iterdir())]
    assert manifests
    listed: dict[str, str] = {}
    for manifest in manifests:
        for name, told in manifest["types"].items():
            assert told["last_sequence"] <= last_named(manifest)
            for path, file in told["files"].items():
                assert path in {f"{name}/{name}_{manifest['day']}.{suffix}" for suffix in ("csv", "jsonl")}
                listed[path] = file["sha256"]
    found = {path: content for path, content in files_below(out).items() if not path.startswith("manifests/")}
    assert {path: hashlib.sha256(content).hexdigest() for path, content in found.items()} == listed
    for data_type in DataType:
        for path in sorted((out / data_type).glob("*.csv")):
            table = list(csv.reader(io.StringIO(path.read_text(), newline="")))
            assert tuple(table[0]) == column_names(data_type)
            lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
            for cells, row in zip(table[1:], lines, strict=True):
                assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
                back = [read_csv_cell(data_type, name, cell) for name, cell in zip(table[0], cells, strict=True)]
                for name, cell in zip(table[0], back, strict=True):
                    expected = row[name] if row[name] != "" else None
                    assert cell == (str(expected) if isinstance(cell, str) else expected), name
    assert any('=HYPERLINK("x")' in row["comment"] for row in rows(out, DataType.AGENT_TASKS) if row["comment"])


def last_named(manifest: dict[str, Any]) -> int:
    """The largest sequence that a manifest names."""
    return max(told["last_sequence"] for told in manifest["types"].values())


async def test_the_same_events_give_the_same_bytes(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, tmp_path: Path
) -> None:
    """At any other time, in any other folder, by any other process."""
    for _ in range(3):
        await maker.run(Texts())
    await export(nats, database, tmp_path, "one")
    await export(nats, database, tmp_path, "two")
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    await export(nats, database, tmp_path, "one")
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two"), "again over what is there"


async def test_finished_days_are_not_read_again_and_the_last_one_grows(
    nats: NatsStatus, core: NatsClient, tmp_path: Path
) -> None:
    """What is closed stays as it is to the byte; events that come later are added to the open days."""
    told = gather_runs(60, tools=5, spread=timedelta(days=4))
    await publish_all(core, told[: len(told) // 2 * 2])
    newest = await last_sequence(core)
    types = [DataType.AGENT_EVENTS, DataType.AGENT_TASKS, DataType.TOOL_EXECUTIONS, DataType.WORKFLOW_DATA]

    async def once(name: str = "out") -> tuple[list[DayReport], int]:
        client = backdated(nats, per_day=newest // 5, newest=newest)
        async with exporter(nats, None, Folder(tmp_path / name), tmp_path / "staging", client=client) as one:
            return await one.export(types), client.reads

    first, reads = await once()
    closed = [report.day for report in first if report.is_closed]
    assert len(closed) >= 3
    before = files_below(tmp_path / "out")
    second, fewer = await once()
    assert [report.day for report in second if report.was_done] == closed
    assert fewer < reads / 2, (fewer, reads)
    assert files_below(tmp_path / "out") == before
    seen = rows(tmp_path / "out", DataType.AGENT_EVENTS)
    assert sorted(row["sequence"] for row in seen) == list(range(1, newest + 1)), "each event in exactly one file"

    await publish_all(core, gather_runs(61, tools=5, spread=timedelta())[-10:])
    await once()
    after = files_below(tmp_path / "out")
    assert len(rows(tmp_path / "out", DataType.AGENT_EVENTS)) > len(seen)
    grown = {path for path in after if before.get(path) != after[path]}
    assert not any(str(day) in path for path in grown for day in closed)

    await publish_all(core, [late_score(told[0].correlation_id)])
    await once("anew")
    anew = files_below(tmp_path / "anew")
    for path in before:
        if any(str(day) in path for day in closed):
            assert anew[path] == before[path], "what came after a day was closed is not looked at for it"


def late_score(run: str) -> JudgeScored:
    """A judge who speaks days after the run."""
    payload = Scored(judge="late", kind="check", criterion="x", score=0, stage="research", round=2)
    return JudgeScored.of(
        entity_id=f"{run}/research-2",
        correlation_id=run,
        session_id="s",
        occurred_at=NOW,
        agent="cynthia",
        payload=payload,
    )


async def test_what_cannot_be_redacted_is_left_out_and_the_row_says_so(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redactor that fails lets nothing through, whatever the failure."""

    def fails(*_: object) -> Iterator[object]:
        raise RuntimeError("a rule is broken")

    await maker.run(Texts())
    monkeypatch.setattr("coatcheck.training.detectors.personal", fails)
    with pytest.raises(RuntimeError):
        await export(nats, database, tmp_path)
    assert not files_below(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr("coatcheck.training.redaction.MAX_TEXT_CHARACTERS", 20)
    reports = await export(nats, database, tmp_path)
    assert sum(sum(report.withheld.values()) for report in reports) > 0
    [chat, _] = rows(tmp_path / "out", DataType.SFT)
    assert chat["messages"] is None
    assert "too long" in chat["withheld"]
    assert chat["sequence"]


async def test_a_deliverable_that_is_gone_withholds_its_rows(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, core: NatsClient, tmp_path: Path
) -> None:
    """The events outlive the deliverables by weeks, and the archive never had them."""
    await maker.run(Texts())
    config = (await core.api("STREAM.INFO.agog_features_research"))["config"]
    await core.api("STREAM.UPDATE.agog_features_research", config | {"max_msgs": 1})
    desk = ArchiveDesk(open_shelf(str(tmp_path / "archive")))
    async with serve(core, name=ARCHIVE, version="1.0.0", endpoints={archive_subject(OBSERVER): desk.handle}):
        await export(nats, database, tmp_path)
    assert {row["withheld"] for row in rows(tmp_path / "out", DataType.SFT)} == {"messages: deliverable.expired"}
    [pair] = rows(tmp_path / "out", DataType.PREFERENCES)
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (None, None, None)
    assert pair["withheld"] == "prompt, chosen, rejected: deliverable.expired"


async def test_a_secret_that_the_redactor_misses_stops_its_day(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looks at the finished bytes, each alone: our own values, and the other scanner."""
    monkeypatch.setattr("coatcheck.training.redaction.Redactor._spans", lambda *_: iter(()))
    await maker.run(Texts(comment="the canary is Zx81_quokka_lagoon"))
    with pytest.raises(ExportRefusedError, match="own secrets"):
        await export(nats, database, tmp_path, secrets=["Zx81_quokka_lagoon"])
    assert not files_below(tmp_path / "out")
    await maker.run(Texts(report="token: ghp_16C7e42F292c6912E7710c838347Ae178B4a"))
    with pytest.raises(ExportRefusedError, match="github") as refused:
        await export(nats, database, tmp_path)
    assert "ghp_" not in str(refused.value)
    assert not files_below(tmp_path / "out")


async def test_a_scan_that_did_not_happen_stops_the_export(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing, crashed, or blind: none counts as clean."""
    await maker.run(Texts())
    for program in ("/nonexistent/kingfisher", "/bin/true", "/bin/false"):
        monkeypatch.setattr("coatcheck.training.scanning._program", lambda program=program: Path(program))
        with pytest.raises(ExportRefusedError, match="could not be scanned"):
            await export(nats, database, tmp_path)
    monkeypatch.undo()
    real = FinishedScan._judge

    def half_blind(self: FinishedScan, found: dict[str, Any], staged: Any) -> None:
        found["metadata"]["summary"]["bytes_scanned"] //= 2
        real(self, found, staged)

    monkeypatch.setattr(FinishedScan, "_judge", half_blind)
    with pytest.raises(ExportRefusedError, match="were scanned"):
        await export(nats, database, tmp_path)
    assert not files_below(tmp_path / "out")


async def test_two_exports_do_not_meet(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, tmp_path: Path
) -> None:
    """The second is told so; the lock ends with the first."""
    await maker.run(Texts())
    async with exporter(nats, database, Folder(tmp_path / "out"), tmp_path / "staging") as one:
        with one._alone():
            async with exporter(nats, database, Folder(tmp_path / "out"), tmp_path / "staging") as other:
                with pytest.raises(ExportRunningError):
                    await other.export()
        await one.export()
    assert files_below(tmp_path / "out")


async def test_an_event_of_a_newer_release_is_exported_and_what_is_none_is_counted(
    nats: NatsStatus, database: PostgresStatus, maker: RunMaker, core: NatsClient, tmp_path: Path
) -> None:
    """Neither stops the others."""
    key = await maker.run(Texts())
    newer = {
        "event_id": "00000000-0000-4000-8000-000000000001",
        "event_type": "run.dreamt",
        "version": 7,
        "source": "core",
        "entity_id": key,
        "correlation_id": key,
        "session_id": "s",
        "occurred_at": "2026-11-21T08:00:00Z",
        "payload": {"of": "alice@example.com"},
    }
    for number, body in enumerate((json.dumps(newer).encode(), b"not json")):
        await core.publish(f"agog.events.system.core.x.y{number}", body, message_id=f"m{number}", stream=AUDIT_LOG.name)
    await export(nats, database, tmp_path)
    row = next(row for row in rows(tmp_path / "out", DataType.AGENT_EVENTS) if row["event_type"] == "run.dreamt")
    assert row["payload"] == {"of": "[redacted:email]"}
