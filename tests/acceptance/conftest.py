"""One whole stack for the tests of the command line: servers, workers and the scripted author."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.localstack import LocalStack
from tests.acceptance.program import Outcome, coatcheck, environment


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Everything that `coatcheck up` starts; the author hardly pretends to think."""
    env = environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02")
    with LocalStack(tmp_path_factory.mktemp("cli") / "stack", env=env) as running:
        yield running


@pytest.fixture
def cli(stack: LocalStack) -> Callable[..., Outcome]:
    """Run a command against the stack."""

    def run(*arguments: str, stdin: bytes = b"", **variables: Any) -> Outcome:
        return coatcheck(*arguments, data_dir=Path(stack.config.data_dir), stdin=stdin, **variables)

    return run
