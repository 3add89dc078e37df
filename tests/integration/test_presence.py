"""What agents say of themselves: compare and set between workers, pruning, isolation, outages; and who reads it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from coatcheck.agents.presence import Presence
from coatcheck.cli.roster import AgentLine, Roster
from coatcheck.errors import MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.keyvalue import kv_get, kv_put
from coatcheck.messaging.streams import ensure_streams
from schemas.agent_state import FORGET_SECONDS, AgentState, AgentTask, AgentWorker, WorkerState, agent_key
from schemas.config import DEFAULT_CONFIG
from schemas.streams import AGENT_STATE, AGENT_STATE_STREAM, AGENTS, kv_stream_name, kv_subject
from schemas.subjects import encode_token
from tests.integration.nats_clients import client_as

ROY = agent_key("roy")


def task(stage: str = "backend", number: int = 1) -> AgentTask:
    """A round in hand."""
    key = f"feature/search/0f0f/{stage}-{number}"
    return AgentTask(task_key=key, feature="search", stage=stage, round=number, attempt=1, since=datetime.now(UTC))


async def stored(client: NatsClient, key: str = ROY) -> AgentState:
    """The value as it is now."""
    found = await kv_get(client, AGENT_STATE, key)
    return AgentState.model_validate_json(found[0]) if found else AgentState()


async def becomes(client: NatsClient, accept: Callable[[AgentState], object], key: str = ROY) -> AgentState:
    """Wait until the value is as wanted."""
    async with asyncio.timeout(20):
        while not accept(state := await stored(client, key)):
            await asyncio.sleep(0.01)
    return state


@pytest.fixture
async def second(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[NatsClient]:
    """The connection of another worker of the same agent."""
    assert core
    async with client_as(nats_server, "roy") as client:
        yield client


async def test_a_worker_says_what_it_works_on(roy: NatsClient, observer: NatsClient) -> None:
    """Idle, working with the rounds in hand, stopping, gone; each with the time since when."""
    async with Presence(roy, "roy", version="1.2.3") as presence:
        me = presence.worker_id
        idle = (await becomes(observer, lambda state: me in state.workers)).workers[me]
        assert (idle.state, idle.tasks, idle.version) == (WorkerState.IDLE, [], "1.2.3")
        with presence.working(task()), presence.working(task(number=2)):
            state = await becomes(observer, lambda state: state.workers[me].task_count == 2)
            busy = state.workers[me]
            assert busy.state is WorkerState.WORKING
            assert [item.task_key[-9:] for item in busy.tasks] == ["backend-1", "backend-2"]
            assert busy.since > idle.since
        free = (await becomes(observer, lambda state: state.workers[me].task_count == 0)).workers[me]
        assert free.state is WorkerState.IDLE
        assert free.since >= busy.since
        presence.stop()
        await becomes(observer, lambda state: state.workers[me].state is WorkerState.STOPPING)
    assert me not in (await stored(observer)).workers


async def test_a_heartbeat_comes_without_a_change(roy: NatsClient, observer: NatsClient) -> None:
    """So that silence means something."""
    async with Presence(roy, "roy", version="1", heartbeat_seconds=0.6) as presence:
        first = (await becomes(observer, lambda state: state.workers)).workers[presence.worker_id]
        later = await becomes(
            observer, lambda state: state.workers[presence.worker_id].last_heartbeat > first.last_heartbeat
        )
        assert later.workers[presence.worker_id].since == first.since


async def test_changes_are_told_at_most_twice_a_second(roy: NatsClient, observer: NatsClient, core: NatsClient) -> None:
    """500 rounds within a moment are a few puts, and the last of them says how it is."""
    async with Presence(roy, "roy", version="1") as presence:
        await becomes(observer, lambda state: presence.worker_id in state.workers)
        before = await revision(core)
        for number in range(500):
            with presence.working(task(number=number)):
                await asyncio.sleep(0)
        with presence.working(task("last")):
            await becomes(observer, lambda state: state.workers[presence.worker_id].tasks)
            assert await revision(core) - before <= 3


async def revision(core: NatsClient) -> int:
    """Of the whole bucket; nobody else writes in these tests."""
    last: int = (await core.api(f"STREAM.INFO.{kv_stream_name(AGENT_STATE)}"))["state"]["last_seq"]
    return last


async def test_workers_of_one_agent_share_its_key(roy: NatsClient, second: NatsClient, observer: NatsClient) -> None:
    """However they race, each keeps its own entry and takes out only that."""
    async with AsyncExitStack() as stack:
        clients = [roy, second, roy, second, roy, second]
        workers = [Presence(client, "roy", version="1") for client in clients]
        for worker in workers:
            await stack.enter_async_context(worker)
        names = {worker.worker_id for worker in workers}
        await becomes(observer, lambda state: set(state.workers) == names)
        # All at once on the same revision: one wins, the others take its value and come again.
        await asyncio.gather(*(worker._put(leaving=False) for worker in workers for _ in range(5)))
        assert set((await stored(observer)).workers) == names
        await workers[0].__aexit__(None, None, None)
        assert set((await stored(observer)).workers) == names - {workers[0].worker_id}
        with workers[1].working(task("theirs")):
            state = await becomes(observer, lambda state: state.workers[workers[1].worker_id].tasks)
            assert {name for name, entry in state.workers.items() if entry.tasks} == {workers[1].worker_id}


async def test_the_dead_are_forgotten_after_a_minute(roy: NatsClient, observer: NatsClient) -> None:
    """By the next worker that writes; one that is silent for less may come back."""
    now = datetime.now(UTC)

    def silent(seconds: float) -> AgentWorker:
        beat = now - timedelta(seconds=seconds)
        return AgentWorker(state=WorkerState.WORKING, since=beat, started_at=beat, last_heartbeat=beat, version="1")

    dead = AgentState(workers={"dead": silent(FORGET_SECONDS + 1), "late": silent(FORGET_SECONDS - 20)})
    await kv_put(roy, AGENT_STATE, ROY, dead.to_wire())
    assert dead.present(now) == {}
    async with Presence(roy, "roy", version="1") as presence:
        state = await becomes(observer, lambda state: presence.worker_id in state.workers)
        assert set(state.workers) == {"late", presence.worker_id}


async def test_an_unreadable_value_is_replaced(roy: NatsClient, observer: NatsClient) -> None:
    """A later release may have written it; its workers say themselves how they are."""
    await kv_put(roy, AGENT_STATE, ROY, b'{"workers": "?"}')
    async with Presence(roy, "roy", version="1") as presence:
        found = await becomes_readable(observer)
        assert set(found.workers) == {presence.worker_id}


async def becomes_readable(client: NatsClient) -> AgentState:
    """Wait until the value is ours."""
    async with asyncio.timeout(3):  # at once, not with the next beat
        while b'"?"' in (await kv_get(client, AGENT_STATE, ROY) or (b"", 0))[0]:
            await asyncio.sleep(0.01)
    return await stored(client)


async def test_an_agent_puts_its_own_key_and_no_other(
    nats_server: NatsStatus, roy: NatsClient, core: NatsClient
) -> None:
    """Not another agent's, not a model's, not one below its own; and nobody but core puts an agent's."""
    jen_says = await kv_put(core, AGENT_STATE, agent_key("jen"), AgentState().to_wire())
    for key in (agent_key("jen"), "agent.roy.more", "agent", "model.x", "other"):
        with pytest.raises(NotAuthorizedError):
            await kv_put(roy, AGENT_STATE, key, b"forged")
    for name in ("gateway", "observer"):
        async with client_as(nats_server, name) as client:
            with pytest.raises(NotAuthorizedError):
                await kv_put(client, AGENT_STATE, ROY, b"forged")
    assert await kv_get(core, AGENT_STATE, agent_key("jen")) == (AgentState().to_wire(), jen_says)


