"""Which run a deliverable, a row and a model call belong to; and how large a deliverable may be."""

import dataclasses
import json
import re
import uuid
from collections import Counter
from typing import Any

import temporalio.api.common.v1
import temporalio.api.enums.v1
import temporalio.api.workflowservice.v1

from tests.chaos.evidence import Run
from tests.chaos.lab import LONG_TURNS, SHORT_TURNS, Lab
from tests.chaos.test_file_deaths import WITH_COMMAND
from tests.providers.script import Step

MAX_HISTORY_BYTES = 20_000
_TICKET = re.compile(r'stream="([^"]+)" sequence="(\d+)"')


async def test_two_runs_of_a_feature_at_the_same_time(lab: Lab) -> None:
    """Neither is handed, nor fetches, anything of the other, though they share every subject."""
    feature, marks = "twins", ("Wanted: the red door.", "Wanted: the blue door.")
    runs = [await lab.start(feature, brief=mark) for mark in marks]
    for run in runs:
        await lab.ended(run)
    findings = await lab.inspect(*runs)
    assert findings.violations == []
    assert lab.calls_begun(feature) == 2 * LONG_TURNS
    prompts = [json.dumps(body["messages"]) for body in lab.provider.requests]
    for mark, item in zip(marks, findings.evidence, strict=True):
        mine = [prompt.replace('\\"', '"') for prompt in prompts if mark in prompt]
        assert len(mine) == LONG_TURNS
        assert not any(other in prompt for prompt in mine for other in marks if other != mark)
        read = {(stream, int(number)) for prompt in mine for stream, number in _TICKET.findall(prompt)}
        assert len(read) > len({stream for stream, _ in read}) > 3
        assert read <= {(message.stream, message.sequence) for message in item.own_messages}


async def test_a_workflow_id_is_used_again(lab: Lab) -> None:
    """After the first run has closed, a second one under its id does its own work and returns its own result."""
    feature = "again"
    first = await lab.start(feature, workflow_id="chaos/again")
    await lab.ended(first)
    second = await lab.start(feature, workflow_id="chaos/again")
    await lab.ended(second)
    findings = await lab.inspect(first, second)
    assert findings.violations == []
    assert lab.calls_begun(feature) == 2 * LONG_TURNS
    one, two = ({message.ref for message in item.own_messages} for item in findings.evidence)
    assert len(one) == len(two)
    assert one.isdisjoint(two)


async def test_a_reset_after_the_end_reuses_everything(lab: Lab) -> None:
    """A run reset to its first workflow task returns the same messages, without a model call."""
    feature = "reset-ended"
    run = await lab.start(feature)
    await lab.ended(run)
    before = await lab.inspect(run)
    again = await reset(lab, run)
    await lab.ended(again)
    after = await lab.inspect(again)
    assert after.violations == []
    assert lab.calls_begun(feature) == LONG_TURNS
    [old], [new] = before.evidence, after.evidence
    assert new.result == old.result
    assert new.messages == old.messages
    again_told = [(row["event_type"], row["entity_id"]) for row in new.events[len(old.events) :]]
    assert new.events[: len(old.events)] == old.events
    assert again_told[0] == ("run.reset", run.key)
    # The turns were paid for once, and the deliverables published once.
    told_once = {"turn.completed", "deliverable.published", "tool.completed", "evidence.recorded"}
    assert Counter(again_told[1:]) == Counter(
        (row["event_type"], row["entity_id"]) for row in old.events if row["event_type"] not in told_once
    )


async def test_a_reset_runs_no_command_again(lab: Lab) -> None:
    """What a command agent has finished is told from the rows, to the letter, as a model's work is."""
    feature = "reset-command"
    run = await lab.start(feature, long=False, pipeline=WITH_COMMAND.model_dump(mode="json"))
    await lab.ended(run)
    before = await notices(lab, run)
    assert [item["stage"] for item in before] == ["research", "backend", "patch"]
    calls = lab.calls_begun(feature)
    with lab.armed("command.before_run") as fired:
        again = await reset(lab, run)
        await lab.ended(again)
        assert not fired()
    assert await notices(lab, again) == before
    assert lab.calls_begun(feature) == calls


