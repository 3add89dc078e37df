"""`rotate`: new keys for NATS identities while runs go on; the steps are `coatcheck.messaging.rotation`."""

import asyncio
import os
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.request import urlopen

from pydantic_core import from_json

from coatcheck.cli.output import emit, emit_json
from coatcheck.cli.session import UP_HINT, load_settings
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError, MessagingUnavailableError, NotAuthorizedError
from coatcheck.localstack.files import private_dir, write_private
from coatcheck.localstack.status import StackState, load_status
from coatcheck.messaging import rotation
from coatcheck.messaging.accounts import FIXED_IDENTITIES, ensure_keys, render_accounts
from coatcheck.messaging.client import NatsClient
from coatcheck.settings import Settings

EVERYBODY: Final = "all"
TAKEN_SECONDS: Final = 20.0
"""For a server to take the new keys after it was told; it takes 0.1 s."""
_POLL_SECONDS: Final = 0.2


async def rotate(
    who: Sequence[str],
    *,
    out: Path | None,
    reload_command: str | None,
    restart_command: str | None,
    overlap_seconds: float,
    as_json: bool,
    data_dir: Path,
) -> None:
    """Give identities new keys, and take the old ones away once nobody uses them.

    Can be repeated at any point after a crash or an error: it goes on where it stopped.

    Args:
        who: Identities, or `all`.
        out: Where the server reads `accounts.conf`; that of the local stack when absent.
        reload_command: Has the servers read it again; SIGHUP to the local stack's server when absent.
        restart_command: Gives the workers the new files, where they do not see them by themselves.
        overlap_seconds: How long the server takes both at most, for those who are slow.
        as_json: Print what was done as JSON.
        data_dir: Of the stack.

    Raises:
        MisuseError: an identity does not exist, or there is no server of ours to be told.
        MessagingUnavailableError: NATS is away, or has not taken the new keys; nothing is lost, repeat it.
        CoatcheckError: a command failed.
    """
    settings = load_settings(data_dir)
    team = load_config(settings.config_file)
    known = (*FIXED_IDENTITIES, *team.agents)
    names = known if list(who) == [EVERYBODY] else tuple(dict.fromkeys(who))
    if unknown := [name for name in names if name not in known]:
        raise MisuseError(f"no identity is called {unknown[0]!r}", hint=f"{EVERYBODY}, or some of {', '.join(known)}")
    folder, reload = _server(out, reload_command, data_dir)

    def write() -> None:
        users = ensure_keys(settings.keys_dir, team.agents)
        write_private(private_dir(folder) / "accounts.conf", render_accounts(users, team.streams))

    rotation.begin(settings.keys_dir, names)
    await _step(write, reload)
    await _taken(settings, names)
    had = rotation.switch(settings.keys_dir, names)
    await _step(write, reload)  # new passwords
    if restart_command:
        await _run(restart_command)
    late = await _left(settings, had, overlap_seconds)
    rotation.finish(settings.keys_dir, names)
    await _step(write, reload)
    if as_json:
        emit_json({"rotated": names, "cut_off": late})
        return
    emit("\n".join(names))
    for client in late:
        tell(f"warning: {client} still used its old key after {overlap_seconds:g} s and was cut off")


def _server(out: Path | None, command: str | None, data_dir: Path) -> tuple[Path, "str | Callable[[], None]"]:
    """The folder of `accounts.conf`, and how its readers are told."""
    if out is not None and command is not None:
        return out, command
    if out is not None or command is not None:
        raise MisuseError("--out and --reload belong together: where accounts.conf is, and how servers read it again")
    status = load_status(data_dir)
    server = next((member for member in status.servers if member.name == "nats"), None)
    if status.state != StackState.RUNNING or server is None or server.pid is None:
        hint = f"{UP_HINT}; --out and --reload are for servers of your own"
        raise MisuseError(f"no NATS server of ours runs in {data_dir}", hint=hint)
    pid = server.pid
    return data_dir / "nats", lambda: os.kill(pid, signal.SIGHUP)


async def _step(write: Callable[[], None], reload: "str | Callable[[], None]") -> None:
    await asyncio.to_thread(write)
    if isinstance(reload, str):
        await _run(reload)
    else:
        reload()


async def _run(command: str) -> None:
    process = await asyncio.create_subprocess_exec(*shlex.split(command))
    if code := await process.wait():
        raise CoatcheckError(f"`{command}` failed with exit code {code}", hint="repeat `coatcheck rotate`: it goes on")


async def _taken(settings: Settings, names: Sequence[str]) -> None:
    """Wait until every server takes every new key."""
    deadline = time.monotonic() + TAKEN_SECONDS
    for url in settings.require_nats_url().split(","):
        for name in names:
            user = rotation.next_user(settings.keys_dir, name)
            while user is not None:
                try:
                    async with NatsClient(url.strip(), user=user, name=f"rotate-{name}", ca_file=settings.nats_ca_file):
                        break
                except (NotAuthorizedError, MessagingUnavailableError) as error:
                    if time.monotonic() > deadline:
                        raise MessagingUnavailableError(
                            f"{url} does not take the new key of {name}: {error}",
                            hint="the old one is still in use; repeat this when the server has read its accounts.conf",
                        ) from error
                await asyncio.sleep(_POLL_SECONDS)


async def _left(settings: Settings, had: Mapping[str, str], seconds: float) -> list[str]:
    """Wait until nobody is logged in with an old key; returns who is when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        found = await asyncio.to_thread(_logged_in, settings.nats_monitor_url, set(had.values()))
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(_POLL_SECONDS)


def _logged_in(monitor_urls: str | None, keys: set[str]) -> list[str]:
    """Names of the clients that use one of these keys, as the servers' monitors see them."""
    if monitor_urls is None:
        raise MisuseError("NATS_MONITOR_URL is not set, so nobody can tell who still uses the old keys")
    found = []
    for url in monitor_urls.split(","):
        try:
            with urlopen(f"{url.strip()}/connz?auth=1&limit=10000", timeout=5) as reply:  # noqa: S310  the operator's own
                connections = from_json(reply.read())["connections"]
        except OSError as error:
            raise MessagingUnavailableError(f"the monitor of NATS at {url} does not answer: {error}") from error
        found += [one.get("name", "?") for one in connections if one.get("authorized_user") in keys]
    return sorted(found)
