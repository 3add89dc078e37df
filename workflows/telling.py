"""`Telling`: what a run has to tell, until it is stored; each event with its cause, its occurrence and its moment."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from schemas.event_payloads import Payload
from schemas.events import SystemEvent
from schemas.workflow_ids import activity_id, task_key


@dataclass
class Telling:
    """Events of one run that are not known to be stored."""

    run_key: str
    session_id: str
    reset: str = ""
    """Ends the occurrence of every event since the latest reset: what happens again is told again."""
    untold: list[SystemEvent] = field(default_factory=list)
    _moments: int = 0
    _latest: dict[str, str] = field(default_factory=dict)
    """Stage, or "" for the run → id of the latest event about it: what causes the next one."""

    def moment(self, now: datetime) -> datetime:
        """When something happens, in the rows and in its event.

        One workflow task has one time; a microsecond each keeps the order of what happens in it.
        """
        self._moments += 1
        return now + timedelta(microseconds=self._moments)

    def about_run(
        self, kind: Any, at: datetime, payload: Payload, *, occurrence: str = "", severity: str = "info"
    ) -> str:
        """Something happened to the run; returns the event's id."""
        self._latest[""] = told = self._tell(
            kind,
            entity_id=self.run_key,
            occurrence=f"{occurrence}{self.reset}",
            causation_id=self._latest.get("") or None,
            severity=severity,
            occurred_at=at,
            payload=payload,
        )
        return told

    def about_round(  # noqa: PLR0913  what one event says
        self,
        kind: Any,
        at: datetime,
        payload: Payload,
        *,
        stage: str,
        number: int,
        agent: str,
        caused_by: str | None = None,
        occurrence: str = "",
        severity: str = "info",
    ) -> None:
        """Something happened to a round; caused by what happened last to `caused_by`, else to its own stage."""
        told = self._tell(
            kind,
            # A round that was inherited belongs to another run; what happens to it here happens to this run's task.
            entity_id=task_key(self.run_key, activity_id(stage, number)),
            occurrence=f"{occurrence}{self.reset}",
            causation_id=self._latest.get(caused_by or stage) or self._latest.get("") or None,
            agent=agent,
            severity=severity,
            occurred_at=at,
            payload=payload,
        )
        self._latest[stage] = self._latest[""] = told

    def stored(self, event_ids: Collection[str]) -> None:
        """These are stored; what happened meanwhile stays."""
        self.untold = [event for event in self.untold if event.event_id not in event_ids]

    def withdraw(self, event_id: str) -> None:
        """It is not told, and has caused nothing."""
        [event] = [event for event in self.untold if event.event_id == event_id]
        self.stored({event_id})
        if self._latest.get("") == event_id:
            self._latest[""] = event.causation_id or ""

    def _tell(self, kind: Any, **fields: Any) -> str:
        event: SystemEvent = kind.of(correlation_id=self.run_key, session_id=self.session_id, **fields)
        self.untold.append(event)
        return event.event_id
