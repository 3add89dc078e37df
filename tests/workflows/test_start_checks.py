"""What a core worker checks before it polls."""

import sys
from pathlib import Path

import pytest
from temporalio.testing import WorkflowEnvironment

from coatcheck.errors import DependencyDownError
from schemas import search_attributes
from workers.temporal import check_search_attributes


async def test_an_unregistered_search_attribute_is_refused_with_its_remedy() -> None:
    """A workflow that upserts one hangs as "Running" for ever, so nothing is started there."""
    environment = await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(Path(sys.executable).parent / "temporal"),
        dev_server_log_level="error",
        search_attributes=[search_attributes.FEATURE],
    )
    async with environment:
        with pytest.raises(DependencyDownError, match=search_attributes.STATUS.name) as refused:
            await check_search_attributes(environment.client)
    assert refused.value.hint is not None
    assert f"--name {search_attributes.STATUS.name} --type Keyword" in refused.value.hint
    assert search_attributes.FEATURE.name not in refused.value.hint
