"""Billy's script: looks each requirement and endpoint up in what was built, and decides by what it finds."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from coatcheck.agents.scripted import markup
from coatcheck.agents.scripted.draft import Draft, complexity, table
from coatcheck.agents.scripted.markup import Endpoint, Requirement, endpoint_line
from coatcheck.agents.scripted.reading import Assignment, Section
from coatcheck.agents.scripted.words import key_terms, quote, search_word, title, words
from schemas.notice import Verdict

_TEST = re.compile(r"def (test_(r\d+)_\w+)")
_NUMBER = re.compile(r"R(?<!\wR)\d+\b")  # begins with a letter and not with \b, which is ten times slower
_ELEMENT = re.compile(r'data-requirement="(R\d+)"')
_NOT_BUILT = frozenset({"research", "critique", "qa", "statistics"})


@dataclass(frozen=True)
class Check:
    """One requirement, with what each built document has for it; an empty text is no evidence."""

    requirement: Requirement
    evidence: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every document has something."""
        return all(self.evidence.values())


def write(task: Assignment) -> Draft:
    """The test report of this round; what it could not find decides the verdict and who has to work again."""
    items = markup.requirements(task.text("research"), task.brief)
    built = [item for item in task.sections if item.task_type not in _NOT_BUILT]
    marks = {part.stage: _marks(part) for part in built}
    checks = [Check(item, {part.stage: _evidence(item, part, marks[part.stage]) for part in built}) for item in items]
    unknown = _unknown_endpoints(task)
    rework = _rework(task, checks, unknown)
    parts = [
        markup.heading("QA", title(task.feature), task.round),
        _result(task, checks, rework),
        _requirement_table(checks, built),
        _contract(task, unknown),
        _review(task),
        _edge_cases(task),
        _by_hand(task, items),
        _not_tested(),
    ]
    passed = sum(check.passed for check in checks)
    verdict = Verdict.FAIL if rework else Verdict.PASS
    return Draft(
        report="\n".join(part for part in parts if part),
        summary=f"{verdict.value.capitalize()}: {passed} of {len(checks)} requirements have evidence in "
        f"{' and '.join(part.stage for part in built) or 'nothing'}.",
        complexity=complexity(len(items)),
        files_analyzed=len(task.sections) + len(task.fetched),
        extra={"verdict": verdict.value, "rework": rework},
    )


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


def _rework(task: Assignment, checks: list[Check], unknown: list[Endpoint]) -> list[str]:
    """Stages without evidence for a requirement, or that call what does not exist; in the order of the run."""
    lacking = {stage for check in checks for stage, evidence in check.evidence.items() if not evidence}
    page = task.find("frontend")
    if unknown and page:
        lacking.add(page.stage)
    return [item.stage for item in task.sections if item.stage in lacking]


def _result(task: Assignment, checks: list[Check], rework: list[str]) -> str:
    asked = f" A person asked: {quote(task.decision, 300)}." if task.decision else ""
    if rework:
        return f"## Result: fail\n\nBack to {' and '.join(rework)}; the rows marked “missing” say why.{asked}\n"
    return (
        f"## Result: pass\n\nAll {len(checks)} requirements of {title(task.feature)} are covered in every document "
        "that was built. Covered means that each is tied to a test of the backend and to an element of the page. This "
        "check read the texts and ran nothing; whether the wording of a requirement asks for more than keeping and "
        f"finding records is for a person to judge.{asked}\n"
    )


def _requirement_table(checks: list[Check], built: list[Section]) -> str:
    rows = [
        f"| {check.requirement.number} | {quote(check.requirement.text, 60)} | "
        + "".join(f"{check.evidence[part.stage] or 'missing'} | " for part in built)
        + ("pass |" if check.passed else "fail |")
        for check in checks
    ]
    columns = "".join(f"{part.stage} evidence | " for part in built)
    return "## Requirement by requirement\n\n" + table(f"| R | wanted | {columns}result |", rows) + "\n"


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
    page = task.text("frontend")
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


def _edge_cases(task: Assignment) -> str:
    term = key_terms(task.feature, task.brief)[0].text
    text = task.text("backend")
    looked_for = {
        "empty title": "title is empty",
        "text over the limit": "at most {MAX_CHARACTERS}",
        "unknown field": "unknown fields",
        "not a JSON object": "must be a JSON object",
        f"quotes and SQL in a search, such as {quote(term + chr(39) + ' OR 1=1')}": "instr(search_text, ?)",
        "markup in a record": "test_unicode_and_markup",
        "record that is gone": "there is no record",
    }
    rows = [
        f"| {case} | {'the backend has: `' + evidence + '`' if evidence in text else 'nothing found in the text'} |"
        for case, evidence in looked_for.items()
    ]
    return "## Edge cases, by reading\n\n" + table("| case | what answers it |", rows) + "\n"


def _by_hand(task: Assignment, items: Sequence[Requirement]) -> str:
    """Steps for a person, on the endpoints and words of this run."""
    posts = [item.path for item in markup.endpoints(task.text("backend")) if item.method == "POST"]
    if not posts:
        return ""
    word = search_word(items[0].text)
    body = shlex.quote(json.dumps({"title": items[0].text}, ensure_ascii=False))
    query = shlex.quote(f"q={word}")
    return (
        "## To see it by hand\n\nSave the two Python files and the page in one folder, start the module, then:\n\n"
        f"```sh\ncurl -X POST http://127.0.0.1:8080{posts[0]} -d {body}\n"
        f"curl -G http://127.0.0.1:8080{posts[0]} --data-urlencode {query}\n"
        f"curl -X POST http://127.0.0.1:8080{posts[0]} -d '{{}}'\n```\n\nExpected: the record of {items[0].number} "
        "with its id, a list that contains it, and the reason why an empty record is refused "
        f"({items[-1].number}).\n"
    )


def _not_tested() -> str:
    return (
        "## Not tested\n\n- Nothing was executed here: the backend's own tests should be run with its command.\n"
        "- Two writers at once, and more than some ten thousand records.\n- The page in a real browser.\n"
    )
