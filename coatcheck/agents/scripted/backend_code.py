"""The module and the tests that Roy's script delivers, with the request's own names, fields and requirements.

The first files have a real mistake: the search stops one record too late. Nothing marks it; the tests find it when
they are run, so what follows a round is decided by evidence and not by the script. Where nothing runs (no workspace),
the code in the report is the sound one.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from coatcheck.agents.scripted.draft import template
from coatcheck.agents.scripted.markup import Requirement
from coatcheck.agents.scripted.reading import Assignment
from coatcheck.agents.scripted.research import MAX_CHARACTERS, MAX_RESULTS
from coatcheck.agents.scripted.sources import SourceFile
from coatcheck.agents.scripted.words import field_names, folded, identifier, search_word, title

CHECK_NAME: Final = "unit tests"
CHECK_TIMEOUT_SECONDS: Final = 60
"""They take 0.3 s; a busy machine has been seen to need 20 times as long."""
PAGE_FOLDER: Final = "frontend"
"""Where the module looks for the page besides its own folder."""

_ENOUGH: Final = {True: ">=", False: ">"}
"""When a search stops: sound or not."""


def names(feature: str) -> dict[str, str]:
    """Names of the module, its class, its table and its API for any feature."""
    name = identifier(feature[:40]) or f"feature_{feature[:40].replace('-', '_')}"
    camel = "".join(part.capitalize() for part in name.split("_"))
    return {"module": name, "class_name": camel, "table": f"{name}_records", "api": f"/api/{feature}"}


def fields(task: Assignment) -> list[tuple[str, str]]:
    """(name, the request's word) of each text field; the title first, whose word is empty."""
    return [("title", ""), *field_names(task.feature, task.brief)]


def sources(task: Assignment, items: Sequence[Requirement], *, is_sound: bool) -> list[SourceFile]:
    """The module and its tests; only the module depends on whether it is sound."""
    own = names(task.feature)
    module, tests = f"{own['module']}.py", f"test_{own['module']}.py"
    return [
        SourceFile(f"{task.stage}/{module}", _module(task, items, is_sound=is_sound), "rules, storage, API and server"),
        SourceFile(f"{task.stage}/{tests}", _tests(items, own), f"{len(items) + 2} tests"),
    ]


def check(feature: str) -> dict[str, Any]:
    """The declared check, as `schemas.evidence.Check`."""
    command = ["python", "-W", "error", "-m", "unittest", f"test_{names(feature)['module']}"]
    return {"name": CHECK_NAME, "command": command, "timeout_seconds": CHECK_TIMEOUT_SECONDS}


def function(source: SourceFile, name: str) -> str:
    """The lines of one method of the module."""
    head, _, rest = source.text.partition(f"    def {name}(")
    return f"    def {name}({rest.partition(chr(10) * 2)[0]}\n" if rest else head


def test_name(item: Requirement) -> str:
    """Name of the test of that requirement."""
    if item.source != "derived":
        what = "is_kept_and_found"
    elif "refused" in item.text:
        what = "unusable_input_is_refused_with_the_reason"
    else:
        what = "every_word_of_every_field_finds_the_record"
    return f"test_{item.number.lower()}_{what}"


def _module(task: Assignment, items: Sequence[Requirement], *, is_sound: bool) -> str:
    texts = ",\n".join(f"    {_literal(item.number)}: {_literal(item.text)}" for item in items)
    return template("module.py.txt").substitute(
        names(task.feature),
        title=title(task.feature),
        fields=f"({', '.join(_literal(name) for name, _ in fields(task))})",
        max_characters=MAX_CHARACTERS,
        max_results=MAX_RESULTS,
        requirements=f"{{\n{texts},\n}}",
        enough=_ENOUGH[is_sound],
        page_folder=PAGE_FOLDER,
    )


def _tests(items: Sequence[Requirement], own: dict[str, str]) -> str:
    tests = "\n".join(_test(item, own["class_name"]) for item in items)
    return template("module_test.py.txt").substitute(own, tests=tests)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _test(item: Requirement, class_name: str) -> str:
    head = f"    def {test_name(item)}(self):"
    if item.source == "derived" and "refused" in item.text:
        return f"""{head}
        long = "x" * (MAX_CHARACTERS + 1)
        for values in ({{}}, {{"title": " "}}, {{"title": long}}, {{"title": 1}}, {{"title": "a", "other": "b"}}, []):
            with self.subTest(values), self.assertRaises({class_name}Error):
                self.store.add(values)
        self.assertEqual(answer(self.store, "POST", API, b"no JSON")[0], 400)
"""
    if item.source == "derived":
        return f"""{head}
        body = json.dumps({{field: f"my {{field}}" for field in FIELDS}}).encode()
        status, kept = answer(self.store, "POST", API, body)
        self.assertEqual(status, 201)
        for field in FIELDS:
            self.assertEqual(answer(self.store, "GET", f"{{API}}?q={{field.upper()}}"), (200, [kept]))
        self.assertEqual(answer(self.store, "DELETE", f"{{API}}/{{kept['id']}}"), (200, kept))
        self.assertEqual(answer(self.store, "GET", f"{{API}}/{{kept['id']}}")[0], 404)
"""
    return f"""{head}
        self.assert_found_by({_literal(item.number)}, {_literal(_query(item.text))})
"""


def _query(text: str) -> str:
    """A word that survives upper and lower case, as the test's three queries need; else one that always matches."""
    word = search_word(text)
    kept = folded(text)
    return word if all(folded(form) in kept for form in (word, word.upper(), word.lower())) else ""
