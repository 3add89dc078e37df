"""Sylvia's script: three checks of the specification that really look at its text, and a verdict that converges."""

from collections.abc import Sequence

from coatcheck.agents.scripted import markup
from coatcheck.agents.scripted.draft import Draft, complexity, table
from coatcheck.agents.scripted.markup import Finding, Requirement
from coatcheck.agents.scripted.reading import Assignment, Section
from coatcheck.agents.scripted.words import clean, cut, key_terms, quote, sentences, title, words
from schemas.notice import Verdict

LONG_SENTENCE_WORDS = 18
CODE_FENCE = "```"


def write(task: Assignment) -> Draft:
    """The review of this round: findings in the first, and how they were settled in later ones."""
    reviewed = _reviewed(task)
    items = markup.requirements(reviewed.text, task.brief)
    earlier = markup.findings(task.text(task.task_type))
    found = [] if task.round > 1 else _findings(task, reviewed, items)
    verdict = Verdict.REVISE if found else Verdict.APPROVE
    parts = [
        markup.heading("Critique", title(task.feature), task.round),
        _verdict(task, reviewed, found, earlier),
        _finding_list(found),
        _settled(earlier, reviewed),
        _each(items, reviewed),
        _coverage(task, items),
        _checked(task, reviewed, items),
    ]
    return Draft(
        report="\n".join(part for part in parts if part),
        summary=_summary(reviewed, found, earlier),
        complexity=complexity(len(items)),
        files_analyzed=len(task.sections),
        extra={
            "verdict": verdict.value,
            "findings": [_as_output(item) for item in found],
            "fixed": [item.number for item in earlier],
        },
    )


def _reviewed(task: Assignment) -> Section:
    others = [item for item in task.sections if item.task_type != task.task_type]
    return others[0] if others else Section(stage="brief", task_type="brief", text=task.brief)


def _as_output(item: Finding) -> dict[str, str]:
    return {
        "id": item.number,
        "severity": item.severity,
        "where": item.where,
        "claim": item.claim,
        "wanted_change": item.wanted,
    }


def _findings(task: Assignment, reviewed: Section, items: Sequence[Requirement]) -> list[Finding]:
    found = []
    untested = [item for item in items if f"**{item.number}** is accepted when" not in reviewed.text]
    if untested:
        first, others = untested[0], len(untested) - 1
        also = f", and the same holds for {others} more" if others else ""
        found.append(
            Finding(
                "F1",
                "major",
                first.number,
                f"{quote(first.text, 100)} says what is wanted, but not how anybody will see that it is done{also}.",
                f"a section Acceptance with one observable check for each of {items[0].number} to {items[-1].number}.",
            )
        )
    if "\n## Limits\n" not in reviewed.text:
        last = items[-1]
        found.append(
            Finding(
                f"F{len(found) + 1}",
                "major",
                last.number,
                f"{quote(last.text, 100)} cannot be built or tested without numbers: how long, how many, what exactly?",
                "a section Limits with the longest text, the most results and the input that is refused.",
            )
        )
    if "\n## Glossary\n" not in reviewed.text:
        term = key_terms(task.feature, task.brief)[0].text
        uses = reviewed.text.casefold().count(term.casefold())
        found.append(
            Finding(
                f"F{len(found) + 1}",
                "minor",
                "The request in its own words",
                f"{quote(term)} stands {uses} times in the text and is never defined.",
                f"a Glossary that defines {quote(term)} and the other key words by the requirements that use them.",
            )
        )
    return found


def _verdict(task: Assignment, reviewed: Section, found: list[Finding], earlier: list[Finding]) -> str:
    asked = (
        f"A person asked: {quote(task.decision, 300)}. This review has taken it into account.\n\n"
        if (task.decision)
        else ""
    )
    if found:
        majors = sum(item.severity == "major" for item in found)
        why = f"{majors} of {len(found)} findings are major: building on {reviewed.stage} now would mean guessing."
        return f"## Verdict: revise\n\n{asked}{why}\n"
    why = f"All {len(earlier)} findings of the last round are settled." if earlier else "Nothing has to change."
    return f"## Verdict: approve\n\n{asked}{why} {reviewed.stage.capitalize()} is good enough to build on.\n"


def _finding_list(found: list[Finding]) -> str:
    return "## Findings\n\n" + "\n".join(markup.finding_line(item) for item in found) + "\n" if found else ""


def _settled(earlier: list[Finding], reviewed: Section) -> str:
    if not earlier:
        return ""
    answers = markup.answers(reviewed.text)
    lines = []
    for item in earlier:
        answer = answers.get(item.number)
        how = f"the author answered {quote(answer, 200)}" if answer else "no answer names it; left to the backend"
        lines.append(f"- **{item.number}** ({item.severity}, {item.where}) is settled: {how}")
    return "## What became of the findings\n\n" + "\n".join(lines) + "\n"


def _each(items: Sequence[Requirement], reviewed: Section) -> str:
    rows = [
        f"| {item.number} | {quote(item.text, 60)} | {_remark(item)} | {_check(item, reviewed)} |" for item in items
    ]
    return "## Requirement by requirement\n\n" + table("| R | says | remark | acceptance |", rows) + "\n"


def _remark(item: Requirement) -> str:
    if item.text.endswith("…"):
        return "long; only its beginning is quoted in the research"
    if any(letter.isdigit() for letter in item.text):
        return "has a number to test against"
    if item.text.count(",") or len(words(item.text)) > LONG_SENTENCE_WORDS:
        return "several wishes in one sentence; each needs its own look"
    return "one wish"


def _check(item: Requirement, reviewed: Section) -> str:
    return "given" if f"**{item.number}** is accepted when" in reviewed.text else "missing"


def _coverage(task: Assignment, items: Sequence[Requirement]) -> str:
    lines = []
    for term in key_terms(task.feature, task.brief):
        used = [item.number for item in items if term.text.casefold() in item.text.casefold()]
        where = ", ".join(used) if used else "no requirement; acceptable, since it is context"
        lines.append(f"- {quote(term.text)}: {where}")
    return "## The brief's words and the requirements\n\n" + "\n".join(lines) + "\n"


def _checked(task: Assignment, reviewed: Section, items: Sequence[Requirement]) -> str:
    headings = reviewed.text.count("\n## ")
    numbers = [item.number for item in items]
    brief = clean(task.brief)
    quoted = sum(item.text.removesuffix("…") in brief for item in items)
    derived = sum(item.source == "derived" for item in items)
    in_order = "in order and without gaps" if numbers == [f"R{n}" for n in range(1, len(numbers) + 1)] else "with gaps"
    return (
        "## Checked without a finding\n\n"
        f"- {reviewed.stage.capitalize()} has {len(reviewed.text.split()):,} words under {headings} headings; its "
        f"requirements {', '.join(numbers)} are numbered {in_order}.\n"
        f"- {quoted} of the {len(items)} stand word for word in the brief ({len(sentences(task.brief)):,} sentences); "
        f"{derived} are marked as derived.\n"
        f"- The text has {reviewed.text.count('](')} links to other places and "
        f"{reviewed.text.count(CODE_FENCE) // 2} blocks of code.\n"
    )


def _summary(reviewed: Section, found: list[Finding], earlier: list[Finding]) -> str:
    if found:
        return cut(
            f"Revise {reviewed.stage}: " + "; ".join(f"{item.number} at {item.where}" for item in found) + ".", 200
        )
    settled = f"; {', '.join(item.number for item in earlier)} settled" if earlier else ""
    return f"{reviewed.stage.capitalize()} approved{settled}."
