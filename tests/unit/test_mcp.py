"""MCP servers in `coatcheck.toml`: what is wrong is told with its line; names, lists and who may see which secret."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.config import load_config
from coatcheck.errors import ConfigError
from coatcheck.localstack.workers import DEFAULT_WORKERS, worker_environment
from schemas.config import Config
from schemas.mcp import MAX_NAME_LENGTH, CallTool, McpServer, offered_name


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('command = ["x"]\nurl = "http://x/mcp"', "3: mcp.git: a server has either a command or a url"),
        ("", "3: mcp.git: a server has either a command or a url"),
        ('command = ["x"]\nheaders = { A = "B" }', "3: mcp.git: headers are for a server with a url"),
        ('url = "http://x/mcp"\nenv = ["A"]', "3: mcp.git: env is for a server with a command"),
        ('command = ["x"]\nagents = ["roi"]', "5: mcp.git.agents.0: there is no role 'roi'"),
        ('command = ["x"]\nenv = ["sk-secret!"]', "5: mcp.git.env.0: should be the name of a variable"),
        ('url = "ftp://x"', "4: mcp.git.url: "),
        ('comand = ["x"]', "unknown key; did you mean 'command'?"),
        ('command = ["x"]\nmax_concurrent = 0', "5: mcp.git.max_concurrent: should be greater than or equal to 1"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, table: str, said: str) -> None:
    """File, line, key, and what is wrong."""
    file = tmp_path / "coatcheck.toml"
    file.write_text(f"models = []\n\n[mcp.git]\n{table}\n")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(file)


def test_a_server_may_be_an_own_agents_alone(tmp_path: Path) -> None:
    """The allow-list knows the roles of the file too."""
    (tmp_path / "own.md").write_text("Do it.")
    file = tmp_path / "coatcheck.toml"
    file.write_text(
        '[roles.sam]\ntask_type = "security"\nprompt = "own.md"\n[mcp.git]\ncommand = ["x"]\nagents = ["sam"]'
    )
    config = load_config(file)
    assert config.callers() == {"sam"}
    assert not config.mcp["git"].allows("git_log")


def test_the_strictest_word_counts() -> None:
    """`once` over `idempotent` over the server's own hint."""
    server = McpServer(command=("x",), idempotent=("a", "b"), once=("b", "c"))
    assert server.repeatable("a", hinted=False)
    assert not server.repeatable("b", hinted=True)
    assert not server.repeatable("c", hinted=True)
    assert server.repeatable("d", hinted=True)
    assert not server.repeatable("d", hinted=False)
    assert not McpServer(command=("x",), idempotent=("*",), once=("*",)).repeatable("a", hinted=True)


@given(st.lists(st.tuples(st.sampled_from(["git", "a-b", "x" * 60]), st.text(min_size=1)), unique=True, max_size=20))
def test_names_for_models_are_legal_and_different(tools: list[tuple[str, str]]) -> None:
    """Whatever a server calls its tools, providers take the names, and none is another's."""
    names = {offered_name(server, tool) for server, tool in tools}
    assert len(names) == len(tools)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) and len(name) <= MAX_NAME_LENGTH for name in names)


def test_a_plain_name_stays_readable() -> None:
    """The usual case."""
    assert offered_name("git", "git_log") == "git__git_log"


def test_a_digest_tells_calls_apart() -> None:
    """By tool, server and arguments, in whatever order these are written."""
    call = CallTool(task_key="t", tool_call_id="1", server="s", tool="a", arguments={"x": 1, "y": "\ud800"})
    same = call.model_copy(update={"arguments": {"y": "\ud800", "x": 1}, "task_key": "other"})
    assert same.digest() == call.digest()
    for change in ({"tool": "b"}, {"server": "t"}, {"arguments": {"x": 2}}):
        assert call.model_copy(update=change).digest() != call.digest()


def test_only_the_gateway_sees_a_servers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables are kept from the core worker and from agents."""
    monkeypatch.setenv("FORGE_TOKEN", "t0ken")
    monkeypatch.setenv("WIKI_AUTH", "Bearer x")
    forge = McpServer(command=("x",), env=("FORGE_TOKEN",))
    wiki = McpServer(url="https://wiki.example.org/mcp", headers={"Authorization": "WIKI_AUTH"})
    team = Config(mcp={"forge": forge, "wiki": wiki})
    sees = {
        spec.name: {"FORGE_TOKEN", "WIKI_AUTH"} & worker_environment(spec, {}, {}, team).keys()
        for spec in DEFAULT_WORKERS
    }
    assert sees == {"core": set(), "gateway": {"FORGE_TOKEN", "WIKI_AUTH"}, "agents": set()}
