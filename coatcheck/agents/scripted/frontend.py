"""Jen's script: one page that calls the endpoints of the backend's own table, with its field names and limits.

A second file checks the page without a browser, and its calls against the backend's source; it is the declared check.
"""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from coatcheck.agents.scripted import markup
from coatcheck.agents.scripted.draft import Call, Draft, complexity, table, template
from coatcheck.agents.scripted.markup import Endpoint, Requirement, endpoint_line
from coatcheck.agents.scripted.reading import Assignment
from coatcheck.agents.scripted.sources import SourceFile, build, is_built, refused_line
from coatcheck.agents.scripted.words import quote, title

CHECK: Final[dict[str, Any]] = {"name": "page", "command": ["python", "check_page.py"], "timeout_seconds": 60}
"""As `schemas.evidence.Check`; it takes 0.1 s, and the rest is for a busy machine."""
_JAVASCRIPT_PATH = re.compile(r"/[\w/.-]*")


@dataclass(frozen=True)
class _Plan:
    """What the page is made from: all of it follows from the research's and the backend's texts."""

    items: Sequence[Requirement]
    offered: Sequence[Endpoint]
    api: str
    fields: list[tuple[str, int, str]]
    backend_folder: str


def steps(task: Assignment) -> list[Call]:
    """The tool calls of this turn: the two files; then none."""
    return build(task, _sources(task, _plan(task)))


def write(task: Assignment) -> Draft:
    """The page, the endpoints that it uses and what it covers."""
    plan = _plan(task)
    used, files = _used(plan.offered, plan.api), _sources(task, plan)
    parts = [
        markup.heading("Frontend", title(task.feature), task.round),
        _changes(task),
        _what_people_do(task, plan.items),
        _endpoint_table(used, plan.offered),
        _files(task, files) if is_built(task) else _code(task, files[0]),
        _states(plan.fields),
        _covered(plan.items),
    ]
    return Draft(
        report="\n".join(part for part in parts if part),
        summary=f"One page for {title(task.feature)}: search, add, delete; uses {len(used)} of the backend's "
        f"{len(plan.offered)} endpoints under {plan.api}.",
        complexity=complexity(len(plan.items)),
        files_analyzed=len(task.sections),
        files_modified=len(files) if is_built(task) else 1,
        extra={"checks": [CHECK] if is_built(task) else []},
    )


def _plan(task: Assignment) -> _Plan:
    backend = task.find("backend")
    text = backend.text if backend else ""
    offered = markup.endpoints(text)
    return _Plan(
        items=markup.requirements(task.text("research"), task.brief),
        offered=offered,
        api=_collection(offered) or f"/api/{task.feature}",
        fields=markup.fields(text) or [("title", 500, "assumed")],
        backend_folder=backend.stage if backend else "backend",
    )


def _collection(offered: Sequence[Endpoint]) -> str:
    """The path that takes a new record, else the shortest one without a placeholder."""
    plain = [item for item in offered if _JAVASCRIPT_PATH.fullmatch(item.path)]
    posts = [item.path for item in plain if item.method == "POST"]
    return posts[0] if posts else min((item.path for item in plain), key=len, default="")


def _used(offered: Sequence[Endpoint], api: str) -> list[Endpoint]:
    purposes = {
        ("GET", api): "the search form and the list",
        ("POST", api): "the form that adds a record",
        ("DELETE", f"{api}/{{id}}"): "the button at each record",
    }
    known = {(item.method, item.path) for item in offered}
    return [Endpoint(*key, purpose) for key, purpose in purposes.items() if key in known]


def _changes(task: Assignment) -> str:
    lines = []
    if task.decision:
        lines.append(f"- A person asked: {quote(task.decision, 300)}. The page was checked against it.")
    if task.find("qa"):
        lines.append("- The test report was read; the page is complete and replaces the last round's.")
    return "## What changed in this round\n\n" + "\n".join(lines) + "\n" if lines else ""


