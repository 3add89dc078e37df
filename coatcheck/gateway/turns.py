"""One model turn, from a request to a reply: admitted, claimed in the journal, asked of a model, journalled.

The journal is claimed only with a permit in hand, so a turn that waits or is parked leaves no trace that a dead
gateway would have to be missed for. A turn that needs no call (journalled, under way elsewhere, its task finished)
finds that out before it queues. Within one request the chain is walked as far as it helps:

    blame     breaker             this turn
    REQUEST   answers count       fails: no other provider is asked what one refused on its merits
    FIT       untouched           next model
    REFUSED   open for long       next model
    BUSY      open until then     next model, else waits or is parked
    OUTAGE    open after some     next model after 2 tries or once it is open, else tried again by the agent, or parked

A failure that finds its breaker open is the model's and not the turn's: it is not counted, so an outage costs time
and no run. It is the turn's, and counted, when the model has come back since the turn's previous failure: others were
answered meanwhile. Failures that are counted end the turn when there are `max_failures` for each model of its chain.
While nobody else asks, an outage and a turn that makes the model fail look alike: a day's worth of calls ends it.
"""

import asyncio
import hashlib
import json
import logging
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from coatcheck.errors import CoatcheckError, NotAuthorizedError, StorageUnavailableError
from coatcheck.failpoints import failpoint
from coatcheck.gateway.breaker import LONGEST_OUTAGE_SECONDS
from coatcheck.gateway.budgets import BudgetDesk, ending, over_budget
from coatcheck.gateway.chain import QUEUE_SECONDS, ModelChain, Parked, Permit
from coatcheck.gateway.claims import ClaimDesk
from coatcheck.gateway.conversation import for_provider
from coatcheck.gateway.provider_errors import MAX_MESSAGE_CHARACTERS, Blame, ProviderFailure
from coatcheck.gateway.providers import Providers
from coatcheck.gateway.shares import Payer
from coatcheck.storage.journal import Claimed, ClaimOutcome, Done, Finished, OverBudget, TurnJournal, TurnQuote
from coatcheck.telemetry.instruments import ModelInstruments
from schemas import errors
from schemas.conversation import (
    OVER_BUDGET,
    TurnAnswer,
    TurnError,
    TurnFinished,
    TurnOverBudget,
    TurnParked,
    TurnPending,
    TurnRequest,
)
from schemas.notice import Notice
from schemas.workflow_ids import run_key_of

BUSY_PAUSE_SECONDS = 0.25
"""Between looks at a turn that another gateway has in flight."""
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
OUTAGE_SECONDS = 60.0
"""How long a turn that has cost nothing yet waits for the database; every refusal uses up an attempt of its stage."""
TRIES_BEFORE_NEXT = 2
"""Failed calls of one model within a request before the next one is asked: one may be a cut connection."""
BYTES_PER_TOKEN = 4
"""Of English; the first estimate of a call."""
LONGEST_TURN_SECONDS = 24 * 3600.0
"""What `STAGE_SCHEDULE_TO_CLOSE` allows the attempts of one activity. It does not end a turn that is parked again and
again, since each parking is followed by a new activity."""
MOST_CALLS = int(LONGEST_TURN_SECONDS / LONGEST_OUTAGE_SECONDS)
"""Of each model: 288, one every 300 s of that day. A turn that shared an outage with others has made far fewer."""

_PARAMETERS = TypeAdapter(ModelRequestParameters)
_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
Reply = TurnAnswer | TurnPending | TurnFinished | TurnParked | TurnOverBudget | TurnError


@dataclass
class _Course:
    """How far one request has come."""

    agent: str
    request: TurnRequest
    encoded: bytes
    """Its messages as JSON."""
    digest: str
    models: list[str]
    """Those that may still be asked, in order of preference."""
    length: int
    """Models of the whole chain."""
    least_tokens: int
    """Of the new messages; the claims in them are small."""
    give_up: float
    """When waiting for a permit ends, on the loop's clock."""
    tries: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)
    """What the models that were dropped said."""
    again: TurnError | None = None
    """What to answer when no model is left and one of them may be tried again."""

    @property
    def key(self) -> tuple[str, int]:
        return self.request.task_key, self.request.turn


