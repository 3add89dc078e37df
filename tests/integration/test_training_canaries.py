"""Planted secrets never appear in any exported byte: end to end, from every place where somebody can write."""

import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus, PostgresStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.streams import ensure_streams
from coatcheck.objects.destinations import Folder
from coatcheck.training.columns import DataType
from tests.integration.nats_clients import client_as
from tests.integration.training_lab import RunMaker, Texts, every_stream, exporter, files_below
from tests.unit.canaries import CANARIES, OWN_SECRET, escaped

SUMMARY = 120
"""Characters of a notice's summary; a canary that is cut there is not one any more."""


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsStatus]:
    """A server of the test's own."""
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


def planted() -> Texts:
    """Every canary in each place that holds a text; in short ones as many as fit."""
    text = "\n\n".join(canary.text for canary in CANARIES)
    spelled = "\n\n".join(item.text for canary in CANARIES for item in escaped(canary).values())
    short = [canary.text for canary in CANARIES if len(canary.text) < SUMMARY]
    return Texts(
        brief=text,
        comment=text[:3500],
        tool_argument=text,
        tool_result=f"{text}\n\n{spelled}",
        tool_error=text[:3500],
        answer=text,
        report=f"# Report\n\n{text}\n\n{spelled}",
        better_report=f"# Better report\n\n{json.dumps({'nested': json.dumps({'text': text})})}",
        summary=short[0],
        blockers=short[1],
        reason=text[:3500],
        decision=text[:3500],
        person="Quillon Featherstonehaugh",
        explanation=text[:3500],
        label=short[2],
    )


async def test_canaries_never_appear_in_any_exported_byte(
    nats: NatsStatus, database: PostgresStatus, core: NatsClient, tmp_path: Path
) -> None:
    """Neither as they are nor spelled otherwise; and the rows are there, so that it is not for want of data."""
    texts = planted()
    await RunMaker(nats, database, core).run(texts)
    out = tmp_path / "out"
    async with exporter(nats, database, Folder(out), tmp_path / "staging", secrets=[OWN_SECRET]) as one:
        reports = await one.export()
    files = files_below(out)
    counts: dict[str, int] = {}
    for report in reports:
        for name, count in report.rows.items():
            counts[name] = counts.get(name, 0) + count
    assert set(counts) == set(DataType)
    assert sum(sum(report.withheld.values()) for report in reports) == 0
    everything = b"\n".join(files.values())
    readings = [everything, re.sub(rb"\\u00(..)", lambda match: bytes.fromhex(match[1].decode()), everything)]
    readings.append(readings[-1].replace(b"\\\\", b"\\").replace(b'\\"', b'"').replace(b"\\n", b"\n"))
    for canary in CANARIES:
        for piece in canary.pieces:
            for reading in readings:
                assert piece.encode() not in reading, canary.name
            assert base64.b64encode(piece.encode()).rstrip(b"=")[:-1] not in everything, canary.name
            assert piece.encode().hex().encode() not in everything, canary.name
    assert b"Featherstonehaugh" not in everything
    assert everything.count(b"[redacted:") > 10 * len(CANARIES)
    chats = [
        json.loads(line) for path in sorted((out / "sft").glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    assert all(message["content"] or message.get("tool_calls") for chat in chats for message in chat["messages"])
