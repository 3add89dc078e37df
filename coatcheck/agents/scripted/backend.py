"""Roy's script: one architecture, a searchable register, with the request's names; files, checks and their report."""

import json
from collections.abc import Sequence
from typing import Final

from coatcheck.agents.scripted import markup
from coatcheck.agents.scripted.backend_code import check, fields, function, names, sources, test_name
from coatcheck.agents.scripted.draft import Call, Draft, complexity, table
from coatcheck.agents.scripted.evidence import check_run
from coatcheck.agents.scripted.markup import Defect, Endpoint, Requirement, endpoint_line
from coatcheck.agents.scripted.reading import Assignment
from coatcheck.agents.scripted.research import MAX_CHARACTERS, MAX_RESULTS
from coatcheck.agents.scripted.sources import SourceFile, build, diff, is_built, listed, refused_line
from coatcheck.agents.scripted.words import quote, title
from schemas.roles import APPLY_PATCH, RUN_CHECKS, WRITE_FILE

_TITLE: Final = "what the record is called; required"
_FIXES: Final = {
    "test_a_search_gives_no_more_than_the_limit": "the search stopped one record too late; it now stops as soon as the "
    "limit is reached."
}
"""Failed test → what was wrong and is right now."""
_OPEN_POINTS = """\
## Open points

The code keeps and finds records, nothing else. What a requirement asks beyond that is kept as its wording and is \
not built: the scripted author writes the same kind of module for every request, with the request's names.

Who may see which records is assumed as in the research: everybody who can open the page. Two writing processes at \
once wait for each other in SQLite; beyond a few hundred writes a second the store should move to a server, behind \
the same class.
"""


def steps(task: Assignment) -> list[Call]:
    """The tool calls of this turn: the files; from the second round on, the checks over them; then none."""
    items = _requirements(task)
    calls = build(task, sources(task, items, is_sound=task.round > 1), _before(task, items))
    if calls or task.round == 1 or not is_built(task) or not task.can(RUN_CHECKS):
        return calls
    return [Call(RUN_CHECKS, {"checks": [check(task.feature)]})]


def write(task: Assignment) -> Draft:
    """Design, data model, API, module and tests; all of it follows from the research's requirements."""
    items = _requirements(task)
    own, before = names(task.feature), _before(task, items) if task.calls(APPLY_PATCH) else None
    before = None if task.calls(WRITE_FILE) else before
    columns = [(name, f"the request's {quote(word)}" if word else _TITLE) for name, word in fields(task)]
    files = sources(task, items, is_sound=task.round > 1 or not is_built(task))
    parts = [
        markup.heading("Backend", title(task.feature), task.round),
        _changes(task),
        _design(task, items),
        _data_model(columns),
        _api(own["api"], columns),
        _code(task, files, before),
        _checks(task),
        _covered(items),
        _OPEN_POINTS,
    ]
    return Draft(
        report="\n".join(part for part in parts if part),
        summary=_summary(task, items),
        complexity=complexity(len(items)),
        files_analyzed=len(task.sections),
        files_modified=1 if before else len(files),
        extra={"checks": [check(task.feature)] if is_built(task) else []},
    )


def _requirements(task: Assignment) -> Sequence[Requirement]:
    return markup.requirements(task.text("research"), task.brief)


def _before(task: Assignment, items: Sequence[Requirement]) -> SourceFile | None:
    """The module as the last round delivered it, if that is all that differs from what this round delivers."""
    last = listed(task.text(task.task_type))
    module, tests = sources(task, items, is_sound=False)
    return module if last == {module.path: module.digest, tests.path: tests.digest} else None


def _summary(task: Assignment, items: Sequence[Requirement]) -> str:
    own, run = names(task.feature), check_run(task)
    settled = ", ".join(item.number for item in _own_defects(task))
    if settled and run is not None:
        passed = sum(item.passed for item in run.results)
        return f"{settled} of the test report answered; {passed} of {len(run.results)} checks passed in this round."
    tests = f"{len(items) + 2} tests" + (", not run in this round" if run is None and is_built(task) else "")
    return (
        f"API of {len(_endpoints(own['api']))} endpoints for {title(task.feature)}, module {own['module']}.py with "
        f"{tests}; covers {items[0].number} to {items[-1].number}."
    )


def _own_defects(task: Assignment) -> list[Defect]:
    return [item for item in markup.defects(task.text("qa")) if item.stage == task.stage]


