"""Judges' scores and people's decisions, beside the spans that they are about: annotations in Phoenix.

Plain HTTP: Phoenix's own client would bring 44 MB for one request. A target's span id follows from the event, so
nothing has to be looked up, and an annotation that is sent again replaces itself (target, name and identifier).
"""

import logging
from collections.abc import Sequence
from typing import Any, Final, Self

import httpx2

from coatcheck.errors import TelemetryUnavailableError
from coatcheck.telemetry.privacy import Privacy
from coatcheck.telemetry.run_trace import RunTrace
from schemas.events import DecisionMade, Event, JudgeScored, UnknownEvent

POST_SECONDS: Final = 5.0
DECISION: Final = "decision"
ANNOTATORS: Final = {"check": "CODE", "llm": "LLM", "human": "HUMAN"}
"""Kind of a judge, as Phoenix calls it."""
_TOO_MANY: Final = 429
_log = logging.getLogger(__name__)


def annotation(event: Event | UnknownEvent, trace: RunTrace, privacy: Privacy) -> dict[str, Any] | None:
    """What an event says of a span, as Phoenix takes it; `None` when it says nothing of that kind."""
    match event:
        case JudgeScored():
            said = event.payload
            told = {"label": said.label, "score": said.score, "explanation": privacy.content(said.explanation)}
            name, kind, by = said.criterion, ANNOTATORS[said.kind], said.judge
        case DecisionMade():
            decided = event.payload
            told = {"label": str(decided.action), "explanation": privacy.content(decided.comment)}
            name, kind, by = DECISION, "HUMAN", event.event_id
        case _:
            return None
    return {
        "span_id": trace.span_of(event.entity_id),
        "name": name,
        "annotator_kind": kind,
        "identifier": by,
        "result": {key: value for key, value in told.items() if value not in {None, ""}},
    }


class ScoreSender:
    """Sends annotations to one Phoenix; an async context manager.

    Args:
        url: Of Phoenix.
        api_key: Of a system user; only where Phoenix asks for one.
    """

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=POST_SECONDS, trust_env=False)

    async def send(self, annotations: Sequence[dict[str, Any]]) -> None:
        """Have them stored, now or as soon as Phoenix has their spans.

        Raises:
            TelemetryUnavailableError: Phoenix does not answer, or not now.
        """
        try:
            answer = await self._client.post("/v1/span_annotations", json={"data": list(annotations)})
        except httpx2.HTTPError as error:
            raise TelemetryUnavailableError(f"Phoenix does not take scores: {error or type(error).__name__}") from error
        if answer.is_server_error or answer.status_code == _TOO_MANY:
            raise TelemetryUnavailableError(f"Phoenix does not take scores: HTTP {answer.status_code}")
        if answer.is_client_error:
            _log.error("Phoenix refuses %d scores for good (HTTP %d)", len(annotations), answer.status_code)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
