"""The public keys of every NATS identity, today's and earlier ones: `keyring.json` beside the private keys.

A private key is one process's own; the keyring goes to everybody who reads deliverables, and holds no secret. A key
that was replaced stays in it, with the time when it was: what it signed before is good for ever, what it signs later
is not.
"""

import base64
import binascii
import os
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, Self

import nkeys  # type: ignore[import-untyped]
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from coatcheck.errors import NotAuthorizedError

KEYRING_FILE: Final = "keyring.json"
_HINT: Final = "`coatcheck up` and `coatcheck nats-config` write it beside the keys; each worker needs it"
_KEY_BYTES: Final = 35
"""A prefix, 32 bytes of Ed25519, and a checksum of 2."""


class PublicKey(BaseModel):
    """One key of an identity."""

    model_config = ConfigDict(frozen=True)

    key: str
    """As NATS spells it: `U` and 55 characters of base32."""
    retired_at: AwareDatetime | None = None
    """When another took its place; what is stored later and signed with this one is refused."""

    def good_at(self, when: datetime) -> bool:
        """Whether the identity could sign with it then."""
        return self.retired_at is None or when <= self.retired_at

    def verifies(self, signature: bytes, text: bytes) -> bool:
        """Whether the key's owner has signed the text."""
        try:
            VerifyKey(raw_key(self.key)).verify(text, signature)
        except (BadSignatureError, ValueError):
            return False
        return True


class Keyring(BaseModel):
    """Who may sign for whom."""

    model_config = ConfigDict(frozen=True)

    unsigned_until: AwareDatetime | None = None
    """Messages that were stored before this need no signature: for those that are older than signatures, and for a team
    whose own clients sign nothing, which sets a date far ahead. A signature that is there must be good all the same."""
    keys: Mapping[str, tuple[PublicKey, ...]] = {}
    """Identity → its keys, the present one last."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it.

        Raises:
            NotAuthorizedError: it is not there or is no keyring, so nobody's signature can be told from a forged one.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise NotAuthorizedError(f"there is no keyring in {path.parent}", hint=_HINT) from error
        except (OSError, ValidationError) as error:
            raise NotAuthorizedError(f"{path} is not a keyring", hint=_HINT) from error

    def save(self, path: Path) -> None:
        """Replace it in one step: a reader has the old one or the new one. It holds no secret, and is as private."""
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(self.model_dump_json(indent=2, exclude_none=True) + "\n")
        draft.replace(path)

    def with_key(self, name: str, key: str) -> Self:
        """The same with `key` as the present one of `name`, earlier ones still good."""
        held = self.keys.get(name, ())
        if any(it.key == key for it in held):
            return self
        return self.model_copy(update={"keys": {**self.keys, name: (*held, PublicKey(key=key))}})

    def retiring(self, name: str, *, but: str, at: datetime) -> Self:
        """The same with every key of `name` retired that was not, except `but`."""
        held = [
            it if it.retired_at or it.key == but else it.model_copy(update={"retired_at": at})
            for it in self.keys.get(name, ())
        ]
        return self.model_copy(update={"keys": {**self.keys, name: tuple(held)}})


def raw_key(key: str) -> bytes:
    """The 32 bytes of a public NKey.

    Raises:
        ValueError: it is none.
    """
    try:
        data = base64.b32decode(key + "=" * (-len(key) % 8))
    except binascii.Error as error:
        raise ValueError(f"{key!r} is no public NKey") from error
    if len(data) != _KEY_BYTES or nkeys.crc16(data[:-2]) != int.from_bytes(data[-2:], "little"):
        raise ValueError(f"{key!r} is no public NKey")
    return data[1:-2]
