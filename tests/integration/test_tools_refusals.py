"""What a tool call may meet: no right to it, arguments that do not fit, servers that misbehave; others are spared."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from mcp_types import CallToolResult

from coatcheck.errors import DeliverableTooLargeError, NotAuthorizedError, ToolServerError
from coatcheck.gateway.tools.server import as_text, open_servers
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging import work_queue
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.work_queue import ACK_WAIT_SECONDS
from coatcheck.storage.database import Pool
from coatcheck.storage.tool_calls import tool_call_rows
from schemas import errors
from schemas.mcp import ListTools, McpServer, ReadResult, ToolOutcome, ToolRefused
from schemas.streams import MCP_REQUESTS, tool_queue
from schemas.subjects import tool_request_subject, tools_subject
from tests.integration.nats_clients import client_as
from tests.integration.tool_lab import ToolLab, agent_as, counting_server, http_server, make_queues, open_lab
from tests.providers.gateway import record_task
from tests.tools.gateway import GatewayOrder, start


@pytest.fixture
async def lab(  # noqa: PLR0917  fixtures
    nats_server: NatsStatus, core: NatsClient, nats: NatsClient, owner: Pool, pool: Pool, tmp_path: Path
) -> AsyncIterator[ToolLab]:
    """Everything but a gateway."""
    async with open_lab(nats_server, core, nats, owner=owner, pool=pool, folder=tmp_path) as lab:
        yield lab


async def test_an_agent_that_is_not_on_the_list_is_refused(lab: ToolLab) -> None:
    """Jen is offered nothing and may call nothing; roy not what is not on the list, nor a server that is not there."""
    await record_task(lab.owner, agent="jen", stage="frontend")
    async with lab.gateway(tools=("echo",)), agent_as(lab.server, "jen") as jen:
        assert (await jen.ask(ListTools())).tools == []
        assert [offer.tool for offer in (await lab.roy.ask(ListTools())).tools] == ["echo"]
        for asker, call in (
            (jen, lab.call("echo", text="x")),
            (lab.roy, lab.call("count", key="a")),
            (lab.roy, lab.call("echo", server="elsewhere", text="x")),
        ):
            refused = await asker.ask(call)
            assert (refused.kind, refused.code) == ("refused", errors.TOOL_NOT_ALLOWED)
        assert (await lab.roy.ask(lab.call("echo", text="fine"))).text == "fine"
    assert lab.counted() == {}


async def test_nobody_forges_anothers_request(lab: ToolLab) -> None:
    """Jen cannot ask on roy's subject, write the queue, or have a call made in roy's task from her own."""
    call = lab.call("count", key="a")
    async with lab.gateway(agents=("roy", "jen")), agent_as(lab.server, "jen") as jen:
        with pytest.raises(NotAuthorizedError):
            await jen.nats.request(tools_subject("roy"), call.model_dump_json().encode())
        with pytest.raises(NotAuthorizedError):
            await jen.nats.publish(
                tool_request_subject(lab.name, "roy"), b"{}", message_id="x", stream=MCP_REQUESTS.name
            )
        refused = await jen.ask(call)
        assert (refused.kind, refused.code) == ("refused", errors.NOT_AUTHORIZED)
        assert lab.counted() == {}
        assert (await lab.roy.ask(call)).text == "counted a"


async def test_arguments_that_do_not_fit_reach_no_tool(lab: ToolLab) -> None:
    """The schema, the size, the key: each refusal says what is wrong, and the next call is made."""
    async with lab.gateway(max_argument_bytes=10_000):
        for arguments, said in (
            ({"key": 1}, "1 is not of type 'string'"),
            ({}, "'key' is a required property"),
            ({"key": "a", "x": 1}, "'x' was unexpected"),
            ({"key": "x" * 5_000_000}, "at most 10,000 are taken"),
        ):
            refused = await lab.roy.ask(lab.call("count", **arguments))
            assert refused.code == errors.TOOL_ARGUMENTS_INVALID
            assert said in refused.message
        made = lab.call("count", key="a")
        await lab.roy.ask(made)
        other = made.model_copy(update={"arguments": {"key": "b"}})
        assert (await lab.roy.ask(other)).code == errors.TOOL_KEY_CONFLICT
        with pytest.raises(DeliverableTooLargeError):
            await lab.roy.ask(lab.call("echo", text="x" * 11_000_000))
    assert lab.counted() == {"a": 1}


async def test_a_server_that_misbehaves_spoils_its_own_calls_alone(lab: ToolLab) -> None:
    """50 MB, garbage, silence, death: each a clear error or unknown, while another server answers all the while."""
    other = lab.other_server()
    slowest = 0.0
    over = asyncio.Event()

    async def keep_asking() -> None:
        nonlocal slowest
        while not over.is_set():
            began = time.monotonic()
            assert (await lab.roy.ask(lab.call("echo", server="other", text="fine"))).text == "fine"
            slowest = max(slowest, time.monotonic() - began)

    async with lab.gateway(
        "flood=readOnlyHint",
        timeout_seconds=2,
        failures_to_open=100,
        max_result_bytes=100_000,
        cost_usd="0.5",
        others={"other": other},
    ):
        await lab.roy.ask(lab.call("echo", server="other", text="warm"))
        asking = asyncio.create_task(keep_asking())
        ended = {
            tool: await lab.roy.ask(lab.call(tool, **arguments))
            for tool, arguments in (("flood", {"bytes": 50_000_000}), ("garbage", {}), ("never", {}), ("die", {}))
        }
        failed = await lab.roy.ask(lab.call("fail"))
        over.set()
        await asking
        assert (await lab.roy.ask(lab.call("echo", text="again"))).text == "again"
    statuses = {tool: (outcome.status, outcome.code) for tool, outcome in ended.items()}
    assert statuses == {
        "flood": ("error", errors.TOOL_RESULT_TOO_LARGE),  # it says that it changes nothing
        "garbage": ("outcome_unknown", errors.TOOL_TIMED_OUT),
        "never": ("outcome_unknown", errors.TOOL_TIMED_OUT),
        "die": ("outcome_unknown", errors.TOOL_PROTOCOL),
    }
    assert "no message of the protocol" in ended["garbage"].text
    assert {outcome.cost_usd for outcome in (*ended.values(), failed)} == {Decimal("0.5")}  # each may have been billed
    assert (failed.status, failed.code, failed.text) == ("error", errors.TOOL_FAILED, "fail failed")
    assert slowest < 2


async def test_a_long_result_is_a_reference_and_not_a_prompt(lab: ToolLab) -> None:
    """Its beginning is shown, the rest is read by its ticket, by the agent whose task it is and by nobody else."""
    async with lab.gateway(inline_bytes=1000, agents=("roy", "jen")), agent_as(lab.server, "jen") as jen:
        text = "".join(f"{number:06d}" for number in range(50_000))
        call = lab.call("flood", bytes=300_000)
        outcome = await lab.roy.ask(call)
        assert (outcome.status, outcome.text, outcome.result_bytes) == ("result", "x" * 1000, 300_000)
        assert len(text) == outcome.result_bytes
        read = ReadResult(task_key=lab.task_key, reference=outcome.reference, offset=299_990, characters=100)
        found = await lab.roy.ask(read)
        assert (found.text, found.characters) == ("x" * 10, 300_000)
        for asker, other in ((jen, read), (lab.roy, read.model_copy(update={"reference": "mcp_results:1"}))):
            assert (await asker.ask(other)).code == errors.TOOL_NOT_ALLOWED
        assert (await lab.roy.ask(call)).reference == outcome.reference


async def test_the_breaker_opens_and_one_call_tries_again(lab: ToolLab) -> None:
    """Calls in a row without an answer: further ones fail at once and reach no server; later one finds out."""
    async with lab.gateway(timeout_seconds=0.3, failures_to_open=2, open_seconds=1, cost_usd="0.5"):
        await lab.roy.ask(lab.call("echo", text="x"))
        for _ in range(2):
            assert (await lab.roy.ask(lab.call("never"))).code == errors.TOOL_TIMED_OUT
        began = time.monotonic()
        refused = await lab.roy.ask(lab.call("count", key="a"))
        assert (refused.status, refused.code, refused.cost_usd) == ("error", errors.TOOL_UNAVAILABLE, 0)
        assert time.monotonic() - began < 0.9
        assert lab.counted() == {}
        async with asyncio.timeout(20):
            while (await lab.roy.ask(lab.call("echo", text="x"))).status != "result":
                await asyncio.sleep(0.1)
        assert (await lab.roy.ask(lab.call("count", key="b"))).status == "result"


async def test_a_server_that_does_not_even_start_holds_up_no_turn(lab: ToolLab) -> None:
    """Asked for its tools it says nothing, twice; from then on nobody waits for it, and another one's are offered."""
    silent = McpServer(
        command=("sh", "-c", "cat > /dev/null"), agents=("roy",), tools=("*",), timeout_seconds=1, failures_to_open=2
    )
    async with lab.gateway(others={"silent": silent}):
        for _ in range(2):
            await lab.roy.ask(ListTools())
        began = time.monotonic()
        offers = await lab.roy.ask(ListTools())
        assert time.monotonic() - began < 0.9
        assert "echo" in {offer.tool for offer in offers.tools}
        health = {it.server: it for it in offers.servers}
        assert (health["silent"].state, health[lab.name].state) == ("open", "up")
        assert "did not answer in time" in health["silent"].reason
        refused = await lab.roy.ask(lab.call("anything", server="silent"))
        assert (refused.kind, refused.code) == ("refused", errors.TOOL_UNAVAILABLE)


