"""Connecting to NATS as one identity."""

from coatcheck.messaging.accounts import load_user
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.tracing import MessageTracing
from coatcheck.settings import Settings
from coatcheck.telemetry.provider import ObservabilityProvider


def nats_client(settings: Settings, name: str, telemetry: ObservabilityProvider) -> NatsClient:
    """The client of the identity `name`, not connected yet.

    With `COATCHECK_NATS_ISOLATION=shared` everybody is the server's anonymous user: for a first try on a server
    without accounts, where agents are not confined.
    """
    user = None if settings.nats_isolation == "shared" else load_user(settings.keys_dir, name)
    spans = telemetry.live if settings.trace_messages else None
    tracing = MessageTracing(has_headers=telemetry.has_traces, spans=spans)
    return NatsClient(settings.require_nats_url(), name=name, user=user, ca_file=settings.nats_ca_file, tracing=tracing)
