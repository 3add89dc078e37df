"""`coatcheck doctor authz` on a real server: it finds what was planted, nothing else, and changes nothing."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coatcheck.errors import NotAuthorizedError
from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import LOGS
from coatcheck.messaging.authorization import covers
from coatcheck.messaging.streams import ensure_streams
from schemas.streams import AGENTS, STREAMS, TOOL_STREAMS, bucket_streams
from tests.acceptance.program import coatcheck
from tests.integration.nats_clients import client_as


def plant(file: Path) -> None:
    """Jen may write Roy's deliverables, and Priya may not store files any more: one hole, one missing right."""
    text = file.read_text()
    for old, new in (
        ('{ service: "agog.deliverables.roy.>", accounts: ["ROY"] }', None),
        ('allow: ["agog.deliverables.jen.>"', 'allow: ["agog.deliverables.roy.>", "agog.deliverables.jen.>"'),
        (
            '{ service: { account: HUB, subject: "agog.deliverables.jen.>" } }',
            (
                '{ service: { account: HUB, subject: "agog.deliverables.jen.>" } }\n'
                '      { service: { account: HUB, subject: "agog.deliverables.roy.>" } }'
            ),
        ),
        ('"agog.deliverables.priya.>", "$O.artifacts_priya.>"', '"agog.deliverables.priya.>"'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new or old.replace('["ROY"]', '["ROY", "JEN"]'))
    file.write_text(text)


async def states(server: NatsStatus) -> list[dict[str, Any]]:
    """What every stream holds and how it is set."""
    async with client_as(server, "core") as core:
        streams = (await core.api("STREAM.LIST"))["streams"]
        return [{"config": one["config"], "state": one["state"]} for one in streams]


async def reloaded(server: NatsStatus, pid: int) -> None:
    """Have the server read its files again, and wait until Priya is refused."""
    os.kill(pid, signal.SIGHUP)
    async with asyncio.timeout(20):
        while True:
            try:
                async with client_as(server, "priya") as priya:
                    await priya.send("$O.artifacts_priya.C.x", b"", headers={"Nats-Expected-Stream": "none"})
            except NotAuthorizedError as error:
                if "may not publish" in str(error):  # for a moment, the server accepts nobody
                    return


async def test_what_is_planted_is_found_and_nothing_changes(new_stack: Callable[..., LocalStack]) -> None:
    """Exit code 1, and exactly two problems of thousands of attempts: the rest is as it is declared."""
    stack = new_stack(servers=("nats",), workers=())
    server = stack.status().nats
    assert server is not None
    async with client_as(server, "core") as core:
        await ensure_streams(core, [*STREAMS, *bucket_streams(AGENTS), *LOGS, *TOOL_STREAMS])
    before = await states(server)
    plant(stack.config.data_dir / "nats" / "accounts.conf")
    await reloaded(server, stack.pid("nats"))
    told = await asyncio.to_thread(coatcheck, "doctor", "authz", "--json", data_dir=stack.config.data_dir)
    assert told.code == 1
    problems = {(one["user"], one["action"], one["target"], one["problem"]) for one in told.json["problems"]}
    assert problems == {
        ("jen", "store deliverables", "roy", "hole"),
        ("priya", "store files", "priya", "missing"),
    }
    trials = told.json["trials"]
    assert len({one["user"] for one in trials}) == 11
    assert len(trials) > 3_000
    assert {one["found"] for one in trials} == {"reached", "refused", "nobody", "untried"}
    assert await states(server) == before


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a.>", False),
        ("a.>", "a.>", True),
        ("a.b", "a.*", False),
        (">", "a.*", True),
    ],
)
def test_a_pattern_covers_a_subject(pattern: str, subject: str, *, expected: bool) -> None:
    """Also one that is a pattern itself."""
    assert covers(pattern, subject) is expected
