"""`ProxyModel`: the agent's model, a client of the LLM proxy.

Owns turn numbering and waiting for an answer. Turns are numbered by the answers in the conversation, so a retried
activity asks for turn 1 again, is given the journalled answer, and walks to where it was without paying.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from coatcheck.errors import MessagingUnavailableError, StageParkedError, TurnRefusedError, WorkerStoppingError
from coatcheck.failpoints import failpoint
from schemas.conversation import (
    OVER_BUDGET,
    Claim,
    TurnAnswer,
    TurnError,
    TurnFinished,
    TurnOverBudget,
    TurnParked,
    TurnPending,
    TurnReply,
    TurnRequest,
)
from schemas.notice import Notice

AskProxy = Callable[[bytes], Awaitable[bytes]]
"""Sends an encoded `TurnRequest` on the agent's own subject and returns the encoded `TurnReply`.

Raises `MessagingUnavailableError` when no proxy answers.
"""

PROXY_AWAY_SECONDS = 60.0
"""How long one attempt waits for a proxy to come back; a restart takes about 2 s."""

_PARAMETERS = TypeAdapter(ModelRequestParameters)
_VOLATILE = frozenset({"timestamp", "run_id", "conversation_id", "instructions", "state"})
"""Fields that differ from attempt to attempt, or that travel elsewhere; they stay out of the journal."""


WRAP_UP: Final = (
    "Nothing more may be spent on this task: {reason}. This is your last answer. Call submit_report now with what you "
    "have: what is done, what is missing and what the next attempt has to do. Keep it below 1,000 words."
)
"""What a model is told with its last turn."""
SHOWN_CHARACTERS: Final = 1_000
"""Of each new message in the last turn, so that the call stays as small as what was kept free for it."""


class BudgetSpentError(Exception):
    """Control flow: not even a last call may be made, or it has been and was of no use."""


class TaskFinishedError(Exception):
    """Control flow: the task is already recorded as complete, so its notice is the result."""

    def __init__(self, notice: Notice) -> None:
        super().__init__("already complete")
        self.notice = notice


@dataclass
class Spending:
    """What the turns of one task took, journalled ones included."""

    models: set[str] = field(default_factory=set)
    usage: RequestUsage = field(default_factory=RequestUsage)
    cost_usd: Decimal | None = Decimal(0)

    def add(self, answer: TurnAnswer, usage: RequestUsage) -> None:
        """Add one turn; one unknown price makes the sum unknown."""
        self.usage += usage
        self.models.add(answer.model)
        known = self.cost_usd is not None and answer.cost_usd is not None
        self.cost_usd = (self.cost_usd or Decimal(0)) + (answer.cost_usd or Decimal(0)) if known else None


class ProxyModel(Model):
    """A pydantic-ai model for one task of one agent."""

    _renders_retry_feedback = True
    """Feedback on an unusable answer travels and is journalled as what it is; the proxy puts it into words."""

    def __init__(
        self,
        ask: AskProxy,
        *,
        task_key: str,
        models: Sequence[str],
        claims: list[Claim],
        stopping: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._ask = ask
        self._task_key = task_key
        self._models = list(models)
        self._stopping = stopping
        self.claims = claims
        """Markers that the prompt and the tools have used; the proxy replaces these and no others."""
        self.spending = Spending()
        self.over_budget: str | None = None
        """Why the conversation had to end early; `None` when it did not."""

    @property
    def model_name(self) -> str:
        """The model asked for; the proxy may have a default of its own."""
        return self._models[0] if self._models else "default"

    @property
    def system(self) -> str:
        """The provider's name in telemetry."""
        return "coatcheck"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Get the next answer from the proxy, or the journalled one.

        Raises:
            TurnRefusedError: the proxy refused, or stayed away for a minute.
            WorkerStoppingError: the worker is shutting down; nothing new is begun.
            StageParkedError: no model can be asked for a while.
            TaskFinishedError: the task was finished by an earlier attempt or before a reset.
            BudgetSpentError: nothing more may be spent, not even on wrapping up.
        """
        if self.over_budget is not None:
            raise BudgetSpentError
        if self._stopping():
            raise WorkerStoppingError("the worker is stopping; another one goes on from the journal")
        last_answer = max((index for index, item in enumerate(messages) if isinstance(item, ModelResponse)), default=-1)
        turn = 1 + sum(isinstance(item, ModelResponse) for item in messages)
        await failpoint("agent.before_turn")
        request = TurnRequest(
            task_key=self._task_key,
            turn=turn,
            models=self._models,
            messages=[_plain(item) for item in messages[last_answer + 1 :]],
            parameters=_PARAMETERS.dump_python(model_request_parameters, mode="json", exclude_defaults=True),
            settings=dict(model_settings or {}),
            claims=self.claims,
        )
        answer = await self._answer(request)
        if isinstance(answer, TurnOverBudget):
            self.over_budget = answer.reason
            answer = await self._last_answer(request, answer.reason)
        await failpoint("agent.after_turn")
        [message] = ModelMessagesTypeAdapter.validate_python([answer.message])
        assert isinstance(message, ModelResponse)
        self.spending.add(answer, message.usage)
        self.over_budget = (message.metadata or {}).get(OVER_BUDGET)
        return message

    async def _last_answer(self, request: TurnRequest, reason: str) -> TurnAnswer:
        """The turn did not fit: ask for the report instead, in a call that does."""
        new = json.dumps(request.messages)
        last = {
            "claims": [claim for claim in request.claims if claim.marker not in new],  # bodies that did not fit either
            "messages": _shortened(request.messages, WRAP_UP.format(reason=reason)),
            "parameters": {name: it for name, it in request.parameters.items() if name != "function_tools"},
            "wrap_up": reason,
        }
        answer = await self._answer(request.model_copy(update=last))
        if isinstance(answer, TurnOverBudget):
            raise BudgetSpentError
        return answer

    async def _answer(self, request: TurnRequest) -> TurnAnswer | TurnOverBudget:
        """Ask until the turn is settled; asking again joins the call that is under way."""
        payload = request.model_dump_json().encode()
        clock = asyncio.get_running_loop().time
        last_heard, pause = clock(), 0.1
        while True:
            try:
                reply = TurnReply.model_validate_json(await self._ask(payload)).reply
            except MessagingUnavailableError as error:
                if clock() - last_heard > PROXY_AWAY_SECONDS:
                    raise TurnRefusedError(
                        f"no LLM proxy has answered for {PROXY_AWAY_SECONDS:.0f} s: is the gateway worker running?",
                        code=error.code,
                        retryable=True,
                    ) from error
                await asyncio.sleep(pause)
                pause = min(2 * pause, 2.0)
                continue
            last_heard, pause = clock(), 0.1
            match reply:
                case TurnAnswer() | TurnOverBudget():
                    return reply
                case TurnFinished():
                    raise TaskFinishedError(reply.notice)
                case TurnError():
                    raise TurnRefusedError(
                        reply.message,
                        code=reply.code,
                        retryable=reply.retryable,
                        retry_after_seconds=reply.retry_after_seconds,
                    )
                case TurnParked():
                    raise StageParkedError(reply.reason, retry_after_seconds=reply.retry_after_seconds)
                case TurnPending():
                    if self._stopping():
                        raise WorkerStoppingError("the worker is stopping; the call under way is journalled")


def _shortened(messages: list[dict[str, Any]], told: str) -> list[dict[str, Any]]:
    """The messages with the beginnings of what they say, and a last word."""
    short = [message | {"parts": [_short_part(part) for part in message["parts"]]} for message in messages]
    short[-1]["parts"].append({"part_kind": "user-prompt", "content": told})
    return short


def _short_part(part: dict[str, Any]) -> dict[str, Any]:
    content = part.get("content")
    text = content if isinstance(content, str) else json.dumps(content)
    return part if content is None or len(text) <= SHOWN_CHARACTERS else part | {"content": text[:SHOWN_CHARACTERS]}


def _plain(message: ModelMessage) -> dict[str, Any]:
    """The message as JSON values, without what differs between attempts."""
    [data] = ModelMessagesTypeAdapter.dump_python([message], mode="json", exclude_none=True)
    plain = {name: value for name, value in data.items() if name not in _VOLATILE}
    return plain | {"parts": [_plain_part(part) for part in data["parts"]]}


def _plain_part(part: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in part.items() if name not in _VOLATILE}
    if isinstance(plain.get("content"), list):
        # Validation errors repeat the whole rejected report as their input: the model has it already, and 9 MB of it
        # would not fit into the request.
        plain["content"] = [_without_input(item) for item in plain["content"]]
    return plain


def _without_input(item: Any) -> Any:
    is_error = isinstance(item, dict) and {"type", "loc", "msg", "input"} <= item.keys()
    return {name: value for name, value in item.items() if name != "input"} if is_error else item
