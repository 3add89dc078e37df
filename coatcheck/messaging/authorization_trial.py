"""Tries on a real NATS server what every identity may do, and changes nothing there.

A message that is to be stored names a stream that does not exist, so whatever stream takes it refuses it: that it was
refused by a *stream* shows that it came through. JetStream's API gets a body that is no request. Services know the
header of a probe and do no work for it; two listeners of ours answer where none runs. What is declared and would be the
end of something is not tried at all. The server's log has a line for each refusal.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from nats.aio.msg import Msg

from coatcheck.errors import MessagingUnavailableError, NobodyListensError, NotAuthorizedError
from coatcheck.messaging.account_config import Account
from coatcheck.messaging.accounts import CORE, GATEWAY, SERVICES, NatsUser
from coatcheck.messaging.authorization import PROBE, Action, covers, is_declared, subject_for
from coatcheck.messaging.client import HEADER_EXPECTED_STREAM, NatsClient
from coatcheck.messaging.service import HEADER_PROBE
from schemas.subjects import PREFIX

TIMEOUT_SECONDS: Final = 3.0
"""For an answer, which takes 1 ms; a silent one is told, not guessed at."""
_AT_ONCE: Final = 200
"""Of one identity: JetStream waits for half a second before it says that a request is none."""
_NO_REQUEST: Final = b"authz probe"
"""Neither JSON nor empty: JetStream refuses it before it does anything."""


class Found(StrEnum):
    """What came of an attempt."""

    REACHED = "reached"
    REFUSED = "refused"
    """The server does not let this user."""
    NOBODY = "nobody"
    """It went nowhere: the account does not reach that far."""
    SILENT = "silent"
    """No answer in time: nobody knows."""
    UNTRIED = "untried"


@dataclass(frozen=True)
class Trial:
    """One identity, one action."""

    user: str
    action: Action
    declared: bool
    found: Found

    @property
    def is_hole(self) -> bool:
        """It can, though nothing says that it may."""
        return not self.declared and self.found in (Found.REACHED, Found.SILENT)

    @property
    def is_missing(self) -> bool:
        """It should be able to and cannot."""
        return self.declared and self.found not in (Found.REACHED, Found.UNTRIED)


class Court:
    """All identities, connected.

    Args:
        url: Of the server.
        users: Every identity, with its key.
        accounts: As they are declared.
        ca_file: As `NatsClient` takes it.
    """

    def __init__(
        self, url: str, users: Mapping[str, NatsUser], accounts: Sequence[Account], *, ca_file: Path | None = None
    ) -> None:
        self._users = users
        self._accounts = accounts
        self._clients = {
            name: NatsClient(url, user=user, name=f"authz-{name}", ca_file=ca_file) for name, user in users.items()
        }
        self._gates = {name: asyncio.Semaphore(_AT_ONCE) for name in users}
        self._token = secrets.token_hex(8)

    async def try_all(self, actions: Sequence[Action]) -> list[Trial]:
        """Every action by every identity, in the actions' order.

        Raises:
            MessagingUnavailableError: NATS is away.
            NotAuthorizedError: the server does not accept an identity at all.
        """
        async with contextlib.AsyncExitStack() as stack:
            for client in self._clients.values():
                await stack.enter_async_context(client)
            await self._answer()
            told = [action for action in actions if action.kind != "hear"]
            heard = [action for action in actions if action.kind == "hear"]
            tried = await asyncio.gather(*(self._tell(name, action) for action in told for name in self._users))
            return [*tried, *await self._listen(heard)]

    async def _answer(self) -> None:
        """Answer probes where services are, since they may not run."""
        services: dict[str, list[str]] = {account: [] for account in SERVICES.values()}
        for service, account in SERVICES.items():
            services[account].append(f"{PREFIX}.svc.{service}.*")
        for name in (CORE, GATEWAY):
            for subject in (*services[self._users[name].account], "$SRV.PING"):
                await self._clients[name].subscribe(subject, self._respond)
        await self._clients[CORE].subscribe(f"$JS.ACK.*.{PROBE}.>", self._respond)

    async def _respond(self, message: Msg) -> None:
        if message.reply and (message.headers or {}).get(HEADER_PROBE) == self._token:
            await message.respond(b"")

    async def _tell(self, name: str, action: Action) -> Trial:
        user = self._users[name]
        declared = is_declared(action, user, self._accounts)
        if declared and action.is_destructive:
            return Trial(name, action, declared, Found.UNTRIED)
        async with self._gates[name]:
            return Trial(name, action, declared, await self._ask(name, subject_for(action, user)))

    async def _ask(self, name: str, subject: str) -> Found:
        connection = await self._clients[name].connection()
        headers = {HEADER_EXPECTED_STREAM: PROBE, HEADER_PROBE: self._token}
        try:
            await connection.request(subject, _NO_REQUEST, headers=headers, timeout_seconds=TIMEOUT_SECONDS)
        except NotAuthorizedError:
            return Found.REFUSED
        except NobodyListensError:
            return Found.NOBODY
        except MessagingUnavailableError:
            return Found.SILENT
        return Found.REACHED

    async def _listen(self, actions: Sequence[Action]) -> list[Trial]:
        heard: set[tuple[str, str]] = set()
        refused = {
            (name, action.target)
            for action in actions
            for name in self._users
            if not await self._subscribed(name, action, heard)
        }
        for action in actions:
            connection = await self._clients[action.sender].connection()
            headers = {HEADER_EXPECTED_STREAM: PROBE, HEADER_PROBE: self._token}
            await connection.publish(action.said, _NO_REQUEST, headers=headers, timeout_seconds=TIMEOUT_SECONDS)
        for name in self._users:  # what was sent to it is there before the answer to this
            await (await self._clients[name].connection()).raw.flush(int(TIMEOUT_SECONDS))
        return [
            Trial(name, action, is_declared(action, self._users[name], self._accounts), found)
            for action in actions
            for name in self._users
            for found in [_outcome((name, action.target), refused, heard)]
        ]

    async def _subscribed(self, name: str, action: Action, heard: set[tuple[str, str]]) -> bool:
        async def hear(message: Msg) -> None:
            probe = (message.headers or {}).get(HEADER_PROBE)
            if probe == self._token and covers(action.said, message.subject):
                heard.add((name, action.target))

        try:
            await self._clients[name].subscribe(action.subject, hear)
        except NotAuthorizedError:
            return False
        return True


def _outcome(key: tuple[str, str], refused: set[tuple[str, str]], heard: set[tuple[str, str]]) -> Found:
    if key in heard:
        return Found.REACHED
    return Found.REFUSED if key in refused else Found.NOBODY
