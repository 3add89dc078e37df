"""Billy's script: runs the declared checks, looks each requirement and endpoint up, and decides by what it finds.

What ran outweighs what was read: a check that did not pass sends its stage back, whatever the texts say.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from coatcheck.agents.scripted import edge_cases, markup
from coatcheck.agents.scripted.draft import Call, Draft, complexity, table
from coatcheck.agents.scripted.evidence import CheckRun, check_run
from coatcheck.agents.scripted.markup import CheckLine, Defect, Endpoint, Requirement, endpoint_line
from coatcheck.agents.scripted.reading import Assignment, Section
from coatcheck.agents.scripted.sources import listed
from coatcheck.agents.scripted.words import quote, title, words
from schemas.notice import Verdict
from schemas.roles import RUN_CHECKS, SEARCH_FILES

_TEST = re.compile(r"\b(test_(r\d+)_\w+)")
_NUMBER = re.compile(r"R(?<!\wR)\d+\b")  # begins with a letter and not with \b, which is ten times slower
_ELEMENT = re.compile(r'data-requirement="?(R\d+)\b')
_NOT_BUILT = frozenset({"research", "critique", "qa", "statistics"})


@dataclass(frozen=True)
class Row:
    """One requirement, with what each built document has for it; an empty text is no evidence."""

    requirement: Requirement
    evidence: dict[str, str]
    broken: str = ""
    """The requirement's own test, if it was run and failed."""

    @property
    def passed(self) -> bool:
        """Whether every document has something, and no test of it failed."""
        return all(self.evidence.values()) and not self.broken


def steps(task: Assignment) -> list[Call]:
    """The first turn's calls: the checks, a search in the files, the critique; then nothing."""
    calls = [Call(RUN_CHECKS, {"checks": []})] if task.can(RUN_CHECKS) else []
    if task.can(SEARCH_FILES) and any(listed(item.text) for item in _built(task)):
        calls.append(Call(SEARCH_FILES, {"pattern": edge_cases.SEARCH, "folder": ""}))
    return [*calls, *task.fetch("critique")]


def write(task: Assignment) -> Draft:
    """The test report of this round; what failed or could not be found decides who has to work again."""
    items = markup.requirements(task.text("research"), task.brief)
    built, run = _built(task), check_run(task)
    defects, unknown = _defects(run), _unknown_endpoints(task)
    rows = _rows(items, built, defects)
    rework = _rework(task, rows, unknown, run)
    parts = [
        markup.heading("QA", title(task.feature), task.round),
        _result(task, rows, rework, run, defects),
        _checks_that_ran(run),
        _defect_list(defects),
        _sent_back(task, run),
        _requirement_table(rows, built),
        _contract(task, unknown),
        _review(task),
        edge_cases.section(task),
        edge_cases.by_hand(task, items),
        _not_tested(run),
    ]
    verdict = Verdict.FAIL if rework else Verdict.PASS
    return Draft(
        report="\n".join(part for part in parts if part),
        summary=f"{verdict.value.capitalize()}: {_in_short(run, defects)}{sum(row.passed for row in rows)} of "
        f"{len(rows)} requirements have evidence in {' and '.join(part.stage for part in built) or 'nothing'}.",
        complexity=complexity(len(items)),
        files_analyzed=len(task.sections) + len(task.fetched),
        extra={"verdict": verdict.value, "rework": rework},
    )


def _built(task: Assignment) -> list[Section]:
    """What has to show evidence for the requirements: no reviews, no test reports."""
    return [item for item in task.sections if item.task_type not in _NOT_BUILT and "\n## Verdict: " not in item.text]


def _in_short(run: CheckRun | None, defects: Sequence[Defect]) -> str:
    """What ran, for the summary; the first defect is named."""
    if run is None or not (run.results or run.contradiction):
        return ""
    first = next((f"{item.stage}: {item.test or item.check} failed, {item.message}; " for item in defects), "")
    return f"{sum(item.passed for item in run.results)} of {len(run.results)} checks passed; {first}"


def _defects(run: CheckRun | None) -> list[Defect]:
    """One for each test that failed, and for each check that names none."""
    failed = [
        (result.stage, result.name, failure) for result in (run.results if run else ()) for failure in result.failures
    ]
    return [
        Defect(f"D{number}", stage, name, failure.test, failure.message)
        for number, (stage, name, failure) in enumerate(failed, 1)
    ]


def _rows(items: Sequence[Requirement], built: list[Section], defects: Sequence[Defect]) -> list[Row]:
    marks = {part.stage: _marks(part) for part in built}
    broken = {match[2].upper(): match[1] for item in defects if (match := _TEST.match(item.test))}
    return [
        Row(
            item,
            {part.stage: _evidence(item, part, marks[part.stage]) for part in built},
            broken.get(item.number, ""),
        )
        for item in items
    ]


def _marks(part: Section) -> dict[str, str]:
    """Requirement → the strongest sign of it in the text: a test, else an element of the page, else its number."""
    numbers = dict.fromkeys(_NUMBER.findall(part.text), "named by its number")
    elements = {number: f"`[data-requirement={number}]`" for number in _ELEMENT.findall(part.text)}
    tests = {number.upper(): f"`{name}`" for name, number in _TEST.findall(part.text)}
    return numbers | elements | tests


def _evidence(item: Requirement, part: Section, marks: dict[str, str]) -> str:
    if item.number in marks:
        return marks[item.number]
    text = part.text.casefold()
    shared = [word for word in words(item.text) if len(word) > 3 and word.casefold() in text]  # noqa: PLR2004
    return f"by its words: {', '.join(quote(word) for word in shared[:3])}" if shared else ""


