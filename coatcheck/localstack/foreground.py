"""A supervisor with its signals, its log and, for a parent process, its commands."""

import asyncio
import signal
import sys
from datetime import UTC, datetime
from typing import IO

from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.localstack.config import EXIT_DEPENDENCY_DOWN, EXIT_FAILED, Command, StackConfig
from coatcheck.localstack.supervisor import Supervisor


async def supervise(config: StackConfig, *, commands: IO[str] | None = None) -> int:
    """Run the stack until SIGTERM, SIGINT or the end of `commands`; returns the program's exit code.

    Talks to stderr. The status file says the same for programs.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    supervisor = Supervisor(config, say=say)
    listener = loop.create_task(_obey(supervisor, commands, stop)) if commands else None
    try:
        await supervisor.run(stop)
    except DependencyDownError as down:
        complain(down)
        return EXIT_DEPENDENCY_DOWN
    except CoatcheckError as failed:
        complain(failed)
        return EXIT_FAILED
    finally:
        if listener:
            listener.cancel()
    return 0


def say(line: str) -> None:
    """One line with the time, for people and for the supervisor's log."""
    _write(f"{datetime.now(UTC):%H:%M:%S} {line}")


def complain(error: CoatcheckError) -> None:
    """An error and its hint."""
    _write(f"error: {error}")
    if error.hint:
        _write(f"hint: {error.hint}")


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


async def _obey(supervisor: Supervisor, commands: IO[str], stop: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), commands)
    while line := await reader.readline():
        command = Command.model_validate_json(line)
        member = supervisor.member(command.member)
        if command.action == "start":
            member.start()
        else:
            await member.stop()
    stop.set()