async def test_gateways_share_the_breaker_of_a_server_with_a_url(
    nats_server: NatsStatus, core: NatsClient, nats: NatsClient
) -> None:
    """One gateway finds it away, the other one does not even ask; when it is back, one call of the two tries first."""
    assert core
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = f"forge-{port}"
    away = McpServer(url=f"http://127.0.0.1:{port}/mcp", failures_to_open=2, open_seconds=0.5, timeout_seconds=20)
    async with (
        AsyncExitStack() as later,
        client_as(nats_server, "gateway") as other_nats,
        open_servers({name: away}, {}, nats=nats) as first,
        open_servers({name: away}, {}, nats=other_nats) as second,
    ):
        one, two = first[name], second[name]
        for _ in range(2):
            with pytest.raises(ToolServerError, match="cannot be reached"):
                await one.call("repeat", {"text": "x", "times": 1})
        async with asyncio.timeout(5):
            while two.health().state != "open":
                await asyncio.sleep(0.01)
        with pytest.raises(ToolServerError, match="not asked for now"):
            await two.call("repeat", {"text": "x", "times": 1})
        await later.enter_async_context(http_server(port=port, token=None))  # and ends after its clients
        async with asyncio.timeout(20):
            tried: list[Any] = []
            while not any(isinstance(it, CallToolResult) for it in tried):
                await asyncio.sleep(0.05)
                calls = [server.call("repeat", {"text": "ab", "times": 1}) for server in (one, two)]
                tried = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(it, ToolServerError) for it in tried) == 1
            while one.health().state == "open" or two.health().state == "open":
                await asyncio.sleep(0.01)
            assert as_text(await two.call("repeat", {"text": "ab", "times": 2})) == "abab"


