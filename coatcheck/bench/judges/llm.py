"""`LLMJudge`: a model's opinion, asked for through phoenix-evals, at any endpoint that speaks OpenAI's protocol.

phoenix-evals writes the request (structured output, or a tool call where the endpoint has none), reads the label and
refuses one that is none of ours. Around it, since it does none of that: every call has a time-out and there are few of
them; what was refused for good is not asked again; tokens are counted where the answer says them, by a hook of the
HTTP client. Whatever cannot be read as a label is a failure of the judge and never a score.

What is judged was written by models that may want to be judged well. It stands in fenced sections, whose fence its
author cannot know, and is put in as the value of one template variable, so it is never read as a template itself.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import openai
from openai import DefaultAsyncHttpxClient
from phoenix.evals import ClassificationEvaluator
from phoenix.evals.llm import LLM
from phoenix.evals.llm.prompts import PromptTemplate, TemplateFormat
from phoenix.evals.rate_limiters import RateLimitError
from pydantic import SecretStr

from coatcheck.bench.judges.prompting import build_sections
from coatcheck.bench.judges.questions import (
    MAX_TEXT,
    Answer,
    AskedJudge,
    JudgingError,
    Question,
    Spent,
    clipped,
    fingerprint,
    prompt_text,
    questions_by,
)
from coatcheck.bench.judging import JudgeCase
from schemas.judging import Criterion

PriceOf: TypeAlias = Callable[[int, int, int], Decimal | None]
"""Tokens in, out and cached → US dollars, `None` when no price is known."""

_RULES: Final = 1
"""Counts changes of how sections are shown."""
LONGEST_PAUSE_SECONDS: Final = 30.0
"""Between two calls, also when the provider asks for more: a person waits for the command."""
_FIRST_PAUSE_SECONDS: Final = 0.5
_NO_KEY: Final = "none"
"""What an endpoint without keys is sent: the SDK insists on something."""
_SUCCESS: Final = 200
_FOR_GOOD: Final = frozenset({400, 401, 402, 403, 404, 405, 410, 413, 422})
"""Statuses that another call would meet again."""
_SPENT_UP: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""Codes of a 429 that no waiting mends."""


@dataclass
class _Exchange:
    """What the provider really said during one attempt; phoenix-evals passes on the answer's text alone."""

    status: int | None = None
    code: str = ""
    retry_after_seconds: float | None = None
    refusal: str = ""
    usages: list[tuple[int, int, int]] = field(default_factory=list)
    unmetered: int = 0


_exchange: ContextVar[_Exchange] = ContextVar("exchange")


