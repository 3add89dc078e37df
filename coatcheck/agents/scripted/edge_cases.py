"""What Billy's script looks up in the files without running them, and the steps by which a person can see it work."""

import json
import re
import shlex
from collections.abc import Sequence
from typing import Final

from coatcheck.agents.scripted import markup
from coatcheck.agents.scripted.draft import table
from coatcheck.agents.scripted.markup import Requirement
from coatcheck.agents.scripted.reading import Assignment
from coatcheck.agents.scripted.sources import listed
from coatcheck.agents.scripted.words import clean, key_terms, quote, search_word
from schemas.roles import SEARCH_FILES

_FOUND: Final = re.compile(r"^(\S+):(\d+): (.*)$", re.MULTILINE)
_EDGE_CASES: Final = {
    "empty title": "title is empty",
    "text over the limit": "at most {MAX_CHARACTERS}",
    "unknown field": "unknown fields",
    "not a JSON object": "must be a JSON object",
    "quotes and SQL in a search": "instr(search_text, ?)",
    "markup in a record": "test_unicode_and_markup",
    "record that is gone": "there is no record",
}
"""Case → the words of the code that answers it."""
SEARCH: Final = "|".join([*map(re.escape, _EDGE_CASES.values()), r'name="\w+" maxlength="\d+"'])
"""For the whole workspace: the edge cases in the code, the limits on the page."""


def section(task: Assignment) -> str:
    """The edge cases, and where the code answers each."""
    term = key_terms(task.feature, task.brief)[0].text
    example = quote(term + chr(39) + " OR 1=1")
    rows = [
        f"| {case}{f', such as {example}' if 'SQL' in case else ''} | {_answer_to(evidence, task)} |"
        for case, evidence in _EDGE_CASES.items()
    ]
    return "## Edge cases, by reading\n\n" + table("| case | what answers it |", rows) + "\n"


def _answer_to(evidence: str, task: Assignment) -> str:
    """Where the code answers a case: a line that was searched for, else the words in the report."""
    for call in task.calls(SEARCH_FILES):
        for path, line, text in [] if call.refused else _FOUND.findall(call.answer):
            if evidence in text:
                return f"`{clean(path)}`, line {line}: `{evidence}`"
    return f"the backend has: `{evidence}`" if evidence in task.text("backend") else "nothing found"


def by_hand(task: Assignment, items: Sequence[Requirement]) -> str:
    """Steps for a person, on the endpoints and words of this run."""
    posts = [item.path for item in markup.endpoints(task.text("backend")) if item.method == "POST"]
    if not posts:
        return ""
    word = search_word(items[0].text)
    files = [path for path in listed(task.text("backend")) if "/test_" not in path]
    start = (
        f"Start `python {files[0]}`" if files else "Save the Python files and the page in one folder, start the module"
    )
    body = shlex.quote(json.dumps({"title": items[0].text}, ensure_ascii=False))
    query = shlex.quote(f"q={word}")
    return (
        f"## To see it by hand\n\n{start}, then:\n\n"
        f"```sh\ncurl -X POST http://127.0.0.1:8080{posts[0]} -d {body}\n"
        f"curl -G http://127.0.0.1:8080{posts[0]} --data-urlencode {query}\n"
        f"curl -X POST http://127.0.0.1:8080{posts[0]} -d '{{}}'\n```\n\nExpected: the record of {items[0].number} "
        "with its id, a list that contains it, and the reason why an empty record is refused "
        f"({items[-1].number}).\n"
    )
