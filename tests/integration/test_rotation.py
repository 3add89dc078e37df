"""Clients follow their key's file: nothing that they ask or serve fails while it is replaced; steps can be repeated."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coatcheck.errors import MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack import LocalStack
from coatcheck.messaging import client as client_module
from coatcheck.messaging import connection as connection_module
from coatcheck.messaging import rotation
from coatcheck.messaging.accounts import ensure_keys, load_user, render_accounts
from coatcheck.messaging.keyring import Keyring
from coatcheck.messaging.service import serve
from schemas.streams import STREAMS
from tests.acceptance.program import coatcheck
from tests.integration.nats_clients import client_as

ASKING = 4


async def test_nothing_fails_while_keys_are_replaced(
    new_stack: Callable[..., LocalStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides end up with their new keys; what is lost is what was in hand when the server was told, three times.

    It forgets then whom the gateway may answer. Whoever asks again is answered.
    """
    monkeypatch.setattr(client_module, "KEY_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(connection_module, "RETIRE_SECONDS", 1.0)
    stack = new_stack(servers=("nats",), workers=())
    server = stack.status().nats
    assert server is not None
    lost, done = 0, asyncio.Event()

    async def answer(payload: bytes) -> bytes:
        await asyncio.sleep(0.05)
        return payload

    async with (
        client_as(server, "gateway") as gateway,
        client_as(server, "roy") as roy,
        client_as(server, "observer") as observer,
        serve(gateway, name="llm", version="1.0.0", endpoints={"agog.svc.llm.roy": answer}),
    ):

        async def ask() -> int:
            nonlocal lost
            count = 0
            while not done.is_set():
                try:
                    assert await roy.request("agog.svc.llm.roy", b"?", timeout=1) == b"?"
                except MessagingUnavailableError:
                    lost += 1
                    assert await roy.request("agog.svc.llm.roy", b"?", timeout=1) == b"?"
                count += 1
            return count

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask()) for _ in range(ASKING)]
            told = await asyncio.to_thread(
                coatcheck, "rotate", "roy", "gateway", "observer", "--json", data_dir=stack.config.data_dir
            )
            done.set()
        answered = sum(task.result() for task in asking)
        assert (told.code, told.json) == (0, {"rotated": ["roy", "gateway", "observer"], "cut_off": []}), told.err
        assert answered > 20
        assert lost <= 3 * ASKING
        keys = stack.config.keys_dir
        for name in ("roy", "gateway"):
            assert load_user(keys, name).user != server.users[name].user
        async with asyncio.timeout(20):
            while True:  # its old password was refused at once; it comes back with the new one
                try:
                    await observer.api("STREAM.NAMES")
                    break
                except (MessagingUnavailableError, NotAuthorizedError):
                    await asyncio.sleep(0.05)
    # As with a server of one's own: where its file is, and how it reads it again.
    place = ("--out", str(stack.config.data_dir / "nats"))
    command = ("--reload", f"kill -HUP {stack.pid('nats')}")
    told = await asyncio.to_thread(coatcheck, "rotate", "jen", *place, *command, data_dir=stack.config.data_dir)
    assert (told.code, told.out) == (0, "jen\n"), told.err
    async with client_as(server, "jen") as jen:
        assert jen.user is not None
        assert jen.user.user != server.users["jen"].user
    for half in (place, command):
        told = await asyncio.to_thread(coatcheck, "rotate", "jen", *half, data_dir=stack.config.data_dir)
        assert told.code == 2
        assert "belong together" in told.err
    unknown = await asyncio.to_thread(coatcheck, "rotate", "nobody", data_dir=stack.config.data_dir)
    assert unknown.code == 2
    assert "no identity is called 'nobody'" in unknown.err


def test_every_step_can_be_repeated(tmp_path: Path) -> None:
    """After a crash anywhere: the server takes whatever a process may hold, and one key at the end."""
    old = ensure_keys(tmp_path, ["roy"])["roy"].user

    def taken() -> set[str]:
        text = render_accounts(ensure_keys(tmp_path, ["roy"]), STREAMS)
        held = {entry.key for entry in Keyring.load(tmp_path / "keyring.json").keys["roy"]}
        return {key for key in held if f"nkey: {key}," in text}

    for _ in range(2):
        rotation.begin(tmp_path, ["roy"])
        following = rotation.next_user(tmp_path, "roy")
        assert following is not None
        assert taken() == {old, following.user}
        assert load_user(tmp_path, "roy").user == old
    for _ in range(2):
        assert rotation.switch(tmp_path, ["roy"]) == {"roy": old}
        rotation.begin(tmp_path, ["roy"])  # a whole second attempt
        assert load_user(tmp_path, "roy").user == following.user
        assert taken() == {old, following.user}
    for _ in range(2):
        rotation.finish(tmp_path, ["roy"])
        assert taken() == {following.user}
    past, present = Keyring.load(tmp_path / "keyring.json").keys["roy"]
    assert (past.key, present.key) == (old, following.user)
    assert past.retired_at is not None
    assert past.retired_at > datetime.now(UTC)
    assert present.retired_at is None
    assert sorted(path.name for path in tmp_path.glob("roy*")) == ["roy.nk"]
