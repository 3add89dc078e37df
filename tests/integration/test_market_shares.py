"""Shares of a provider as the market grants them: through the bucket, into a real gateway, out of a provider."""

import asyncio
import functools
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coatcheck.gateway import limits
from coatcheck.gateway.capacity import Division
from coatcheck.gateway.market_board import MarketBoard
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging import market
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.keyvalue import kv_put
from coatcheck.storage.database import Pool
from coatcheck.workspace.checks import CheckRunner, StageFiles
from coatcheck.workspace.sandbox import Sandbox
from schemas.config import CheckLimits, ProviderLimits
from schemas.evidence import Check
from schemas.market import MARKET_PRICES, MarketPrice, market_key
from tests.integration.nats_clients import client_as
from tests.providers.gateway import Gateway, open_gateway, record_task, turn_request
from tests.providers.openai_server import OpenAIServer
from workers.agent import check_grant

pytestmark = pytest.mark.usefixtures("short_pauses")

TOKENS_PER_SECOND = 35_000
HOUR = timedelta(hours=1)


async def publish(core: NatsClient, shares: Mapping[str, int], *, seconds: float = 60, interval: int = 1) -> None:
    """Put what a clearing of the provider `openai` puts."""
    now = datetime.now(UTC)
    price = MarketPrice(
        resource="llm:openai",
        interval=interval,
        price=1,
        shares=shares,
        floors={"sylvia": 1000},
        cleared_at=now,
        expires_at=now + timedelta(seconds=seconds),
    )
    await kv_put(core, MARKET_PRICES, market_key(price.resource), price.model_dump_json().encode())


