"""A finished answer of the author, before it is put into the form that the caller's output tool asks for."""

from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from string import Template
from typing import Any, Literal

from coatcheck.agents.scripted.words import cut


@dataclass(frozen=True)
class Draft:
    """The fields of `coatcheck.agents.reports`."""

    report: str
    summary: str
    complexity: Literal["Low", "Medium", "High"]
    files_analyzed: int = 0
    files_modified: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    """Verdict, findings, rework: what the kind of stage adds."""

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
