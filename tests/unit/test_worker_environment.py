"""What each worker process of the local stack may know."""

import pytest

from coatcheck.localstack.workers import DEFAULT_WORKERS, worker_environment
from schemas.config import DEFAULT_CONFIG, Config
from schemas.roles import Role

STORAGE = "AWS_SECRET_ACCESS_KEY"
KEYS, TOKENS = "COATCHECK_PAYLOAD_KEYS", {"COATCHECK_CODEC_TOKEN", "COATCHECK_MCP_TOKEN"}
SECRETS = {"DATABASE_URL", "GATEWAY_DATABASE_URL", "OPENAI_API_KEY", "MY_AGENT_API_KEY", "ANTHROPIC_BASE_URL", STORAGE}
COMMAND = Role(
    agent="codex",
    task_type="patch",
    kind="command",
    command=("my-agent",),
    env=("MY_AGENT_API_KEY", "DATABASE_URL"),
)
TEAM = Config(roles={**DEFAULT_CONFIG.roles, "codex": COMMAND})


@pytest.mark.parametrize(
    ("team", "worker", "seen"),
    [
        (DEFAULT_CONFIG, "core", {"DATABASE_URL", STORAGE, KEYS}),
        (DEFAULT_CONFIG, "gateway", SECRETS - {"DATABASE_URL", STORAGE}),
        (DEFAULT_CONFIG, "agents", {KEYS}),
        (TEAM, "core", {"DATABASE_URL", STORAGE, KEYS}),
        (TEAM, "agents", {"MY_AGENT_API_KEY", KEYS}),
    ],
)
def test_a_worker_sees_only_its_secrets(
    team: Config, worker: str, seen: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command agent's key reaches the agents' worker because its role names it; the database never does."""
    for name in (*SECRETS, KEYS, *TOKENS):
        monkeypatch.setenv(name, "secret")
    [spec] = [spec for spec in DEFAULT_WORKERS if spec.name == worker]
    environment = worker_environment(spec, {"NATS_URL": "nats://here"}, {"EXTRA": "1"}, team)
    assert {*SECRETS, KEYS, *TOKENS} & environment.keys() == seen
    assert {"NATS_URL", "EXTRA", "PATH"} <= environment.keys()
