"""`coatcheck agents`: what every agent does, watched from outside while it works and when its worker is killed."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coatcheck.localstack import LocalStack
from coatcheck.localstack.workers import DEFAULT_WORKERS
from tests.acceptance.program import COATCHECK, Outcome, coatcheck, environment

SECONDS = 20.0
"""Within which an agent whose worker was killed is shown as away."""


class Watch:
    """A `coatcheck agents --watch` whose lines are collected."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._heard:
                self.lines.append(line.rstrip("\n"))
                self._heard.notify_all()

    def wait_for(self, text: str, seconds: float = 60, *, after: int = 0) -> int:
        """Wait until a line has that text; returns how many lines there are up to it."""
        deadline = time.monotonic() + seconds

        def position() -> int:
            return next((number + 1 for number in range(after, len(self.lines)) if text in self.lines[number]), 0)

        with self._heard:
            assert self._heard.wait_for(position, deadline - time.monotonic()), f"no {text!r} in {self.lines[after:]}"
            return position()

    def end(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        self._reader.join()
        return code


@contextmanager
def started(data_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on by itself; killed in the end if it still runs."""
    process = subprocess.Popen(
        [COATCHECK, *arguments],
        env=environment(COATCHECK_DATA_DIR=str(data_dir)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def watched(new_stack: Callable[..., LocalStack]) -> LocalStack:
    """A stack without agents, whose workers the test runs, and kills, itself."""
    workers = [spec for spec in DEFAULT_WORKERS if spec.name != "agents"]
    return new_stack(workers=workers, env=environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.7"))


def test_watch_sees_agents_work_rest_and_die(watched: LocalStack) -> None:
    """A real run: working and idle as they happen; after kill -9 the agents are away, and their work is missed."""
    data_dir = Path(watched.config.data_dir)

    def run(*arguments: str) -> Outcome:
        return coatcheck(*arguments, data_dir=data_dir)

    assert {line["state"] for line in run("agents", "--json").json} == {"none"}
    with started(data_dir, "agents", "--watch") as process, started(data_dir, "worker", "agents") as worker:
        watch = Watch(process)
        watch.wait_for("priya: idle")
        assert run("run", "customer-search", "Find customers by name").code == 0
        at = watch.wait_for("cynthia: working; customer-search: research, round 1")
        at = watch.wait_for("cynthia: idle", after=at)
        watch.wait_for("sylvia: working; customer-search: critique, round 1")
        at = watch.wait_for("roy: working; customer-search: backend, round 1", after=at)
        [roy] = [line for line in run("agents", "--json").json if line["agent"] == "roy"]
        assert roy["state"] in {"working", "idle"}  # it may just have finished
        assert roy["workers_present"] == 1
        os.killpg(worker.pid, signal.SIGKILL)
        killed, at = time.monotonic(), len(watch.lines)
        for agent in ("cynthia", "sylvia", "roy", "jen", "billy", "priya"):
            watch.wait_for(f"{agent}: away", SECONDS, after=at)
        assert time.monotonic() - killed < SECONDS
        assert watch.end() == 130
        assert not any("Traceback" in line for line in watch.lines)
    assert run("run", "paging", "Page through customers").code == 0
    deadline = time.monotonic() + 30
    while "work waits for cynthia" not in (once := run("agents")).err:
        assert time.monotonic() < deadline, once
    assert once.code == 0
    assert once.out.splitlines()[1].split()[:3] == ["cynthia", "research", "away"]
    with started(data_dir, "worker", "agents") as worker:
        wait_until(lambda: {line["state"] for line in run("agents", "--json").json} <= {"working", "idle"})
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait(60) == 0
    assert {line["workers_present"] for line in run("agents", "--json").json} == {0}  # each took its entry out


def wait_until(accept: Callable[[], bool], seconds: float = 60) -> None:
    """Ask until it is so; each question is a whole command and takes its time."""
    deadline = time.monotonic() + seconds
    while not accept():
        assert time.monotonic() < deadline


def test_without_nats_there_is_nothing_to_show(new_stack: Callable[..., LocalStack]) -> None:
    """One line and the exit code of a dependency that is down."""
    stack = new_stack(servers=("nats",), workers=())
    stack.stop_member("nats")
    outcome = coatcheck("agents", data_dir=Path(stack.config.data_dir))
    assert outcome.code == 3
    assert outcome.err.startswith("error: NATS at ")