async def test_a_reset_in_mid_run_joins_the_call_in_flight(lab: Lab) -> None:
    """What was finished is reused, and the call that the old execution began is the new one's."""
    feature = "reset-mid-run"
    run = await lab.start(feature)
    await lab.calls(run, 5)
    async with lab.calls_held():
        await lab.call_in_flight(run)
        again = await reset(lab, run)
    await lab.ended(again)
    assert (await lab.inspect(again)).violations == []
    assert lab.calls_begun(feature) == LONG_TURNS


async def test_the_history_does_not_grow_with_the_deliverables(lab: Lab) -> None:
    """Six deliverables of 2 KB, of 1 MB and of 9 MB give histories of one size."""
    sizes = {"size-2kb": 2_000, "size-1mb": 1_000_000, "size-9mb": 9_000_000}
    lab.provider.script.add(*(Step(feature=feature, times=None, report_bytes=size) for feature, size in sizes.items()))
    history = {}
    for feature, size in sizes.items():
        run = await lab.start(feature, long=False)
        await lab.ended(run)
        findings = await lab.inspect(run)
        assert findings.violations == []
        assert [message.size > size for message in findings.evidence[0].own_messages] == [True] * SHORT_TURNS
        history[feature] = await history_bytes(lab, run)
    print(f"history: {history}")
    assert max(history.values()) <= MAX_HISTORY_BYTES
    assert max(history.values()) - min(history.values()) <= 300


async def test_a_deliverable_that_fits_into_no_message(lab: Lab) -> None:
    """11 MB fail the stage with a clear error, which is not retried: it was one call, and it stays one."""
    feature = "size-11mb"
    lab.provider.script.add(Step(feature=feature, times=None, report_bytes=11_000_000))
    run = await lab.start(feature, long=False)
    await lab.ended(run)
    [item] = (await lab.inspect(run)).evidence
    assert "research, round 1" in item.failure
    assert re.search(r"deliverable.too_large: .* 11,\d\d\d,\d\d\d bytes, at most 10,\d\d\d,\d\d\d", item.failure)
    assert lab.calls_begun(feature) == 1
    assert item.own_messages == []
    assert [(row["status"], row["task_name"]) for row in item.tasks] == [("failed", "research")]
    assert [row["status"] for row in item.run_rows] == ["failed"]


async def reset(lab: Lab, run: Run) -> Run:
    """Reset a run to its first workflow task; the same run with its new execution."""
    handle = lab.temporal.get_workflow_handle(run.workflow_id, run_id=run.first_run_id)
    completed = temporalio.api.enums.v1.EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    first = next(event.event_id for event in (await handle.fetch_history()).events if event.event_type == completed)
    request = temporalio.api.workflowservice.v1.ResetWorkflowExecutionRequest(
        namespace=lab.temporal.namespace,
        workflow_execution=temporalio.api.common.v1.WorkflowExecution(
            workflow_id=run.workflow_id, run_id=run.first_run_id
        ),
        reason="the test asks for it",
        workflow_task_finish_event_id=first,
        request_id=str(uuid.uuid4()),
    )
    answer = await lab.temporal.workflow_service.reset_workflow_execution(request)
    assert answer.run_id != run.first_run_id
    return dataclasses.replace(run, last_run_id=answer.run_id)


async def notices(lab: Lab, run: Run) -> list[dict[str, Any]]:
    """Every notice of an execution, in order, as its workflow holds them; without absent values."""
    handle = lab.temporal.get_workflow_handle(run.workflow_id, run_id=run.last_run_id or run.first_run_id)
    answer: list[dict[str, Any]] = await handle.query("notices")
    for item in answer:
        metadata = item["notice"]["metadata"]
        item["notice"]["metadata"] = {name: value for name, value in metadata.items() if value is not None}
    return answer


async def history_bytes(lab: Lab, run: Run) -> int:
    """Size of the run's history as the server counts it."""
    description = await lab.temporal.get_workflow_handle(run.workflow_id).describe()
    return description.raw_description.workflow_execution_info.history_size_bytes
