"""How the backbone is: the size of the audit log, how far its readers are behind it, and what could not be digested."""

from pydantic import BaseModel, ConfigDict

from coatcheck.events.dead_letters import count_dead_letters
from coatcheck.messaging.accounts import PROJECTOR, TRACER
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.consumer import consumer_lag
from schemas.streams import AUDIT_LOG


class BackboneStatus(BaseModel):
    """One look at it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    events: int
    """In the audit log."""
    bytes: int
    first_sequence: int
    last_sequence: int
    projector_exists: bool
    """Whether one has ever begun to read."""
    pending: int
    """Events that no projector has been given yet."""
    unacknowledged: int
    """Events that a projector has, and that are not known to be in the table."""
    dead_letters: int
    tracer_lag: int | None = None
    """Events whose spans the telemetry endpoint is not known to have; `None` when no tracer has ever begun to read."""

    @property
    def lag(self) -> int:
        """Events that are not known to be in the table."""
        return self.pending + self.unacknowledged


async def backbone_status(client: NatsClient) -> BackboneStatus:
    """Look at it as any identity that may: `core` or `observer`.

    Raises:
        StreamMissingError: there is no audit log yet.
        NotAuthorizedError: this identity may not look.
        MessagingUnavailableError: NATS does not answer.
    """
    state = (await client.api(f"STREAM.INFO.{AUDIT_LOG.name}"))["state"]
    lag = await consumer_lag(client, stream=AUDIT_LOG.name, name=PROJECTOR)
    traces = await consumer_lag(client, stream=AUDIT_LOG.name, name=TRACER)
    return BackboneStatus(
        events=state["messages"],
        bytes=state["bytes"],
        first_sequence=state["first_seq"],
        last_sequence=state["last_seq"],
        projector_exists=lag is not None,
        pending=state["messages"] if lag is None else lag.pending,
        unacknowledged=0 if lag is None else lag.unacknowledged,
        dead_letters=await count_dead_letters(client),
        tracer_lag=None if traces is None else traces.total,
    )
