"""Ports: chosen free at the first start, kept in the data directory, so that a restart comes back on the same ones.

While the stack runs, the supervisor *holds* its ports on Linux: a bound socket that never listens keeps everybody
else off the port also while the server is down, and a server that sets SO_REUSEADDR (all of ours do) may still
listen there. Other systems refuse such a second bind, so there the ports are only checked.
"""

import contextlib
import json
import random
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from coatcheck.errors import DependencyDownError
from coatcheck.localstack.files import write_private

LOOPBACK = "127.0.0.1"
_LOWEST, _HIGHEST = 20_000, 32_000
"""Below the kernels' ephemeral ranges (Linux from 32,768, macOS and BSD from 49,152), so that no outgoing connection
takes the port of a server that is being restarted."""
_TRIES = 200


@contextlib.contextmanager
def held_ports(path: Path, names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Name → port for all `names`, kept in the JSON file `path` and held until the context ends.

    A port from the file is kept unless someone else listens on it by now.

    Raises:
        DependencyDownError: no free port was found.
    """
    known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    with contextlib.ExitStack() as stack:
        ports = {name: _hold(stack, known.get(name)) for name in names}
        if known | ports != known:
            write_private(path, json.dumps(known | ports, indent=2))
        yield ports


def _hold(stack: contextlib.ExitStack, known: int | None) -> int:
    if known is not None and (holder := _bind(known, reuse=True)):
        _keep(stack, holder)
        return known
    for _ in range(_TRIES):
        port = random.randint(_LOWEST, _HIGHEST)  # noqa: S311  spreads stacks that start together, no secret
        # Without SO_REUSEADDR the bind also fails on a port that another stack holds.
        probe = _bind(port, reuse=False)
        if probe is None:
            continue
        probe.close()
        if holder := _bind(port, reuse=True):
            _keep(stack, holder)
            return port
    raise DependencyDownError(f"no free port between {_LOWEST} and {_HIGHEST} in {_TRIES} tries")


def _bind(port: int, *, reuse: bool) -> socket.socket | None:
    sock = socket.socket()
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((LOOPBACK, port))
    except OSError:
        sock.close()
        return None
    return sock


def _keep(stack: contextlib.ExitStack, holder: socket.socket) -> None:
    if sys.platform == "linux":
        stack.enter_context(holder)
    else:
        holder.close()
