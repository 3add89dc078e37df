"""`ToolDesk`: serves `agog.svc.tools.<caller>`: checks what agents ask, queues it, and tells how it ended.

Agents cannot write the queue themselves: whoever may publish to a stream can take another's message id first, and the
real call is then dropped as a duplicate. Here the caller is known by the subject that its account can reach, the task
must be its own and running, and the server, the tool and the arguments must be allowed and fit.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from nats.aio.msg import Msg
from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, ToolServerError
from coatcheck.failpoints import failpoint
from coatcheck.gateway.tools.server import ToolServer, as_text
from coatcheck.messaging.client import NatsClient
from coatcheck.storage.tool_calls import Ended, ToolJournal
from coatcheck.telemetry.scope import working_on_task
from schemas import errors
from schemas.mcp import (
    CallTool,
    ListTools,
    QueuedCall,
    ReadResult,
    ToolOffers,
    ToolOutcome,
    ToolPending,
    ToolRefused,
    ToolReply,
    ToolsReply,
    ToolsRequest,
    ToolText,
    call_token,
)
from schemas.streams import MCP_REQUESTS, MCP_RESULTS, live_subject
from schemas.subjects import tool_request_subject, tool_result_subject

POLL_SECONDS: Final = 5.0
"""How long a request waits before it is told to ask again."""
OPERATOR: Final = "core"
"""Who may call every tool of every server, without a task: the person with that key."""
_SHOWN: Final = 500

_log = logging.getLogger(__name__)


class ToolDesk:
    """Answers requests; any number of them can run.

    Args:
        servers: The MCP servers by name.
        journal: The record of calls.
        nats: This gateway's client.
    """

    def __init__(self, servers: Mapping[str, ToolServer], *, journal: ToolJournal, nats: NatsClient) -> None:
        self._servers = servers
        self._journal = journal
        self._nats = nats
        self._waiting: defaultdict[str, set[asyncio.Future[ToolOutcome]]] = defaultdict(set)
        self._listing: dict[tuple[str, bool], asyncio.Task[object]] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hear of outcomes, whichever gateway tells them, until the block ends."""
        subscription = await self._nats.subscribe(live_subject(tool_result_subject("*", "*")), self._hear)
        try:
            yield
        finally:
            await self._nats.unsubscribe(subscription)

    async def handle(self, caller: str, payload: bytes) -> bytes:
        """Answer one request of `caller`, whose name comes from the subject and never from the body.

        Returns:
            A `ToolsReply` as JSON. `ToolPending` after 5 s without an outcome: the call goes on all the same.
        """
        try:
            request = ToolsRequest.model_validate_json(payload).root
            reply = await self._reply(caller, request)
        except ValidationError as error:
            reply = ToolRefused(code=errors.REQUEST_INVALID, message=str(error)[:_SHOWN])
        except ToolServerError as error:
            reply = ToolRefused(code=error.tool_code, message=str(error))
        except CoatcheckError as error:
            reply = ToolRefused(code=error.code, message=str(error)[:_SHOWN], retryable=error.retryable)
        return ToolsReply(reply).model_dump_json().encode()

    async def _reply(self, caller: str, request: ListTools | CallTool | ReadResult) -> ToolReply:
        match request:
            case ListTools():
                servers = self._allowed(caller)
                if request.only_health:
                    return ToolOffers(tools=[], servers=[server.health() for server in servers])
                return await self._offers(servers, only_if_up=caller == OPERATOR)
            case ReadResult():
                return await self._read(caller, request)
            case CallTool():
                server = self._check_allowed(caller, request)
                if caller == OPERATOR:
                    return await self._try(server, request)
                with working_on_task(request.task_key):
                    return await self._call(caller, server, request)

    # --- what there is ----------------------------------------------------------------------------------------------

    def _allowed(self, caller: str) -> list[ToolServer]:
        return [it for it in self._servers.values() if caller == OPERATOR or caller in it.config.agents]

    def _check_allowed(self, caller: str, call: CallTool) -> ToolServer:
        server = self._servers.get(call.server)
        if server is None or server not in self._allowed(caller) or not server.config.allows(call.tool):
            raise ToolServerError(
                f"{caller} may not call {call.tool!r} of {call.server!r}", code=errors.TOOL_NOT_ALLOWED, reached=False
            )
        return server

    async def _offers(self, servers: Sequence[ToolServer], *, only_if_up: bool) -> ToolReply:
        """Ask every server at once; one that is still starting is waited for by asking again."""
        keys = [(server.name, only_if_up) for server in servers]
        for server, key in zip(servers, keys, strict=True):
            if key not in self._listing:
                task: asyncio.Task[object] = asyncio.create_task(server.offers(only_if_up=only_if_up))
                self._listing[key] = task
                task.add_done_callback(lambda _, key=key: self._listing.pop(key))  # type: ignore[misc]
        asked = [self._listing[key] for key in keys]
        if asked:
            _, starting = await asyncio.wait(asked, timeout=POLL_SECONDS)
            if starting:
                return ToolPending()
        found = [task.result() for task in asked if task.exception() is None]
        return ToolOffers(
            tools=[offer for offers in found for offer in offers],  # type: ignore[attr-defined]
            servers=[server.health() for server in servers],
        )

    # --- calls ------------------------------------------------------------------------------------------------------

    async def _call(self, agent: str, server: ToolServer, call: CallTool) -> ToolReply:
        found = await self._journal.peek(call, agent=agent)
        if isinstance(found, Ended):
            return found.outcome
        token = call_token(call.task_key, call.tool_call_id)
        ended: asyncio.Future[ToolOutcome] = asyncio.get_running_loop().create_future()
        self._waiting[token].add(ended)
        try:
            if found is None:
                await self._check_arguments(server, call)
                await self._queue(agent, call, token)
            async with asyncio.timeout(POLL_SECONDS):
                return await ended
        except TimeoutError:
            return ToolPending()
        finally:
            self._waiting[token].discard(ended)
            if not self._waiting[token]:
                del self._waiting[token]

    async def _check_arguments(self, server: ToolServer, call: CallTool) -> None:
        size = len(call.model_dump_json())
        if size > server.config.max_argument_bytes:
            message = f"{size:,} bytes of arguments, at most {server.config.max_argument_bytes:,} are taken"
            raise ToolServerError(message, code=errors.TOOL_ARGUMENTS_INVALID, reached=False)
        await server.check(call.tool, call.arguments)

    async def _queue(self, agent: str, call: CallTool, token: str) -> None:
        queued = QueuedCall(agent=agent, call=call, asked_at=datetime.now(UTC))
        await failpoint("tools.before_queue")
        await self._nats.publish(
            tool_request_subject(call.server, agent),
            queued.model_dump_json().encode(),
            message_id=token,
            stream=MCP_REQUESTS.name,
        )
        await failpoint("tools.after_queue")

    async def _hear(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        if token in self._waiting:
            self.tell(token, ToolOutcome.model_validate_json(message.data))

    def tell(self, token: str, outcome: ToolOutcome) -> None:
        """The call with that token has ended so; for whoever waits here."""
        for waiting in self._waiting.get(token, ()):
            if not waiting.done():
                waiting.set_result(outcome)

    async def _try(self, server: ToolServer, call: CallTool) -> ToolReply:
        """A person's call: made at once, at most once, and recorded nowhere."""
        await self._check_arguments(server, call)
        result = await server.call(call.tool, call.arguments)
        text = as_text(result)
        status = "error" if result.is_error else "result"
        return ToolOutcome(status=status, text=text, result_bytes=len(text.encode()), cost_usd=server.config.cost_usd)

    # --- long results -----------------------------------------------------------------------------------------------

    async def _read(self, agent: str, request: ReadResult) -> ToolReply:
        stream, _, sequence = request.reference.partition(":")
        is_ours = stream == MCP_RESULTS.name and sequence.isascii() and sequence.isdigit()
        if not is_ours or not await self._journal.owns(request.task_key, request.reference, agent=agent):
            message = f"no result of this task has the reference {request.reference[:_SHOWN]!r}"
            return ToolRefused(code=errors.TOOL_NOT_ALLOWED, message=message)
        text = (await self._nats.fetch_by_sequence(stream, int(sequence))).data.decode("utf-8", "replace")
        end = request.offset + request.characters
        return ToolText(text=text[request.offset : end], characters=len(text))
