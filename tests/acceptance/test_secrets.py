"""Every secret of a running stack is a canary: none is found where it does not belong, whatever goes wrong."""

import asyncio
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest
from temporalio.service import TLSConfig

from coatcheck.errors import DependencyDownError, MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import StackStatus
from coatcheck.messaging.accounts import load_user
from coatcheck.messaging.client import NatsClient
from tests.acceptance.program import coatcheck, environment
from tests.providers.openai_server import OpenAIServer
from tests.providers.script import Script, Step
from tests.telemetry.collector import Collector
from workers.temporal import connect

KEY = "sk-canary-4f9d1c7be23a4e5f8a6b"
SECRET_FILES = re.compile(r"nats/(keys/.+|accounts\.conf)|postgres/[a-z_]+\.password|certs/[a-z]+\.key|status\.json")
"""Where secrets are, in the local stack: keys and passwords, what the server must know of them, how to connect."""
PUBLIC = ("keyring.json",)


def secrets(status: StackStatus, keys: Path) -> dict[str, str]:
    """What nobody may find, by name."""
    found = {"provider key": KEY}
    for file in keys.iterdir():
        if file.name not in PUBLIC:
            found[file.name] = file.read_text().strip()
    assert status.postgres is not None
    for dsn in (status.postgres.dsn, status.postgres.gateway_dsn, status.postgres.superuser_dsn or ""):
        parts = urlsplit(dsn)
        found[f"password of {parts.username}"] = parts.password or ""
    assert all(len(secret) >= 24 for secret in found.values())
    return found


def elsewhere(data_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of the stack outside those that hold secrets."""
    for path in data_dir.rglob("*"):
        name = str(path.relative_to(data_dir))
        if path.is_file() and not path.is_symlink():
            if SECRET_FILES.fullmatch(name):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, name
            else:
                yield name, path.read_bytes()


def command_lines() -> Iterator[tuple[str, bytes]]:
    """Of every process on this machine: everybody may read them, whoever's they are."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield f"/proc/{process.name}/cmdline", (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended


def children_environments(supervisor: int) -> Iterator[tuple[str, bytes]]:
    """What servers and agents were started with; core and gateway need some of it, and only their own user reads it."""
    for child in psutil.Process(supervisor).children(recursive=True):
        try:
            command, environ = " ".join(child.cmdline()), child.environ()
        except psutil.Error:
            continue  # it has ended, or is another user's, whose environment nobody reads
        if "workers core" not in command and "workers gateway" not in command:
            yield f"environment of {command[:60]}", "\n".join(environ.values()).encode()


async def check_tls(status: StackStatus) -> None:
    """The run went over TLS, since there is no other way: NATS and the others take nobody without it."""
    assert status.nats is not None
    assert status.temporal is not None
    assert status.postgres is not None
    assert status.nats.url.startswith("tls://")
    assert "sslmode=verify-full" in status.postgres.dsn
    user = load_user(status.data_dir / "nats" / "keys", "observer")
    plain = NatsClient(status.nats.url.replace("tls://", "nats://"), user=user, name="plain", ca_file=None)
    with pytest.raises((MessagingUnavailableError, NotAuthorizedError)):
        await plain.__aenter__()
    with pytest.raises(DependencyDownError):
        await connect(status.temporal.address, "default", tls=TLSConfig(server_root_ca_cert=b""))
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await asyncpg.connect(status.postgres.dsn.partition("?")[0], ssl=False, timeout=5)


async def test_no_secret_is_where_it_does_not_belong(new_stack: Callable[..., LocalStack], tmp_path: Path) -> None:
    """Files, logs, telemetry, histories, rows, command lines, errors; the provider even says its key in an error."""
    echo = Step(
        do="error",
        status=401,
        type="invalid_request_error",
        message=f"Incorrect API key provided: {KEY}.",
        feature="refused",
        times=None,
    )
    script = Script()
    script.add(echo)
    with Collector() as collector:
        async with OpenAIServer(bill=tmp_path / "bill", script=script) as provider:
            env = environment(
                COATCHECK_MODEL="openai:gpt-canary",
                OPENAI_API_KEY=KEY,
                OPENAI_BASE_URL=provider.base_url,
                COATCHECK_CONTENT_CAPTURE="full",
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            )
            stack = new_stack(env=env, tls=True)
            data_dir = stack.config.data_dir
            said = []
            for arguments, code in (
                (("run", "works", "Build it.", "--wait"), 0),
                (("run", "refused", "Build it.", "--wait"), 1),
                (("why", "refused"), None),
                (("logs", "refused"), None),
                (("doctor",), None),
                (("history", "feature/works"), None),
                (("events", "feature/refused"), None),
            ):
                told = await asyncio.to_thread(coatcheck, *arguments, data_dir=data_dir)
                assert code in (None, told.code), told
                said.append((" ".join(arguments), f"{told.out}{told.err}".encode()))
            assert b"provider.rejected" in said[1][1] + said[2][1]
            status = stack.status()
            await check_tls(status)
            hidden = secrets(status, stack.config.keys_dir)
            running = [*command_lines(), *children_environments(stack.supervisor_pid)]
            await asyncio.to_thread(collector.wait_for, "/v1/traces")
            await asyncio.to_thread(stack.stop)
    places = [*said, *running, *elsewhere(data_dir), *collector.bodies]
    assert len(places) > 100
    for place in ("temporal/", "logs/", "/v1/traces"):  # what is looked at can be read
        assert any(b"refused" in content for name, content in places if name.startswith(place)), place
    found = {
        f"{name} in {place}" for place, content in places for name, text in hidden.items() if text.encode() in content
    }
    assert found == set()