def test_many_workers_fit_into_the_bucket() -> None:
    """Tasks are counted instead of named before a value grows over what the bucket takes."""
    now = datetime.now(UTC)
    long = task().model_copy(update={"task_key": "k" * 255, "feature": "f" * 64})
    entry = AgentWorker(
        state=WorkerState.WORKING,
        since=now,
        tasks=[long] * 10,
        task_count=200,
        started_at=now,
        last_heartbeat=now,
        version="1.2.3",
    )
    state = AgentState(workers={f"{number:012x}": entry for number in range(100)})
    data = state.to_wire()
    assert len(data) <= AGENT_STATE_STREAM.max_msg_bytes
    assert {item.task_count for item in AgentState.model_validate_json(data).workers.values()} == {200}


def line(roster: Roster, agent: str = "roy") -> AgentLine:
    """One agent of the roster."""
    return next(item for item in roster.lines() if item.agent == agent)


async def shows(roster: Roster, accept: Callable[[AgentLine], object]) -> AgentLine:
    """Wait until the roster has heard it; it asks for nothing by itself."""
    async with asyncio.timeout(20):
        while True:
            roster.changed.clear()
            if accept(found := line(roster)):
                return found
            await roster.changed.wait()


async def test_the_roster_hears_every_change(
    nats_server: NatsStatus, roy: NatsClient, observer: NatsClient, core: NatsClient
) -> None:
    """Reactively: with no read after the first, it has the agent's state and the breakers of its models."""
    model = "openai:gpt-roster"
    await kv_put(core, AGENT_STATE, ROY, AgentState().to_wire())
    async with Roster(observer, DEFAULT_CONFIG, [model]) as roster:
        assert [item.agent for item in roster.lines()] == list(AGENTS)
        assert line(roster).state == "none"
        assert line(roster).breakers == {model: "closed"}
        async with Presence(roy, "roy", version="1") as presence:
            await shows(roster, lambda found: found.state == "idle")
            with presence.working(task()):
                found = await shows(roster, lambda found: found.state == "working")
                assert [(item.stage, item.round) for item in found.tasks] == [("backend", 1)]
            await shows(roster, lambda found: found.state == "idle")
        await shows(roster, lambda found: found.state == "none")
        until = (datetime.now(UTC) + timedelta(seconds=60)).timestamp()
        breaker = f'{{"state": "open", "until": {until}, "cause": "outage"}}'
        async with client_as(nats_server, "gateway") as gateway:
            await kv_put(gateway, AGENT_STATE, f"model.{encode_token(model)}", breaker.encode())
        found = await shows(roster, lambda found: found.breakers[model] != "closed")
        assert found.breakers[model].startswith("open for ")


