"""Cynthia's script: a specification from the brief's own sentences, completed by what the review asks for."""

from collections.abc import Sequence

from coatcheck.agents.scripted import markup
from coatcheck.agents.scripted.draft import Draft, complexity, table
from coatcheck.agents.scripted.markup import Requirement, requirement_line
from coatcheck.agents.scripted.reading import Assignment
from coatcheck.agents.scripted.words import (
    clean,
    cut,
    field_names,
    key_terms,
    quote,
    search_word,
    sentences,
    title,
    words,
)

MAX_FROM_BRIEF = 6
MAX_CHARACTERS = 500
MAX_RESULTS = 20
QUOTED_CHARACTERS = 600


def write(task: Assignment) -> Draft:
    """The research report of this round; complete once a review has been handed, first draft before."""
    items = _requirements(task)
    review = markup.findings(task.text("critique"))
    is_complete = bool(review) or "\n## Acceptance\n" in task.text(task.task_type)
    parts = [
        markup.heading("Research", title(task.feature), task.round),
        _answers(task, items),
        _words_of_the_request(task),
        _people(task, items),
        _requirement_list(items, task),
        _record(task),
        _acceptance(items) + _limits(items) + _glossary(task, items) if is_complete else "",
        _options(task),
        _risks(task, is_complete=is_complete),
    ]
    answered = f" Answers {', '.join(item.number for item in review)} of the review." if review else ""
    return Draft(
        report="\n".join(part for part in parts if part),
        summary=f"{len(items)} requirements for {title(task.feature)}, {_from_brief(items)} from the brief.{answered}",
        complexity=complexity(len(items)),
        files_analyzed=len(task.sections),
    )


def _requirements(task: Assignment) -> Sequence[Requirement]:
    """R1 to R8: up to six sentences of the brief in its order, then two that every such feature has."""
    earlier = task.text(task.task_type)
    if earlier and (kept := markup.requirements(earlier, task.brief)):
        return kept
    texts = [(f"brief, sentence {number}", cut(line, 160)) for number, line in _chosen(task)]
    texts.append(("derived", "A saved record is found again by any of its words, in upper or lower case."))
    texts.append(("derived", "Input that cannot be used is refused, and the answer says why."))
    return [Requirement(f"R{number}", source, text) for number, (source, text) in enumerate(texts, 1)]


def _chosen(task: Assignment) -> list[tuple[int, str]]:
    """The brief's sentences with the most of its key terms, in the brief's order."""
    lines = sentences(task.brief)
    terms = [term.text.casefold() for term in key_terms(task.feature, task.brief)]
    # A long brief is read by its first thousand sentences; the report says so.
    distinct = {line: number for number, line in reversed(list(enumerate(lines[:1000], 1)))}
    ranked = sorted(distinct.items(), key=lambda item: (-_count(terms, item[0].casefold()), item[1]))
    return sorted((number, line) for line, number in ranked[:MAX_FROM_BRIEF])


def _count(terms: list[str], text: str) -> int:
    return sum(term in text for term in terms)


def _from_brief(items: Sequence[Requirement]) -> int:
    return sum(item.source.startswith("brief") for item in items)


def _answers(task: Assignment, items: Sequence[Requirement]) -> str:
    lines = []
    if task.decision:
        lines.append(f"A person decided: {quote(task.decision, 300)}. This round follows it.\n")
    if review := markup.findings(task.text("critique")):
        lines.append("Each finding of the review, and where it is answered:\n")
        lines += [f"- **{item.number}** → {_answer(item, items)}" for item in review]
    return "## Answers to the review\n\n" + "\n".join(lines) + "\n" if lines else ""


def _answer(item: markup.Finding, items: Sequence[Requirement]) -> str:
    wanted = item.wanted.lower()
    if "accept" in wanted:
        return f"Section Acceptance now says for {items[0].number} to {items[-1].number} how to see that each holds."
    if "limit" in wanted:
        return f"Section Limits names what {item.where} refuses: {MAX_CHARACTERS} characters, {MAX_RESULTS} results."
    if "glossary" in wanted or "defin" in wanted:
        return "Section Glossary defines the request's key words, with the requirements that use them."
    return f"Taken over as written, for {item.where}: {cut(item.wanted, 200)}"


def _words_of_the_request(task: Assignment) -> str:
    lines = sentences(task.brief)
    terms = key_terms(task.feature, task.brief)
    named = ", ".join(f"**{term.text}** ({term.count})" for term in terms)
    amount = f"{len(words(task.brief)):,} words in {len(lines):,} sentences"
    more = (
        f" The {MAX_FROM_BRIEF} sentences that carry most of these words became requirements; the others are context."
        if len(lines) > MAX_FROM_BRIEF
        else ""
    )
    return (
        f"## The request in its own words\n\nThe feature is `{task.feature}`. The brief has {amount}. "
        f"It leans on: {named}.{more}\n\n> {cut(clean(task.brief), QUOTED_CHARACTERS) or '(no words)'}\n"
    )


