"""The agents worker dies while files are stored, checks run or a command works: no half file, no orphan, no loss."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from coatcheck.errors import DeliverableNotFoundError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient, StoredMessage
from coatcheck.messaging.deliverables import DeliverableService
from schemas.deliverable import Artifact
from schemas.evidence import CheckOutcome
from schemas.pipeline import DEFAULT_PIPELINE, Pipeline, Stage
from schemas.streams import STREAMS, deliverable_stream
from tests.chaos.evidence import Run
from tests.chaos.lab import POLL_SECONDS, RECOVERY_SECONDS, Lab, until
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


def content_of(feature: str) -> bytes:
    """A file of several chunks, like no other feature's."""
    return f"{feature}\n".encode() * 20_000


def build(lab: Lab, feature: str, *, path: str = "backend/app.py", check: list[str] | None = None) -> None:
    """The backend of this feature writes one file of several chunks, and declares a check."""
    written = {"path": path, "content": content_of(feature).decode()}
    arguments = {"checks": [{"name": "works", "command": check or ["true"]}]}
    lab.provider.script.add(
        Step(do="write", feature=feature, stage="backend", turn=1, arguments=written),
        Step(feature=feature, stage="backend", turn=2, arguments=arguments),
    )


def nats_of(lab: Lab) -> NatsStatus:
    """Where the stack's NATS server is, and who may use it."""
    status = lab.stack.status().nats
    assert status is not None
    return status


async def messages(client: NatsClient, stream: str, subject: str, after: int = 0) -> AsyncIterator[StoredMessage]:
    """Everything that a stream holds under a subject, behind a sequence."""
    while True:
        try:
            message = await client.fetch_next(stream, subject, after + 1)
        except DeliverableNotFoundError:
            return
        yield message
        after = message.sequence


async def check_objects(client: NatsClient, agent: str, after: int = 0) -> int:
    """Every object that is visible in a bucket can be read whole; returns the sequence of the last one."""
    async for message in messages(client, f"OBJ_artifacts_{agent}", f"$O.artifacts_{agent}.M.>", after):
        after = message.sequence
        meta: dict[str, Any] = json.loads(message.data)
        artifact = Artifact(path="x", sha256=meta["name"], bytes=meta["size"], media_type="x/y")
        assert hashlib.sha256(await ArtifactStore(client).get(agent, artifact)).hexdigest() == meta["name"]
    return after


@asynccontextmanager
async def watched(lab: Lab, feature: str) -> AsyncIterator[None]:
    """Look all the time: every object is whole, and the backend's files are there, from the moment each is visible.

    A later attempt would repair what a death has left, so looking at the end would be too late.
    """

    async def look() -> None:
        async with client_as(nats_of(lab), "observer") as client:
            service, seen = DeliverableService(client), 0
            while True:
                seen = await check_objects(client, "roy", seen)
                with suppress(DeliverableNotFoundError):  # of the deliverable; a missing file is another matter
                    stored = await service.fetch_report("roy", "backend", feature)
                    files = await files_of(client, "roy", stored.deliverable.artifacts)
                    assert list(files.values()) == [content_of(feature)]
                await asyncio.sleep(POLL_SECONDS)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


async def files_of(client: NatsClient, agent: str, artifacts: list[Artifact]) -> dict[str, bytes]:
    """The files that a visible deliverable names, all of which must be there."""
    try:
        return await ArtifactStore(client).get_all(agent, artifacts)
    except DeliverableNotFoundError as error:
        raise AssertionError(f"a visible deliverable names a file that is not there: {error}") from error


async def artifacts_of(lab: Lab, run: Run, agent: str, task_type: str) -> dict[str, bytes]:
    """The files of the run's deliverable, as anybody reads them."""
    streams = (*STREAMS, deliverable_stream("codex", "patch"))
    async with client_as(nats_of(lab), "observer") as client:
        await check_objects(client, agent)
        service = DeliverableService(client, streams=streams)
        stored = await service.fetch_report(agent, task_type, run.feature)
        return await files_of(client, agent, stored.deliverable.artifacts)


