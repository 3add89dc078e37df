"""A local server for `POST /v1/chat/completions`: competent by default, misbehaving by script, always keeping a bill.

In a test's own process, `async with OpenAIServer(bill=…) as server`; beside worker processes,

    python -m tests.providers.openai_server --port 0 --bill FILE [--script FILE] [--report-bytes N] [--latency SECONDS]

which prints one JSON line with `base_url` when it listens. HTTP/1.1 over asyncio streams, since a library would not
let us break the protocol: half a body, no answer, a connection closed in between.
"""

import argparse
import asyncio
import json
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.providers import bill as bills
from tests.providers.answers import completion, place
from tests.providers.bill import Bill, BillLine
from tests.providers.script import Script, Step, rate_limited

WINDOW_SECONDS = 2.0
"""Over which tokens are counted."""
DRIP_SECONDS = 0.2
"""Between two bytes of a dripping body."""


class OpenAIServer:
    """The server; an async context manager that listens on loopback.

    Args:
        bill: File of the bill; made when missing, appended to otherwise.
        script: What goes wrong, and when.
        port: 0 for a free one.
        report_bytes: Size of a report unless a step says otherwise.
        latency_seconds: Of every call but those refused, before a step's own.
        tokens_per_second: A call is refused while the answers of the last 2 s have had more.
    """

    def __init__(
        self,
        *,
        bill: Path,
        script: Script | None = None,
        port: int = 0,
        report_bytes: int = 2048,
        latency_seconds: float = 0,
        tokens_per_second: float | None = None,
    ) -> None:
        self.bill = bill
        self.script = script or Script()
        self.requests: list[dict[str, Any]] = []
        """Bodies of all calls so far, in the order of arrival."""
        self.gate = asyncio.Event()
        """While it is cleared, completions wait: how a test holds a call in flight."""
        self.gate.set()
        self._port = port
        self._report_bytes = report_bytes
        self._latency_seconds = latency_seconds
        self.tokens_per_second = tokens_per_second
        self.answers: list[tuple[float, dict[str, Any], int]] = []
        """Each answer's time on the loop's clock, the body that was asked, and the tokens of both."""
        self._answering = 0
        self._arrivals = asyncio.Condition()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._lines = Bill(self.bill)
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._lines.close()

    @property
    def base_url(self) -> str:
        """For `OPENAI_BASE_URL`."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def arrived(self, count: int) -> None:
        """Wait until that many calls have arrived since the start."""
        async with self._arrivals:
            await self._arrivals.wait_for(lambda: len(self.requests) >= count)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone, as it may
        except asyncio.CancelledError:
            pass  # the server closes; asyncio's own callback would log the cancellation as an error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its response; False when the connection is not to be used again."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = line.split(" ")
        if (method, path) != ("POST", "/v1/chat/completions"):
            return await _send(writer, 404, _error(f"Unknown request URL: {method} {path}", "invalid_request_error"))
        request = json.loads(body)
        async with self._arrivals:
            self.requests.append(request)
            self._arrivals.notify_all()
        return await self._complete(request, headers, reader, writer)

    async def _complete(
        self,
        request: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        call = place(request["messages"]).model_copy(update={"model": request["model"]})
        line = BillLine(
            event="started",
            call_id=uuid.uuid4().hex,
            digest=bills.digest(request["messages"]),
            sdk_retry=int(headers.get("x-stainless-retry-count", 0)),
            **call.model_dump(),
        )
        self._lines.write(line)
        step = rate_limited() if self._is_over() else self.script.take(call, answering=self._answering)
        self._answering += step.do != "error"
        try:
            return await self._carry_out(line, step, request, reader, writer)
        finally:
            self._answering -= step.do != "error"

    def _is_over(self) -> bool:
        if self.tokens_per_second is None:
            return False
        since = asyncio.get_running_loop().time() - WINDOW_SECONDS
        lately = sum(tokens for at, _, tokens in self.answers if at > since)
        return lately > self.tokens_per_second * WINDOW_SECONDS

    async def _carry_out(
        self,
        line: BillLine,
        step: Step,
        request: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if step.do != "error":
            await asyncio.sleep(self._latency_seconds)
        await asyncio.sleep(step.latency_seconds)
        if step.do == "hang":
            await reader.read()  # returns when the client gives up
            return False
        if step.do != "error":
            await self.gate.wait()
        finished = {"event": "finished", "step": step.do, "paid": step.do not in {"error", "cut"}}
        self._lines.write(line.model_copy(update=finished))
        return await self._respond(line.call_id, request, step, writer)

    async def _respond(self, call_id: str, request: dict[str, Any], step: Step, writer: asyncio.StreamWriter) -> bool:
        if step.do == "cut":
            return False
        if step.do == "error":
            error = _error(step.message, step.type, step.code)
            return await _send(writer, step.status, error, {"x-request-id": f"req_{call_id}", **step.headers})
        answer = completion(call_id, request, step, report_bytes=self._report_bytes)
        tokens = answer.get("usage", {}).get("total_tokens", 0)
        self.answers.append((asyncio.get_running_loop().time(), request, tokens))
        body = json.dumps(answer).encode()
        if step.do == "malformed":
            body = body[: len(body) // 2]
        if step.do == "empty_body":
            body = b""
        if step.do in {"cut_body", "drip"}:
            return await _spoil(writer, body, drip=step.do == "drip")
        return await _send(writer, 200, body, {"x-request-id": f"req_{call_id}"})


def _error(message: str, kind: str, code: str | None = None) -> bytes:
    """OpenAI's shape of an error."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


async def _send(writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str] | None = None) -> bool:
    writer.write(_head(status, len(body), headers or {}) + body)
    await writer.drain()
    return True


async def _spoil(writer: asyncio.StreamWriter, body: bytes, *, drip: bool) -> bool:
    """Promise the whole body and send half of it, or send it byte by byte."""
    writer.write(_head(200, len(body), {}))
    if drip:
        for index in range(len(body)):
            writer.write(body[index : index + 1])
            await writer.drain()
            await asyncio.sleep(DRIP_SECONDS)
    else:
        writer.write(body[: len(body) // 2])
        await writer.drain()
    return False


def _head(status: int, length: int, headers: dict[str, str]) -> bytes:
    known = {"content-type": "application/json", "content-length": str(length), "openai-version": "2020-10-01"}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in {**known, **headers}.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def serve(arguments: argparse.Namespace, announce: Callable[[str], None]) -> None:
    """Run as a process of its own until SIGTERM or SIGINT."""
    script = Script.load(arguments.script) if arguments.script else None
    options = {"port": arguments.port, "report_bytes": arguments.report_bytes, "latency_seconds": arguments.latency}
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with OpenAIServer(bill=arguments.bill, script=script, **options) as server:
        announce(json.dumps({"base_url": server.base_url}))
        await stopped.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A local OpenAI-compatible provider for tests.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--bill", type=Path, required=True, help="append-only JSONL")
    parser.add_argument("--script", type=Path, help="JSON list of steps (tests/providers/script.py)")
    parser.add_argument("--report-bytes", type=int, default=2048)
    parser.add_argument("--latency", type=float, default=0, metavar="SECONDS")
    asyncio.run(serve(parser.parse_args(), lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
