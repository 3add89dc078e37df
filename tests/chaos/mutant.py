"""A worker with one safety mechanism switched off, to see that the tests of this folder notice.

`python -m tests.chaos.mutant core|agents|gateway` reads the name of its mutation from the file that
`COATCHECK_MUTATION_FILE` names (empty: none), changes the product in this process, and runs the worker. A file, so
that a test can change it between two lives of the process, and so that the process has it again after its death.
"""

import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coatcheck.messaging.client import NatsClient, PublishAck
from coatcheck.messaging.signatures import Signatures
from schemas.deliverable import HEADER_SHA256, HEADER_SIGNATURE
from workers.__main__ import main

MUTATION_FILE = "COATCHECK_MUTATION_FILE"


def no_message_id() -> None:
    """agents: every attempt to publish is a new message to the server."""
    publish = NatsClient.publish

    async def publish_anew(
        self: NatsClient,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        stream: str,
        headers: Mapping[str, str] | None = None,
    ) -> PublishAck:
        anew, said = f"{message_id}~{uuid.uuid4()}", dict(headers or {})
        if HEADER_SIGNATURE in said:  # the id is signed, too
            said |= Signatures(self.user).headers(subject, anew, said[HEADER_SHA256])
        return await publish(self, subject, payload, message_id=anew, stream=stream, headers=said)

    NatsClient.publish = publish_anew  # type: ignore[method-assign]


def no_turn_journal() -> None:
    """gateway: whatever the journal knows of a turn, the provider is called."""
    from coatcheck.storage.journal import Claimed, TurnJournal  # noqa: PLC0415  agents have no database driver

    claim = TurnJournal.claim

    async def claim_always(self: TurnJournal, *args: Any, **options: Any) -> Claimed:
        await claim(self, *args, **options)
        return Claimed(calls=1, failures=0)

    TurnJournal.claim = claim_always  # type: ignore[method-assign]


def no_event_key() -> None:
    """core: an event that is told again is another event."""
    from coatcheck.messaging.events import EventLog  # noqa: PLC0415  only the core worker has an audit log

    publish = EventLog.publish

    async def publish_anew(self: EventLog, events: Sequence[Any]) -> None:
        await publish(self, [event.model_copy(update={"event_id": str(uuid.uuid4())}) for event in events])

    EventLog.publish = publish_anew  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "no message id": no_message_id,
    "no turn journal": no_turn_journal,
    "no event key": no_event_key,
}

if __name__ == "__main__":
    MUTATIONS[Path(os.environ[MUTATION_FILE]).read_text()]()
    main(sys.argv[1:])
