"""Rounds with files: written by tools, delivered with the report, there again for the next round and other stages."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from coatcheck.errors import AgentOutputError, MessagingUnavailableError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from schemas.events import DeliverablePublished, ToolCompleted
from schemas.notice import MAX_NOTICE_BYTES, Notice
from schemas.roles import DEFAULT_ROLES
from schemas.workflow_ids import event_id
from tests.integration.nats_clients import client_as
from tests.integration.round_lab import PreparedTurns, RoundLab, submits

APP = {"path": "backend/app.py", "content": "def double(x):\n    return x * 2\n"}
TEST = {"path": "backend/test_app.py", "content": "from app import double\n\nassert double(2) == 4\n"}


@pytest.fixture
async def lab(nats_server: NatsStatus, core: NatsClient, tmp_path: Path) -> AsyncIterator[RoundLab]:
    """Every default agent with its own identity."""
    assert core
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(client_as(nats_server, name)) for name in DEFAULT_ROLES}
        yield RoundLab(nats_server, tmp_path, clients.__getitem__)
    assert list(tmp_path.iterdir()) == []


async def builds(lab: RoundLab) -> Notice:
    """The backend of most tests: two files."""
    return await lab.round("roy", [("write_file", APP), ("write_file", TEST)], submits())


async def test_files_are_delivered_with_the_report(lab: RoundLab) -> None:
    """Listed with their hashes, fetched by anybody who may read, counted in the notice."""
    notice = await builds(lab)
    files = await lab.files(notice)
    assert {path: data.decode() for path, data in files.items()} == {
        "app.py": APP["content"],
        "test_app.py": TEST["content"],
    }
    assert notice.files_modified == 2


async def test_a_second_attempt_delivers_the_same(lab: RoundLab) -> None:
    """Its workspace is another one, its turns and its message are the same."""
    role, task = DEFAULT_ROLES["roy"], lab.task("backend")
    model = PreparedTurns([[("write_file", APP)], submits()])
    first = await lab.attempt(role, model, task)
    second = await lab.attempt(role, model, task)
    assert (second.ref, second.files_modified) == (first.ref, 1)


async def test_what_a_round_tells(lab: RoundLab) -> None:
    """Each tool call with its outcome, the deliverable, the evidence; all about its own task, caused by its start."""
    task = lab.task("backend")
    model = PreparedTurns([[("write_file", {"path": "../x", "content": ""})], [("write_file", APP)], submits()])
    notice = await lab.attempt(DEFAULT_ROLES["roy"], model, task)
    refused, wrote, published = lab.events
    assert isinstance(refused, ToolCompleted)
    assert isinstance(wrote, ToolCompleted)
    assert isinstance(published, DeliverablePublished)
    assert [(item.payload.tool, item.payload.outcome) for item in (refused, wrote)] == [
        ("write_file", "error"),
        ("write_file", "ok"),
    ]
    assert "path" in refused.payload.error
    assert wrote.payload.result_bytes == len(f"wrote backend/app.py, {len(APP['content'])} bytes")
    told = published.payload
    assert (told.stream, told.sequence, told.sha256) == (notice.ref.stream, notice.ref.sequence, notice.ref.sha256)
    assert [item.path for item in told.artifacts] == ["app.py"]
    assert {item.entity_id for item in lab.events} == {task.task_key}
    assert {item.causation_id for item in lab.events} == {event_id(task.task_key, "stage.started")}


async def test_a_second_attempt_tells_the_same_and_that_it_is_one(lab: RoundLab) -> None:
    """Under the same ids, so that all of it is stored once."""
    role, task = DEFAULT_ROLES["roy"], lab.task("backend")
    model = PreparedTurns([[("write_file", APP)], submits()])
    await lab.attempt(role, model, task)
    first = [item.event_id for item in lab.events]
    lab.events.clear()
    await lab.attempt(role, model, replace(task, attempt=2))
    assert [item.event_type for item in lab.events] == ["attempt.started", "tool.completed", "deliverable.published"]
    assert [item.event_id for item in lab.events[1:]] == first


async def test_a_round_is_not_over_before_its_events_are_stored(lab: RoundLab) -> None:
    """Nobody stores them: the attempt fails, and the next one tells all of it."""
    role, task = DEFAULT_ROLES["roy"], lab.task("backend")
    model = PreparedTurns([[("write_file", APP)], submits()])
    lab.is_heard = False
    with pytest.raises(MessagingUnavailableError):
        await lab.attempt(role, model, task)
    lab.is_heard = True
    await lab.attempt(role, model, replace(task, attempt=2))
    assert [item.event_type for item in lab.events] == ["attempt.started", "tool.completed", "deliverable.published"]


async def test_a_failed_attempt_tells_what_it_did(lab: RoundLab) -> None:
    """Its own error is the one that counts, also when nobody hears what it did."""
    model = PreparedTurns([[("write_file", APP)], *[[("submit_report", {"report": ""})]] * 4])
    task = lab.task("backend")
    for lab.is_heard in (True, False):
        with pytest.raises(AgentOutputError):
            await lab.attempt(DEFAULT_ROLES["roy"], model, task)
    assert [item.event_type for item in lab.events] == ["tool.completed"]


async def test_the_next_round_has_the_files_of_the_last(lab: RoundLab) -> None:
    """They need not be written again, can be read and changed, and are delivered again."""
    await builds(lab)
    head = "--- a/backend/app.py\n+++ b/backend/app.py\n@@ -1,2 +1,2 @@\n"
    patch = f"{head} def double(x):\n-    return x * 2\n+    return x + x\n"
    notice = await lab.round("roy", [("apply_patch", {"patch": patch})], submits(), needs=["backend"])
    files = await lab.files(notice)
    assert files["app.py"] == b"def double(x):\n    return x + x\n"
    assert files["test_app.py"].decode() == TEST["content"]
    untouched = await lab.round("roy", submits(), needs=["backend"])
    assert await lab.files(untouched) == files


async def test_other_stages_read_and_cannot_write(lab: RoundLab) -> None:
    """Jen sees Roy's files in a folder with the stage's name; a write there is refused and told."""
    await builds(lab)
    model = PreparedTurns(
        [
            [("list_files", {}), ("read_file", {"path": "backend/app.py"}), ("search_files", {"pattern": "dou.le"})],
            [("write_file", {"path": "backend/app.py", "content": "x"})],
            [("write_file", {"path": "../app.py", "content": "x"}), ("write_file", {"path": "/etc/x", "content": ""})],
            submits(),
        ]
    )
    role = DEFAULT_ROLES["jen"]
    notice = await lab.attempt(role, model, lab.task("frontend", ["backend"]))
    listed, read, found = model.told(2)
    assert "backend/app.py" in listed
    assert read == APP["content"]
    assert "backend/test_app.py:1" in found
    assert all("frontend" in text or "path" in text for text in (*model.told(3), *model.told(4)))
    assert await lab.files(notice) == {}


async def test_an_earlier_stage_is_fetched_through_the_lineage(lab: RoundLab) -> None:
    """Statistics is handed QA's work only; the research behind it is found by walking, with its latest round."""
    await lab.round("cynthia", submits())
    await lab.round("cynthia", submits())
    await lab.round("roy", submits(), needs=["research"])
    notice = await lab.round("billy", submits(verdict="pass"), needs=["backend"], evidence="if_declared")
    model = PreparedTurns([[("fetch_deliverable", {"stage": "research"})], submits()])
    role = DEFAULT_ROLES["priya"]
    await lab.attempt(role, model, lab.task("statistics", ["qa"]))
    ref = lab.shelf["research"].ref
    assert f"[[deliverable:research:{ref.stream}:{ref.sequence}]]" in model.told(2)[0]
    said = (await lab.deliverable(notice)).metadata.model_extra or {}
    assert said["made_from"] == {"backend": lab.shelf["backend"].ref.to_ticket()}


