"""The JSON schema of `coatcheck.toml` and what is said elsewhere about the file's form."""

import json
import tomllib
from pathlib import Path

from coatcheck.config import document_schema, load_config
from schemas.roles import DEFAULT_ROLES

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "security-review" / "coatcheck.toml"


def test_the_schema_in_the_docs_is_up_to_date() -> None:
    """`make schema` writes it."""
    assert json.loads((DOCS / "reference" / "coatcheck.schema.json").read_bytes()) == document_schema()


def test_the_schema_has_the_form_of_the_file_and_not_of_the_model() -> None:
    """Names are the tables' keys, a stage may leave to the role what the role says, our roles may be partial."""
    schema = document_schema()
    role, stage, pipeline = (schema["$defs"][name] for name in ("Role", "Stage", "Pipeline"))
    assert not {"agent", "instructions"} & role["properties"].keys()
    assert "required" not in role
    assert stage["required"] == ["name", "agent"]
    assert {"task_type", "kind"} <= stage["properties"].keys()
    assert "default" not in stage["properties"]["kind"]
    assert pipeline["properties"].keys() == {"stages"}
    assert schema["properties"]["roles"]["properties"].keys() == DEFAULT_ROLES.keys()
    assert schema["properties"]["roles"]["additionalProperties"]["required"] == ["task_type"]


def test_every_key_of_a_role_says_what_it_is() -> None:
    """What an editor shows is the sentence in the code."""
    described = document_schema()["$defs"]["Role"]["properties"]
    assert described["max_turns"]["description"].startswith("Model calls of one round")
    assert described["tools"]["description"] == "What the loop offers besides the output tool."


def test_the_example_names_its_schema() -> None:
    """Editors find it by the first line."""
    first = EXAMPLE.read_text().splitlines()[0].removeprefix("#:schema ")
    assert (EXAMPLE.parent / first).resolve() == DOCS / "reference" / "coatcheck.schema.json"


def test_the_files_in_the_docs_load(tmp_path: Path) -> None:
    """Every block of TOML in the how-tos is a file that is taken, with its prompts in place."""
    texts = [(DOCS / "how-to" / name).read_text() for name in ("your-own-agents.md", "judges.md")]
    blocks = [block.partition("```")[0] for text in texts for block in text.split("```toml\n")[1:]]
    assert len(blocks) >= 4
    (tmp_path / "prompts").mkdir()
    for name in ("security", "translator"):
        (tmp_path / "prompts" / f"{name}.md").write_text("You are somebody.")
    for block in blocks:
        assert tomllib.loads(block)
        (tmp_path / "coatcheck.toml").write_text(block)
        assert load_config(tmp_path / "coatcheck.toml")
