"""The system prompt of a role: a file of ours, or the text that a team's configuration has loaded."""

from functools import lru_cache
from importlib import resources

from schemas.roles import Role


@lru_cache(maxsize=64)
def load_instructions(role: Role) -> str:
    """The instructions of `role`, read once per process.

    Raises:
        FileNotFoundError: the package has no such prompt file.
    """
    if role.instructions is not None:
        return role.instructions.strip()
    if role.prompt is None:
        return ""
    return resources.files("coatcheck.agents").joinpath("prompts", role.prompt).read_text(encoding="utf-8").strip()
