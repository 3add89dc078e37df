"""Encrypted payloads and the server that decrypts them for the UI: what is hidden, who may see it, what is refused."""

import base64
from typing import Any

import httpx2 as httpx
import pytest
from google.protobuf.json_format import MessageToJson, Parse
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from temporalio.api.common.v1 import Payload, Payloads

from coatcheck.cli.codec_server import codec_app, serve
from coatcheck.cli.voice import MisuseError
from coatcheck.errors import CoatcheckError, PayloadKeyMissingError
from coatcheck.settings import Settings
from workers.encryption import EncryptionCodec, read_keys
from workers.temporal import DATA_CONVERTER

OLD, NEW = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
UI = "http://localhost:8080"


def codec(keys: str) -> EncryptionCodec:
    """The codec of a process that has these keys."""
    return EncryptionCodec(read_keys(SecretStr(keys)))


@given(st.binary(), st.dictionaries(st.text(max_size=8), st.binary(max_size=8), max_size=3))
async def test_a_payload_comes_back_whole_and_is_not_to_be_seen(data: bytes, metadata: dict[str, bytes]) -> None:
    """Whatever is in it; the same one looks different each time."""
    payload = Payload(data=b"canary" + data, metadata=metadata)
    first, second = await codec(f"new:{NEW}").encode([payload, payload])
    assert first.data != second.data
    assert b"canary" not in first.SerializeToString()
    assert await codec(f"new:{NEW}").decode([first, payload]) == [payload, payload]


async def test_keys_are_replaced_one_after_the_other() -> None:
    """Everybody reads the new one before anybody writes with it; what the old one wrote stays readable."""
    payload = Payload(data=b"text", metadata={"encoding": b"json/plain"})
    (old,) = await codec(f"old:{OLD}").encode([payload])
    (new,) = await codec(f"new:{NEW},old:{OLD}").encode([payload])
    assert new.metadata["encryption-key-id"] == b"new"
    assert await codec(f"old:{OLD},new:{NEW}").decode([old, new]) == [payload, payload]


async def test_what_cannot_be_decrypted_is_said() -> None:
    """With the key's name: no key, another key of that name, a changed byte, a payload under another key's name."""
    (payload,) = await codec(f"new:{NEW},old:{OLD}").encode([Payload(data=b"text")])
    with pytest.raises(PayloadKeyMissingError, match="'new', which this process does not have"):
        await codec(f"old:{OLD}").decode([payload])
    with pytest.raises(PayloadKeyMissingError, match="'new' has encrypted"):
        await codec(f"new:{OLD}").decode([payload])
    with pytest.raises(PayloadKeyMissingError, match=r"'new'.*does not have"):
        DATA_CONVERTER.payload_converter.from_payloads([payload])
    payload.data = payload.data[:-1] + bytes([payload.data[-1] ^ 1])
    with pytest.raises(PayloadKeyMissingError, match="changed"):
        await codec(f"new:{NEW}").decode([payload])


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ("", "no payload key"),
        (NEW, "number 1 has no id"),
        (f"a:{NEW},b:c2hvcnQ=", "'b' is not 32 bytes"),
        (f"a:{NEW},a:{OLD}", "two payload keys 'a'"),
        ("a:%%%", "'a' is not 32 bytes"),
    ],
)
def test_keys_in_another_form_are_refused_without_being_shown(keys: str, complaint: str) -> None:
    """The error goes into logs."""
    with pytest.raises(CoatcheckError, match=complaint) as error:
        read_keys(SecretStr(keys))
    assert NEW not in f"{error.value} {error.value.hint}"


async def ask(path: str, body: str, **headers: str) -> httpx.Response:
    """One request to a server with a token."""
    app = codec_app(codec(f"new:{NEW}"), token=SecretStr("s3cret"), origins=[UI])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://codec") as client:
        return await client.post(path, content=body, headers={"authorization": "Bearer s3cret", **headers})


async def test_the_server_decrypts_for_who_may_see_it() -> None:
    """The program with the token, and the UI from its own origin."""
    payload = Payload(data=b'"text"', metadata={"encoding": b"json/plain"})
    encoded = await ask("/encode", MessageToJson(Payloads(payloads=[payload])))
    assert "json/plain" not in base64.b64decode(encoded.json()["payloads"][0]["data"]).decode(errors="replace")
    decoded = await ask("/decode", encoded.text, origin=UI)
    assert decoded.headers["access-control-allow-origin"] == UI
    assert list(Parse(decoded.text, Payloads()).payloads) == [payload]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("{}", {"authorization": ""}, 401),
        ("{}", {"authorization": "Bearer other"}, 401),
        ("{}", {"origin": "http://evil.example"}, 403),
        ("not JSON", {}, 400),
        ('{"payloads": [{"metadata": {"encoding": "YmluYXJ5L2VuY3J5cHRlZA=="}}]}', {}, 422),
    ],
)
async def test_the_server_refuses(body: str, headers: dict[str, Any], status: int) -> None:
    """Others, and what is no payload."""
    assert (await ask("/decode", body, **headers)).status_code == status


async def test_the_server_does_not_decrypt_for_a_whole_network() -> None:
    """Without a token it serves this machine alone; without keys nobody."""
    with pytest.raises(MisuseError, match="could decrypt everything"):
        await serve(Settings(payload_keys=SecretStr(f"new:{NEW}")), host="0.0.0.0", port=0, origins=[])
    with pytest.raises(CoatcheckError, match="no payload keys"):
        await serve(Settings(), host="127.0.0.1", port=0, origins=[])
