"""Conversations as chats: rows for supervised fine-tuning, and pairs of which one answer was preferred.

The journal has claims where a model was shown the brief or a deliverable, and a reference where it handed its report
in; both become the text again, as the model saw and wrote it. Its instructions are not journalled and not here. What a
model thought, in its provider's own form, is left out.

A pair has one prompt, that of the round that was sent back: the report that was not good enough for it, and the one
after it, which was accepted.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

from coatcheck.agents.prompt import BRIEF_MARKER, DELIVERABLE_LIMIT, deliverable_claim
from coatcheck.errors import CoatcheckError, DeliverableError, StreamMissingError
from coatcheck.gateway.claims import ClaimDesk
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.events import StoredEvent
from coatcheck.training.columns import DataType, Draft
from coatcheck.training.facts import RoundFacts, RunFacts, mean
from coatcheck.training.rows import origin, round_columns
from schemas.conversation import Claim
from schemas.deliverable import DeliverableRef
from schemas.pipeline import MAX_BRIEF_BYTES

MAX_ROUNDS: Final = 200
"""Of one run, as a guard: a stage has 20 at most."""
_MARKER: Final = re.compile(
    r"\[\[deliverable:(?P<stage>[a-z0-9_-]+):(?P<stream>[a-z0-9_-]+):(?P<sequence>\d+)(?::(?P<offset>\d+)\+(?P<limit>\d+))?\]\]"
)
_PROMPTS: Final = frozenset({"user-prompt", "tool-return"})


class History(Protocol):
    """The journal of turns, as far as it is read here (`TurnJournal.history`)."""

    async def __call__(self, task_key: str) -> list[dict[str, Any]]:
        """The pydantic-ai messages of a task, in order; empty for a command agent."""


class UnreadableConversationError(CoatcheckError):
    """A message has a form that nobody has said how to export."""

    code = "conversation.unreadable"


class DialogueMaker:
    """Makes the chats of a run that has ended."""

    def __init__(self, *, history: History, deliverables: DeliverableService, claims: ClaimDesk) -> None:
        self._history = history
        self._deliverables = deliverables
        self._claims = claims

    async def rows(self, stored: StoredEvent, run: RunFacts) -> AsyncIterator[Draft]:
        """Each finished round of a model in order, and after an accepted one its pair.

        Raises:
            DependencyDownError: a server is away. What is gone for good is a row that says so.
        """
        for (stage, number), found in sorted(run.rounds.items())[:MAX_ROUNDS]:
            if found.status != "completed" or not found.spent.turns:
                continue
            yield await self._chat(stored, run, found)
            earlier = run.rounds.get((stage, number - 1))
            if run.outcome(found) == "accepted" and earlier is not None and run.outcome(earlier) == "sent_back":
                yield await self._pair(stored, run, earlier, found)

    async def _chat(self, stored: StoredEvent, run: RunFacts, found: RoundFacts) -> Draft:
        values = origin(stored) | round_columns(run, found)
        try:
            return Draft(DataType.SFT, values | {"messages": await self._messages(run, found)})
        except (DeliverableError, StreamMissingError, UnreadableConversationError) as error:
            return Draft(DataType.SFT, values, (f"messages: {error.code}",))

    async def _pair(self, stored: StoredEvent, run: RunFacts, rejected: RoundFacts, chosen: RoundFacts) -> Draft:
        values = origin(stored) | round_columns(run, chosen)
        values |= {
            "rejected_task": rejected.task_key,
            "rejected_models": sorted(rejected.spent.models),
            "rejected_judge_score": mean(rejected.scores),
        }
        try:
            prompt = await self._messages(run, rejected)
            said = {
                "prompt": prompt[:1],
                "chosen": await self._report(chosen),
                "rejected": await self._report(rejected),
            }
        except (DeliverableError, StreamMissingError, UnreadableConversationError) as error:
            return Draft(DataType.PREFERENCES, values, (f"prompt, chosen, rejected: {error.code}",))
        return Draft(DataType.PREFERENCES, values | said)

    async def _report(self, found: RoundFacts) -> list[dict[str, Any]]:
        assert found.notice is not None
        return [await self._handed_in(found.notice.ref)]

    async def _handed_in(self, ref: DeliverableRef) -> dict[str, Any]:
        return {"role": "assistant", "content": (await self._deliverables.fetch(ref)).deliverable.content}

    async def _messages(self, run: RunFacts, found: RoundFacts) -> list[dict[str, Any]]:
        """The whole chat; the report that was handed in is its last message."""
        journalled = await self._history(found.task_key)
        if not journalled:
            raise UnreadableConversationError(f"{found.task_key}: no conversation is journalled")
        chat: list[dict[str, Any]] = []
        for message in journalled:
            if "deliverable" in message and "parts" not in message:
                chat.append(await self._handed_in(DeliverableRef.model_validate(message["deliverable"])))
                continue
            try:
                [full] = await self._claims.redeem(run.run_key, _claims(message, run), [message])
                chat += _as_chat(full)
            except (KeyError, TypeError, AttributeError) as error:
                raise UnreadableConversationError(f"{found.task_key}: {type(error).__name__}") from error
        return chat


def _claims(message: dict[str, Any], run: RunFacts) -> list[Claim]:
    """What the agent's own code had put a marker for. Only what this run's events name can be meant."""
    known = run.references()
    claims = [Claim(marker=BRIEF_MARKER, limit=MAX_BRIEF_BYTES)]
    for part in message["parts"]:
        if part.get("part_kind") not in _PROMPTS or not isinstance(part.get("content"), str):
            continue
        for match in _MARKER.finditer(part["content"]):
            if (ref := known.get((match["stream"], int(match["sequence"])))) is not None:
                window = (int(match["offset"] or 0), int(match["limit"] or DELIVERABLE_LIMIT))
                claims.append(deliverable_claim(ref, match["stage"], *window))
    return claims


def _as_chat(message: dict[str, Any]) -> list[dict[str, Any]]:
    """One message of pydantic-ai in the chat format that trainers read."""
    if message["kind"] == "response":
        return [_answer(message["parts"])]
    return [_asked(part) for part in message["parts"]]


def _asked(part: dict[str, Any]) -> dict[str, Any]:
    content = part.get("content")
    match part["part_kind"]:
        case "system-prompt" if isinstance(content, str):
            return {"role": "system", "content": content}
        case "user-prompt" if isinstance(content, str):
            return {"role": "user", "content": content}
        case "tool-return":
            told = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, sort_keys=True)
            return {"role": "tool", "tool_call_id": part["tool_call_id"], "name": part["tool_name"], "content": told}
        case "retry-prompt" | "retry-feedback":
            told = content if isinstance(content, str) else json.dumps(part.get("retry", content), sort_keys=True)
            if part.get("tool_name"):
                return {
                    "role": "tool",
                    "tool_call_id": part["tool_call_id"],
                    "name": part["tool_name"],
                    "content": told,
                }
            return {"role": "user", "content": told}
    raise UnreadableConversationError(f"nobody has said how to export a part {part['part_kind']!r}")


def _answer(parts: list[dict[str, Any]]) -> dict[str, Any]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in parts:
        match part["part_kind"]:
            case "text":
                texts.append(part["content"])
            case "tool-call":
                arguments = part.get("args") or {}
                if isinstance(arguments, str):
                    try:
                        arguments = json.loads(arguments)
                    except ValueError:
                        arguments = {"unreadable": arguments}
                calls.append({"id": part["tool_call_id"], "name": part["tool_name"], "arguments": arguments})
            case "thinking":
                pass
            case kind:
                raise UnreadableConversationError(f"nobody has said how to export a part {kind!r}")
    said: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(texts)}
    return said | {"tool_calls": calls} if calls else said
