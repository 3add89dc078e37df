"""TLS in front of servers that have none: a process that ends it and hands on (`python -m`, as a member of the stack).

Temporal's development server and the PostgreSQL of the wheel are built without TLS. In a company a load balancer or the
server itself speaks it; this stands for them, so that workers and commands of a local stack speak TLS as in production.
"""

import asyncio
import contextlib
import json
import signal
import ssl
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from coatcheck.localstack.member import MemberSpec
from coatcheck.localstack.ports import LOOPBACK
from coatcheck.localstack.probe import port_open

PORTS: Final = {"temporal": "temporal_tls", "postgres": "postgres_tls"}
"""Server → the name of the port on which it is offered with TLS."""
_SSL_REQUEST: Final = bytes.fromhex("0000000804d2162f")
"""What a client of PostgreSQL says before the handshake; `S` is the answer of a server that speaks TLS."""
_CHUNK_BYTES: Final = 256 * 1024


def member(certs: Path, ports: Mapping[str, int], env: Mapping[str, str]) -> MemberSpec:
    """The process for those of the servers that have ports."""
    fronts = {server: (ports[name], ports[server]) for server, name in PORTS.items() if name in ports}
    return MemberSpec(
        name="tls",
        argv=(sys.executable, "-m", "coatcheck.localstack.tls_front", str(certs), json.dumps(fronts)),
        env=env,
        ready=partial(_all_open, [front for front, _ in fronts.values()]),
    )


async def _all_open(ports: list[int]) -> bool:
    return all([await port_open(port) for port in ports])


async def serve(certs: Path, fronts: Mapping[str, tuple[int, int]]) -> None:
    """Listen until told to stop.

    Args:
        certs: Folder with `<server>.pem` and `<server>.key`.
        fronts: Server → the port to listen on, and the server's own.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    servers = []
    for server, (front, back) in fronts.items():
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certs / f"{server}.pem", certs / f"{server}.key")
        if server == "postgres":
            take = partial(_postgres, context, back)
            servers.append(await asyncio.start_server(take, LOOPBACK, front, limit=_CHUNK_BYTES))
        else:
            context.set_alpn_protocols(["h2"])  # gRPC asks for it
            take = partial(_hand_on, back)
            servers.append(await asyncio.start_server(take, LOOPBACK, front, ssl=context, limit=_CHUNK_BYTES))
    await stop.wait()
    for listener in servers:
        listener.close()


async def _postgres(
    context: ssl.SSLContext, back: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Its clients ask in the clear whether there is TLS, and begin the handshake then; nothing else is taken."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        if await reader.readexactly(len(_SSL_REQUEST)) == _SSL_REQUEST:
            writer.write(b"S")
            await writer.start_tls(context)
            await _hand_on(back, reader, writer)
            return
    writer.close()


async def _hand_on(back: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy both ways until both sides are done; closed at once while the server is away."""
    try:
        back_reader, back_writer = await asyncio.open_connection(LOOPBACK, back, limit=_CHUNK_BYTES)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, back_writer), _copy(back_reader, writer))


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK_BYTES):
            target.write(data)
            await target.drain()
    target.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), json.loads(sys.argv[2])))