async def test_a_server_sees_the_variables_that_are_named_and_no_others(
    lab: ToolLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret is a name in the file and a value in the gateway's environment."""
    monkeypatch.setenv("FORGE_TOKEN", "t0ken")
    monkeypatch.setenv("OTHER_TOKEN", "hidden")
    async with lab.gateway(env=("FORGE_TOKEN",)):
        seen = json.loads((await lab.roy.ask(lab.call("secrets"))).text)
    assert seen["FORGE_TOKEN"] == "t0ken"
    assert set(seen) <= {"PATH", "HOME", "LANG", "TERM", "FORGE_TOKEN", "LC_CTYPE"}


async def test_a_changed_list_of_tools_is_read_again(lab: ToolLab) -> None:
    """Asked for once, until the server tells that its tools have changed; the next question has them."""
    async with lab.gateway():
        for _ in range(3):
            await lab.roy.ask(ListTools())
        assert (await lab.roy.ask(lab.call("rename"))).text == "listed 1 times"
        async with asyncio.timeout(5):
            while "renamed" not in {offer.tool for offer in (await lab.roy.ask(ListTools())).tools}:
                await asyncio.sleep(0.02)


async def test_a_call_that_waited_too_long_is_not_made(lab: ToolLab) -> None:
    """One place, which is taken: the call behind it gives up, says so, and is never made."""
    async with lab.gateway(max_concurrent=1, queue_seconds=0.3):
        first = asyncio.create_task(lab.roy.ask(lab.call("count", key="a", seconds=1.5)))
        await lab.until(lambda rows: [row.tool for row in rows] == ["count"])
        late = await lab.roy.ask(lab.call("count", key="b"))
        assert (late.status, late.code) == ("error", errors.TOOL_UNAVAILABLE)
        assert (await first).status == "result"
    assert lab.counted() == {"a": 1}


async def test_a_slow_server_does_not_hold_up_others(lab: ToolLab) -> None:
    """Every place of one server is taken by calls that last; another one's are made meanwhile."""
    async with lab.gateway(max_concurrent=2, others={"other": lab.other_server()}):
        slow = [asyncio.create_task(lab.roy.ask(lab.call("count", key=f"k{n}", seconds=2))) for n in range(4)]
        await lab.until(lambda rows: len(rows) == 2)
        began = time.monotonic()
        assert (await lab.roy.ask(lab.call("echo", server="other", text="x"))).text == "x"
        assert time.monotonic() - began < 1.5
        assert not any(task.done() for task in slow)
        assert {outcome.status for outcome in await asyncio.gather(*slow)} == {"result"}


async def test_a_rate_is_kept_by_all_gateways_together(lab: ToolLab) -> None:
    """600 a minute are 10 a second and a burst of 100, however many gateways there are; nobody is refused."""
    async with lab.gateway(requests_per_minute=600, max_concurrent=50) as one, lab.gateway(requests_per_minute=600):
        await one.beat()  # now each of the two has heard of the other
        calls = [lab.roy.ask(lab.call("echo", text=str(number))) for number in range(115)]
        assert {outcome.status for outcome in await asyncio.gather(*calls)} == {"result"}
        begun = sorted(row.created_at for row in await tool_call_rows(lab.pool, limit=200))
    late = [(moment - begun[0]).total_seconds() for moment in begun]
    assert all(seconds >= (number - 100) / 10 - 0.2 for number, seconds in enumerate(late)), late


async def test_a_killed_gateways_call_is_with_another_within_five_seconds_of_its_deadline(
    lab: ToolLab, gateway_dsn: str, tmp_path: Path
) -> None:
    """With the product's own times: it was killed in the call, and the other one makes an idempotent call again."""
    config = {lab.name: counting_server(lab.ledger, idempotent=("count",), timeout_seconds=60)}
    await make_queues(lab.core, config)
    first = start(GatewayOrder(lab.server, gateway_dsn, config, ready=tmp_path / "ready", hurried=False))
    asking = asyncio.create_task(lab.roy.ask_patiently(lab.call("count", key="a", seconds=1.5)))
    await lab.until(lambda rows: [row.status for row in rows] == ["called"])
    async with lab.gateway(idempotent=("count",), timeout_seconds=60):
        first.kill()
        killed = time.monotonic()
        first.join()
        await lab.until(lambda rows: rows[0].calls == 2)
        print(f"with the other one after {time.monotonic() - killed:.1f} s")
        assert time.monotonic() - killed <= ACK_WAIT_SECONDS + 5
        assert (await asking).text == "counted a"


async def test_a_long_call_stays_with_its_gateway(lab: ToolLab, monkeypatch: Any) -> None:
    """It lasts for three times as long as a silent gateway may keep a job, and nobody else is given it."""
    monkeypatch.setattr(work_queue, "ACK_WAIT_SECONDS", 0.6)
    monkeypatch.setattr(work_queue, "WORKING_SECONDS", 0.15)
    async with lab.gateway(), lab.gateway():
        call = asyncio.create_task(lab.roy.ask(lab.call("count", key="a", seconds=1.8)))
        await lab.until(lambda rows: [row.status for row in rows] == ["called"])
        while not call.done():
            queue = await lab.core.api(f"CONSUMER.INFO.{MCP_REQUESTS.name}.{tool_queue(lab.name)}", {})
            assert (queue["num_redelivered"], queue["num_ack_pending"] <= 1) == (0, True)
            await asyncio.wait([call], timeout=0.1)
        assert (await call).text == "counted a"
    assert lab.counted() == {"a": 1}


async def test_two_gateways_share_the_calls(lab: ToolLab) -> None:
    """Each makes some of them, and together no more at once than the server may have."""
    async with lab.gateway(max_concurrent=4) as one, lab.gateway(max_concurrent=4) as two:
        calls = [lab.roy.ask(lab.call("count", key=f"k{n}", seconds=0.1)) for n in range(24)]
        outcomes = await asyncio.gather(*calls)
        makers = {row["gateway_id"]: row["made"] for row in await lab.makers()}
        most = await lab.most_at_once()
    assert {outcome.status for outcome in outcomes} == {"result"}
    assert set(makers) == {one.gateway_id, two.gateway_id}
    assert most <= 4
    assert max(lab.counted().values()) == 1


async def test_a_dead_gateways_call_is_unknown_and_an_idempotent_one_is_made_again(lab: ToolLab) -> None:
    """What it had begun: the one is not made again and says so; the other ends as a result."""
    lease = timedelta(seconds=0.5)
    async with lab.gateway("again=idempotentHint", lease=lease):
        once, again = lab.call("count", key="a"), lab.call("echo", text="b")
        await lab.begun_by_the_dead(once, repeatable=False)
        await lab.begun_by_the_dead(again, repeatable=True)
        unknown, refused = await asyncio.gather(lab.asked_anew(once), lab.asked_anew(again))
    assert isinstance(unknown, ToolOutcome)
    assert (unknown.status, unknown.code) == ("outcome_unknown", errors.TOOL_OUTCOME_UNKNOWN)
    assert "died" in unknown.text
    assert refused.status == "outcome_unknown"  # the file's word counts, and it does not allow it
    async with lab.gateway(idempotent=("echo",), once=("count",), lease=lease):
        again = lab.call("echo", text="b")
        await lab.begun_by_the_dead(again, repeatable=True)
        assert (await lab.asked_anew(again)).text == "b"
    assert lab.counted() == {}


async def test_what_comes_too_often_is_buried_and_its_caller_is_told(lab: ToolLab, monkeypatch: Any) -> None:
    """A call that no gateway brings to an end: a dead letter with the reason, and an error at once."""
    monkeypatch.setattr("coatcheck.gateway.tools.calls.MAX_DELIVERIES", 0)
    async with lab.gateway():
        ended = await lab.roy.ask(lab.call("count", key="a"))
    assert (ended.status, ended.code) == ("error", errors.TOOL_ABANDONED)
    assert lab.counted() == {}
    [letter] = [it for it in await lab.dead_letters() if it.subject == tool_request_subject(lab.name, "roy")]
    assert letter.reason == "handed out 1 times without an outcome"
    assert b'"tool":"count"' in letter.data


async def test_a_task_that_has_ended_calls_no_tools(lab: ToolLab) -> None:
    """The run was cancelled while its agent was at work."""
    async with lab.gateway():
        await lab.owner.execute("UPDATE task_executions SET status = 'cancelled'")
        refused = await lab.roy.ask(lab.call("count", key="a"))
    assert isinstance(refused, ToolRefused)
    assert refused.code == errors.TASK_CLOSED
    assert lab.counted() == {}
