"""What one attempt at one round works with: other stages' deliverables and files, a workspace, checks.

Everything is fetched when it is first asked for, so a role that only reads and writes texts pays for none of it. The
workspace is made anew for every attempt: a retried activity walks through its journalled turns and makes the same
files again, so nothing of a dead attempt has to be found.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from coatcheck.agents.events import RoundEvents
from coatcheck.agents.evidence import evidence_in, mark_withdrawn, withdrawn_checks
from coatcheck.messaging.artifacts import ArtifactStore
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.workspace.checks import CheckRunner, StageFiles
from coatcheck.workspace.files import Workspace
from schemas.activities import StageOrder, references
from schemas.conversation import Claim
from schemas.deliverable import Deliverable, DeliverableRef, StoredDeliverable
from schemas.evidence import Check, Evidence, declared_checks
from schemas.subjects import agent_of

MADE_FROM: Final = "made_from"
"""Field of a deliverable's metadata: stage → ticket of what its author was handed."""


@dataclass(frozen=True)
class Stores:
    """Where deliverables and files are, and what runs checks; shared by all attempts of one agent."""

    deliverables: DeliverableService
    artifacts: ArtifactStore
    checks: CheckRunner


@dataclass
class Desk:
    """The state of one attempt; its methods are what the tools call."""

    order: StageOrder
    claims: list[Claim]
    """Of the prompt and of every `fetch_deliverable` so far; the proxy redeems these and no others."""
    stores: Stores
    events: RoundEvents
    """Told by the tools and the loop."""
    open_workspace: Callable[[], Workspace]
    """Makes the folder; called at most once."""
    evidence: Evidence | None = None
    """Of the last run of all declared checks, if nothing has changed since."""
    files_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One tool call at a time works on the files."""
    _workspace: Workspace | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tickets: dict[str, DeliverableRef] | None = None
    _read: dict[DeliverableRef, StoredDeliverable] = field(default_factory=dict)

    async def tickets(self) -> dict[str, DeliverableRef]:
        """Stage → its latest deliverable among those handed and those that they were made from."""
        if self._tickets is None:
            found = {item.stage: item.ref for item in self.order.inputs}
            handed, left = frozenset(found), list(found.values())
            while left:
                made_from = (await self._fetch(left.pop())).metadata.model_extra or {}
                for item in references(made_from.get(MADE_FROM) or {}):
                    known = found.get(item.stage)
                    if item.stage not in handed and (known is None or known.sequence < item.ref.sequence):
                        found[item.stage] = item.ref
                        left.append(item.ref)
            self._tickets = found
        return self._tickets

    async def last_round(self) -> Deliverable | None:
        """The stage's own deliverable of the round before; `None` in the first."""
        own = [item.ref for item in self.order.inputs if item.stage == self.order.stage]
        return await self._fetch(own[0]) if own else None

    def made_from(self) -> dict[str, str]:
        """The tickets of what was handed, for the metadata of the new deliverable: its lineage."""
        return {item.stage: item.ref.to_ticket() for item in self.order.inputs}

    async def workspace(self) -> Workspace:
        """The attempt's files: on first use one folder per stage, with the artifacts of its latest deliverable."""
        async with self._lock:
            if self._workspace is None:
                workspace = self.open_workspace()
                for stage, ref in (await self.tickets()).items():
                    await asyncio.to_thread(workspace.add_stage, stage, await self._files(ref))
                self._workspace = workspace
            return self._workspace

    async def own_files(self) -> dict[str, bytes]:
        """The files that belong to this round's deliverable; those of the last round unless they were changed.

        Raises:
            ArtifactInvalidError: too many files or bytes, or a path that no artifact may have.
        """
        previous = await self.last_round()
        if self._workspace is None and (previous is None or not previous.artifacts):
            return {}
        workspace = await self.workspace()
        return await asyncio.to_thread(workspace.own_files)

    async def run_checks(self, own: Sequence[Check] = ()) -> Evidence:
        """Run what all other stages have declared, and `own` checks over the files as they are now.

        For a test also what failed in its round before and is not declared any more.
        """
        tickets = {stage: ref for stage, ref in (await self.tickets()).items() if stage != self.order.stage}
        declared = {stage: declared_checks(await self._custom(ref)) for stage, ref in tickets.items()}
        declared[self.order.stage] = list(own)
        previous = await self.last_round()
        last = evidence_in(previous.metadata.model_extra or {}) if previous is not None else None
        withdrawn = withdrawn_checks(last, declared)
        stages = [
            StageFiles(
                stage=stage,
                files=await self._files(tickets[stage]) if stage in tickets else await self.own_files(),
                checks=checks,
                withdrawn=withdrawn.get(stage, ()),
            )
            for stage, checks in declared.items()
        ]
        ran = await self.stores.checks.run([item for item in stages if item.files or item.checks or item.withdrawn])
        self.evidence = mark_withdrawn(ran, withdrawn, failed_in_round=self.order.round - 1)
        return self.evidence

    async def _custom(self, ref: DeliverableRef) -> dict[str, Any]:
        """What a deliverable's author has put into its metadata."""
        return (await self._fetch(ref)).metadata.model_extra or {}

    async def _fetch(self, ref: DeliverableRef) -> Deliverable:
        return (await self._stored(ref)).deliverable

    async def _stored(self, ref: DeliverableRef) -> StoredDeliverable:
        """Read once per attempt; the references are immutable."""
        if ref not in self._read:
            self._read[ref] = await self.stores.deliverables.fetch(ref)
        return self._read[ref]

    async def _files(self, ref: DeliverableRef) -> dict[str, bytes]:
        stored = await self._stored(ref)
        if not stored.deliverable.artifacts:
            return {}
        agent = agent_of(stored.subject)  # the body may claim any author, the subject cannot
        return await self.stores.artifacts.get_all(agent, stored.deliverable.artifacts)