async def uploads_of(lab: Lab, feature: str) -> int:
    """How often the content of a feature's file was sent to the bucket, whole or in part."""
    line = f"\n{feature}\n".encode()
    async with client_as(nats_of(lab), "observer") as client:
        chunks = messages(client, "OBJ_artifacts_roy", "$O.artifacts_roy.C.>")
        return len({message.subject async for message in chunks if line in message.data})


async def patches_of(lab: Lab, feature: str) -> int:
    """How many deliverables the command agent has published for a feature."""
    stream = deliverable_stream("codex", "patch").name
    async with client_as(nats_of(lab), "observer") as client:
        subject = f"agog.deliverables.codex.patch.{feature}"
        return len([message async for message in messages(client, stream, subject)])


async def checks_of(lab: Lab, feature: str) -> list[tuple[str, str]]:
    """Stage and outcome of each check in the evidence that decided."""
    async with client_as(nats_of(lab), "observer") as client:
        stored = await DeliverableService(client).fetch_report("billy", "qa", feature)
    evidence = (stored.deliverable.metadata.model_extra or {})["evidence"]
    return [(item["stage"], item["outcome"]) for item in evidence["results"]]


def workspaces(lab: Lab) -> list[Path]:
    """What is in the folder of workspaces: nothing but those of attempts under way."""
    return list((lab.stack.config.data_dir / "workspaces").iterdir())


def strangers(word: str) -> list[list[str]]:
    """Command lines of living processes that have this word in them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(word in argument for argument in command):
            found.append(command)
    return found


POINTS = ("artifact.before_put", "artifact.after_chunks", "artifact.after_put", "checks.before_run", "checks.after_run")
END_SECONDS = 3.0
"""For the processes of a dead worker's check, which by themselves would end after 6 s."""
SENT_TWICE = {"artifact.after_chunks"}
"""Points at which the content is in the bucket and no object: nobody can find it, so it is sent again."""


@pytest.mark.parametrize("point", POINTS)
async def test_death_while_files_are_stored_or_checked(lab: Lab, point: str) -> None:
    """The next attempt stores what is not there and checks again; what is visible is whole at every moment."""
    feature = point.replace(".", "-").replace("_", "-")
    build(lab, feature)
    lab.arm(point)
    async with watched(lab, feature):
        run = await lab.start(feature, long=False)
        await until(lambda: lab.fired(point), f"a death at {point}")
        dead = lab.stack.status().member("agents").pid or 0
        seconds = await lab.recovery("agents", dead if not psutil.pid_exists(dead) else 0, run)
    assert (await lab.inspect(run)).violations == []
    assert lab.calls_begun(feature) == 7
    assert await artifacts_of(lab, run, "roy", "backend") == {"app.py": content_of(feature)}
    assert await uploads_of(lab, feature) == (2 if point in SENT_TWICE else 1)
    assert await checks_of(lab, feature) == [("backend", CheckOutcome.PASSED)]
    assert workspaces(lab) == []
    assert seconds < RECOVERY_SECONDS


async def test_death_in_the_middle_of_a_check(lab: Lab) -> None:
    """The check's processes die with the worker, also the one that detached itself; the checks are run again."""
    word = "4242424"
    script = f"import subprocess, time; subprocess.Popen(['sleep', '{word}'], start_new_session=True); time.sleep(6)"
    feature = "check-mid-run"
    build(lab, feature, check=["python", "-c", script])
    run = await lab.start(feature, long=False)
    await until(lambda: any("sleep" in command[0] for command in strangers(word)), "the check's own process")
    dead, killed = lab.stack.kill("agents"), time.monotonic()
    await until(lambda: not strangers(word), "the end of the check's processes")
    assert time.monotonic() - killed < END_SECONDS
    await lab.recovery("agents", dead, run)
    assert (await lab.inspect(run)).violations == []
    assert lab.calls_begun(feature) == 7
    assert await checks_of(lab, feature) == [("backend", CheckOutcome.PASSED)]
    assert workspaces(lab) == []
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
    assert files == {"made.txt": b"by a command", "started": b""}
    assert await patches_of(lab, feature) == 1
    assert workspaces(lab) == []
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
    assert await patches_of(lab, feature) == 1
    assert workspaces(lab) == []
