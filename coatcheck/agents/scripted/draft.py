"""An answer of the author, a tool call or the finished report, before it has the form that the caller asks for."""

from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from string import Template
from typing import Any, Literal

from coatcheck.agents.scripted.words import cut


@dataclass(frozen=True)
class Call:
    """A tool call; several may be made in one turn."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """The fields of `coatcheck.agents.reports`."""

    report: str
    summary: str
    complexity: Literal["Low", "Medium", "High"]
    files_analyzed: int = 0
    files_modified: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    """Verdict, findings, rework, checks: what the kind of stage adds; fields that the tool lacks are left out."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of the output tool; JSON values."""
        return {
            "report": self.report,
            "summary": cut(self.summary, 200),
            "complexity": self.complexity,
            "blockers": "None",
            "files_analyzed": self.files_analyzed,
            "files_modified": self.files_modified,
            **self.extra,
        }


def complexity(requirement_count: int) -> Literal["Low", "Medium", "High"]:
    """By the number of requirements: up to 3, up to 6, more."""
    return "Low" if requirement_count <= 3 else "Medium" if requirement_count <= 6 else "High"  # noqa: PLR2004


@lru_cache(maxsize=8)
def template(name: str) -> Template:
    """A file of `templates/`, read once."""
    return Template(resources.files("coatcheck.agents.scripted").joinpath("templates", name).read_text("utf-8"))


def table(head: str, rows: list[str]) -> str:
    """A markdown table from its head and finished lines."""
    columns = head.count("|") - 1
    return "\n".join([head, "|" + " --- |" * columns, *rows])
