"""Roy's script: one architecture, a searchable register, written out as a real module with the request's names."""

import json
from collections.abc import Sequence

from coatcheck.agents.scripted import markup
from coatcheck.agents.scripted.draft import Draft, complexity, table, template
from coatcheck.agents.scripted.markup import Endpoint, Requirement, endpoint_line
from coatcheck.agents.scripted.reading import Assignment
from coatcheck.agents.scripted.research import MAX_CHARACTERS, MAX_RESULTS
from coatcheck.agents.scripted.words import field_names, folded, identifier, quote, search_word, title

_OPEN_POINTS = """\
## Open points

The code keeps and finds records, nothing else. What a requirement asks beyond that is kept as its wording and is \
not built: the scripted author writes the same kind of module for every request, with the request's names.

Who may see which records is assumed as in the research: everybody who can open the page. Two writing processes at \
once wait for each other in SQLite; beyond a few hundred writes a second the store should move to a server, behind \
the same class.
"""


def write(task: Assignment) -> Draft:
    """Design, data model, API, module and tests; all of it follows from the research's requirements."""
    items = markup.requirements(task.text("research"), task.brief)
    own_fields = [(name, f"the request's {quote(word)}") for name, word in field_names(task.feature, task.brief)]
    fields = [("title", "what the record is called; required"), *own_fields]
    names = _names(task.feature)
    parts = [
        markup.heading("Backend", title(task.feature), task.round),
        _changes(task),
        _design(task, items),
        _data_model(fields),
        _api(names["api"], fields),
        _code(task, items, [name for name, _ in fields], names),
        _covered(items),
        _OPEN_POINTS,
    ]
    return Draft(
        report="\n".join(part for part in parts if part),
        summary=f"API of {len(_endpoints(names['api']))} endpoints for {title(task.feature)}, module "
        f"{names['module']}.py with {len(items) + 2} tests; covers {items[0].number} to {items[-1].number}.",
        complexity=complexity(len(items)),
        files_analyzed=len(task.sections),
        files_modified=2,
    )


def _names(feature: str) -> dict[str, str]:
    name = identifier(feature[:40]) or f"feature_{feature[:40].replace('-', '_')}"
    camel = "".join(part.capitalize() for part in name.split("_"))
    return {"module": name, "class_name": camel, "table": f"{name}_records", "api": f"/api/{feature}"}


def _changes(task: Assignment) -> str:
    lines = []
    if task.decision:
        lines.append(f"- A person asked: {quote(task.decision, 300)}. The whole design was checked against it.")
    if task.find("qa"):
        lines.append("- The test report was read; all files below are complete and replace the last round's.")
    return "## What changed in this round\n\n" + "\n".join(lines) + "\n" if lines else ""


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


def _code(task: Assignment, items: Sequence[Requirement], fields: list[str], names: dict[str, str]) -> str:
    texts = ",\n".join(f"    {_literal(item.number)}: {_literal(item.text)}" for item in items)
    module = template("module.py.txt").substitute(
        names,
        title=title(task.feature),
        fields=f"({', '.join(_literal(name) for name in fields)})",
        max_characters=MAX_CHARACTERS,
        max_results=MAX_RESULTS,
        requirements=f"{{\n{texts},\n}}",
    )
    tests = "\n".join(_test(item, names["class_name"]) for item in items)
    test_module = template("module_test.py.txt").substitute(names, tests=tests)
    return (
        f"## Code\n\nTwo files, standard library only.\n\n```python\n{module}```\n\n"
        f"Tests, run with `python -m unittest test_{names['module']}`:\n\n```python\n{test_module}```\n"
    )


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _test(item: Requirement, class_name: str) -> str:
    head = f"    def test_{item.number.lower()}"
    if item.source == "derived" and "refused" in item.text:
        return f"""{head}_unusable_input_is_refused_with_the_reason(self):
        long = "x" * (MAX_CHARACTERS + 1)
        for values in ({{}}, {{"title": " "}}, {{"title": long}}, {{"title": 1}}, {{"title": "a", "other": "b"}}, []):
            with self.subTest(values), self.assertRaises({class_name}Error):
                self.store.add(values)
        self.assertEqual(answer(self.store, "POST", API, b"no JSON")[0], 400)
"""
    if item.source == "derived":
        return f"""{head}_every_word_of_every_field_finds_the_record(self):
        body = json.dumps({{field: f"my {{field}}" for field in FIELDS}}).encode()
        status, kept = answer(self.store, "POST", API, body)
        self.assertEqual(status, 201)
        for field in FIELDS:
            self.assertEqual(answer(self.store, "GET", f"{{API}}?q={{field.upper()}}"), (200, [kept]))
        self.assertEqual(answer(self.store, "DELETE", f"{{API}}/{{kept['id']}}"), (200, kept))
        self.assertEqual(answer(self.store, "GET", f"{{API}}/{{kept['id']}}")[0], 404)
"""
    return f"""{head}_is_kept_and_found(self):
        self.assert_found_by({_literal(item.number)}, {_literal(_query(item.text))})
"""


def _query(text: str) -> str:
    """A word that survives upper and lower case, as the test's three queries need; else one that always matches."""
    word = search_word(text)
    kept = folded(text)
    return word if all(folded(form) in kept for form in (word, word.upper(), word.lower())) else ""


def _covered(items: Sequence[Requirement]) -> str:
    lines = [f"- {item.number}: `test_{item.number.lower()}_…`, {quote(item.text, 80)}" for item in items]
    return "## Requirements covered\n\n" + "\n".join(lines) + "\n"
