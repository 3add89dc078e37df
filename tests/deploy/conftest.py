"""A stack that is measured, with one run done, and a Prometheus that watched it where there is one."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import StackStatus
from tests.acceptance.program import coatcheck, environment
from tests.deploy.scrape import Scrape, scrape

FEATURE = "measured-feature"
ROUNDS = 10
"""Of the scripted run: one review and one test send work back."""
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
            return json.loads(answer.read())["data"]


@dataclass(frozen=True)
class Watched:
    """What the tests look at."""

    status: StackStatus
    scrape: Scrape
    """After the run."""
    prometheus: Prometheus | None
    """Scraped the stack during the run, every second."""


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Start it all, do one run, wait until everything about it has been seen."""
    folder = tmp_path_factory.mktemp("watched")
    env = environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02")
    with LocalStack(folder / "stack", env=env, metrics=True) as stack, _prometheus(stack, folder) as prometheus:
        done = coatcheck("run", FEATURE, "Measure this", "--wait", data_dir=stack.config.data_dir)
        assert done.code == 0, done.err
        yield Watched(stack.status(), _settled(stack, prometheus), prometheus)


def _settled(stack: LocalStack, prometheus: Prometheus | None) -> Scrape:
    """Temporal's metrics come a second late, a look at the streams ten."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        found = scrape(stack.status())
        is_told = found.total("coatcheck_stream_messages", coatcheck_stream="agog_features_statistics") == 1
        is_counted = found.total("temporal_workflow_completed_total", workflow_type="FeaturePipeline") == 1
        if is_told and is_counted and (prometheus is None or _has_seen(prometheus)):
            return found
        time.sleep(0.2)
    raise AssertionError("the run's metrics did not come")


def _has_seen(prometheus: Prometheus) -> bool:
    """Whether Prometheus knows the end of the run, and has looked at it twice, for what is a rate."""
    found = prometheus.get(
        "query", query='min_over_time(coatcheck_stream_messages{coatcheck_stream=~".*statistics"}[3s])'
    )
    return bool(found["result"]) and found["result"][0]["value"][1] == "1"


class _prometheus:  # noqa: N801  a context manager that is used once
    """Prometheus on the stack's own configuration, but in a hurry; nothing where the program is missing."""

    def __init__(self, stack: LocalStack, folder: Path) -> None:
        self._source = stack.config.data_dir / "prometheus"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus | None:
        program = shutil.which("prometheus")
        if program is None:
            return None
        hasty = self._source / "hasty.yml"
        hasty.write_text((self._source / "prometheus.yml").read_text().replace(": 15s", ": 1s"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [
            program,
            f"--config.file={hasty}",
            f"--storage.tsdb.path={self._folder / 'tsdb'}",
            f"--web.listen-address={address}",
        ]
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        return self._ready(Prometheus(f"http://{address}"))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ready(self, prometheus: Prometheus) -> Prometheus:
        assert self._process is not None
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if len(prometheus.get("query", query="up == 1")["result"]) == 3:
                    return prometheus
            except URLError:
                pass
            time.sleep(0.1)
        raise AssertionError((self._folder / "prometheus.log").read_text()[-2000:])
