"""The LLM proxy: every model call of every agent, each paid once.

A turn is claimed in the journal before the provider is called and completed in the same transaction that stores its
messages, usage and cost. A request for a turn that is journalled is answered from there; one that is in flight is
joined, in this process or in another gateway's. The call belongs to the proxy: when the asking worker dies, it is
finished and journalled all the same, and the worker's successor is given the answer.
"""

import asyncio
import hashlib
import json
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    RetryFeedbackPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from coatcheck.errors import CoatcheckError, StorageUnavailableError
from coatcheck.failpoints import failpoint
from coatcheck.gateway.claims import ClaimDesk
from coatcheck.gateway.provider_errors import ProviderFailure, classify
from coatcheck.gateway.providers import Providers
from coatcheck.storage.journal import Busy, Claimed, Done, Finished, TurnJournal
from schemas import errors
from schemas.conversation import TurnAnswer, TurnError, TurnFinished, TurnPending, TurnReply, TurnRequest
from schemas.notice import Notice
from schemas.streams import MAX_DELIVERABLE_BYTES
from schemas.workflow_ids import run_key_of

POLL_SECONDS = 5.0
"""How long a request waits before it is told to ask again. Short, since a dead gateway is noticed by its silence."""
BUSY_PAUSE_SECONDS = 0.25
"""Between looks at a turn that another gateway has in flight."""
BEAT_SECONDS = 1.5
"""Of the sign of life in `llm_gateways`; a silent gateway's turns are taken over after 6 s."""
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
OUTAGE_SECONDS = 60.0
"""How long a turn that has cost nothing yet waits for the database; every refusal uses up an attempt of its stage."""

_PARAMETERS = TypeAdapter(ModelRequestParameters)
_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
Reply = TurnAnswer | TurnPending | TurnFinished | TurnError


