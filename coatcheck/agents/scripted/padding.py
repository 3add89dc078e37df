"""Makes a report as long as a load test wants it, with worked examples of the request's own requirements."""

from collections.abc import Sequence

from coatcheck.agents.scripted.markup import Requirement
from coatcheck.agents.scripted.words import Term

_PEOPLE = ("A new colleague", "An auditor", "A person in a hurry", "Somebody on a phone", "A screen-reader user")
_SITUATIONS = (
    "after a restart of the server",
    "while a second person saves a record",
    "with nothing saved yet",
    "with a text of exactly the allowed length",
    "with a word in another script",
    "in the last minute before a deadline",
    "with the same record saved twice",
)


def padded(report: str, minimum_bytes: int, items: Sequence[Requirement], terms: tuple[Term, ...]) -> str:
    """The report, with an appendix of numbered examples when it is shorter than `minimum_bytes` of UTF-8."""
    missing = minimum_bytes - len(report.encode())
    if missing <= 0:
        return report
    pieces = ["\n## Appendix: worked examples\n\nFor whoever tests this by hand.\n\n"]
    missing -= len(pieces[0].encode())
    number = 0
    while missing > 0:
        number += 1
        line = _example(number, items[number % len(items)], terms[number % len(terms)].text)
        pieces.append(line)
        missing -= len(line.encode())
    return report + "".join(pieces)


def _example(number: int, item: Requirement, term: str) -> str:
    person, situation = _PEOPLE[number % len(_PEOPLE)], _SITUATIONS[number % len(_SITUATIONS)]
    return (
        f"{number}. {person} relies on {item.number} {situation}: they look for “{term}” and expect the records with "
        f"that word and no others, or a sentence that says why not. Wanted in the request's words: “{item.text}”\n"
    )
