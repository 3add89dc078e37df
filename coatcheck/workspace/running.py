"""A command that runs, seen from the worker: its output, its report, and how it is ended.

Cancellation never interrupts the talk with the launcher: it is passed on to it, and raised when nothing is left.
"""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Final

from coatcheck.workspace.launcher import KILL, TERMINATE, Report, parse_report

_CHUNK_BYTES: Final = 65_536
_TAIL_BYTES: Final = 65_536
"""Kept of the output: the tail's characters at 4 bytes each, and colour codes that are taken out of it."""
_CLOSE_SECONDS: Final = 5.0
"""For the launcher to go and its pipe to close, once it has reported."""
_COLOURS: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_HARMFUL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and those that reverse the direction of writing."""


def harmless(text: str) -> str:
    """Without colours, and with a mark in place of each character that could act on a terminal."""
    return _HARMFUL.sub("\ufffd", _COLOURS.sub("", text))


class Running:
    """A launcher, seen from the worker."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        control: socket.socket,
        max_output_bytes: int,
        on_output: Callable[[bytes], None] | None,
    ) -> None:
        self._process = process
        self._control = control
        self._writer: asyncio.StreamWriter | None = None
        self._unsent = b""
        self._on_output = on_output
        self._max_output_bytes = max_output_bytes
        self._output_bytes = 0
        self._failure: Exception | None = None
        self._tail = bytearray()

    @property
    def tail(self) -> str:
        """The end of the output, as it may be shown."""
        text = bytes(self._tail).decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
        return harmless(text)

    @property
    def printed_too_much(self) -> bool:
        """Whether it was killed for its output."""
        return self._output_bytes > self._max_output_bytes

    def say(self, message: bytes) -> None:
        """Tell the launcher something, if it is still there."""
        if self._writer is None:
            self._unsent += message
        elif not self._writer.is_closing():
            self._writer.write(message)

    async def until_end(self, seconds: float) -> Report:
        """Wait until nothing of the command is left; when cancelled, end it, wait all the same, and then raise."""
        ending = asyncio.create_task(self._end())
        overdue = asyncio.get_running_loop().call_later(seconds, self._kill_launcher)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not ending.done():
                try:
                    await asyncio.shield(ending)
                except asyncio.CancelledError as error:
                    self.say(KILL if cancelled else TERMINATE)
                    cancelled = error
        finally:
            overdue.cancel()
        if cancelled is not None:
            if not ending.cancelled():
                ending.exception()  # has been seen
            raise cancelled
        return ending.result()

    async def _end(self) -> Report:
        """Collect the output and the report. However this ends, the closed socket tells the launcher to end all."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._control)
        self._writer.write(self._unsent)
        collecting = asyncio.create_task(self._collect())
        try:
            report = await _read_report(reader)
            # Everything that could write is gone; a process that escaped (see the launcher) shall not hold us up.
            await asyncio.wait({collecting}, timeout=_CLOSE_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _CLOSE_SECONDS)
        finally:
            collecting.cancel()
            self._writer.close()
        if self._failure is not None:
            raise self._failure
        return report

    async def _collect(self) -> None:
        output = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), self._process.stdout
        )
        with contextlib.closing(transport):
            while chunk := await output.read(_CHUNK_BYTES):
                self._output_bytes += len(chunk)
                self._tail += chunk
                del self._tail[:-_TAIL_BYTES]
                if self.printed_too_much:
                    self.say(KILL)
                elif self._on_output is not None:
                    self._pass_on(self._on_output, chunk)

    def _pass_on(self, on_output: Callable[[bytes], None], chunk: bytes) -> None:
        try:
            on_output(chunk)
        except Exception as error:  # noqa: BLE001  raised again when the command has ended
            self._failure = self._failure or error
            self.say(KILL)

    def _kill_launcher(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


async def _read_report(reader: asyncio.StreamReader) -> Report:
    try:
        return parse_report(await reader.readline())
    except (ValueError, ConnectionError):
        return Report("killed", -signal.SIGKILL, reason="its launcher was killed")
