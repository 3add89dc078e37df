"""The line forms by which the scripted authors understand each other's markdown, and their readers.

A quoted text is one line inside quotation marks and never starts a line, so that it cannot forge any of these.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from coatcheck.agents.scripted.words import cut, sentences

NOTE: Final = (
    "> Written by Coatcheck's scripted author, not by a language model: the same request always gives this text.\n"
)
MAX_FOREIGN_REQUIREMENTS: Final = 6

_REQUIREMENT: Final = re.compile(r"^- \*\*(R\d+)\*\* \(([^)\n]+)\): “(.+)”$", re.MULTILINE)
_FINDING: Final = re.compile(r"^- \*\*(F\d+)\*\* \((major|minor), ([^)\n]+)\): (.+?) Wanted: (.+)$", re.MULTILINE)
_SETTLED: Final = re.compile(r"^- \*\*(F\d+)\*\* \((major|minor), ([^)\n]+)\) is settled", re.MULTILINE)
_ANSWER: Final = re.compile(r"^- \*\*(F\d+)\*\* → (.+)$", re.MULTILINE)
_ENDPOINT: Final = re.compile(r"^\| (GET|POST|PUT|PATCH|DELETE) \| `?(/[\w/{}.?=&-]*)`? \| (.+) \|$", re.MULTILINE)
_LOOSE_ENDPOINT: Final = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE)`?[ |]+`?(/[\w/{}.-]+)")
_FIELD: Final = re.compile(r"^\| `([a-z][a-z0-9_]*)` \| text \| ([\d,]+) \| (.+) \|$", re.MULTILINE)
_DEFECT: Final = re.compile(
    r"^- \*\*(D\d+)\*\* \(([a-z0-9-]+), ([^)\n]+)\): (?:`(\S+)` )?failed: “(.+)”$", re.MULTILINE
)
_SETTLED_DEFECT: Final = re.compile(r"^- \*\*(D\d+)\*\* \([a-z0-9-]+, [^)\n]+\) is settled", re.MULTILINE)
_CHECK: Final = re.compile(r"^\| ([a-z0-9-]+/[^|\n]+) \| (\w+) \| (-?\d+|none) \| (\d+\.\d+) \|$", re.MULTILINE)
_EVIDENCE: Final = re.compile(
    r"^\| ([a-z0-9-]+/[^|\n]+) \| `.*` \| (passed|failed|timed_out|not_started)\b.*\|$", re.MULTILINE
)
"""A line of the section that the pipeline adds to a test report."""
_ROUND: Final = re.compile(r"^# .+\(round (\d+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Requirement:
    """R1, R2, …: where it comes from and what it says, in one line."""

    number: str
    source: str
    text: str


@dataclass(frozen=True)
class Finding:
    """F1, F2, …: as in `coatcheck.agents.reports.Finding`."""

    number: str
    severity: str
    where: str
    claim: str
    wanted: str


@dataclass(frozen=True)
class Endpoint:
    """One line of an API table."""

    method: str
    path: str
    purpose: str


@dataclass(frozen=True)
class Defect:
    """D1, D2, …: a check that did not pass, and the test in it."""

    number: str
    stage: str
    check: str
    test: str
    """Empty when the output names none."""
    message: str


@dataclass(frozen=True)
class CheckLine:
    """A check that ran, as a report tells it."""

    check: str
    outcome: str
    exit_code: str = ""
    seconds: str = ""


def heading(name: str, feature_title: str, round_number: int) -> str:
    """The note about the author, which every report starts with, and the title."""
    return f"{NOTE}\n# {name}: {feature_title} (round {round_number})\n"


def requirement_line(item: Requirement) -> str:
    """How a requirement is written."""
    return f"- **{item.number}** ({item.source}): “{item.text}”"


@lru_cache(maxsize=16)
def requirements(text: str, brief: str) -> tuple[Requirement, ...]:
    """The numbered requirements of a research text; of one in another form, its or the brief's first sentences."""
    found = [Requirement(*match) for match in _REQUIREMENT.findall(text)]
    if found:
        return tuple({item.number: item for item in found}.values())
    lines = [line for line in sentences(text) if len(line) > 40] if text else []  # noqa: PLR2004  a heading is shorter
    chosen = (lines or sentences(brief))[:MAX_FOREIGN_REQUIREMENTS]
    source = "research text" if lines else "brief"
    return tuple(Requirement(f"R{number}", source, cut(line, 160)) for number, line in enumerate(chosen, 1))


def finding_line(item: Finding) -> str:
    """How a finding is written."""
    return f"- **{item.number}** ({item.severity}, {item.where}): {item.claim} Wanted: {item.wanted}"


def findings(text: str) -> list[Finding]:
    """The open findings of a critique."""
    return [Finding(*match) for match in _FINDING.findall(text)]


def settled(text: str) -> list[tuple[str, str]]:
    """(number, severity) of the findings that a critique calls settled."""
    return [(number, severity) for number, severity, _ in _SETTLED.findall(text)]


def answers(text: str) -> dict[str, str]:
    """Finding → how a later research round answered it."""
    return dict(_ANSWER.findall(text))


def endpoint_line(item: Endpoint) -> str:
    """How an endpoint is written."""
    return f"| {item.method} | `{item.path}` | {item.purpose} |"


@lru_cache(maxsize=16)
def endpoints(text: str) -> tuple[Endpoint, ...]:
    """The endpoints of a backend's or a page's table; of a text in another form, those that it mentions."""
    found = [Endpoint(*match) for match in _ENDPOINT.findall(text)]
    found = found or [Endpoint(method, path, "as described") for method, path in _LOOSE_ENDPOINT.findall(text)]
    return tuple({(item.method, item.path): item for item in found}.values())


def fields(text: str) -> list[tuple[str, int, str]]:
    """(name, most characters, meaning) of each text field in a backend's data model."""
    return [(name, int(limit.replace(",", "")), meaning) for name, limit, meaning in _FIELD.findall(text)]


def defect_line(item: Defect) -> str:
    """How a defect is written."""
    test = f"`{item.test}` " if item.test else ""
    return f"- **{item.number}** ({item.stage}, {item.check}): {test}failed: “{item.message}”"


def defects(text: str) -> list[Defect]:
    """The defects of a test report."""
    return [Defect(*match) for match in _DEFECT.findall(text)]


def settled_defect_line(item: Defect) -> str:
    """How a defect of the last round is written that is gone."""
    return f"- **{item.number}** ({item.stage}, {item.check}) is settled: its check was run again and passed."


def settled_defects(text: str) -> list[str]:
    """Numbers of the last round's defects that a test report calls settled."""
    return _SETTLED_DEFECT.findall(text)


def check_line(item: CheckLine) -> str:
    """How a check that ran is written."""
    return f"| {item.check} | {item.outcome} | {item.exit_code} | {item.seconds} |"


def checks(text: str) -> list[CheckLine]:
    """The checks that a test report says were run by its author."""
    return [CheckLine(*match) for match in _CHECK.findall(text)]


def evidence(text: str) -> list[CheckLine]:
    """The checks that the pipeline ran after a test report and added to it."""
    return [CheckLine(*match) for match in _EVIDENCE.findall(text)]


def round_of(text: str) -> int:
    """The round in a report's title; 1 when it has none."""
    match = _ROUND.search(text)
    return int(match[1]) if match else 1
