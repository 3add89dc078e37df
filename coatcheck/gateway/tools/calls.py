"""`ToolCaller`: a call from the queue to its outcome. Intent before the tool is called, outcome after it, each once.

What is left when this process dies, and what the next one does with it:

    dies              left                          then
    before the claim  the job                       the tool is called
    before, in or     the job and the intent        a tool that may be called again is; of any other the outcome is
    after the call                                  `outcome_unknown`, since nobody can tell these three apart
    after the outcome the job and the outcome       the outcome is told
    after telling it  the job                       the same, under the same message id
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from coatcheck.errors import CoatcheckError, StorageUnavailableError, ToolServerError
from coatcheck.events.dead_letters import bury
from coatcheck.failpoints import failpoint
from coatcheck.gateway.budgets import DayLimits, tool_refused
from coatcheck.gateway.tools.server import ToolServer, as_text
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.work_queue import Job
from coatcheck.storage.tool_calls import Ended, Granted, Orphaned, OverBudget, ToolJournal
from coatcheck.telemetry.scope import working_on_task
from schemas import errors
from schemas.mcp import CallTool, QueuedCall, ToolOutcome, call_token
from schemas.streams import MCP_RESULTS
from schemas.subjects import tool_content_subject, tool_request_subject, tool_result_subject

MAX_DELIVERIES: Final = 5
"""Gateways that a call may outlive without an outcome before it is buried."""
HELD_PAUSE_SECONDS: Final = 0.25
"""Between looks at a call that another gateway is making."""
PREVIEW_CHARACTERS: Final = 2000
"""Of a result that is too long for a prompt."""
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class ToolCaller:
    """Makes the calls of a queue.

    Args:
        servers: The MCP servers by name.
        journal: The record of calls.
        nats: This gateway's client.
        gateways: How many gateways live, for the share of the rate limits.
        limits: Of a day, for calls that cost something.
        over_budget: Called for each call that does not fit.
        on_outcome: Called with a call's token once its outcome is recorded: whoever waits in this process need not
            wait for the stream.
    """

    def __init__(
        self,
        servers: Mapping[str, ToolServer],
        *,
        journal: ToolJournal,
        nats: NatsClient,
        gateways: Callable[[], int],
        on_outcome: Callable[[str, ToolOutcome], None],
        limits: DayLimits,
        over_budget: Callable[[], None],
    ) -> None:
        self._servers = servers
        self._journal = journal
        self._nats = nats
        self._gateways = gateways
        self._on_outcome = on_outcome
        self._limits = limits
        self._over_budget = over_budget

    async def work(self, job: Job, *, server: str) -> None:
        """Bring one job to its end; raises when it has to come again."""
        async with job.kept():
            try:
                queued = QueuedCall.model_validate_json(job.data)
            except ValidationError as error:
                await self._bury(job, server, "?", f"not a call: {error.errors(include_url=False)[0]['msg']}")
                await job.done()
                return
            with working_on_task(queued.call.task_key):
                outcome = await self._outcome(queued, job, server)
                await failpoint("tools.after_outcome")
                await self._tell(queued, outcome)
            await failpoint("tools.after_result")
            await job.done()
            await failpoint("tools.after_ack")

    async def _outcome(self, queued: QueuedCall, job: Job, server: str) -> ToolOutcome:
        """The call's outcome, which is recorded by then unless its task is gone."""
        call = queued.call
        too_often = job.deliveries > MAX_DELIVERIES
        if too_often:
            await self._bury(job, server, queued.agent, f"handed out {job.deliveries} times without an outcome")
        repeatable = not too_often and await self._repeatable(call)
        if not too_often:
            await self._servers[server].wait_turn(self._gateways())
        await failpoint("tools.before_claim")
        cost = self._servers[server].config.cost_usd
        quote = self._limits.tool_quote(queued.agent, self._servers[server].config)
        while True:
            try:
                claim = await _through_outage(
                    lambda: self._journal.claim(call, agent=queued.agent, repeatable=repeatable, quote=quote)
                )
            except CoatcheckError as error:
                return ToolOutcome(status="error", code=error.code, text=f"The tool was not called: {error}")
            match claim:
                case Ended():
                    return claim.outcome
                case OverBudget():
                    self._over_budget()
                    text = f"The tool was not called: {tool_refused(claim.refusal)}."
                    return ToolOutcome(status="error", code=errors.BUDGET_SPENT, text=text)
                case Orphaned():
                    unknown = _unknown(call, "the gateway that had begun it died", cost_usd=cost)
                    gateway = claim.gateway_id
                    return await _through_outage(
                        lambda: self._journal.abandon(call, unknown, gateway_id=gateway, is_priced=bool(cost))  # noqa: B023  called at once
                    )
                case Granted():
                    ended = _abandoned(job) if too_often else await self._made(queued, repeatable=repeatable)
                    return await _through_outage(lambda: self._journal.complete(call, ended, is_priced=bool(cost)))  # noqa: B023  the same
            await asyncio.sleep(HELD_PAUSE_SECONDS)

    async def _repeatable(self, call: CallTool) -> bool:
        """Whether the tool may be called again; not when its server does not even tell what it has."""
        try:
            tools = await self._servers[call.server].tools()
        except ToolServerError:
            return False
        return call.tool in tools and self._servers[call.server].repeatable(tools[call.tool])

    async def _made(self, queued: QueuedCall, *, repeatable: bool) -> ToolOutcome:
        """Make the call, now that the intent is recorded. Never raises: whatever happens is an outcome."""
        await failpoint("tools.after_claim")
        call, server = queued.call, self._servers[queued.call.server]
        if (waited := (time.time() - queued.asked_at.timestamp())) > server.config.queue_seconds:
            text = f"The tool was not called: after {waited:.0f} s its turn had not come."
            return ToolOutcome(status="error", code=errors.TOOL_UNAVAILABLE, text=text)
        try:
            result = await server.call(call.tool, call.arguments)
            await failpoint("tools.after_call")
            return await self._fitting(queued, as_text(result), failed=result.is_error)
        except ToolServerError as error:
            await failpoint("tools.after_call")
            cost = server.config.cost_usd if error.reached else Decimal(0)  # whoever was asked may send a bill
            if error.reached and not repeatable and error.tool_code != errors.TOOL_FAILED:
                return _unknown(call, str(error), code=error.tool_code, cost_usd=cost)
            return ToolOutcome(status="error", code=error.tool_code, text=f"{error}.", cost_usd=cost)
        except Exception as error:  # noqa: BLE001  the tool may have done its work: that must be said
            _log.exception("%s of %s", call.tool_call_id, call.task_key)
            return _unknown(call, f"the gateway failed: {type(error).__name__}", cost_usd=server.config.cost_usd)

    async def _fitting(self, queued: QueuedCall, text: str, *, failed: bool) -> ToolOutcome:
        """The outcome of a call that was answered; a long result is stored, and its beginning stands for it."""
        config = self._servers[queued.call.server].config
        data = text.encode()
        fields: dict[str, Any] = {"result_bytes": len(data), "cost_usd": config.cost_usd}
        fields |= {"status": "error", "code": errors.TOOL_FAILED} if failed else {"status": "result"}
        if len(data) > config.max_result_bytes:
            said = f"{queued.call.server} answered with {len(data):,} bytes, more than {config.max_result_bytes:,}."
            return ToolOutcome(**fields | {"status": "error", "code": errors.TOOL_RESULT_TOO_LARGE, "text": said})
        if len(data) <= config.inline_bytes:
            return ToolOutcome(**fields, text=text)
        reference = await self._store(queued, data)
        shown = text[: min(PREVIEW_CHARACTERS, config.inline_bytes)]
        return ToolOutcome(**fields, text=shown, reference=reference)

    async def _store(self, queued: QueuedCall, data: bytes) -> str:
        token = call_token(queued.call.task_key, queued.call.tool_call_id)
        ack = await self._nats.publish(
            tool_content_subject(queued.agent, token),
            data,
            message_id=f"{token}.content",
            stream=MCP_RESULTS.name,
        )
        return f"{ack.stream}:{ack.sequence}"

    async def _tell(self, queued: QueuedCall, outcome: ToolOutcome) -> None:
        """Tell whoever waits; idempotent."""
        token = call_token(queued.call.task_key, queued.call.tool_call_id)
        self._on_outcome(token, outcome)
        await self._nats.publish(
            tool_result_subject(queued.agent, token),
            outcome.model_dump_json().encode(),
            message_id=token,
            stream=MCP_RESULTS.name,
        )

    async def _bury(self, job: Job, server: str, agent: str, reason: str) -> None:
        stored = job.stored(tool_request_subject(server, agent))
        await bury(self._nats, stored, consumer=f"mcp.{server}", reason=reason)


def _unknown(call: CallTool, reason: str, *, code: str = errors.TOOL_OUTCOME_UNKNOWN, **fields: Any) -> ToolOutcome:
    text = (
        f"Outcome unknown: {call.tool} of {call.server} was called with these arguments, but {reason}. It may or may "
        "not have done its work, and it is not called again for you. Find out what is the case before you call it anew."
    )
    return ToolOutcome(status="outcome_unknown", code=code, text=text, **fields)


def _abandoned(job: Job) -> ToolOutcome:
    text = (
        f"The tool was not called: the request was handed out {job.deliveries} times and no gateway lived to make it."
    )
    return ToolOutcome(status="error", code=errors.TOOL_ABANDONED, text=text)


async def _through_outage(ask: Callable[[], Awaitable[_Result]]) -> _Result:
    """Ask until PostgreSQL answers: an outcome that is not recorded would be taken for unknown."""
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await ask()
        except StorageUnavailableError as error:
            _log.warning("the record of tool calls: %s", error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