class Deaf(Roster):
    """Hears nothing more once it is told to: what it learns then, it has read."""

    is_deaf = False

    async def _hear(self, key: str, data: bytes, revision: int) -> None:
        if not self.is_deaf:
            await super()._hear(key, data, revision)


async def test_the_roster_reads_again_on_a_new_connection(
    nats_server: NatsStatus, roy: NatsClient, core: NatsClient
) -> None:
    """What was repeated while it had none is lost."""
    await kv_put(core, AGENT_STATE, ROY, AgentState().to_wire())
    async with client_as(nats_server, "observer") as observer, Deaf(observer, DEFAULT_CONFIG, []) as roster:
        assert line(roster).state == "none"
        roster.is_deaf = True
        async with Presence(roy, "roy", version="1") as presence:
            await becomes(core, lambda state: presence.worker_id in state.workers)
            assert await roster.keep_up()
            assert line(roster).state == "none"
            before = await observer._live()
            await before.raw.close()
            async with asyncio.timeout(10):
                while await observer._live() is before or not await roster.keep_up():
                    await asyncio.sleep(0.02)
            assert line(roster).state == "idle"


async def test_without_nats_the_work_goes_on_and_the_state_catches_up(new_stack: Callable[..., LocalStack]) -> None:
    """Neither the worker nor a round notices; the roster knows that what it shows is old, and reads again."""
    stack = await asyncio.to_thread(new_stack, servers=("nats",), workers=())
    server = stack.status().nats
    assert server is not None
    async with client_as(server, "core") as core:
        await ensure_streams(core, [AGENT_STATE_STREAM])
        async with (
            client_as(server, "roy") as roy,
            client_as(server, "observer") as observer,
            Presence(roy, "roy", version="1") as presence,
            Deaf(observer, DEFAULT_CONFIG, []) as roster,
        ):
            await shows(roster, lambda found: found.state == "idle")
            assert await roster.keep_up()
            roster.is_deaf = True
            await asyncio.to_thread(stack.stop_member, "nats")
            while await roster.keep_up():
                await asyncio.sleep(0.01)
            began = asyncio.get_running_loop().time()
            with presence.working(task("in-the-dark")):
                took = asyncio.get_running_loop().time() - began
                assert took < 0.05
                with pytest.raises(MessagingUnavailableError):
                    await kv_get(roy, AGENT_STATE, ROY)
                await asyncio.to_thread(stack.start_member, "nats")
                await becomes(core, lambda state: state.workers[presence.worker_id].tasks)
                async with asyncio.timeout(5):
                    while not await roster.keep_up():
                        await asyncio.sleep(0.05)
                assert line(roster).tasks[0].stage == "in-the-dark"


async def test_the_end_does_not_wait_for_a_nats_that_is_away(new_stack: Callable[..., LocalStack]) -> None:
    """A worker that is told to stop stops."""
    stack = await asyncio.to_thread(new_stack, servers=("nats",), workers=())
    server = stack.status().nats
    assert server is not None
    async with client_as(server, "roy") as roy:
        presence = await Presence(roy, "roy", version="1").__aenter__()
        await asyncio.to_thread(stack.stop_member, "nats")
        async with asyncio.timeout(5):
            await presence.__aexit__(None, None, None)


def test_keys_are_those_of_the_bucket() -> None:
    """The literal subject that the accounts allow."""
    assert kv_subject(AGENT_STATE, ROY) == "$KV.agent_state.agent.roy"
