"""New keys for everybody and a rolling restart of every worker, while runs go on: none of them notices."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from coatcheck.errors import NotAuthorizedError
from coatcheck.localstack import LocalStack
from coatcheck.messaging.accounts import FIXED_IDENTITIES, load_user
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from schemas.notice import Notice
from schemas.pipeline import FeatureRequest, RunStatus
from schemas.streams import AGENTS
from schemas.task_queues import CORE
from tests.acceptance.program import coatcheck
from tests.integration.nats_clients import client_as
from workers.temporal import connect
from workflows.feature_pipeline import FeaturePipelineWorkflow

RUNS = 6


async def test_new_keys_and_new_workers_under_load(new_stack: Callable[..., LocalStack], tmp_path: Path) -> None:
    """0 failed runs; old keys are refused; what they had signed is still believed."""
    stack = new_stack(data_dir=tmp_path / "rotation", env={"COATCHECK_SCRIPTED_LATENCY_SECONDS": "0.3"})
    status = stack.status()
    assert status.temporal is not None
    assert status.nats is not None
    keys = stack.config.keys_dir
    old = {name: keys / f"old-{name}" for name in (*FIXED_IDENTITIES, *AGENTS) if name != "observer"}
    for name, file in old.items():
        file.write_bytes((keys / f"{name}.nk").read_bytes())
    users = {name: load_user(keys, name) for name in old}
    client = await connect(status.temporal.address, status.temporal.namespace)
    handles = [
        await client.start_workflow(
            FeaturePipelineWorkflow.run,
            FeatureRequest(feature=f"rotated-{number}", brief="Rotate without anybody noticing."),
            id=f"feature/rotated-{number}",
            task_queue=CORE,
        )
        for number in range(RUNS)
    ]

    async def notices() -> list[Notice]:
        return [task.notice for handle in handles for task in await handle.query(FeaturePipelineWorkflow.notices)]

    async with asyncio.timeout(60):
        while not (before := await notices()):
            await asyncio.sleep(0.1)
    rotating = asyncio.create_task(
        asyncio.to_thread(coatcheck, "rotate", "all", "--json", data_dir=stack.config.data_dir)
    )
    for worker in ("agents", "core", "gateway"):
        await asyncio.to_thread(stack.restart_member, worker)
    told = await rotating
    assert told.code == 0, told.err
    assert told.json == {"rotated": [*FIXED_IDENTITIES, *AGENTS], "cut_off": []}
    results = [await handle.result() for handle in handles]
    assert [result.status for result in results] == [RunStatus.COMPLETED] * RUNS
    for name, user in users.items():
        assert load_user(keys, name).user != user.user
        with pytest.raises(NotAuthorizedError, match="does not accept"):
            await NatsClient(
                status.nats.url, user=user.model_copy(update={"nkey_file": old[name]}), name=name
            ).__aenter__()
    async with client_as(status.nats, "observer") as observer:
        service = DeliverableService(observer)
        signers = set()
        for notice in [*before, *await notices()]:
            await service.fetch(notice.ref)
            message = await observer.fetch_by_sequence(notice.ref.stream, notice.ref.sequence)
            signers.add(message.headers["Coatcheck-Signature"].partition(" ")[0])
    assert signers & {user.user for user in users.values()}
    assert signers - {user.user for user in users.values()}
    assert not [file for file in keys.iterdir() if file.suffix in (".next", ".previous")]
