"""The tools that a role may be given. Their docstrings are what the model reads.

Each is deterministic over the workspace, so that a replayed conversation makes the same files; `run_checks` is not, but
the turns after it are journalled, so its second result is never read. Refusals go back to the model as a retry.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field
from pydantic_ai import Agent, ModelRetry, RunContext

from coatcheck.agents.desk import Desk
from coatcheck.agents.evidence import in_words
from coatcheck.agents.prompt import deliverable_claim, deliverable_section, spell_no_marker
from coatcheck.errors import ArtifactInvalidError
from coatcheck.workspace.files import Workspace
from schemas.evidence import MAX_CHECKS, Check
from schemas.roles import (
    APPLY_PATCH,
    FETCH_DELIVERABLE,
    LIST_FILES,
    READ_FILE,
    RUN_CHECKS,
    SEARCH_FILES,
    WRITE_FILE,
    Role,
)

_Result = TypeVar("_Result")

READ_CHARACTERS: Final = 50_000
"""Of a file per call: about 12,000 tokens."""
Checks = Annotated[list[Check], Field(max_length=MAX_CHECKS)]
LISTED_FILES: Final = 1000
"""Per call: about 15,000 tokens of paths."""


def add_tools(agent: Agent[Desk, Any], role: Role) -> None:
    """Offer the role's tools; those that change files run one after the other, in the order of the model's calls."""
    for name in role.tools:
        agent.tool(sequential=name in _SEQUENTIAL)(_told(_TOOLS[name]))


def _told(tool: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
    """The tool, telling how each call of it went."""

    @functools.wraps(tool)
    async def call(context: RunContext[Desk], *args: Any, **options: Any) -> str:
        with context.deps.events.tool(str(context.tool_name), str(context.tool_call_id)) as run:
            result = await tool(context, *args, **options)
            run.result_bytes = len(result.encode("utf-8", "replace"))
        return result

    return call


async def fetch_deliverable(context: RunContext[Desk], stage: str, offset: int = 0) -> str:
    """Read what another stage of this run has delivered.

    Args:
        context: Given by the framework.
        stage: Name of the stage, such as "research".
        offset: First character to show; use it to go on where an earlier text was cut.
    """
    desk = context.deps
    tickets = await desk.tickets()
    if stage not in tickets:
        raise ModelRetry(f"no stage {stage!r} is behind your work; there are: {', '.join(tickets) or 'none'}")
    desk.events.read(str(context.tool_call_id), tickets[stage])
    claim = deliverable_claim(tickets[stage], stage, offset=offset)
    desk.claims.append(claim)
    return deliverable_section(claim, tickets[stage], stage)


async def list_files(context: RunContext[Desk], folder: str = "") -> str:
    """List the files of the workspace with their sizes in bytes. Each stage has a folder with its name.

    Args:
        context: Given by the framework.
        folder: Only below this folder, such as "backend"; everything when empty.
    """
    found = (await _workspace(context, lambda files: files.list_files(folder)))[: LISTED_FILES + 1]
    lines = [f"{item.path}  {item.bytes}" for item in found[:LISTED_FILES]]
    if len(found) > LISTED_FILES:
        lines.append("[Cut: there are more files; name a folder.]")
    return "\n".join(lines) or "There are no files."


async def read_file(context: RunContext[Desk], path: str, offset: int = 0) -> str:
    """Read a text file of the workspace.

    Args:
        context: Given by the framework.
        path: As `list_files` shows it, such as "backend/app.py".
        offset: First character to show; use it to go on where an earlier text was cut.
    """
    text = (await _workspace(context, lambda files: files.read(path))).decode("utf-8", "replace")
    end = offset + READ_CHARACTERS
    shown = spell_no_marker(text[offset:end])
    return shown if end >= len(text) else f"{shown}\n[Cut: read on with offset={end} of {len(text):,} characters.]"


async def search_files(context: RunContext[Desk], pattern: str, folder: str = "") -> str:
    """Find the lines that match a regular expression, as `path:line: text`.

    Args:
        context: Given by the framework.
        pattern: A Python regular expression.
        folder: Only below this folder; everything when empty.
    """
    found = await _workspace(context, lambda files: files.search(pattern, folder))
    lines = [f"{item.path}:{item.line}: {item.text}" for item in found]
    return spell_no_marker("\n".join(lines)) or "Nothing matches."


async def write_file(context: RunContext[Desk], path: str, content: str) -> str:
    """Write a whole file. It becomes part of your deliverable; you can write only below your own stage's folder.

    Args:
        context: Given by the framework.
        path: Such as "backend/app.py", the first part being your own stage.
        content: The complete text of the file.
    """
    data = content.encode("utf-8", "replace")
    await _workspace(context, lambda files: files.write(path, data))
    context.deps.evidence = None
    return f"wrote {path}, {len(data):,} bytes"


async def apply_patch(context: RunContext[Desk], patch: str) -> str:
    """Change files by a unified diff. It is applied as a whole or not at all.

    Args:
        context: Given by the framework.
        patch: Paths as for `write_file`, with or without the prefixes a/ and b/.
    """
    changed = await _workspace(context, lambda files: files.apply_patch(patch))
    context.deps.evidence = None
    return f"changed {', '.join(changed)}"


async def run_checks(context: RunContext[Desk], checks: Checks | None = None) -> str:
    """Run the checks that the other stages have declared, and your own, over the files as they are now.

    Args:
        context: Given by the framework.
        checks: Your own commands, run in your stage's folder without network.
    """
    try:
        evidence = await context.deps.run_checks(checks or [])
    except ArtifactInvalidError as error:
        raise ModelRetry(str(error)) from error
    return spell_no_marker(in_words(evidence))


async def _workspace(context: RunContext[Desk], use: Callable[[Workspace], _Result]) -> _Result:
    files = await context.deps.workspace()
    try:
        async with context.deps.files_lock:  # off the loop: a search may take seconds, and heartbeats must not wait
            return await asyncio.to_thread(use, files)
    except ArtifactInvalidError as error:
        raise ModelRetry(f"{error}{f' ({error.hint})' if error.hint else ''}") from error


_TOOLS: Final[dict[str, Callable[..., Awaitable[str]]]] = {
    FETCH_DELIVERABLE: fetch_deliverable,
    LIST_FILES: list_files,
    READ_FILE: read_file,
    SEARCH_FILES: search_files,
    WRITE_FILE: write_file,
    APPLY_PATCH: apply_patch,
    RUN_CHECKS: run_checks,
}
_SEQUENTIAL: Final = frozenset({WRITE_FILE, APPLY_PATCH, RUN_CHECKS})
