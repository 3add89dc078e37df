"""A gateway's part for tools as a process of its own that can be killed, and started again in a tenth of a second.

Forked from a server that has imported everything: a fresh interpreter would need two seconds, a hundred kills minutes.
"""

import asyncio
import multiprocessing
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvloop

from coatcheck.gateway.tools import calls, desk
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging import work_queue
from coatcheck.storage import tool_calls
from coatcheck.storage.database import open_pool
from coatcheck.storage.journal import LEASE as PRODUCT_LEASE
from schemas.mcp import McpServer
from tests.integration.nats_clients import client_as
from tests.integration.tool_lab import open_tools

LEASE = timedelta(seconds=0.8)
ACK_WAIT_SECONDS = 1.0
POLL_SECONDS = 0.5
MANY = 10_000
"""The product's times, but five to ten times as fast."""


@dataclass(frozen=True)
class GatewayOrder:
    """What such a process is told."""

    nats: NatsStatus
    dsn: str
    servers: Mapping[str, McpServer]
    failpoints: str = ""
    ready: Path = field(default_factory=Path)
    hurried: bool = True
    """With the times above; otherwise with the product's."""


def main(order: GatewayOrder) -> None:
    """Serve until killed."""
    os.environ["COATCHECK_FAILPOINTS"] = order.failpoints
    random.seed()  # forked processes would die at the same moments
    if order.hurried:
        _hurry()
    uvloop.run(_serve(order))


def _hurry() -> None:
    work_queue.WORKING_SECONDS = ACK_WAIT_SECONDS / 4  # type: ignore[misc]
    desk.POLL_SECONDS = POLL_SECONDS  # type: ignore[misc]
    # Nothing in the product is unlucky so often; here it would end calls before they are made.
    calls.MAX_DELIVERIES = tool_calls.MOST_CALLS = MANY  # type: ignore[misc]


async def _serve(order: GatewayOrder) -> None:
    async with (
        open_pool(order.dsn, min_size=0) as pool,
        client_as(order.nats, "gateway") as nats,
        open_tools(order.servers, pool=pool, nats=nats, lease=LEASE if order.hurried else PRODUCT_LEASE),
    ):
        order.ready.touch()
        await asyncio.Event().wait()


def context() -> Any:
    """Where such processes come from."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.tools.gateway"])
    return found


def start(order: GatewayOrder) -> BaseProcess:
    """One process; it is ready a tenth of a second later."""
    process: BaseProcess = context().Process(target=main, args=(order,), daemon=True)
    process.start()
    return process