class LLMProxy:
    """Serves `agog.svc.llm.<agent>`; any number of them can run."""

    def __init__(self, journal: TurnJournal, *, providers: Providers, claims: ClaimDesk, max_failures: int) -> None:
        self._journal = journal
        self._providers = providers
        self._claims = claims
        self._max_failures = max_failures
        self._calls: dict[tuple[str, str, int], asyncio.Task[bytes]] = {}
        """Turns under way, and those refused whose time to try again has not come; by agent, since nobody may join
        another's."""

    async def beat(self) -> None:
        """Show for ever that this gateway lives; an outage of the database only ends its claims on turns."""
        while True:
            try:
                await self._journal.beat()
            except StorageUnavailableError as error:
                _log.warning("sign of life not written: %s", error)
            except Exception:  # noqa: BLE001  without beats, others would take over calls that are being paid for here
                _log.exception("sign of life not written")
            await asyncio.sleep(BEAT_SECONDS)

    async def drain(self) -> None:
        """Wait for the calls in flight: they are paid, so they are journalled before the process ends."""
        if self._calls:
            await asyncio.wait(self._calls.values())

    async def handle(self, agent: str, payload: bytes) -> bytes:
        """Answer one request of `agent`, whose name comes from the subject and never from the body.

        Args:
            agent: Who asks.
            payload: A `TurnRequest` as JSON.

        Returns:
            A `TurnReply` as JSON, at most `MAX_DELIVERABLE_BYTES`. `TurnPending` after 5 s without a result: the
            call goes on, also when nobody asks again.
        """
        try:
            request = TurnRequest.model_validate_json(payload)
        except ValidationError as error:
            return _encode(TurnError(code=errors.REQUEST_INVALID, message=str(error), retryable=False))
        key = (agent, request.task_key, request.turn)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = asyncio.create_task(self._settle(agent, request))
        await asyncio.wait({call}, timeout=POLL_SECONDS)
        return call.result() if call.done() else _encode(TurnPending())

    async def _settle(self, agent: str, request: TurnRequest) -> bytes:
        """The encoded reply; joined requests share it."""
        rest_seconds = 0.0
        try:
            reply = await self._reply(agent, request)
            if isinstance(reply, TurnError) and reply.retryable:
                rest_seconds = reply.retry_after_seconds or 0
            data = _encode(reply)
        finally:
            # A refused turn rests here as long as was asked for, whoever asks; a bit less, since clocks differ.
            key = (agent, request.task_key, request.turn)
            asyncio.get_running_loop().call_later(0.9 * rest_seconds, self._calls.pop, key)
        if len(data) <= MAX_DELIVERABLE_BYTES:
            return data
        text = f"the model's answer has {len(data):,} bytes, at most {MAX_DELIVERABLE_BYTES:,} fit into a message"
        return _encode(TurnError(code=errors.DELIVERABLE_TOO_LARGE, message=text, retryable=False))

    async def _reply(self, agent: str, request: TurnRequest) -> Reply:
        try:
            return await self._turn(agent, request)
        except CoatcheckError as error:
            return TurnError(code=error.code, message=str(error), retryable=error.retryable)
        except Exception as error:  # noqa: BLE001  the edge: the asker must get an answer
            _log.exception("turn %d of %s", request.turn, request.task_key)
            text = f"the LLM proxy failed: {type(error).__name__}: {error}"
            return TurnError(code=errors.PROVIDER_UNAVAILABLE, message=text, retryable=True)

    async def _turn(self, agent: str, request: TurnRequest) -> Reply:
        name = request.model or self._providers.default_model
        digest = hashlib.sha256(json.dumps(request.messages, sort_keys=True).encode()).hexdigest()
        await failpoint("llm.before_claim")
        while True:
            claim = await _through_outage(
                lambda: self._journal.claim(
                    request.task_key, request.turn, agent=agent, request_sha256=digest, model=name
                ),
                at_most_seconds=OUTAGE_SECONDS,
            )
            match claim:
                case Done():
                    return TurnAnswer(message=claim.message, model=claim.model, cost_usd=claim.cost_usd, replayed=True)
                case Finished():
                    return TurnFinished(notice=Notice.model_validate(claim.notice))
                case Busy():
                    await asyncio.sleep(BUSY_PAUSE_SECONDS)
                case Claimed():
                    await failpoint("llm.after_claim")
                    return await self._call(agent, request, name, claim)

    async def _call(self, agent: str, request: TurnRequest, name: str, claim: Claimed) -> Reply:
        try:
            model = self._providers.model(name)
            messages = await self._conversation(request)
            parameters = _PARAMETERS.validate_python(request.parameters)
        except CoatcheckError as error:
            await self._journal.fail(
                request.task_key, request.turn, agent=agent, code=error.code, message=str(error), counts=False
            )
            raise
        except ValidationError as error:
            return await self._refuse(agent, request, ProviderFailure(errors.REQUEST_INVALID, str(error), False), claim)
        except UserError as error:
            return await self._refuse(agent, request, classify(error), claim)
        try:
            response = await self._ask(model, messages, ModelSettings(**request.settings), parameters)  # type: ignore[typeddict-item]
            message = _as_json(response)
        except Exception as error:  # noqa: BLE001  whatever a provider throws is classified
            return await self._refuse(agent, request, classify(error), claim)
        return await self._complete(agent, request, name, response, message)

    async def _conversation(self, request: TurnRequest) -> list[ModelMessage]:
        history = await self._journal.history(request.task_key, request.turn) if request.turn > 1 else []
        expanded = await self._claims.redeem(run_key_of(request.task_key), request.claims, history + request.messages)
        return [_in_words(message) for message in ModelMessagesTypeAdapter.validate_python(expanded)]

    async def _ask(
        self, model: Model, messages: list[ModelMessage], settings: ModelSettings, parameters: ModelRequestParameters
    ) -> ModelResponse:
        """One provider call, with a deadline for the whole of it: the SDK's own is for each single read."""
        limit = self._providers.timeout_seconds
        try:
            async with asyncio.timeout(limit):
                return await model.request(messages, settings, parameters)
        except TimeoutError as error:
            raise TimeoutError(f"no complete answer within {limit:g} s") from error

    async def _complete(
        self, agent: str, request: TurnRequest, name: str, response: ModelResponse, message: dict[str, Any]
    ) -> TurnAnswer:
        await failpoint("llm.before_journal")
        done = await _through_outage(
            lambda: self._journal.complete(
                request.task_key,
                request.turn,
                agent=agent,
                request_messages=request.messages,
                response=message,
                model=name,
                tokens_in=response.usage.input_tokens,
                tokens_out=response.usage.output_tokens,
                tokens_cached=response.usage.cache_read_tokens,
                cost_usd=self._providers.cost_usd(name, response),
            )
        )
        await failpoint("llm.after_journal")
        return TurnAnswer(message=done.message, model=done.model, cost_usd=done.cost_usd)

    async def _refuse(self, agent: str, request: TurnRequest, failure: ProviderFailure, claim: Claimed) -> TurnError:
        counts = failure.code == errors.PROVIDER_UNAVAILABLE
        await _through_outage(
            lambda: self._journal.fail(
                *(request.task_key, request.turn),
                agent=agent,
                code=failure.code,
                message=failure.message,
                counts=counts,
            )
        )
        failures = claim.failures + counts
        if counts and failures >= self._max_failures:
            text = f"{failures} calls failed, the last one: {failure.message}"
            return TurnError(code=errors.PROVIDER_EXHAUSTED, message=text, retryable=False)
        wait = failure.retry_after_seconds
        if wait is None and failure.retryable:
            wait = min(FIRST_RETRY_SECONDS * 2 ** (claim.calls - 1), LONGEST_RETRY_SECONDS)
            wait *= random.uniform(0.8, 1.2)  # noqa: S311  spreads retries, keeps no secret
        return TurnError(
            code=failure.code, message=failure.message, retryable=failure.retryable, retry_after_seconds=wait
        )


