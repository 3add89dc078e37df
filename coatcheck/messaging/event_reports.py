"""The reporter's side of `agog.svc.events.<reporter>`: have events stored by the core worker, who alone may write them.

An answer that does not come is asked for again: the events' ids are their own, so they are stored once.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from coatcheck.errors import EventRefusedError, MessagingUnavailableError
from coatcheck.messaging.client import NatsClient
from schemas.event_reports import MAX_REPORTED_EVENTS, EventReply, EventReport
from schemas.events import AgentEvent, JudgeEvent
from schemas.subjects import events_subject

PATIENCE_SECONDS: Final = 30.0
"""Outlasts a restart of the core worker; whoever waits longer is an attempt that is made again."""
REPLY_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 0.5


async def report_events(client: NatsClient, reporter: str, events: Sequence[AgentEvent | JudgeEvent]) -> None:
    """Have the events stored; idempotent.

    Raises:
        EventRefusedError: they are not the reporter's to tell; not retried.
        MessagingUnavailableError: no core worker answers; some of them may be stored.
        NotAuthorizedError: this identity is not the reporter.
    """
    for start in range(0, len(events), MAX_REPORTED_EVENTS):
        batch = list(events[start : start + MAX_REPORTED_EVENTS])
        payload = EventReport(events=batch).model_dump_json(exclude_none=True).encode()
        await _report(client, events_subject(reporter), payload)


async def _report(client: NatsClient, subject: str, payload: bytes) -> None:
    clock = asyncio.get_running_loop().time
    give_up = clock() + PATIENCE_SECONDS
    while True:
        try:
            reply = EventReply.model_validate_json(await client.request(subject, payload, timeout=REPLY_SECONDS))
        except MessagingUnavailableError:
            if clock() > give_up:
                raise
        else:
            if reply.code is None:
                return
            if not reply.retryable:
                raise EventRefusedError(reply.message)
            if clock() > give_up:
                raise MessagingUnavailableError(f"events could not be stored: {reply.message} ({reply.code})")
        await asyncio.sleep(PAUSE_SECONDS)
