"""One stack for all tests of this folder that do not change the product."""

from collections.abc import AsyncIterator

import pytest

from tests.chaos.lab import Lab, open_lab


@pytest.fixture(scope="session")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    """A running stack, every failpoint disarmed; each test uses features of its own and leaves all members running."""
    async with open_lab(tmp_path_factory.mktemp("chaos")) as opened:
        yield opened