def _what_people_do(task: Assignment, items: Sequence[Requirement]) -> str:
    return (
        f"## What a person can do here\n\n1. See what {title(task.feature)} holds and search it by any word "
        f"({items[0].number}).\n2. Add a record; what the backend refuses is shown with its reason "
        f"({items[-1].number}).\n3. Delete a record that should be gone.\n4. Open “What this page covers” and read the "
        "requirements in the requester's own words.\n"
    )


def _endpoint_table(used: list[Endpoint], offered: Sequence[Endpoint]) -> str:
    unused = [item for item in offered if (item.method, item.path) not in {(one.method, one.path) for one in used}]
    rest = ", ".join(f"`{item.method} {item.path}`" for item in unused)
    after = f"\nNot needed by the page: {rest}.\n" if rest else ""
    missing = "" if used else "\nThe backend's text has no table of endpoints; the page assumes the usual ones.\n"
    rows = [endpoint_line(item) for item in used]
    return "## Endpoints used\n\n" + table("| METHOD | path | used for |", rows) + f"\n{after}{missing}"


def _sources(task: Assignment, plan: _Plan) -> list[SourceFile]:
    check = template("check_page.py.txt").substitute(
        requirements=json.dumps([item.number for item in plan.items]),
        limits=json.dumps({name: limit for name, limit, _ in plan.fields}),
        backend=plan.backend_folder,
    )
    return [
        SourceFile(f"{task.stage}/index.html", _page(task, plan), "the page: no build step, nothing from other hosts"),
        SourceFile(f"{task.stage}/check_page.py", check, "its check, which also reads the backend's source"),
    ]


def _page(task: Assignment, plan: _Plan) -> str:
    inputs = "\n".join(
        f'    <label>{name.replace("_", " ").strip().capitalize()} <input name="{name}" maxlength="{limit}"'
        f"{' required' if name == 'title' else ''}></label>"
        for name, limit, _ in plan.fields
    )
    covered = "\n".join(
        f'      <li data-requirement="{item.number}">{item.number}: {html.escape(item.text)}</li>'
        for item in plan.items
    )
    return template("index.html").substitute(
        title=html.escape(title(task.feature)),
        api=plan.api,
        fields=json.dumps([name for name, _, _ in plan.fields]),
        inputs=inputs,
        covered=covered,
    )


def _files(task: Assignment, files: Sequence[SourceFile]) -> str:
    listing = "\n".join(item.line for item in files)
    return (
        f"## Files\n\n{listing}\n\nThe page is served by the backend's module, or by anything that passes `/api` on "
        f"to it.\n\n## Checks\n\n- `{CHECK['name']}`: `{' '.join(CHECK['command'])}`, in the folder `{task.stage}`: "
        "tags, requirements, limits, and each call against the backend's source.\n\nNot run in this round: the test "
        "stage runs it together with the backend's.\n"
    )


def _code(task: Assignment, page: SourceFile) -> str:
    return (
        f"## Code\n\n{refused_line(task)}One file, no build step, nothing loaded from other hosts.\n\n"
        f"```html\n<!-- index.html -->\n{page.text}```\n"
    )


def _states(fields: list[tuple[str, int, str]]) -> str:
    return (
        "## States and accessibility\n\n- Empty: “Nothing found.” in the message line.\n- Error: the backend's reason, "
        "in a live region with the role alert.\n- Every one of the "
        f"{len(fields)} inputs has a label and the backend's limit ({fields[0][1]} characters); the backend still "
        "checks it.\n- Records are inserted as text, never as HTML, so markup in a record is shown and not run.\n"
        "- Everything works with the keyboard alone: forms, buttons and a summary, no scripted widgets.\n"
    )


def _covered(items: Sequence[Requirement]) -> str:
    lines = [
        f"- {item.number}: {_element(item)} and `[data-requirement={item.number}]`, {quote(item.text, 80)}"
        for item in items
    ]
    return "## Requirements covered\n\n" + "\n".join(lines) + "\n"


def _element(item: Requirement) -> str:
    if item.source == "derived" and "refused" in item.text:
        return "`#message`"
    return "`#search`" if item.source == "derived" else "`#add`, `#results`"
