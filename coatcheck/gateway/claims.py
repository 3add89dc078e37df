"""Replaces the claims in a conversation by what they stand for, just before the provider call or the command."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pydantic import ValidationError

from coatcheck.agents.prompt import expand
from coatcheck.errors import CoatcheckError
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.telemetry.scope import working_on_task
from schemas import errors
from schemas.conversation import Claim, RedeemReply, RedeemRequest
from schemas.notice import Notice
from schemas.streams import MAX_DELIVERABLE_BYTES
from schemas.workflow_ids import run_key_of

ReadBrief = Callable[[str], Awaitable[str]]
"""Run key → the run's brief."""

FinishedNotice = Callable[[str, str], Awaitable[dict[str, Any] | None]]
"""Task key and agent → the notice of a complete task, `None` of a running one; raises if the agent has neither."""

MAX_BRIEFS = 200
"""Briefs kept in memory: as many runs as can be in flight; at most 50 MB."""
_CLAIMING_PARTS = frozenset({"user-prompt", "tool-return"})
"""Where the agent's own code puts markers; answers of the model are never expanded."""


class ClaimDesk:
    """Fetches and verifies what claims stand for."""

    def __init__(self, *, deliverables: DeliverableService, read_brief: ReadBrief) -> None:
        self._deliverables = deliverables
        self._read_brief = read_brief
        self._briefs: dict[str, str] = {}

    async def redeem(self, run_key: str, claims: list[Claim], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A copy of the messages with every listed marker replaced.

        Raises:
            DeliverableError: a deliverable is gone or does not have the bytes that its ticket promises.
        """
        used = [claim for claim in claims if any(claim.marker in text for text in _texts(messages))]
        contents = await asyncio.gather(*(self._content(run_key, claim) for claim in used))
        bodies = {claim.marker: content for claim, content in zip(used, contents, strict=True)}
        return [_replaced(message, used, bodies) for message in messages]

    async def _content(self, run_key: str, claim: Claim) -> str:
        if claim.deliverable is None:
            return await self._brief(run_key)
        return (await self._deliverables.fetch(claim.deliverable)).deliverable.content

    async def _brief(self, run_key: str) -> str:
        """Every turn of a run has it, and it never changes."""
        if run_key not in self._briefs:
            brief = await self._read_brief(run_key)
            if len(self._briefs) >= MAX_BRIEFS:
                del self._briefs[next(iter(self._briefs))]
            self._briefs[run_key] = brief
        return self._briefs[run_key]


class ClaimService:
    """Serves `agog.svc.claims.<agent>`: the brief and deliverables in a text, for an agent that is a command."""

    def __init__(self, desk: ClaimDesk, *, finished_notice: FinishedNotice) -> None:
        self._desk = desk
        self._finished_notice = finished_notice

    async def handle(self, agent: str, payload: bytes) -> bytes:
        """Answer one request of `agent`, whose name comes from the subject.

        Returns:
            A `RedeemReply` as JSON, at most `MAX_DELIVERABLE_BYTES`. For a task that is recorded as complete it is
            the notice, and nothing is fetched: after a reset, what was claimed may be gone.
        """
        try:
            request = RedeemRequest.model_validate_json(payload)
        except ValidationError as error:
            return _encode(RedeemReply(code=errors.REQUEST_INVALID, message=str(error)))
        try:
            with working_on_task(request.task_key):
                data = _encode(await self._reply(agent, request))
        except CoatcheckError as error:
            return _encode(RedeemReply(code=error.code, message=str(error), retryable=error.retryable))
        if len(data) <= MAX_DELIVERABLE_BYTES:
            return data
        text = (
            f"the prompt has {len(data):,} bytes with the deliverables in it, at most {MAX_DELIVERABLE_BYTES:,} fit "
            "into a message: let the stage need fewer of them"
        )
        return _encode(RedeemReply(code=errors.DELIVERABLE_TOO_LARGE, message=text))

    async def _reply(self, agent: str, request: RedeemRequest) -> RedeemReply:
        if (notice := await self._finished_notice(request.task_key, agent)) is not None:
            return RedeemReply(notice=Notice.model_validate(notice))
        part = {"part_kind": "user-prompt", "content": request.text}
        [message] = await self._desk.redeem(run_key_of(request.task_key), request.claims, [{"parts": [part]}])
        return RedeemReply(text=message["parts"][0]["content"])


def _encode(reply: RedeemReply) -> bytes:
    return reply.model_dump_json(exclude_none=True).encode()


def _texts(messages: list[dict[str, Any]]) -> Iterable[str]:
    for message in messages:
        for part in message["parts"]:
            if part.get("part_kind") in _CLAIMING_PARTS and isinstance(part.get("content"), str):
                yield part["content"]


def _replaced(message: dict[str, Any], claims: list[Claim], bodies: dict[str, str]) -> dict[str, Any]:
    parts = [
        {**part, "content": expand(part["content"], claims, bodies)}
        if part.get("part_kind") in _CLAIMING_PARTS and isinstance(part.get("content"), str)
        else part
        for part in message["parts"]
    ]
    return {**message, "parts": parts}
