"""A laboratory for rounds: real NATS, real checks and files; only the language model is a list of prepared turns."""

import itertools
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse, ToolCallPart
from pydantic_ai.usage import RequestUsage

from coatcheck.agents.author import Author, ModelAuthor
from coatcheck.agents.desk import Stores
from coatcheck.agents.loop import StageRunner, Task
from coatcheck.errors import MessagingUnavailableError
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.workspace.checks import CheckRunner
from coatcheck.workspace.folder import WorkspaceFolder
from coatcheck.workspace.sandbox import Sandbox
from schemas.activities import StageInputRef, StageOrder
from schemas.config import CheckLimits
from schemas.conversation import TurnAnswer, TurnReply, TurnRequest
from schemas.deliverable import Deliverable
from schemas.events import AgentEvent
from schemas.notice import Notice
from schemas.roles import DEFAULT_ROLES, SUBMIT_REPORT, Role

REPORT = {"report": "What was done and why. " * 10, "summary": "Done.", "complexity": "Low"}

Call = tuple[str, dict[str, Any]]
"""Name and arguments of a tool call."""


def submits(**fields: Any) -> list[Call]:
    """A turn that hands in a valid report with these fields."""
    return [(SUBMIT_REPORT, {**REPORT, **fields})]


@dataclass
class PreparedTurns:
    """Stands for the LLM proxy and the model behind it: turn n gets the n-th answer, as often as it is asked."""

    turns: list[list[Call]]
    requests: list[TurnRequest] = field(default_factory=list)

    async def ask(self, payload: bytes) -> bytes:
        """Answer an encoded `TurnRequest`."""
        request = TurnRequest.model_validate_json(payload)
        self.requests.append(request)
        calls = self.turns[request.turn - 1]
        parts = [ToolCallPart(name, arguments, f"call-{request.turn}-{n}") for n, (name, arguments) in enumerate(calls)]
        response = ModelResponse(parts=parts, usage=RequestUsage(input_tokens=100, output_tokens=10))
        [message] = ModelMessagesTypeAdapter.dump_python([response], mode="json")
        answer = TurnAnswer(message=message, model="prepared", cost_usd=Decimal(0))
        return TurnReply(reply=answer).model_dump_json().encode()

    def told(self, turn: int) -> list[str]:
        """What the model was told before that turn, by tools and by refusals."""
        request = next(item for item in reversed(self.requests) if item.turn == turn)
        return [str(part["content"]) for message in request.messages for part in message["parts"]]


class RoundLab:
    """Runs rounds of any role, each attempt by a worker that has just started, and hands later stages the earlier."""

    def __init__(self, server: NatsStatus, folder: Path, client: Callable[[str], NatsClient]) -> None:
        self.server = server
        self.folder = folder
        self.run_key = f"feature/search/{uuid.uuid4()}"
        self._client = client
        self._rounds = {name: itertools.count(1) for name in ("research", "critique", "backend", "frontend", "qa")}
        self.shelf: dict[str, StageInputRef] = {}
        """Stage → its latest deliverable."""
        self.events: list[AgentEvent] = []
        """What the agents told."""
        self.is_heard = True
        """Whether anybody stores it."""

    async def _hear(self, events: Sequence[AgentEvent]) -> None:
        if not self.is_heard:
            raise MessagingUnavailableError("nobody stores events")
        self.events += events

    def runner(self, role: Role, author: Author) -> StageRunner:
        """A worker's runner for one agent."""
        client = self._client(role.agent)
        stores = Stores(
            deliverables=DeliverableService(client),
            artifacts=ArtifactStore(client),
            checks=CheckRunner(Sandbox(CheckLimits()), self.folder),
        )
        return StageRunner(
            role, author=author, stores=stores, workspaces=WorkspaceFolder(self.folder), send_events=self._hear
        )

    def task(self, stage: str, needs: Iterable[str] = ()) -> Task:
        """The next round of a stage, with the latest deliverables of what it needs and its own last one."""
        number = next(self._rounds.setdefault(stage, itertools.count(1)))
        names = [*needs, *([stage] if number > 1 else [])]
        inputs = [self.shelf[name] for name in names]
        order = StageOrder(run_key=self.run_key, feature="search", stage=stage, round=number, inputs=inputs)
        return Task(order, task_key=f"{self.run_key}/{stage}-{number}", attempt=1)

    async def round(self, agent: str, *turns: list[Call], needs: Iterable[str] = (), **changes: Any) -> Notice:
        """One round of a default role by a model that answers so; the deliverable goes on the shelf."""
        role = DEFAULT_ROLES[agent].model_copy(update=changes)
        return await self.attempt(role, PreparedTurns(list(turns)), self.task(role.task_type, needs))

    async def attempt(self, role: Role, model: PreparedTurns, task: Task) -> Notice:
        """One attempt at a task by a model."""
        return await self.perform(role, ModelAuthor(role, ask=model.ask, stopping=lambda: False), task)

    async def perform(self, role: Role, author: Author, task: Task) -> Notice:
        """One attempt at a task."""
        notice = await self.runner(role, author).run(task)
        self.shelf[task.order.stage] = StageInputRef(stage=task.order.stage, ref=notice.ref)
        return notice

    async def deliverable(self, notice: Notice) -> Deliverable:
        """What a notice announces."""
        return (await DeliverableService(self._client("roy")).fetch(notice.ref)).deliverable

    async def files(self, notice: Notice) -> dict[str, bytes]:
        """The artifacts of what a notice announces."""
        deliverable = await self.deliverable(notice)
        store = ArtifactStore(self._client("jen"))
        return await store.get_all(deliverable.metadata.agent, deliverable.artifacts)