def _changes(task: Assignment) -> str:
    lines = []
    if task.decision:
        lines.append(f"- A person asked: {quote(task.decision, 300)}. The whole design was checked against it.")
    for item in _own_defects(task):
        fix = _FIXES.get(item.test, "read; all files were written again and the checks were run over them.")
        lines.append(f"- **{item.number}** → `{item.test or item.check}`: {fix}")
    if _before(task, _requirements(task)) and not _own_defects(task):
        lines += [f"- Found on reading the module again: {fix}" for fix in _FIXES.values()]
    if task.find("qa") and not lines:
        lines.append("- The test report was read; it names no defect of this stage.")
    if task.round > 1 and (again := _asked_again(task)):
        lines.append(f"- Read and not built, since this author writes one kind of module: {again}.")
    return "## What changed in this round\n\n" + "\n".join(lines) + "\n" if lines else ""


def _asked_again(task: Assignment) -> str:
    """Open findings of reviews, by number and stage."""
    found = [f"{finding.number} of {item.stage}" for item in task.sections for finding in markup.findings(item.text)]
    return ", ".join(found)


def _design(task: Assignment, items: Sequence[Requirement]) -> str:
    findings = markup.settled(task.text("critique"))
    review = f" The review's {', '.join(number for number, _ in findings)} shaped the limits." if findings else ""
    return (
        f"## Design\n\n{title(task.feature)} is a register: people keep records, and find them again by any of their "
        f"words. One Python module holds the rules, SQLite holds the data, and {len(items)} requirements "
        f"({items[0].number} to {items[-1].number}) each have a test.{review} The decision that a reader would "
        "question: search runs over one folded text column and not over an index, because it works for every script "
        f"and {MAX_RESULTS} results from some ten thousand records need no more.\n"
    )


def _data_model(fields: list[tuple[str, str]]) -> str:
    rows = ["| `id` | integer | | given by the store, never used again while the record exists |"]
    rows += [f"| `{name}` | text | {MAX_CHARACTERS} | {meaning} |" for name, meaning in fields]
    return "## Data model\n\n" + table("| field | type | most characters | meaning |", rows) + "\n"


def _endpoints(api: str) -> list[Endpoint]:
    return [
        Endpoint("GET", api, f"records that contain every word of `?q=`, at most {MAX_RESULTS}"),
        Endpoint("POST", api, "save a record; 201, or 400 with the reason"),
        Endpoint("GET", f"{api}/{{id}}", "one record; 404 when there is none"),
        Endpoint("DELETE", f"{api}/{{id}}", "delete a record for good; 404 when there is none"),
    ]


def _api(api: str, fields: list[tuple[str, str]]) -> str:
    example = json.dumps({name: f"some {name}" for name, _ in fields})
    lines = [endpoint_line(item) for item in _endpoints(api)]
    return (
        "## API\n\n"
        + table("| METHOD | path | purpose |", lines)
        + f"\n\n`POST {api}` takes `{example}` and gives it back with its `id`. Every error is "
        '`{"error": "the reason"}`. A repeated POST saves a second record; a repeated DELETE answers 404.\n'
    )


def _code(task: Assignment, files: Sequence[SourceFile], before: SourceFile | None) -> str:
    if is_built(task):
        listing = "\n".join(item.line for item in files)
        excerpt = f"The decision named above is in `find`:\n\n```python\n{function(files[0], 'find')}```\n"
        if before is not None:
            excerpt = f"Only this changed:\n\n```diff\n{diff(before, files[0])}```\n"
        return f"## Files\n\nTwo files, standard library only.\n\n{listing}\n\n{excerpt}"
    module, tests = (f"```python\n# {item.path.rpartition('/')[2]}\n{item.text}```\n" for item in files)
    command = f"python -m unittest test_{names(task.feature)['module']}"
    return (
        f"## Code\n\n{refused_line(task)}Two files, standard library only.\n\n{module}\n"
        f"Tests, run with `{command}`:\n\n{tests}"
    )


def _checks(task: Assignment) -> str:
    if not is_built(task):
        return ""
    declared = check(task.feature)
    command = " ".join(declared["command"])
    head = f"## Checks\n\n- `{declared['name']}`: `{command}`, in the folder `{task.stage}`.\n\n"
    run = check_run(task)
    if run is None:
        return f"{head}Tests not run in this round: they were written with the module and are handed in as declared.\n"
    told = [
        f"`{item.stage}/{item.name}` {item.outcome} (exit code {item.exit_code})"
        + "".join(f", {failure.test or 'its output'}: {quote(failure.message)}" for failure in item.failures)
        for item in run.results
    ]
    told += [run.contradiction] if run.contradiction else []
    return f"{head}Run in this round, over the files of all stages: {'; '.join(told) or 'no check was found'}.\n"


def _covered(items: Sequence[Requirement]) -> str:
    lines = [f"- {item.number}: `{test_name(item)}`, {quote(item.text, 80)}" for item in items]
    return "## Requirements covered\n\n" + "\n".join(lines) + "\n"