def _requirement_list(items: Sequence[Requirement], task: Assignment) -> str:
    lines = "\n".join(requirement_line(item) for item in items)
    return (
        "## Requirements\n\nThe numbers stay the same in every round. Those from the brief are quoted; the derived "
        f"ones are what {title(task.feature)} needs to be usable at all.\n\n{lines}\n"
    )


def _people(task: Assignment, items: Sequence[Requirement]) -> str:
    first, last = items[0], items[-1]
    word = quote(search_word(first.text))
    return f"""\
## Who does what

1. A person has something to keep that belongs to {title(task.feature)} and saves it as a record; {first.number} says \
what matters to them.
2. Later the same or another person remembers one word of it, such as {word}, and searches for that word.
3. They open the record, use it, or delete it when it is no longer wanted.
4. When they type something that cannot be used, they are told why ({last.number}) and nothing is lost.
"""


def _record(task: Assignment) -> str:
    rows = ["| `title` | what the record is called | the only one that must be filled in |"]
    rows += [
        f"| `{name}` | {quote(word)} | from the brief's own words |"
        for name, word in field_names(task.feature, task.brief)
    ]
    return "## The record\n\n" + table("| field | meaning | why it is there |", rows) + "\n"


def _acceptance(items: Sequence[Requirement]) -> str:
    lines = [f"- **{item.number}** is accepted when {_test(item)}." for item in items]
    return (
        "## Acceptance\n\nThe design is a register of records, so each requirement is tied to a record with its own "
        "words:\n\n" + "\n".join(lines) + "\n\n"
    )


def _test(item: Requirement) -> str:
    if "refused" in item.text and item.source == "derived":
        return "an empty title, an unknown field and a text over the limit each get status 400 and a reason"
    if item.source == "derived":
        return "a search for any one word of a saved record, in capitals or not, lists that record"
    return f"a record with its wording is kept and a search for {quote(search_word(item.text))} lists it"


def _limits(items: Sequence[Requirement]) -> str:
    return (
        f"## Limits\n\n- A text field has at most {MAX_CHARACTERS} characters; a longer one is refused "
        f"({items[-1].number}).\n- A search lists at most {MAX_RESULTS} records, oldest first.\n"
        "- Unknown fields, an empty title and anything that is not a JSON object are refused with status 400.\n\n"
    )


def _glossary(task: Assignment, items: Sequence[Requirement]) -> str:
    lines = []
    for term in key_terms(task.feature, task.brief):
        used = [item.number for item in items if term.text.casefold() in item.text.casefold()]
        meaning = f"as in {', '.join(used)}" if used else "context only, no requirement depends on it"
        lines.append(
            f"- **{term.text}**: said {'once' if term.count == 1 else f'{term.count} times'} in the brief; {meaning}."
        )
    return "## Glossary\n\nThe requester's meaning, by where each word is used:\n\n" + "\n".join(lines) + "\n"


def _options(task: Assignment) -> str:
    first = quote(key_terms(task.feature, task.brief)[0].text)
    rows = [
        f"| A register in SQLite behind a small HTTP API | one file; finds {first} by its words | one writer |",
        f"| A search service of its own | ranks and forgives typing errors around {first} | a second system to run |",
        "| A shared spreadsheet | nothing to build | no check of input, no API for the page |",
    ]
    return (
        "## Options\n\n"
        + table("| option | speaks for it | speaks against it |", rows)
        + "\n\nRecommended: the first. It meets every requirement above with the least to operate, and its data can be "
        "moved into a search service later without changing the API.\n"
    )


def _risks(task: Assignment, *, is_complete: bool) -> str:
    own = ", ".join(quote(word) for _, word in field_names(task.feature, task.brief))
    open_question = (
        "- Who may see which records? Assumed: everybody who can open the page.\n"
        f"- Is any of {own} personal data? Assumed: yes, so a record can be deleted for good.\n"
        "- What a sentence of the brief asks beyond keeping and finding records is outside what the scripted author "
        "can design: it is traced through every stage, and a real model or a person has to judge and build it.\n"
    )
    state = "The assumptions hold until somebody corrects them." if is_complete else "Work can start on these."
    return f"## Risks and open questions\n\n{open_question}- Scope: nothing beyond the numbered list. {state}\n"
