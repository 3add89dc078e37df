"""The agents worker dies while files are stored, checks run or a command works: no half file, no orphan, no loss."""

import asyncio
import hashlib
import json
from typing import Any

import psutil
import pytest

from coatcheck.errors import DeliverableNotFoundError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from schemas.deliverable import Artifact
from schemas.pipeline import DEFAULT_PIPELINE, Pipeline, Stage
from schemas.streams import STREAMS, deliverable_stream
from tests.chaos.evidence import Run
from tests.chaos.lab import RECOVERY_SECONDS, Lab, until
from tests.integration.nats_clients import client_as
from tests.providers.script import Step

WITH_COMMAND = Pipeline(
    name="with-command",
    stages=(
        DEFAULT_PIPELINE.stage("research"),
        Stage(name="backend", agent="roy", task_type="backend", needs=("research",)),
        Stage(name="patch", agent="codex", task_type="patch", needs=("backend",)),
    ),
)


def build(lab: Lab, feature: str, *, path: str = "backend/app.py", check: list[str] | None = None) -> None:
    """The backend of this feature writes one file of several chunks, and declares a check."""
    content = f"{feature}\n" * 20_000
    arguments = {"checks": [{"name": "works", "command": check or ["true"]}]}
    lab.provider.script.add(
        Step(do="write", feature=feature, stage="backend", turn=1, arguments={"path": path, "content": content}),
        Step(feature=feature, stage="backend", turn=2, arguments=arguments),
    )


def nats_of(lab: Lab) -> NatsStatus:
    """Where the stack's NATS server is, and who may use it."""
    status = lab.stack.status().nats
    assert status is not None
    return status


async def check_objects(client: NatsClient, agent: str) -> None:
    """Every object that is visible in a bucket can be read whole; reading compares size and sha256."""
    stream, sequence = f"OBJ_artifacts_{agent}", 1
    while True:
        try:
            message = await client.fetch_next(stream, f"$O.artifacts_{agent}.M.>", sequence)
        except DeliverableNotFoundError:
            return
        sequence = message.sequence + 1
        meta: dict[str, Any] = json.loads(message.data)
        artifact = Artifact(path="x", sha256=meta["name"], bytes=meta["size"], media_type="x/y")
        assert hashlib.sha256(await ArtifactStore(client).get(agent, artifact)).hexdigest() == meta["name"]


async def artifacts_of(lab: Lab, run: Run, agent: str, task_type: str) -> dict[str, bytes]:
    """The files of the run's deliverable, as anybody reads them."""
    streams = (*STREAMS, deliverable_stream("codex", "patch"))
    async with client_as(nats_of(lab), "observer") as client:
        await check_objects(client, agent)
        service = DeliverableService(client, streams=streams)
        stored = await service.fetch_report(agent, task_type, run.feature)
        return await ArtifactStore(client).get_all(agent, stored.deliverable.artifacts)


def strangers(word: str) -> list[list[str]]:
    """Command lines of living processes that have this word in them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(word in argument for argument in command):
            found.append(command)
    return found


POINTS = ("artifact.before_put", "artifact.after_chunks", "artifact.after_put", "checks.before_run", "checks.after_run")


@pytest.mark.parametrize("point", POINTS)
async def test_death_while_files_are_stored_or_checked(lab: Lab, point: str) -> None:
    """The next attempt stores and checks again; what is visible is whole, and there once."""
    feature = point.replace(".", "-").replace("_", "-")
    build(lab, feature)
    lab.arm(point)
    run = await lab.start(feature, long=False)
    await until(lambda: lab.fired(point), f"a death at {point}")
    dead = lab.stack.status().member("agents").pid or 0
    seconds = await lab.recovery("agents", dead if not psutil.pid_exists(dead) else 0, run)
    assert (await lab.inspect(run)).violations == []
    assert lab.calls_begun(feature) == 7
    assert list(await artifacts_of(lab, run, "roy", "backend")) == ["app.py"]
    assert seconds < RECOVERY_SECONDS


async def test_death_in_the_middle_of_a_check(lab: Lab) -> None:
    """The check's processes die with the worker, also the one that detached itself; the checks are run again."""
    word = "4242424"
    script = f"import subprocess, time; subprocess.Popen(['sleep', '{word}'], start_new_session=True); time.sleep(6)"
    feature = "check-mid-run"
    build(lab, feature, check=["python", "-c", script])
    run = await lab.start(feature, long=False)
    await until(lambda: any("sleep" in command[0] for command in strangers(word)), "the check's own process")
    dead = lab.stack.kill("agents")
    await until(lambda: not strangers(word), "the end of the check's processes")
    await lab.recovery("agents", dead, run)
    assert (await lab.inspect(run)).violations == []
    await until(lambda: not strangers(word), "no process of any check")


async def test_death_in_the_middle_of_a_command(lab: Lab) -> None:
    """The command and the daemon that it left behind are gone; the next attempt starts it over and delivers once."""
    feature = "command-mid-run"
    build(lab, feature, path="backend/slow.txt")
    run = await lab.start(feature, long=False, pipeline=WITH_COMMAND.model_dump(mode="json"))
    await until(lambda: any("sleep" in command[0] for command in strangers("987654")), "the command's own process")
    dead = lab.stack.kill("agents")
    await until(lambda: not strangers("987654"), "the end of the command's processes")
    await lab.back("agents", dead)
    await lab.ended(run)
    files = await artifacts_of(lab, run, "codex", "patch")
    assert files["made.txt"] == b"by a command"
    assert not strangers("987654")


async def test_a_published_command_is_not_run_again(lab: Lab) -> None:
    """Killed between the publish and the notice: the second attempt finds the deliverable and starts nothing."""
    feature = "command-published"
    run = await lab.start(feature, long=False, pipeline=WITH_COMMAND.model_dump(mode="json"))
    handle = lab.temporal.get_workflow_handle(run.workflow_id)

    async def patch_is_running() -> bool:
        pending = (await handle.describe()).raw_description.pending_activities
        return any(item.activity_id == "patch-1" for item in pending)

    while not await patch_is_running():
        await asyncio.sleep(0.01)
    dead = await lab.death("agents", "agent.after_publish")
    with lab.armed("command.before_run") as fired:
        await lab.recovery("agents", dead, run)
        assert not fired()
    assert list(await artifacts_of(lab, run, "codex", "patch")) == ["made.txt"]
