"""What a team's own agent is on NATS: as much as ours, and no more."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from coatcheck.config import load_config
from coatcheck.errors import ConfigError, NotAuthorizedError
from coatcheck.localstack import LocalStack
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.streams import ensure_streams, refuse_foreign_streams
from schemas.config import Config
from schemas.streams import StreamSpec, bucket_streams, deliverable_stream
from schemas.subjects import deliverable_subject
from tests.integration.nats_clients import client_as, deliverable

FILE = """
[roles.sam]
task_type = "security"
prompt = "critique.md"

[roles.7up]  # the server's configuration must not take it for a number
task_type = "1e5"
prompt = "qa.md"
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A NATS server with two agents more."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "coatcheck.toml").write_text(FILE)
    with LocalStack(folder / "stack", servers=("nats",), workers=(), config_file=folder / "coatcheck.toml") as running:
        yield running


@pytest.fixture(scope="module")
def server(stack: LocalStack) -> NatsStatus:
    """How to reach it."""
    status = stack.status().nats
    assert status is not None
    return status


@pytest.fixture(scope="module")
def team(stack: LocalStack) -> Config:
    """What the stack was started with, by way of its status."""
    return load_config(stack.status().config_file)


@pytest.fixture(scope="module")
async def core(server: NatsStatus, team: Config) -> AsyncIterator[NatsClient]:
    """The core worker's client; every stream and bucket of the team exists."""
    async with client_as(server, "core") as client:
        await ensure_streams(client, [*team.streams, *bucket_streams(team.agents)])
        yield client


def test_the_status_names_every_agent(server: NatsStatus, team: Config) -> None:
    """With an account each."""
    assert team.agents[-2:] == ("sam", "7up")
    assert server.users.keys() >= set(team.agents)
    assert server.users["sam"].account == "SAM"


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize(("agent", "task_type"), [("sam", "security"), ("7up", "1e5")])
async def test_an_own_agent_delivers_and_others_read_it(
    server: NatsStatus, team: Config, agent: str, task_type: str
) -> None:
    """By ticket and by subject, as for ours."""
    subject = deliverable_subject(agent, task_type, "login")
    async with client_as(server, agent) as client:
        published = await DeliverableService(client, streams=team.streams).publish_report(
            deliverable(agent, task_type, "login"),
            task_key=f"{agent}/1",
            stream=f"agog_features_{task_type}",
            subject=subject,
        )
    async with client_as(server, "roy") as client:
        service = DeliverableService(client, streams=team.streams)
        by_ticket = await service.fetch(published.ref)
        assert by_ticket.deliverable.metadata.agent == agent
        assert (await service.fetch_by_subject(subject)).ref == by_ticket.ref


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize(("agent", "victim"), [("sam", "roy"), ("roy", "sam"), ("sam", "7up")])
async def test_nobody_delivers_as_somebody_else(server: NatsStatus, team: Config, agent: str, victim: str) -> None:
    """An own agent is confined as ours are, and ours cannot write to its stream."""
    task_type = team.roles[victim].task_type
    async with client_as(server, agent) as client:
        with pytest.raises(NotAuthorizedError):
            await DeliverableService(client, streams=team.streams).publish_report(
                deliverable(victim, task_type, "forged"),
                task_key="forged/1",
                stream=f"agog_features_{task_type}",
                subject=deliverable_subject(victim, task_type, "forged"),
            )


async def test_an_agent_with_another_task_type_is_refused(core: NatsClient) -> None:
    """Its subjects belong to the stream that it has; nothing is made or changed."""
    with pytest.raises(ConfigError, match=r"another stream holds the deliverables of 'sam'"):
        await ensure_streams(core, [deliverable_stream("sam", "audits")])
    assert (await core.api("STREAM.INFO.agog_features_security"))["config"]["subjects"] == ["agog.deliverables.sam.>"]


async def test_a_task_type_with_another_agent_is_refused(core: NatsClient) -> None:
    """What that agent publishes would be in no stream."""
    wanted = deliverable_stream("tom", "security")
    statuses = await ensure_streams(core, [wanted])
    with pytest.raises(ConfigError, match=r"agog_features_security was not made for the agent"):
        refuse_foreign_streams(statuses)


async def test_other_drift_is_not_refused(core: NatsClient) -> None:
    """A limit that an operator has changed loses nothing."""
    spec: StreamSpec = deliverable_stream("sam", "security").model_copy(update={"max_msgs": 7})
    refuse_foreign_streams(await ensure_streams(core, [spec]))


def test_a_stack_with_a_wrong_file_does_not_start(tmp_path: Path) -> None:
    """And says what is wrong with which line."""
    (tmp_path / "coatcheck.toml").write_text("[roles.sam]\nmax_turns = 3\n")
    stack = LocalStack(tmp_path / "stack", servers=("nats",), workers=(), config_file=tmp_path / "coatcheck.toml")
    with pytest.raises(Exception, match=r"coatcheck\.toml:1: roles\.sam\.task_type: is missing"), stack:
        pass
    assert stack.status().state == "failed"