@dataclass(frozen=True)
class _Attempt:
    """One call of one model: the leave for it, and the turn's row as the claim found it."""

    permit: Permit
    claim: Claimed
    quote: TurnQuote
    is_suspect: bool
    """Whether the model has come back since the turn's previous failure: a further one is the turn's own."""

    def is_last(self, models: int) -> bool:
        """Whether a turn with so many models has had a day, and the calls of a day, without an answer."""
        return self.claim.age_seconds >= LONGEST_TURN_SECONDS and self.claim.calls >= MOST_CALLS * models


class TurnDesk:
    """Settles turns.

    Args:
        journal: Of this gateway.
        providers: The models.
        claims: Expands prompts.
        chain: Gives leave to ask a model.
        budgets: Says what a turn may cost at most.
        max_failures: Counted failures of a turn per model of its chain.
        measures: Are told of every call.
    """

    def __init__(
        self,
        journal: TurnJournal,
        *,
        providers: Providers,
        claims: ClaimDesk,
        chain: ModelChain,
        budgets: BudgetDesk,
        max_failures: int,
        measures: ModelInstruments,
    ) -> None:
        self._journal = journal
        self._providers = providers
        self._claims = claims
        self._chain = chain
        self._budgets = budgets
        self._max_failures = max_failures
        self._measures = measures

    async def settle(self, agent: str, request: TurnRequest) -> Reply:
        """Answer one request; a paid answer is journalled first.

        Raises:
            CoatcheckError: the task is not the agent's or not running, no role has the model, a claim cannot be
                redeemed, or the database stays away.
        """
        models = list(dict.fromkeys(request.models or self._providers.chain))
        if refused := [name for name in models if name not in self._providers.allowed]:
            raise NotAuthorizedError(f"no role of the configuration has the model {', '.join(refused)}")
        encoded = json.dumps(request.messages, sort_keys=True).encode()
        course = _Course(
            agent=agent,
            request=request,
            encoded=encoded,
            digest=hashlib.sha256(encoded).hexdigest(),
            models=models,
            length=len(models),
            least_tokens=len(encoded) // BYTES_PER_TOKEN,
            give_up=asyncio.get_running_loop().time() + QUEUE_SECONDS,
        )
        await failpoint("llm.before_claim")
        while (reply := await self._step(course)) is None:
            pass
        return reply

    async def _step(self, course: _Course) -> Reply | None:
        """One look at the turn and at most one call; `None` when there is more to do."""
        permit = self._chain.permit_now(course.models, least_tokens=course.least_tokens)
        if permit is None:
            found = await self._wait(course)
            if not isinstance(found, Permit):
                return found
            permit = found
        claim: ClaimOutcome | None = None
        try:
            claim, quote = await self._claim(course, permit.model)
        finally:
            if not isinstance(claim, Claimed):
                await self._chain.unused(permit)
        if isinstance(claim, Claimed):
            await failpoint("llm.after_claim")
            return await self._call(course, self._attempt(permit, claim, quote))
        return await self._settled(claim)

    async def _wait(self, course: _Course) -> Permit | Reply | None:
        """Wait for a permit, unless the turn needs no call."""
        outcome, tenant = await _through_outage(
            lambda: self._journal.peek(*course.key, agent=course.agent), at_most_seconds=OUTAGE_SECONDS
        )
        if outcome is not None:
            return await self._settled(outcome)
        found = await self._chain.permit(
            course.models,
            turn=f"{course.request.task_key}/{course.request.turn}",
            payer=Payer(course.agent, tenant),
            give_up=course.give_up,
            least_tokens=course.least_tokens,
        )
        if isinstance(found, Permit):
            return found
        if self._chain.closing:  # another gateway, or this one's successor, goes on
            return TurnPending()
        return _parked(found)

    async def _claim(self, course: _Course, model: str) -> tuple[ClaimOutcome, TurnQuote]:
        """Claim the turn with the first quote that fits, or with none."""
        for quote in self._budgets.quotes(course.agent, course.request, model, encoded=course.encoded):
            claim = await _through_outage(
                partial(
                    self._journal.claim,
                    *course.key,
                    agent=course.agent,
                    request_sha256=course.digest,
                    model=model,
                    quote=quote,
                ),
                at_most_seconds=OUTAGE_SECONDS,
            )
            if not isinstance(claim, OverBudget):
                break
        return claim, quote

    def _attempt(self, permit: Permit, claim: Claimed, quote: TurnQuote) -> _Attempt:
        ago = claim.failed_seconds_ago
        if claim.calls > 1 and ago is None:
            self._measures.paid_again(permit.model)
        is_suspect = ago is not None and self._chain.has_recovered(permit.model, within_seconds=ago)
        return _Attempt(permit, claim, quote, is_suspect)

    async def _settled(self, outcome: ClaimOutcome) -> Reply | None:
        match outcome:
            case Done():
                return TurnAnswer(
                    message=outcome.message, model=outcome.model, cost_usd=outcome.cost_usd, replayed=True
                )
            case Finished():
                return TurnFinished(notice=Notice.model_validate(outcome.notice))
            case OverBudget():
                self._measures.over_budget()
                return over_budget(outcome.refusal)
            case _:
                await asyncio.sleep(BUSY_PAUSE_SECONDS)
                return None

    async def _call(self, course: _Course, attempt: _Attempt) -> Reply | None:
        permit = attempt.permit
        try:
            model = self._providers.model(permit.model)
            messages = await self._conversation(course.request, model.system)
            parameters = _PARAMETERS.validate_python(course.request.parameters)
            settings = course.request.settings
            if attempt.claim.is_reserved:
                settings = self._budgets.settings(settings, attempt.quote)
        except (CoatcheckError, ValidationError, UserError) as error:
            await self._chain.unused(permit)
            return await self._not_called(course, attempt, error)
        except BaseException:
            await self._chain.unused(permit)
            raise
        try:
            with self._measures.asking(permit.model):
                response = await self._ask(model, messages, ModelSettings(**settings), parameters)  # type: ignore[typeddict-item]
            message = _as_json(response)
            if attempt.claim.is_reserved and (why := ending(course.request, attempt.quote, response)):
                message["metadata"] = {OVER_BUDGET: why}  # a second attempt is to know it too
        except Exception as error:  # noqa: BLE001  whatever a provider throws is classified
            failure = self._providers.explain(error)
            is_open = await self._chain.failed(permit, failure)
            return await self._refused(course, attempt, failure, is_open=is_open)
        self._chain.answered(permit, tokens=response.usage.total_tokens)
        self._measures.answered(permit.model, response.usage.input_tokens, response.usage.output_tokens)
        try:  # what is paid is journalled first: the breakers are told over NATS, which may be slow
            return await self._complete(course, permit.model, response, message)
        finally:
            await self._chain.succeeded(permit)

    async def _conversation(self, request: TurnRequest, system: str) -> list[ModelMessage]:
        history = await self._journal.history(request.task_key, request.turn) if request.turn > 1 else []
        expanded = await self._claims.redeem(run_key_of(request.task_key), request.claims, history + request.messages)
        return for_provider(ModelMessagesTypeAdapter.validate_python(expanded), system)

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
        self, course: _Course, model: str, response: ModelResponse, message: dict[str, Any]
    ) -> TurnAnswer:
        await failpoint("llm.before_journal")
        done = await _through_outage(
            lambda: self._journal.complete(
                *course.key,
                agent=course.agent,
                request_messages=course.request.messages,
                response=message,
                model=model,
                tokens_in=response.usage.input_tokens,
                tokens_out=response.usage.output_tokens,
                tokens_cached=response.usage.cache_read_tokens,
                cost_usd=self._providers.cost_usd(model, response),
            )
        )
        await failpoint("llm.after_journal")
        return TurnAnswer(message=done.message, model=done.model, cost_usd=done.cost_usd)

    async def _not_called(
        self, course: _Course, attempt: _Attempt, error: CoatcheckError | ValidationError | UserError
    ) -> Reply | None:
        """The turn failed before the provider was asked."""
        if isinstance(error, CoatcheckError):
            await self._journal.fail(*course.key, agent=course.agent, code=error.code, message=str(error), counts=False)
            raise error
        if isinstance(error, ValidationError):
            failure = ProviderFailure(errors.REQUEST_INVALID, str(error), retryable=False)
        else:
            failure = self._providers.explain(error)
        return await self._refused(course, attempt, failure, is_open=False)

    async def _refused(
        self, course: _Course, attempt: _Attempt, failure: ProviderFailure, *, is_open: bool
    ) -> Reply | None:
        """Journal the failure, and decide who is asked next: `None` when somebody is."""
        counts = failure.blame is Blame.OUTAGE and (attempt.is_suspect or not is_open)
        await _through_outage(
            lambda: self._journal.fail(
                *course.key, agent=course.agent, code=failure.code, message=failure.message, counts=counts
            )
        )
        if failure.blame is Blame.REQUEST:
            return _error(failure)
        if failure.blame not in {Blame.BUSY, Blame.OUTAGE}:
            return _drop(course, attempt.permit.model, failure)
        failures = attempt.claim.failures + counts
        if counts and failures >= self._max_failures * course.length:
            return _exhausted(f"{failures} calls failed", failure)
        if attempt.is_last(course.length):
            return _exhausted(f"{attempt.claim.calls} calls in a day and no answer", failure)
        if is_open or failure.blame is Blame.BUSY:
            return None
        return await self._tried(course, attempt, failure)

    async def _tried(self, course: _Course, attempt: _Attempt, failure: ProviderFailure) -> Reply | None:
        """A call failed while its model is open to all: once more, or another model."""
        model = attempt.permit.model
        again = _error(failure, pause=_pause(attempt.claim.calls))
        if not any(other != model and self._chain.is_closed(other) for other in course.models):
            return again
        course.tries[model] += 1
        if course.tries[model] < TRIES_BEFORE_NEXT:
            await asyncio.sleep(_pause(course.tries[model]))
            return None
        course.again = again
        return _drop(course, model, failure)