class LLMJudge(AskedJudge):
    """Asks a model. An async context manager: it owns its HTTP client.

    Args:
        name: As in its scores.
        criteria: Name → question.
        model: As the endpoint calls it.
        base_url: The endpoint; OpenAI's own when `None`.
        api_key: For that endpoint and no other; `None` where none is needed.
        timeout_seconds: Of one attempt.
        attempts: For one score.
        price: Of its tokens.
    """

    kind = "llm"

    def __init__(
        self,
        name: str,
        criteria: Mapping[str, Criterion],
        *,
        model: str,
        base_url: str | None = None,
        api_key: SecretStr | None = None,
        timeout_seconds: float = 120,
        attempts: int = 3,
        price: PriceOf | None = None,
    ) -> None:
        super().__init__(name, tuple(criteria))
        self.model = f"openai:{model}"
        self.spent: Spent = Spent()
        self._criteria = dict(criteria)
        self._base_url = base_url
        self._timeout_seconds = timeout_seconds
        self._attempts = attempts
        self._price = price
        self._frame = prompt_text("judge.md")
        self._http = DefaultAsyncHttpxClient(event_hooks={"response": [_note]})
        llm = LLM(
            provider="openai",
            model=model,
            api_key=api_key.get_secret_value() if api_key else _NO_KEY,
            base_url=base_url,
            timeout=timeout_seconds,
            async_client_kwargs={"http_client": self._http},
        )
        template = PromptTemplate(template=self._frame, template_format=TemplateFormat.MUSTACHE)
        self._evaluators = {
            criterion: ClassificationEvaluator(
                name=criterion, llm=llm, prompt_template=template, choices=dict(asked.labels)
            )
            for criterion, asked in criteria.items()
        }

    async def __aenter__(self) -> Self:
        """Nothing connects before the first question."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._http.aclose()

    def version(self, criterion: str) -> str:
        """Of the model, the endpoint and everything in the prompt that is ours."""
        return fingerprint(_RULES, self.model, self._base_url, self._frame, self._criteria[criterion].model_dump_json())

    def questions(self, case: JudgeCase) -> list[Question]:
        """One per criterion about the run, one per stage for the others."""
        return questions_by(self._criteria, case)

    async def answer(self, case: JudgeCase, question: Question) -> Answer:
        """Ask the model, again a bounded number of times while that may help.

        Raises:
            JudgingError: it cannot be asked, it refuses, or it gives no label of ours.
        """
        criterion = self._criteria[question.criterion]
        sections = await build_sections(case, question, criterion)
        prompt = {
            "question": criterion.question,
            "labels": ", ".join(f"`{label}`" for label in criterion.labels),
            "sections": sections.text,
        }
        for attempt in range(1, self._attempts + 1):
            exchange = _Exchange()
            try:
                answer = await self._ask(question.criterion, prompt, exchange)
            except _FailedError as failed:
                if failed.is_final or attempt == self._attempts:
                    calls = "1 call" if attempt == 1 else f"{attempt} calls"
                    raise JudgingError(f"{self.model}, {calls}: {failed}") from failed
                await asyncio.sleep(_pause(attempt, exchange))
            else:
                told = clipped(answer.explanation, MAX_TEXT - len(sections.note) - 1)
                return Answer(answer.score, answer.label, f"{told} {sections.note}".strip())
            finally:
                self._count(exchange)
        raise AssertionError("there is at least one attempt")

    async def _ask(self, criterion: str, prompt: dict[str, str], exchange: _Exchange) -> Answer:
        """One attempt; raises `_FailedError` for whatever is not a label with a score."""
        token = _exchange.set(exchange)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                [score] = await self._evaluators[criterion].async_evaluate(prompt)
        except Exception as error:
            raise _why(error, exchange, self._timeout_seconds) from error
        finally:
            _exchange.reset(token)
        if exchange.refusal:  # an answer beside the refusal is not to be trusted
            raise _FailedError(f"the model refused: {exchange.refusal}", is_final=True)
        if score.score is None or score.label is None:
            raise _FailedError("the answer has no label")
        explanation = score.explanation if isinstance(score.explanation, str) else ""
        return Answer(float(score.score), score.label, explanation.strip())

    def _count(self, exchange: _Exchange) -> None:
        """Add what an attempt took, whatever came of it."""
        self.spent.calls += len(exchange.usages) + exchange.unmetered
        costs: list[Decimal | None] = [None] * exchange.unmetered
        for tokens_in, tokens_out, cached in exchange.usages:
            self.spent.tokens_in += tokens_in
            self.spent.tokens_out += tokens_out
            costs.append(self._price(tokens_in, tokens_out, cached) if self._price else None)
        for cost in costs:
            known = cost is not None and self.spent.cost_usd is not None
            self.spent.cost_usd = (self.spent.cost_usd or Decimal(0)) + (cost or Decimal(0)) if known else None


class _FailedError(Exception):
    """An attempt gave no score."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.is_final = is_final
        """No other attempt can end otherwise."""


async def _note(response: Any) -> None:
    """The HTTP client's hook: keep what phoenix-evals drops. It runs in the task of the one who asks."""
    exchange = _exchange.get()
    exchange.status = response.status_code
    exchange.retry_after_seconds = _seconds(response.headers.get("retry-after"))
    try:
        body = json.loads(await response.aread())
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    if response.status_code != _SUCCESS:
        error = body.get("error")
        exchange.code = str(error.get("code") or "") if isinstance(error, dict) else ""
        return
    exchange.refusal = _refusal(body)
    usage: Any = body.get("usage")
    try:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        exchange.usages.append((int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(cached)))
    except (AttributeError, KeyError, TypeError, ValueError):
        exchange.unmetered += 1


def _refusal(body: dict[str, Any]) -> str:
    try:
        choice = body["choices"][0]
        refused = choice["message"].get("refusal") or ""
        return str(refused or ("stopped by its content filter" if choice["finish_reason"] == "content_filter" else ""))
    except (AttributeError, IndexError, KeyError, TypeError):
        return ""


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:  # a date; waiting as long as usual is good enough
        return None


def _pause(attempt: int, exchange: _Exchange) -> float:
    usual = _FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1)
    return min(max(usual, exchange.retry_after_seconds or 0), LONGEST_PAUSE_SECONDS)


def _why(error: Exception, exchange: _Exchange, timeout_seconds: float) -> _FailedError:
    """What went wrong, and whether another attempt can help."""
    status = exchange.status
    if exchange.refusal:
        return _FailedError(f"the model refused: {exchange.refusal}", is_final=True)
    if status is not None and status != _SUCCESS:
        final = status in _FOR_GOOD or exchange.code in _SPENT_UP
        code = f" {exchange.code}" if exchange.code else ""
        said = "" if isinstance(error, RateLimitError | TimeoutError) else f": {error}"
        return _FailedError(clipped(f"the provider answered {status}{code}{said}"), is_final=final)
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return _FailedError(f"no answer within {timeout_seconds:g} s")
    if isinstance(error, openai.APIConnectionError):
        return _FailedError(clipped(f"the provider cannot be reached: {error.__cause__ or error}"))
    return _FailedError(clipped(f"malformed answer: {type(error).__name__}: {error}"))
