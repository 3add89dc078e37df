"""A deliverable's signature: by the agent's own NKey, over the subject, the message id and the body's sha256.

The agent's account is all that keeps others out of its stream, and whoever has the hub's key, the servers' disks or the
archive's folder is past that. The signature travels as a header, so the body stays the seed's and a client that knows
nothing of it reads on as before. It is checked on every read of ours, wherever the message comes from (ADR 0054).

It costs 14 µs to make and 36 µs to check.
"""

import base64
import binascii
import os
from datetime import datetime
from typing import Any, Final

import nkeys  # type: ignore[import-untyped]

from coatcheck.errors import DeliverableUnverifiedError
from coatcheck.messaging.accounts import NatsUser
from coatcheck.messaging.client import StoredMessage
from coatcheck.messaging.keyring import Keyring
from schemas.deliverable import HEADER_MESSAGE_ID, HEADER_SIGNATURE, HEADER_TASK

_DOMAIN: Final = "coatcheck-deliverable/1"
"""The same key signs the NATS server's challenges; no challenge begins like this."""


class Signatures:
    """Signs and checks as one identity; files are read again when they change, so a rotation needs no restart.

    Args:
        user: The identity; `None` where all share one account, and then nothing is signed or checked.
    """

    def __init__(self, user: NatsUser | None) -> None:
        self._user = user
        self._keyring: tuple[object, Keyring] | None = None
        self._seed: tuple[object, Any] | None = None

    def headers(self, subject: str, message_id: str, sha256: str) -> dict[str, str]:
        """The signature as a header, `<public key> <signature in base64url>`; none without a key."""
        if self._user is None or self._user.nkey_file is None:
            return {}
        key = self._own_key(self._user)
        signature = base64.urlsafe_b64encode(key.sign(signed_text(subject, message_id, sha256))).decode()
        return {HEADER_SIGNATURE: f"{key.public_key.decode()} {signature}"}

    def check(self, message: StoredMessage, sha256: str) -> None:
        """Make sure that the agent whose subject it is has signed the message.

        Args:
            message: As it is stored.
            sha256: Of its body.

        Raises:
            DeliverableUnverifiedError: it has no signature, or one that is not the agent's over these contents.
            NotAuthorizedError: there is no keyring here.
        """
        if self._user is None:
            return
        keyring, name = self._ring(self._user), f"{message.stream}.{message.sequence}"
        if (header := message.headers.get(HEADER_SIGNATURE)) is None:
            if keyring.unsigned_until is None or message.stored_at >= keyring.unsigned_until:
                raise DeliverableUnverifiedError(
                    f"{name} has no signature",
                    hint="its writer signs nothing: `unsigned_until` in keyring.json says until when that is allowed",
                )
            return
        agent, message_id = message.subject.split(".")[2], message.headers.get(HEADER_MESSAGE_ID, "")
        if reason := _fault(
            keyring, agent, header, signed_text(message.subject, message_id, sha256), message.stored_at
        ):
            raise DeliverableUnverifiedError(f"{name} is not {agent}'s: {reason}")
        if message.headers.get(HEADER_TASK) not in {message_id, message_id.rpartition("~")[0]}:
            raise DeliverableUnverifiedError(f"{name} is signed for another task than its header says")

    def _ring(self, user: NatsUser) -> Keyring:
        try:
            state = _state(user.keyring_file)
        except FileNotFoundError:
            return Keyring.load(user.keyring_file)  # which says what is missing
        if self._keyring is None or self._keyring[0] != state:
            self._keyring = (state, Keyring.load(user.keyring_file))
        return self._keyring[1]

    def _own_key(self, user: NatsUser) -> Any:
        assert user.nkey_file is not None
        state = _state(user.nkey_file)
        if self._seed is None or self._seed[0] != state:
            self._seed = (state, nkeys.from_seed(bytearray(user.nkey_file.read_bytes().strip())))
        return self._seed[1]


def signed_text(subject: str, message_id: str, sha256: str) -> bytes:
    """What is signed: three lines below one that says what they are; none of them can hold a line's end."""
    return f"{_DOMAIN}\n{subject}\n{message_id}\n{sha256}".encode()


def _fault(keyring: Keyring, agent: str, header: str, text: bytes, stored_at: datetime) -> str | None:
    """What is wrong with a signature."""
    key, _, encoded = header.partition(" ")
    held = next((it for it in keyring.keys.get(agent, ()) if it.key == key), None)
    if held is None:
        return f"{key[:56]} is none of its keys"
    if not held.good_at(stored_at):
        return f"it was stored after its key {key} had been replaced"
    try:
        signature = base64.urlsafe_b64decode(encoded)
    except (binascii.Error, ValueError):
        return "its signature is none"
    return None if held.verifies(signature, text) else "the signature does not fit subject, id and contents"


def _state(path: "os.PathLike[str]") -> object:
    """Another one when the file is another one."""
    found = os.stat(path)  # noqa: PTH116  takes what it is given
    return (found.st_ino, found.st_mtime_ns, found.st_size)