async def _through_outage(operation: Callable[[], Awaitable[_Result]], *, at_most_seconds: float = math.inf) -> _Result:
    """Repeat a database operation while PostgreSQL is away.

    Without a limit for what is paid for: giving up would pay for it again.

    Raises:
        StorageUnavailableError: it stayed away for longer than that.
    """
    clock = asyncio.get_running_loop().time
    started, pause = clock(), 0.1
    while True:
        try:
            return await operation()
        except StorageUnavailableError as error:
            if clock() - started > at_most_seconds:
                raise
            _log.warning("a model turn waits for the database: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)


def _in_words(message: ModelMessage) -> ModelMessage:
    """The message with feedback on an unusable answer as a text that every provider takes."""
    if not isinstance(message, ModelRequest) or not any(isinstance(part, RetryFeedbackPart) for part in message.parts):
        return message
    return replace(message, parts=[_part_in_words(part) for part in message.parts])


def _part_in_words(part: ModelRequestPart) -> ModelRequestPart:
    """As pydantic-ai does it for a provider without system messages in mid-conversation; servers differ in that."""
    if not isinstance(part, RetryFeedbackPart):
        return part
    text = part.model_response()
    return UserPromptPart(f"<system>{text}</system>" if part.retry.cause == "no_output" else text)


def _as_json(response: ModelResponse) -> dict[str, Any]:
    """The message as JSON values.

    Raises:
        PydanticSerializationError: it has text that is no Unicode (a lone surrogate), which no message can carry.
    """
    [message] = json.loads(ModelMessagesTypeAdapter.dump_json([response], exclude_none=True))
    assert isinstance(message, dict)
    return message


def _encode(reply: Reply) -> bytes:
    return TurnReply(reply=reply).model_dump_json().encode()
