"""Clients for the tests: ours as any identity, and raw nats-py ones that know only what `status --json` says."""

from datetime import UTC, datetime
from typing import Any

import nats
from nats.aio.client import Client

from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.accounts import NatsUser, load_user
from coatcheck.messaging.client import NatsClient
from schemas.deliverable import Deliverable, DeliverableMetadata


def identity(server: NatsStatus, name: str) -> NatsUser:
    """One of the server's identities."""
    user = server.users[name]
    file = user.nkey_file or user.password_file
    assert file is not None
    return load_user(file.parent, name)


def client_as(server: NatsStatus, name: str, **options: Any) -> NatsClient:
    """Our client, not connected yet."""
    return NatsClient(server.url, user=identity(server, name), name=name, **options)


async def raw_client_as(server: NatsStatus, name: str, errors: list[str] | None = None, **options: Any) -> Client:
    """A nats-py client, connected; what the server says against it goes to `errors`."""
    seen = [] if errors is None else errors

    async def on_error(error: Exception) -> None:
        seen.append(str(error))

    user = server.users[name]
    if user.password_file is not None:
        options |= {"user": user.user, "password": user.password_file.read_text()}
    if user.nkey_file is not None:
        options |= {"nkeys_seed": str(user.nkey_file)}
    return await nats.connect(server.url, inbox_prefix=user.inbox_prefix, error_cb=on_error, **options)


def deliverable(agent: str, task_type: str, feature: str, content: str = "# Report", **fields: Any) -> Deliverable:
    """A small valid deliverable."""
    metadata = DeliverableMetadata(
        agent=agent, taskType=task_type, feature=feature, timestamp=datetime.now(UTC), **fields
    )
    return Deliverable(content=content, metadata=metadata)
