"""`coatcheck program …` in a process of its own, against a real Temporal server and pipelines that the test holds."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from schemas.program import program_workflow_id
from tests.acceptance.program import Outcome, coatcheck
from tests.workflows.conftest import local_temporal
from tests.workflows.programs import AT_ONCE, Handle, Programs, becomes, held_programs
from workflows.program import ProgramWorkflow

Cli = Callable[..., Awaitable[Outcome]]


@pytest.fixture(scope="module")
async def environment() -> AsyncIterator[WorkflowEnvironment]:
    """A server of this module's own."""
    async with local_temporal() as running:
        yield running


@pytest.fixture
async def held(environment: WorkflowEnvironment) -> AsyncIterator[Programs]:
    """A core worker whose pipelines do what the test says."""
    async with held_programs(environment.client) as programs:
        yield programs


@pytest.fixture
def cli(environment: WorkflowEnvironment, tmp_path: Path) -> Cli:
    """Run `coatcheck program …` without blocking the workers, which are in this process."""
    address = environment.client.service_client.config.target_host

    async def run(*arguments: str, stdin: bytes = b"") -> Outcome:
        return await asyncio.to_thread(
            coatcheck, "program", *arguments, data_dir=tmp_path / "data", stdin=stdin, TEMPORAL_ADDRESS=address
        )

    return run


def lines(*features: str, brief: str = "hold") -> bytes:
    """Those features as JSON lines."""
    return "".join(json.dumps({"feature": feature, "brief": brief}) + "\n" for feature in features).encode()


def handle_of(held: Programs, name: str) -> Handle:
    """The program that the command line has started."""
    return held.client.get_workflow_handle_for(ProgramWorkflow.run, program_workflow_id(name))


async def test_a_program_is_run_to_its_end(held: Programs, cli: Cli, tmp_path: Path) -> None:
    """Changes on stderr, the table on stdout, exit code 0."""
    first, second = held.names(2)
    file = tmp_path / f"p-{first}.toml"
    file.write_text("".join(f'[[features]]\nfeature = "{name}"\nbrief = "{AT_ONCE}"\n' for name in (first, second)))
    outcome = await cli("run", str(file), "--wait")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0].split() == ["FEATURE", "TENANT", "PRIO", "STATE", "TOKENS", "COST", "REASON"]
    assert outcome.out.splitlines()[1].split() == [first, "default", "3", "completed", "100", "$0.2500"]
    assert f"p-{first}: completed, 2 of 2 completed; 200 tokens, $0.5000" in outcome.out
    assert f"{second}: completed" in outcome.err
    assert "the program is completed" in outcome.err


async def test_what_did_not_go_through_is_exit_code_1_with_its_reason(held: Programs, cli: Cli) -> None:
    """The others went through all the same."""
    good, bad, asking = held.names(3)
    started = await cli("run", "-", "--name", good, "--max-concurrent", "2", "--json", stdin=lines(good, bad, asking))
    assert started.code == 0, started.err
    assert started.json["workflow_id"] == f"program/{good}"
    watching = asyncio.create_task(cli("watch", good))
    await held.end(good)
    await held.end(bad, status="failed")
    await held.ask(asking, "qa")
    await becomes(handle_of(held, good), {asking: "waiting"})
    status = await cli("status", good, "--json")
    assert status.json["status"] == "running"
    assert status.json["counts"] == {"completed": 1, "failed": 1, "waiting": 1}
    shown = await cli("status", good)
    assert "waiting" in shown.out
    assert f"hint: `coatcheck progress {asking}` shows what is asked" in shown.err
    await held.end(asking)
    outcome = await watching
    assert outcome.code == 1
    assert "error: 1 of 3 features did not go through" in outcome.err
    assert "backend, round 1: no such model (provider.rejected)" in outcome.out
    assert (await cli("status", good)).code == 0


async def test_a_program_is_paused_limited_resumed_and_cancelled(held: Programs, cli: Cli) -> None:
    """Each command says what it did; after the end each says that."""
    first, second, third = held.names(3)
    await cli("run", "-", "--name", first, "--max-concurrent", "1", stdin=lines(first, second, third))
    handle = handle_of(held, first)
    await becomes(handle, {first: "running"})
    again = await cli("run", "-", "--name", first, stdin=lines(first))
    assert again.code == 1
    assert f"program/{first} is already running" in again.err
    assert (await cli("pause", first)).code == 0
    limited = await cli("limit", first, "2")
    assert (limited.code, "at most 2 features at once" in limited.err) == (0, True)
    assert (await cli("status", first, "--json")).json["status"] == "paused"
    assert (await cli("resume", f"program/{first}")).code == 0
    await becomes(handle, {second: "running", third: "pending"})
    await held.pipeline(second)
    assert (await cli("cancel", first)).code == 0
    outcome = await cli("watch", first)
    assert (outcome.code, "the program was cancelled" in outcome.err) == (1, True)
    assert "not started: the program was cancelled" in outcome.out
    refused = await cli("resume", first)
    assert (refused.code, f"{first} has ended (canceled)" in refused.err) == (1, True)


async def test_mistakes_start_nothing(held: Programs, cli: Cli) -> None:
    """All at once, exit code 2; the name could be used afterwards."""
    [name] = held.names(1)
    outcome = await cli("run", "-", "--name", name, stdin=b'{"feature": "A"}\n{"brief": "b"}\n')
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("stdin:") == 3
    assert "hint: nothing was started" in outcome.err
    missing = await cli("status", name)
    assert (missing.code, f"no program is called '{name}'" in missing.err) == (1, True)


async def test_without_a_worker_that_is_said_and_a_result_can_still_be_read(
    environment: WorkflowEnvironment, cli: Cli
) -> None:
    """A finished program's result is on the server; how far an open one is only a worker knows."""
    async with held_programs(environment.client) as held:
        done, open_one = held.names(2)
        assert (await cli("run", "-", "--name", done, "--wait", stdin=lines(done, brief=AT_ONCE))).code == 0
        assert (await cli("run", "-", "--name", open_one, stdin=lines(open_one))).code == 0
        await becomes(handle_of(held, open_one), {open_one: "running"})
    assert (await cli("status", done, "--json")).json["counts"] == {"completed": 1}
    asked = await cli("status", open_one)
    assert (asked.code, "no core worker answers" in asked.err) == (3, True)