def _drop(course: _Course, model: str, failure: ProviderFailure) -> TurnError | None:
    """Ask that model no more in this request; the end when it was the last one."""
    course.models.remove(model)
    course.refusals.append(failure.message)
    if course.models:
        return None
    if course.again is not None:
        return course.again
    return TurnError(code=failure.code, message="; ".join(course.refusals)[:MAX_MESSAGE_CHARACTERS], retryable=False)


def _exhausted(how: str, failure: ProviderFailure) -> TurnError:
    text = f"{how}, the last one: {failure.message}"
    return TurnError(code=errors.PROVIDER_EXHAUSTED, message=text, retryable=False)


def _error(failure: ProviderFailure, *, pause: float | None = None) -> TurnError:
    return TurnError(code=failure.code, message=failure.message, retryable=failure.retryable, retry_after_seconds=pause)


def _parked(parked: Parked) -> TurnParked:
    return TurnParked(reason=parked.reason, retry_after_seconds=parked.retry_after_seconds)


def _pause(calls: int) -> float:
    """About 1, 2, 4 s and so on, at most 30."""
    longest: float = min(FIRST_RETRY_SECONDS * 2 ** min(calls - 1, 10), LONGEST_RETRY_SECONDS)
    return longest * random.uniform(0.8, 1.2)  # noqa: S311  spreads retries, keeps no secret


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


def _as_json(response: ModelResponse) -> dict[str, Any]:
    """The message as JSON values.

    Raises:
        PydanticSerializationError: it has text that is no Unicode (a lone surrogate), which no message can carry.
    """
    [message] = json.loads(ModelMessagesTypeAdapter.dump_json([response], exclude_none=True))
    assert isinstance(message, dict)
    return message
