"""`coatcheck.toml`: what is understood, and each mistake with its file, line and key."""

import os
from decimal import Decimal
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.config import load_config
from coatcheck.errors import ConfigError
from schemas.config import DEFAULT_CONFIG, Config
from schemas.pipeline import DEFAULT_PIPELINE, StageKind
from schemas.roles import DEFAULT_ROLES, Role


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one prompt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "security.md").write_text("You are Sam.\n")
    return tmp_path


def load(folder: Path, text: str) -> Config:
    """Load a file with that text."""
    path = folder / "coatcheck.toml"
    path.write_text(dedent(text).removeprefix("\n"))
    return load_config(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """The lines of what is said about a file with that text."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return str(caught.value).splitlines()


SAM = """
    [roles.sam]
    task_type = "security"
    reports = "review"
    prompt = "prompts/security.md"
"""


# --- what is understood -------------------------------------------------------------------------------------------


def test_no_file_is_the_defaults() -> None:
    """Six agents, one pipeline."""
    assert load_config(None) == DEFAULT_CONFIG


def test_an_empty_file_is_the_defaults(folder: Path) -> None:
    """Every section may be left out."""
    assert load(folder, "") == DEFAULT_CONFIG


def test_a_new_role_has_the_defaults_of_a_role_and_its_prompt(folder: Path) -> None:
    """The table's name is the agent; the prompt's text is read at once."""
    found = load(folder, SAM + 'tools = ["read_file"]\nmodels = ["openai:gpt-5-mini"]')
    assert found.roles["sam"] == Role(
        agent="sam",
        task_type="security",
        reports=StageKind.REVIEW,
        prompt="prompts/security.md",
        instructions="You are Sam.\n",
        tools=("read_file",),
        models=("openai:gpt-5-mini",),
    )
    assert found.agents == (*DEFAULT_CONFIG.agents, "sam")
    assert found.streams[-1].name == "agog_features_security"
    assert found.streams[-1].subjects == ("agog.deliverables.sam.>",)


def test_of_a_role_of_ours_only_the_given_keys_change(folder: Path) -> None:
    """Also when it becomes a command; without a prompt of its own it keeps ours."""
    found = load(folder, '[roles.roy]\nkind = "command"\ncommand = ["my-agent", "--stdin"]\nenv = ["MY_KEY"]')
    changed = {"kind": "command", "command": ("my-agent", "--stdin"), "env": ("MY_KEY",)}
    assert found.roles["roy"] == DEFAULT_ROLES["roy"].model_copy(update=changed)
    assert {name: role for name, role in found.roles.items() if name != "roy"} == {
        name: role for name, role in DEFAULT_ROLES.items() if name != "roy"
    }


def test_a_stage_takes_task_type_and_kind_from_its_role(folder: Path) -> None:
    """And needs no more than a name and an agent; what was left out stays unset, and so out of histories."""
    found = load(
        folder,
        SAM
        + """
        [[pipelines.secure.stages]]
        name = "backend"
        agent = "roy"
        [[pipelines.secure.stages]]
        name = "check"
        agent = "sam"
        needs = ["backend"]
        reviews = "backend"
        """,
    )
    pipeline = found.pipelines["secure"]
    assert pipeline.name == "secure"
    assert pipeline.model_dump(mode="json", exclude_unset=True)["stages"] == [
        {"name": "backend", "agent": "roy", "task_type": "backend", "kind": "work"},
        {
            "name": "check",
            "agent": "sam",
            "task_type": "security",
            "kind": "review",
            "needs": ["backend"],
            "reviews": "backend",
        },
    ]
    assert found.pipelines["default"] == DEFAULT_PIPELINE


def test_plain_sections(folder: Path) -> None:
    """Models, limits, prices, tenants, bounds of checks."""
    found = load(
        folder,
        """
        models = ["openai:gpt-5-mini", "anthropic:claude-sonnet-4-5"]
        tenants = { acme = { weight = 2.5 } }
        [providers.openai]
        max_concurrent = 5
        [prices."openai:my-model"]
        input_usd = 0.25
        output_usd = 2
        as_of = 2026-11-01
        source = "contract 17"
        [checks]
        memory_mb = 512
        """,
    )
    assert found.models == ("openai:gpt-5-mini", "anthropic:claude-sonnet-4-5")
    assert found.providers["openai"].max_concurrent == 5
    price = found.prices["openai:my-model"]
    assert (price.input_usd, price.output_usd, str(price.as_of)) == (Decimal("0.25"), Decimal(2), "2026-11-01")
    assert found.tenants["acme"].weight == 2.5
    assert found.checks.memory_mb == 512


def test_a_prompt_of_ours_by_its_name(folder: Path) -> None:
    """A file of that name in the folder goes before."""
    text = '[roles.sam]\ntask_type = "security"\nprompt = "critique.md"'
    assert (load(folder, text).roles["sam"].instructions or "").startswith("You are Sylvia")
    (folder / "critique.md").write_text("Mine.")
    assert load(folder, text).roles["sam"].instructions == "Mine."


def test_a_prompt_elsewhere_by_its_absolute_path(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever writes the path in full means it."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "sam.md"
    elsewhere.write_text("From elsewhere.")
    found = load(folder, f'[roles.sam]\ntask_type = "security"\nprompt = "{elsewhere}"')
    assert found.roles["sam"].instructions == "From elsewhere."


# --- mistakes -----------------------------------------------------------------------------------------------------

_ROLE_KEYS = ", ".join(name for name in Role.model_fields if name not in ("agent", "instructions"))
_TOOLS = "fetch_deliverable, list_files, read_file, write_file, search_files, apply_patch, run_checks"
_SLUG = "a slug is lower-case letters, digits and single hyphens, like 'customer-search' (^[a-z0-9]+(-[a-z0-9]+)*$)"

MISTAKES = {
    "syntax": ("models = [\n\nroles =", ["coatcheck.toml:3: invalid value"]),
    "syntax at the end": ('a = """\n\nb\n', ["coatcheck.toml:3: unterminated string"]),
    "twice": ("models = []\nmodels = []", ["coatcheck.toml:2: cannot overwrite a value"]),
    "unknown section": ("# Ours\n[role.sam]", ["coatcheck.toml:2: role: unknown key; did you mean 'roles'?"]),
    "no table": ("roles = 3", ["coatcheck.toml:1: roles: should be a table"]),
    "role no table": ("[roles]\n\nsam = 3", ["coatcheck.toml:3: roles.sam: should be a table"]),
    "name": ("[roles.Sam]", [f"coatcheck.toml:1: roles.Sam: {_SLUG}"]),
    "quoted name": ('[roles."s m"]', [f'coatcheck.toml:1: roles."s m": {_SLUG}']),
    "taken name": (
        "[roles.core]",
        [
            (
                "coatcheck.toml:1: roles.core: no agent can be named 'core': it is one of the fixed NATS identities or "
                "accounts"
            )
        ],
    ),
    "unknown key": (
        SAM + "    max_turn = 3",
        ["coatcheck.toml:5: roles.sam.max_turn: unknown key; did you mean 'max_turns'?"],
    ),
    "key of ours": (
        SAM + '    agent = "tom"',
        [f"coatcheck.toml:5: roles.sam.agent: unknown key; there are {_ROLE_KEYS}"],
    ),
    "text for a number": (
        SAM + '    max_turns = "12"',
        ["coatcheck.toml:5: roles.sam.max_turns: should be a whole number"],
    ),
    "true for a number": (
        SAM + "    max_turns = true",
        ["coatcheck.toml:5: roles.sam.max_turns: should be a whole number"],
    ),
    "out of range": (
        SAM + "    max_turns = 0",
        ["coatcheck.toml:5: roles.sam.max_turns: should be greater than or equal to 1"],
    ),
    "text for an array": (
        SAM + '    tools = "read_file"',
        ['coatcheck.toml:5: roles.sam.tools: should be an array, like ["…"]'],
    ),
    "tool": (
        SAM + '    tools = [\n      "read_file",\n\n      "read_fil",\n    ]',
        [f"coatcheck.toml:8: roles.sam.tools.1: 'read_fil' is none of {_TOOLS}; did you mean 'read_file'?"],
    ),
    "reports": (
        '[roles.sam]\ntask_type = "security"\nprompt = "prompts/security.md"\nreports = "reviews"',
        ["coatcheck.toml:4: roles.sam.reports: 'reviews' is none of work, review, test; did you mean 'review'?"],
    ),
    "model": (
        'models = ["scripted", "gpt"]',
        ["coatcheck.toml:1: models.1: should be provider:model, like openai:gpt-5-mini, or scripted"],
    ),
    "missing": ('[roles.sam]\nprompt = "prompts/security.md"', ["coatcheck.toml:1: roles.sam.task_type: is missing"]),
    "no prompt": ('[roles.sam]\ntask_type = "x"', ["coatcheck.toml:1: roles.sam: kind 'llm' needs a prompt file"]),
    "no command": (
        '[roles.sam]\ntask_type = "x"\nkind = "command"',
        ['coatcheck.toml:1: roles.sam: kind \'command\' needs a command, such as ["my-agent", "--stdin"]'],
    ),
    "prompt not there": (
        '[roles.sam]\ntask_type = "x"\nprompt = "prompts/sam.md"',
        ["coatcheck.toml:3: roles.sam.prompt: there is no file {folder}/prompts/sam.md"],
    ),
    "prompt leads out": (
        '[roles.sam]\ntask_type = "x"\nprompt = "prompts/../../sam.md"',
        [
            (
                "coatcheck.toml:3: roles.sam.prompt: 'prompts/../../sam.md' leads out of {folder}; "
                "a file elsewhere needs its absolute path"
            )
        ],
    ),
    "prompt no markdown": (
        '[roles.sam]\ntask_type = "x"\nprompt = "sam.txt"',
        ["coatcheck.toml:3: roles.sam.prompt: should be the name of a Markdown file, ending in .md"],
    ),
    "prompt with NUL": (
        '[roles.sam]\ntask_type = "x"\nprompt = "a\\u0000.md"',
        ["coatcheck.toml:3: roles.sam.prompt: 'a\\x00.md' is no file's name"],
    ),
    "task type of another": (
        SAM + '    [roles.tom]\n    task_type = "security"\n    prompt = "prompts/security.md"',
        [
            (
                "coatcheck.toml:6: roles.tom.task_type: 'security' is already the task type of 'sam': "
                "each has its own stream"
            )
        ],
    ),
    "role against our pipeline": (
        '[roles.billy]\nreports = "work"',
        [
            (
                "coatcheck.toml:2: roles.billy.reports: in the pipeline 'default' stage 'qa' wants a test report, "
                "but billy writes work reports"
            )
        ],
    ),
    "no such role": (
        '[[pipelines.p.stages]]\nname = "a"\nagent = "sam"',
        [
            (
                "coatcheck.toml:3: pipelines.p.stages.0.agent: there is no role 'sam'; "
                "there are cynthia, sylvia, roy, jen, billy, priya"
            )
        ],
    ),
    "stage against role": (
        '[[pipelines.p.stages]]\nname = "a"\nagent = "roy"\ntask_type = "qa"\n\nkind = "test"\nreworks = []',
        [
            "coatcheck.toml:4: pipelines.p.stages.0.task_type: stage 'a' is of type 'qa', but roy does 'backend'",
            "coatcheck.toml:6: pipelines.p.stages.0.kind: stage 'a' wants a test report, but roy writes work reports",
            (
                "coatcheck.toml:7: pipelines.p.stages.0.reworks: stage 'a': a test, and only a test, names what it may "
                "send back"
            ),
        ],
    ),
    "graph": (
        """
        [[pipelines.p.stages]]
        name = "a"
        agent = "roy"
        needs = ["b"]
        [[pipelines.p.stages]]
        name = "b"
        agent = "sylvia"
        [[pipelines.p.stages]]
        name = "a"
        agent = "jen"
        """,
        [
            "coatcheck.toml:4: pipelines.p.stages.0.needs: stage 'a' refers to 'b', which is not an earlier stage",
            (
                "coatcheck.toml:5: pipelines.p.stages.1.reviews: stage 'b': a review, and only a review, names what it "
                "reviews"
            ),
            "coatcheck.toml:9: pipelines.p.stages.2.name: two stages are named 'a'",
        ],
    ),
    "stage key": (
        '[[pipelines.p.stages]]\nname = "a"\nagent = "roy"\ngates = true',
        ["coatcheck.toml:4: pipelines.p.stages.0.gates: unknown key; did you mean 'gate'?"],
    ),
    "no stages": ("[pipelines.p]", ["coatcheck.toml:1: pipelines.p.stages: should have at least 1 items, not 0"]),
    "stages no array": (
        "[pipelines.p]\nstages = 1",
        ["coatcheck.toml:2: pipelines.p.stages: should be an array of tables"],
    ),
    "price": (
        '[prices."openai:m"]\ninput_usd = -1\noutput_usd = 1\nas_of = 2026-11-01',
        [
            'coatcheck.toml:1: prices."openai:m".source: is missing',
            'coatcheck.toml:2: prices."openai:m".input_usd: should be greater than or equal to 0',
        ],
    ),
    "limits": (
        "[providers.openai]\nmax_concurent = 3",
        ["coatcheck.toml:2: providers.openai.max_concurent: unknown key; did you mean 'max_concurrent'?"],
    ),
    "checks": (
        "checks.cpu_second = 3",
        ["coatcheck.toml:1: checks.cpu_second: unknown key; did you mean 'cpu_seconds'?"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_line_and_key(name: str, folder: Path) -> None:
    """All of them, in the order of the file, and nothing else."""
    text, said = MISTAKES[name]
    assert mistakes(folder, text) == [line.format(folder=folder) for line in said]


def test_one_mistake_does_not_hide_the_others(folder: Path) -> None:
    """A stage of a role that is wrong is not judged by it."""
    text = """
        rolls = 1
        [roles.sam]
        task_type = "security"
        prompt = "prompts/sam.md"
        [[pipelines.p.stages]]
        name = "a"
        agent = "sam"
        [[pipelines.p.stages]]
        name = "b"
        agent = "roi"
        needs = ["c"]
        [tenants.acme]
        weight = 0
    """
    assert mistakes(folder, text) == [
        "coatcheck.toml:1: rolls: unknown key; did you mean 'roles'?",
        f"coatcheck.toml:4: roles.sam.prompt: there is no file {folder}/prompts/sam.md",
        (
            "coatcheck.toml:10: pipelines.p.stages.1.agent: there is no role 'roi'; "
            "there are cynthia, sylvia, roy, jen, billy, priya"
        ),
        "coatcheck.toml:11: pipelines.p.stages.1.needs: stage 'b' refers to 'c', which is not an earlier stage",
        "coatcheck.toml:13: tenants.acme.weight: should be greater than 0",
    ]


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A configuration that came from elsewhere shows none of one's files to a provider."""
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("a key")
    (folder / "prompts" / "sam.md").symlink_to(secret)
    [said] = mistakes(folder, '[roles.sam]\ntask_type = "x"\nprompt = "prompts/sam.md"')
    assert "leads out of" in said
    assert "a key" not in said


def test_a_prompt_must_be_a_text(folder: Path) -> None:
    """Not empty, not too large, not bytes, not a pipe that never ends."""
    text = '[roles.sam]\ntask_type = "x"\nprompt = "sam.md"'
    prompt = folder / "sam.md"
    for content, said in (
        (b" \n", "is empty"),
        (b"x" * (256 * 1024 + 1), "has more than 262,144 bytes"),
        (b"a\nb\xff", "is not UTF-8 text: line 2 has the byte 0xff"),
    ):
        prompt.write_bytes(content)
        assert mistakes(folder, text) == [f"coatcheck.toml:3: roles.sam.prompt: {prompt} {said}"]
    prompt.unlink()
    os.mkfifo(prompt)
    assert mistakes(folder, text) == [f"coatcheck.toml:3: roles.sam.prompt: {prompt} is not a file"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A file that was named must exist."""
    with pytest.raises(ConfigError, match=r"^there is no file .*/team\.toml$"):
        load_config(tmp_path / "team.toml")


def test_a_file_elsewhere_is_told_by_its_whole_path(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """So that an editor opens it from any folder."""
    assert folder.exists()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert mistakes(elsewhere, "roles = 3") == [f"{elsewhere}/coatcheck.toml:1: roles: should be a table"]


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 5000])
def test_a_hostile_file_is_an_error_like_any_other(folder: Path, text: str) -> None:
    """Numbers and nesting without end."""
    assert mistakes(folder, text)[0].startswith("coatcheck.toml")


# --- properties ---------------------------------------------------------------------------------------------------

slugs = st.from_regex(r"\A[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?\Z").filter(
    lambda name: name not in {*DEFAULT_ROLES, "core", "gateway", "sys", "observer", "hub"}
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A valid file, and what its roles and pipelines are."""
    agents = draw(st.lists(slugs, min_size=1, max_size=4, unique=True))
    lines, roles = [], {}
    for agent in agents:
        turns = draw(st.integers(1, 200))
        roles[agent] = turns
        lines.append(f'[roles.{agent}]\ntask_type = "t-{agent}"\nmax_turns = {turns}\nprompt = "qa.md"')
    names = draw(st.lists(slugs, min_size=1, max_size=5, unique=True))
    for index, name in enumerate(names):
        needs = draw(st.lists(st.sampled_from(names[:index]), unique=True)) if index else []
        agent = draw(st.sampled_from(agents))
        lines.append(f'[[pipelines.own.stages]]\nname = "{name}"\nagent = "{agent}"\nneeds = {needs}'.replace("'", '"'))
    return "\n".join(draw(st.permutations(lines[: len(agents)])) + lines[len(agents) :]), roles


@settings(max_examples=50, deadline=None)
@given(documents())
def test_valid_documents_load(tmp_path_factory: pytest.TempPathFactory, document: tuple[str, dict[str, Any]]) -> None:
    """Whatever the names, the numbers and the order of the roles; each agent has a stream of its own."""
    text, roles = document
    found = load(tmp_path_factory.getbasetemp(), text)
    assert {agent: role.max_turns for agent, role in found.roles.items() if agent in roles} == roles
    assert all(
        stage.task_type == f"t-{stage.agent}" and stage.kind == StageKind.WORK
        for stage in found.pipelines["own"].stages
    )
    assert len({spec.name for spec in found.streams}) == len(found.streams) == len(DEFAULT_ROLES) + len(roles)


def test_a_budget_limits_agents_that_exist(folder: Path) -> None:
    """Within a run; a limit that limits nothing is a mistake, and so is one for nobody."""
    text = """[budgets.small]
        usd = 0.5
        agents.roy = {usd = 0.2, calls = 9}
        agents.roi = {usd = 0.1}
        [limits]
        per_day = {usd = 9, agents = {roy = {usd = 1}}}
    """
    [nested] = mistakes(folder, text.replace("agents.roi", "agents.jen"))
    assert nested.startswith("coatcheck.toml:6: limits.per_day.agents: unknown key")
    found = mistakes(folder, text.partition("[limits]")[0])
    assert [line.partition("; ")[0] for line in found] == [
        "coatcheck.toml:4: budgets.small.agents.roi: there is no role 'roi'"
    ]