def _unknown_endpoints(task: Assignment) -> list[Endpoint]:
    known = {(item.method, item.path) for item in markup.endpoints(task.text("backend"))}
    used = markup.endpoints(task.text("frontend"))
    return [item for item in used if (item.method, item.path) not in known] if known else []


def _rework(task: Assignment, rows: list[Row], unknown: list[Endpoint], run: CheckRun | None) -> list[str]:
    """Stages whose checks failed, without evidence for a requirement, or that call what does not exist; in order."""
    lacking = {stage for row in rows for stage, evidence in row.evidence.items() if not evidence}
    page = task.find("frontend")
    if unknown and page:
        lacking.add(page.stage)
    handed = [item.stage for item in task.sections if item.stage != task.stage]
    if run is not None and run.failed:
        failed = {item.stage for item in run.results if not item.passed} - {task.stage}
        lacking |= failed or {part.stage for part in _built(task)} or set(handed)  # nobody to blame: all have to look
    return [*dict.fromkeys(stage for stage in handed if stage in lacking), *sorted(lacking - set(handed))]


def _result(
    task: Assignment, rows: list[Row], rework: list[str], run: CheckRun | None, defects: Sequence[Defect]
) -> str:
    asked = f" A person asked: {quote(task.decision, 300)}." if task.decision else ""
    if rework:
        reasons = [", ".join(item.number for item in defects), run.contradiction if run else ""]
        if not all(row.passed for row in rows):
            reasons.append("the rows marked “fail”")
        why = "; ".join(reason for reason in reasons if reason) or "what the page calls and nothing answers"
        return f"## Result: fail\n\nBack to {' and '.join(rework)}, because of {why}.{asked}\n"
    ran = (
        f"{len(run.results)} of {len(run.results)} declared checks were run and passed."
        if run and run.results
        else "This check read the texts and ran nothing."
    )
    return (
        f"## Result: pass\n\nAll {len(rows)} requirements of {title(task.feature)} are covered in every document "
        f"that was built: each is tied to a test of the backend and to an element of the page. {ran} Whether the "
        f"wording of a requirement asks for more than keeping and finding records is for a person to judge.{asked}\n"
    )


def _checks_that_ran(run: CheckRun | None) -> str:
    if run is None:
        return ""
    if not run.results:
        return "## Checks that ran\n\nNone: no stage has declared a check that could be run.\n"
    lines = [
        markup.check_line(CheckLine(f"{item.stage}/{item.name}", item.outcome, item.exit_code, item.seconds))
        for item in run.results
    ]
    return "## Checks that ran\n\n" + table("| check | result | exit code | seconds |", lines) + "\n"


def _sent_back(task: Assignment, run: CheckRun | None) -> str:
    """What became of the last round's defects: only a check that was run again settles one."""
    earlier = markup.defects(task.text(task.task_type))
    passed = {(item.stage, item.name) for item in run.results if item.passed} if run else set()
    lines = [
        markup.settled_defect_line(item)
        if (item.stage, item.check) in passed
        else f"- **{item.number}** ({item.stage}, {item.check}) is open."
        for item in earlier
    ]
    return "## What was sent back\n\n" + "\n".join(lines) + "\n" if lines else ""


def _defect_list(defects: list[Defect]) -> str:
    return "## Defects\n\n" + "\n".join(markup.defect_line(item) for item in defects) + "\n" if defects else ""


def _requirement_table(rows: list[Row], built: list[Section]) -> str:
    lines = [
        f"| {row.requirement.number} | {quote(row.requirement.text, 60)} | "
        + "".join(f"{row.evidence[part.stage] or 'missing'} | " for part in built)
        + ("pass |" if row.passed else "fail |")
        for row in rows
    ]
    columns = "".join(f"{part.stage} evidence | " for part in built)
    return "## Requirement by requirement\n\n" + table(f"| R | wanted | {columns}result |", lines) + "\n"


def _contract(task: Assignment, unknown: list[Endpoint]) -> str:
    offered = markup.endpoints(task.text("backend"))
    if not offered:
        return "## API contract\n\nNo document has a table of endpoints, so there is nothing to compare.\n"
    used = {(item.method, item.path) for item in markup.endpoints(task.text("frontend"))}
    rows = [
        endpoint_line(
            Endpoint(item.method, item.path, "used by the page" if (item.method, item.path) in used else "not used")
        )
        for item in offered
    ]
    missing = ", ".join(f"`{item.method} {item.path}`" for item in unknown)
    result = f"The page calls {missing}, which the backend does not have." if unknown else "The page calls no others."
    limits = [(name, limit) for name, limit, _ in markup.fields(task.text("backend"))]
    page = "\n".join([task.text("frontend"), *(call.answer for call in task.calls(SEARCH_FILES))])
    same = [name for name, limit in limits if f'name="{name}" maxlength="{limit}"' in page]
    return (
        "## API contract\n\n"
        + table("| METHOD | path | on the page |", rows)
        + f"\n\n{result} Field limits are the same on both sides for {', '.join(same) or 'no field'}.\n"
    )


def _review(task: Assignment) -> str:
    review = task.text("critique")
    if not review:
        return "## The review\n\nThe critique was not at hand; its findings were not followed up.\n"
    closed = [number for number, _ in markup.settled(review)]
    opened = [item.number for item in markup.findings(review)]
    return (
        f"## The review\n\nFetched to follow it up: round {markup.round_of(review)}, settled "
        f"{', '.join(closed) or 'none'}, open {', '.join(opened) or 'none'}.\n"
    )


def _not_tested(run: CheckRun | None) -> str:
    nothing = "- Nothing was executed here: the backend's own tests should be run with its command.\n"
    return (
        f"## Not tested\n\n{'' if run and run.results else nothing}"
        "- Two writers at once, and more than some ten thousand records.\n- The page in a real browser.\n"
    )
