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
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from coatcheck.errors import CoatcheckError, StorageUnavailableError
from coatcheck.failpoints import failpoint
from coatcheck.gateway.claims import ClaimDesk
from coatcheck.gateway.provider_errors import ProviderFailure, classify
from coatcheck.gateway.providers import Providers
from coatcheck.storage.journal import Busy, Claimed, Done, Finished, TurnJournal
from schemas import errors
from schemas.conversation import TurnAnswer, TurnError, TurnFinished, TurnPending, TurnReply, TurnRequest
from schemas.streams import MAX_DELIVERABLE_BYTES

POLL_SECONDS = 5.0
"""How long a request waits before it is told to ask again. Short, since a dead gateway is noticed by its silence."""
BUSY_PAUSE_SECONDS = 0.25
"""Between looks at a turn that another gateway has in flight."""
BEAT_SECONDS = 1.5
"""Of the sign of life in `llm_gateways`; a silent gateway's turns are taken over after 6 s."""
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0

_PARAMETERS = TypeAdapter(ModelRequestParameters)
_log = logging.getLogger(__name__)

_Stored = TypeVar("_Stored")
Reply = TurnAnswer | TurnPending | TurnFinished | TurnError


class LLMProxy:
    """Serves `agog.svc.llm.<agent>`; any number of them can run."""

    def __init__(self, journal: TurnJournal, *, providers: Providers, claims: ClaimDesk, max_failures: int) -> None:
        self._journal = journal
        self._providers = providers
        self._claims = claims
        self._max_failures = max_failures
        self._in_flight: dict[tuple[str, int], asyncio.Task[Reply]] = {}

    async def beat(self) -> None:
        """Show for ever that this gateway lives; an outage of the database only ends its claims on turns."""
        while True:
            try:
                await self._journal.beat()
            except StorageUnavailableError as error:
                _log.warning("sign of life not written: %s", error)
            await asyncio.sleep(BEAT_SECONDS)

    async def drain(self) -> None:
        """Wait for the calls in flight: they are paid, so they are journalled before the process ends."""
        if self._in_flight:
            await asyncio.wait(self._in_flight.values())

    async def handle(self, agent: str, payload: bytes) -> bytes:
        """Answer one request of `agent`, whose name comes from the subject and never from the body."""
        try:
            request = TurnRequest.model_validate_json(payload)
        except ValidationError as error:
            return _encode(TurnError(code=errors.REQUEST_INVALID, message=str(error), retryable=False))
        key = (request.task_key, request.turn)
        call = self._in_flight.get(key)
        if call is None:
            call = asyncio.create_task(self._settle(agent, request))
            self._in_flight[key] = call
            call.add_done_callback(lambda _: self._in_flight.pop(key, None))
        await asyncio.wait({call}, timeout=POLL_SECONDS)
        return _encode(call.result() if call.done() else TurnPending())

    async def _settle(self, agent: str, request: TurnRequest) -> Reply:
        try:
            return await self._turn(agent, request)
        except CoatcheckError as error:
            return TurnError(code=error.code, message=str(error), retryable=error.retryable, retry_after_seconds=1)
        except Exception as error:  # noqa: BLE001  the edge: the asker must get an answer
            _log.exception("turn %d of %s", request.turn, request.task_key)
            text = f"the LLM proxy failed: {type(error).__name__}: {error}"
            return TurnError(code=errors.PROVIDER_UNAVAILABLE, message=text, retryable=True, retry_after_seconds=5)

    async def _turn(self, agent: str, request: TurnRequest) -> Reply:
        name = request.model or self._providers.default_model
        digest = hashlib.sha256(json.dumps(request.messages, sort_keys=True).encode()).hexdigest()
        await failpoint("llm.before_claim")
        while True:
            claim = await self._journal.claim(
                request.task_key, request.turn, agent=agent, request_sha256=digest, model=name
            )
            match claim:
                case Done():
                    return TurnAnswer(message=claim.message, model=claim.model, cost_usd=claim.cost_usd, replayed=True)
                case Finished():
                    return TurnFinished(notice=claim.notice)
                case Busy():
                    await asyncio.sleep(BUSY_PAUSE_SECONDS)
                case Claimed():
                    await failpoint("llm.after_claim")
                    return await self._call(agent, request, name, earlier_failures=claim.failures)

    async def _call(self, agent: str, request: TurnRequest, name: str, *, earlier_failures: int) -> Reply:
        try:
            model = self._providers.model(name)
            messages = ModelMessagesTypeAdapter.validate_python(await self._conversation(request))
            response = await model.request(
                messages,
                ModelSettings(**request.settings),  # type: ignore[typeddict-item]
                _PARAMETERS.validate_python(request.parameters),
            )
        except CoatcheckError as error:
            await self._journal.fail(request.task_key, request.turn, code=error.code, message=str(error), counts=False)
            raise
        except Exception as error:  # noqa: BLE001  whatever a provider throws is classified
            return await self._refuse(request, classify(error), earlier_failures)
        return await self._complete(agent, request, name, response)

    async def _conversation(self, request: TurnRequest) -> list[dict[str, Any]]:
        history = await self._journal.history(request.task_key, request.turn) if request.turn > 1 else []
        return await self._claims.redeem(request.run_key, request.claims, history + request.messages)

    async def _complete(self, agent: str, request: TurnRequest, name: str, response: ModelResponse) -> Reply:
        [message] = ModelMessagesTypeAdapter.dump_python([response], mode="json", exclude_none=True)
        cost = self._providers.cost_usd(name, response)
        answer = TurnAnswer(message=message, model=name, cost_usd=cost)
        if (size := len(_encode(answer))) > MAX_DELIVERABLE_BYTES:
            text = f"the model's answer has {size:,} bytes, at most {MAX_DELIVERABLE_BYTES:,} fit into a message"
            failure = ProviderFailure(errors.DELIVERABLE_TOO_LARGE, text, retryable=False)
            return await self._refuse(request, failure, 0)
        await failpoint("llm.before_journal")
        done = await _until_stored(
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
                cost_usd=cost,
            )
        )
        await failpoint("llm.after_journal")
        return TurnAnswer(message=done.message, model=done.model, cost_usd=done.cost_usd)

    async def _refuse(self, request: TurnRequest, failure: ProviderFailure, earlier_failures: int) -> TurnError:
        counts = failure.code == errors.PROVIDER_UNAVAILABLE
        await _until_stored(
            lambda: self._journal.fail(
                request.task_key, request.turn, code=failure.code, message=failure.message, counts=counts
            )
        )
        failures = earlier_failures + counts
        if counts and failures >= self._max_failures:
            text = f"{failures} calls failed, the last one: {failure.message}"
            return TurnError(code=errors.PROVIDER_EXHAUSTED, message=text, retryable=False)
        wait = failure.retry_after_seconds
        if wait is None and failure.retryable:
            wait = min(FIRST_RETRY_SECONDS * 2**failures, LONGEST_RETRY_SECONDS) * random.uniform(0.8, 1.2)  # noqa: S311
        return TurnError(
            code=failure.code, message=failure.message, retryable=failure.retryable, retry_after_seconds=wait
        )


async def _until_stored(write: Callable[[], Awaitable[_Stored]]) -> _Stored:
    """Write what is paid for, however long the database is away: giving up would pay for it again."""
    pause = 0.1
    while True:
        try:
            return await write()
        except StorageUnavailableError as error:
            _log.warning("a finished model call waits for the database: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)


def _encode(reply: Reply) -> bytes:
    return TurnReply(reply=reply).model_dump_json(exclude_none=True).encode()