@pytest.fixture
async def gateway(
    pool: Pool, nats: NatsClient, core: NatsClient, provider: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway that finds a division when it starts; the bucket outlives the test, so it is taken back."""
    monkeypatch.setattr(limits, "BURST_SECONDS", 0.3)  # or ten seconds' worth would go to whoever is first
    await publish(core, {"sylvia": 2500, "cynthia": 7500})
    most = {"openai": ProviderLimits(tokens_per_minute=60 * TOKENS_PER_SECOND)}
    async with open_gateway(pool, nats, provider.base_url, limits=most) as gateway:
        yield gateway
    await kv_put(core, MARKET_PRICES, market_key("llm:openai"), b"")


async def divided(gateway: Gateway) -> Division:
    """How the gateway divides the provider once it has heard of a market."""
    async with asyncio.timeout(5):
        while not (division := gateway.capacity._provider("openai:x").division).shares:
            await asyncio.sleep(0.01)
    return division


class Storm:
    """Agents that ask call by call, each call for a task of its own, as many at once as it is told."""

    def __init__(self, gateway: Gateway, owner: Pool, provider: OpenAIServer) -> None:
        self._gateway = gateway
        self._owner = owner
        self._provider = provider
        self._numbers = itertools.count()
        self.enough: set[str] = set()
        self._clock = asyncio.get_running_loop().time

    async def caller(self, agent: str, prompt: str) -> None:
        """Ask until that agent has had enough."""
        while agent not in self.enough:
            await self.call(agent, prompt)

    async def call(self, agent: str, prompt: str) -> None:
        """Ask once."""
        run_key = f"feature/storm/{next(self._numbers):05d}"
        key = await record_task(self._owner, agent=agent, stage="critique", run_key=run_key)
        answer = await self._gateway.ask(turn_request(f"agent-{agent} {prompt}", task_key=key), agent=agent)
        assert answer.kind == "answer", answer

    async def during(self, tokens: int) -> tuple[Counter[str], float]:
        """Who gets how many of the next so many tokens, by the provider's own count, and in how many seconds."""
        began, first = self._clock(), len(self._provider.answers)
        got: Counter[str] = Counter()
        while got.total() < tokens:
            await asyncio.sleep(0.02)
            got.clear()
            for _, body, used in self._provider.answers[first:]:
                got["sylvia" if "agent-sylvia" in str(body["messages"]) else "cynthia"] += used
        return got, self._clock() - began


async def test_two_agents_get_tokens_as_the_market_says_and_one_alone_all(
    gateway: Gateway, owner: Pool, provider: OpenAIServer
) -> None:
    """75 to 25, of a provider that refuses what is beyond its limit and never has to; one asks with longer prompts."""
    provider.tokens_per_second = 1.4 * TOKENS_PER_SECOND
    provider._report_bytes = 8192  # few large calls, so that the provider is what is scarce, and not this machine
    assert (await divided(gateway)).floors == {"sylvia": 1000}
    storm = Storm(gateway, owner, provider)
    await storm.call("cynthia", "How large are answers?")
    async with asyncio.TaskGroup() as group:
        short = [group.create_task(storm.caller("cynthia", "Research it.")) for _ in range(32)]
        for _ in range(16):
            group.create_task(storm.caller("sylvia", "Review it. " * 200))
        await storm.during(TOKENS_PER_SECOND)
        got, _ = await storm.during(3 * TOKENS_PER_SECOND)
        assert got["cynthia"] / got.total() == pytest.approx(0.75, rel=0.1)
        assert got["sylvia"] / got.total() == pytest.approx(0.25, rel=0.1)
        storm.enough.add("cynthia")
        await asyncio.wait(short)
        alone, seconds = await storm.during(TOKENS_PER_SECOND)
        assert alone["cynthia"] == 0
        assert alone.total() / seconds >= 0.7 * TOKENS_PER_SECOND  # and not the quarter that is its share
        storm.enough.add("sylvia")
    assert gateway.windows == []


async def test_the_board_follows_the_bucket_and_never_holds_anybody_up(nats: NatsClient, core: NatsClient) -> None:
    """A clearing is heard at once, garbage is passed over, a taken-back one undivides; without NATS all goes on."""
    heard: list[Division] = []
    key = market_key("llm:openai")
    await publish(core, {"roy": 10_000}, seconds=-5)
    async with asyncio.timeout(10), MarketBoard(nats, lambda _, division: heard.append(division), ["openai"]):
        while not heard:  # what was there before
            await asyncio.sleep(0.01)
        assert heard[0].now(time.monotonic()) == {"sylvia": 1000}, "it has expired: the floors hold"
        await publish(core, {"roy": 6000}, interval=2)
        await kv_put(core, MARKET_PRICES, "llm.another", b"of no concern")
        await kv_put(core, MARKET_PRICES, key, b"no price")
        await kv_put(core, MARKET_PRICES, key, b"")
        while len(heard) < 3:
            await asyncio.sleep(0.01)
        assert heard[1].now(time.monotonic()) == {"roy": 6000}
        assert heard[1].until - time.monotonic() == pytest.approx(60, abs=5)
        assert heard[2] == Division()
    nowhere = NatsClient("nats://127.0.0.1:1", name="nowhere", user=None)
    async with asyncio.timeout(3), MarketBoard(nowhere, lambda _, division: heard.append(division), ["openai"]):
        await asyncio.sleep(0)
    assert len(heard) == 3


async def test_a_check_is_run_by_its_agents_share(
    nats_server: NatsStatus, core: NatsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent reads the shares with its own key before a check, and goes on without a market as ever."""
    key, now = market_key("check_cpu"), datetime.now(UTC)
    runner = functools.partial(CheckRunner, Sandbox(CheckLimits()), tmp_path)
    niceness = Check(name="nice", command=("python", "-c", "import os; print('nice', os.nice(0))"))
    async with client_as(nats_server, "jen") as jen:
        for shares, said in (({}, "nice 0"), ({"roy": 7500, "jen": 2500}, "nice 5")):
            price = MarketPrice(
                resource="check_cpu",
                interval=1,
                price=0,
                shares=shares,
                floors={},
                cleared_at=now,
                expires_at=now + HOUR,
            )
            await kv_put(core, MARKET_PRICES, key, price.model_dump_json().encode() if shares else b"")
            ask = check_grant("jen", jen)
            evidence = await runner(grant=ask).run([StageFiles("frontend", {}, [niceness])])
            assert evidence.results[0].output_tail.split("\n")[0] == said
        await kv_put(core, MARKET_PRICES, key, b"")
        monkeypatch.setattr(market, "FRESH_SECONDS", 0.0)
        assert (await ask()).niceness == 0
