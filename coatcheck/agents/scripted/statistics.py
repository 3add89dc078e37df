"""Priya's script: counts what is in the documents that she read, and says where each number comes from."""

import re
from collections.abc import Sequence

from coatcheck.agents.scripted import markup
from coatcheck.agents.scripted.draft import Call, Draft, complexity, table
from coatcheck.agents.scripted.markup import Requirement
from coatcheck.agents.scripted.reading import Assignment, Section
from coatcheck.agents.scripted.words import key_terms, quote, sentences, title, words
from schemas.evidence import CheckOutcome

NEW_SECTION = "\n## "


def steps(task: Assignment) -> list[Call]:
    """The research is fetched when it is not at hand; then nothing."""
    return task.fetch("research")


def write(task: Assignment) -> Draft:
    """The numbers of the run."""
    read = _read(task)
    research, critique, qa = task.text("research"), task.text("critique"), task.text("qa")
    items = markup.requirements(research, task.brief)
    closed, opened = markup.settled(critique), markup.findings(critique)
    passed, failed = len(re.findall(r" pass \|$", qa, re.MULTILINE)), len(re.findall(r" fail \|$", qa, re.MULTILINE))
    endpoints = markup.endpoints(qa)
    severities = [severity for _, severity in closed] + [item.severity for item in opened]
    rows = [
        f"| words in the brief | {len(words(task.brief)):,} | the brief, {len(sentences(task.brief)):,} sentences |",
        f"| requirements | {len(items)} | {_source(task, 'research')}: {items[0].number} to {items[-1].number} |",
        f"| of these from the brief | {sum(one.source.startswith('brief') for one in items)} | their origin notes |",
        f"| major findings | {severities.count('major')} | critique |",
        f"| minor findings | {severities.count('minor')} | critique |",
        f"| findings settled | {len(closed)} | critique, “What became of the findings” |",
        f"| rounds of review | {markup.round_of(critique)} | critique, its title |",
        f"| rounds of testing | {markup.round_of(qa)} | QA, its title |",
        f"| endpoints | {len(endpoints)} | QA, API contract |",
        f"| requirements passed | {passed} | QA, result column |",
        f"| requirements failed | {failed} | QA, result column |",
        *_evidence_rows(qa),
    ]
    parts = [
        markup.heading("Statistics", title(task.feature), task.round),
        f"A person asked: {quote(task.decision, 300)}. All numbers were counted again.\n" if task.decision else "",
        "## The run in numbers\n\n" + table("| what | number | where it was counted |", rows) + "\n",
        _documents(read),
        _coverage(passed, passed + failed, len(closed), len(severities)),
        _each(items, qa, critique),
        _terms(task, read),
        "## What could not be counted\n\n- Cost, tokens and durations: they are in the orchestrator's records.\n"
        + ("" if _ran(qa) else "- Tests that ran: QA read the code and did not run it.\n")
        + ("" if research else "- Requirements in the research itself: it was not at hand.\n"),
    ]
    return Draft(
        report="\n".join(part for part in parts if part),
        summary=f"{title(task.feature)}: {len(items)} requirements, {passed} passed; {len(severities)} findings, "
        f"{len(closed)} settled in {markup.round_of(critique)} rounds; {len(endpoints)} endpoints.",
        complexity=complexity(len(items)),
        files_analyzed=len(read),
    )


def _ran(qa: str) -> list[markup.CheckLine]:
    """The checks that were run: by the pipeline after QA where its section is there, else by QA."""
    return markup.evidence(qa) or markup.checks(qa)


def _evidence_rows(qa: str) -> list[str]:
    if not (ran := _ran(qa)):
        return []
    where = "QA, evidence added by the pipeline" if markup.evidence(qa) else "QA, Checks that ran"
    passed = sum(item.outcome == CheckOutcome.PASSED for item in ran)
    settled = markup.settled_defects(qa)
    defects = f"| defects settled in the last round | {len(settled)} | QA, “What was sent back” |"
    return [
        defects,
        f"| checks that ran in the last round | {len(ran)} | {where} |",
        f"| checks passed | {passed} | {where} |",
    ]


def _read(task: Assignment) -> list[Section]:
    others = [item for item in (*task.fetched, *task.sections) if item.task_type != task.task_type]
    return list({item.task_type: item for item in others}.values())


def _source(task: Assignment, task_type: str) -> str:
    return f"{task_type}, fetched" if any(item.task_type == task_type for item in task.fetched) else task_type


def _documents(read: list[Section]) -> str:
    counts = [len(item.text.split()) for item in read]
    rows = [
        f"| {item.stage} | {count:,} | {item.text.count(NEW_SECTION)} | {len(item.text.encode('utf-8', 'replace')):,} |"
        for item, count in zip(read, counts, strict=True)
    ]
    total = f"| all | {sum(counts):,} | | |"
    return "## Documents\n\n" + table("| document | words (by spaces) | sections | bytes |", [*rows, total]) + "\n"


def _coverage(passed: int, tested: int, closed: int, found: int) -> str:
    lines = []
    if tested:
        lines.append(f"- {passed} of {tested} requirements ({passed / tested:.0%}) have evidence in what was built.")
    if found:
        lines.append(f"- {closed} of {found} findings ({closed / found:.0%}) were settled, each by a named section.")
    if not lines:
        lines.append("- The documents have no tables that could be compared.")
    return "## Coverage and the effect of the review\n\n" + "\n".join(lines) + "\n"


def _each(items: Sequence[Requirement], qa: str, critique: str) -> str:
    result = dict(re.findall(r"^\| (R\d+) \| .* (pass|fail) \|$", qa, re.MULTILINE))
    named = re.findall(r"\bR\d+\b", critique)
    rows = [
        f"| {item.number} | {item.source} | {len(words(item.text))} | "
        f"{named.count(item.number)} | {result.get(item.number, 'not in QA')} |"
        for item in items
    ]
    head = "| R | origin | words | named in the critique | QA |"
    return "## Requirement by requirement\n\n" + table(head, rows) + "\n"


def _terms(task: Assignment, read: list[Section]) -> str:
    rows, texts = [], [item.text.casefold() for item in read]
    for term in key_terms(task.feature, task.brief):
        counts = [str(text.count(term.text.casefold())) for text in texts]
        rows.append(f"| {quote(term.text)} | {term.count} | {' | '.join(counts)}{' |' if counts else ''}")
    head = f"| word | brief | {' | '.join(item.stage for item in read)}{' |' if read else ''}"
    return "## The request's words through the run\n\n" + table(head, rows) + "\n"
