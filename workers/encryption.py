"""Encryption of what Temporal stores: AES-256-GCM in the data converter, with keys that Temporal never sees.

A payload becomes another one whose metadata say `binary/encrypted` and which key: the form of Temporal's own samples,
so their tools read it. Off unless there are keys. Payloads that are not encrypted are read as they are: those of
before, and of people who start runs with the plain `temporal` program. Workflow ids, types, queues and search
attributes are not payloads and stay readable, the feature's slug among them.
"""

import base64
import binascii
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import SecretStr
from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, PayloadCodec

from coatcheck.errors import CoatcheckError, PayloadKeyMissingError

ENCODING: Final = b"binary/encrypted"
KEY_ID: Final = "encryption-key-id"
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
"""Random. With one key, 2^32 payloads are what the standard allows (NIST SP 800-38D): some 100 million runs."""
_HINT: Final = "COATCHECK_PAYLOAD_KEYS is ID:KEY[,ID:KEY…], each key 32 bytes in base64: `openssl rand -base64 32`"


class EncryptionCodec(PayloadCodec):
    """Encrypts with the first key, decrypts with any.

    Args:
        keys: Id → 32 bytes, the present one first.

    Raises:
        CoatcheckError: the library is not installed.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  an extra
        except ImportError as error:
            raise CoatcheckError(
                "encrypted payloads need the library cryptography",
                hint="install it with `pip install 'coatcheck[encryption]'`",
            ) from error
        self._ciphers = {name: AESGCM(key) for name, key in keys.items()}
        self._present = next(iter(keys))

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Each one whole, its metadata too."""
        return [self._encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Those that are encrypted; others stay as they are.

        Raises:
            PayloadKeyMissingError: the key is not here, or the payload was changed.
        """
        return [self._decrypted(it) if it.metadata.get("encoding") == ENCODING else it for it in payloads]

    def _encrypted(self, payload: Payload) -> Payload:
        nonce, name = os.urandom(_NONCE_BYTES), self._present.encode()
        data = nonce + self._ciphers[self._present].encrypt(nonce, payload.SerializeToString(), name)
        return Payload(metadata={"encoding": ENCODING, KEY_ID: name}, data=data)

    def _decrypted(self, payload: Payload) -> Payload:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        name = payload.metadata.get(KEY_ID, b"").decode(errors="replace")
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise missing_key(payload)
        try:
            plain = cipher.decrypt(payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:], name.encode())
        except InvalidTag as error:
            raise PayloadKeyMissingError(
                f"a payload of Temporal is not what the key {name!r} has encrypted: it or the key was changed",
                hint=_HINT,
            ) from error
        return Payload.FromString(plain)


def missing_key(payload: Payload) -> PayloadKeyMissingError:
    """The error for an encrypted payload whose key is not here."""
    name = payload.metadata.get(KEY_ID, b"").decode(errors="replace")
    return PayloadKeyMissingError(
        f"a payload of Temporal is encrypted with the key {name!r}, which this process does not have", hint=_HINT
    )


def read_keys(text: SecretStr) -> dict[str, bytes]:
    """The keys of `COATCHECK_PAYLOAD_KEYS`, the present one first.

    Raises:
        CoatcheckError: it has another form; the message holds nothing of it but an id.
    """
    keys: dict[str, bytes] = {}
    for entry in filter(None, re.split(r"[,\s]+", text.get_secret_value())):
        name, _, encoded = entry.partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or not encoded:
            raise CoatcheckError(f"payload key number {len(keys) + 1} has no id", hint=_HINT)
        if len(key) != KEY_BYTES:
            raise CoatcheckError(f"payload key {name!r} is not {KEY_BYTES} bytes in base64", hint=_HINT)
        if name in keys:
            raise CoatcheckError(f"there are two payload keys {name!r}", hint=_HINT)
        keys[name] = key
    if not keys:
        raise CoatcheckError("there is no payload key", hint=_HINT)
    return keys


def encrypted(converter: DataConverter, keys: SecretStr | None) -> DataConverter:
    """The same converter, encrypting; as it is when there are no keys.

    Failures too: their messages quote what was given to activities.

    Raises:
        CoatcheckError: the keys have another form, or the library is not installed.
    """
    if keys is None:
        return converter
    changes: dict[str, Any] = {
        "payload_codec": EncryptionCodec(read_keys(keys)),
        "failure_converter_class": DefaultFailureConverterWithEncodedAttributes,
    }
    return dataclasses.replace(converter, **changes)