async def test_refused_tool_calls_do_not_end_the_round(lab: RoundLab) -> None:
    """A model may try wrong paths as often as it has turns."""
    wrong = [[("read_file", {"path": f"backend/{number}.py"})] for number in range(6)]
    assert (await lab.round("roy", *wrong, submits())).status == "complete"


FINDING = {"severity": "major", "where": "R1", "claim": "no limit", "wanted_change": "name one"}


async def test_a_review_accounts_for_its_earlier_findings(lab: RoundLab) -> None:
    """What is neither fixed nor repeated is asked for; the notice marks what is open."""
    await lab.round("cynthia", submits())
    both = [{"id": "F1", **FINDING}, {"id": "F2", **FINDING, "severity": "minor"}]
    first = await lab.round("sylvia", submits(verdict="revise", findings=both), needs=["research"])
    assert [mark[:3] for mark in first.metadata.findings or []] == ["F1!", "F2."]
    again = {"verdict": "revise", "findings": [both[0]]}
    answers = [again, again | {"fixed": ["F2", "F9"]}, again | {"fixed": ["F2"]}]
    model = PreparedTurns([submits(**fields) for fields in answers])
    role = DEFAULT_ROLES["sylvia"]
    second = await lab.attempt(role, model, lab.task("critique", ["research"]))
    assert "has the earlier F2" in model.told(2)[0]
    assert "F9" in model.told(3)[0]
    assert [mark[:3] for mark in second.metadata.findings or []] == ["F1!"]
    assert (await lab.deliverable(second)).metadata.model_dump()["fixed"] == ["F2"]


async def test_an_approval_settles_what_it_does_not_repeat(lab: RoundLab) -> None:
    """A run does not fail because a content reviewer forgets the book-keeping."""
    await lab.round("cynthia", submits())
    await lab.round("sylvia", submits(verdict="revise", findings=[{"id": "F1", **FINDING}]), needs=["research"])
    notice = await lab.round("sylvia", submits(verdict="approve"), needs=["research"])
    assert notice.metadata.findings is None
    assert (await lab.deliverable(notice)).metadata.model_dump()["fixed"] == ["F1"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"verdict": "approve", "findings": [{"id": "F1", **FINDING}]}, "approve"),
        ({"verdict": "revise", "findings": [{"id": "F1", **FINDING}], "fixed": ["F1"]}, "settled or it is open"),
        ({"verdict": "revise", "findings": [{"id": "F 1", **FINDING}]}, "pattern"),
    ],
)
async def test_contradictory_reviews_are_refused(lab: RoundLab, fields: dict[str, object], words: str) -> None:
    """They are re-asked with the reason, a bounded number of times."""
    role, model = DEFAULT_ROLES["sylvia"], PreparedTurns([submits(**fields)] * 3)
    with pytest.raises(AgentOutputError):
        await lab.attempt(role, model, lab.task("critique"))
    assert words in model.told(3)[0]


async def test_the_worst_notice_still_fits(lab: RoundLab) -> None:
    """Twenty findings and a long summary stay within the kilobyte."""
    found = [{"id": f"finding-number-{number:04d}"[:20], **FINDING} for number in range(20)]
    notice = await lab.round("sylvia", submits(verdict="revise", findings=found, summary="ä" * 280))
    assert len(notice.to_wire()) <= MAX_NOTICE_BYTES
