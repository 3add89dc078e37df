"""An event of the audit log as a row of the table `events`: the requirements' columns, the rest beside the payload."""

import json
from typing import Any, Final

from coatcheck.messaging.client import StoredMessage
from coatcheck.messaging.events import read_stored
from coatcheck.storage.events import EventRow
from schemas.events import UnknownEvent

META: Final = "_meta"
"""Key in the column `payload` for what the columns have no room for; no payload has a field of that name."""

_BESIDE: Final = {"version", "occurrence", "causation_id", "traceparent"}


def event_row(message: StoredMessage) -> EventRow:
    """The row of a stored event; what a newer release wrote is taken as it is.

    Raises:
        EventInvalidError: it is no event.
    """
    event = read_stored(message)
    # As it was stored: a payload of this version may have fields that this release does not know.
    payload: dict[str, Any] = event.payload if isinstance(event, UnknownEvent) else json.loads(message.data)["payload"]
    said = event.model_dump(include=_BESIDE, exclude_defaults=True)
    meta = {"sequence": message.sequence, **said}
    return EventRow(
        event_id=event.event_id,
        event_type=event.event_type,
        entity_type=event.entity_type,
        entity_id=event.entity_id,
        workflow_id=event.correlation_id,
        agent_id=event.agent,
        session_id=event.session_id,
        source=event.source,
        severity=event.severity,
        created_at=event.occurred_at,
        payload={**payload, META: meta},
    )
