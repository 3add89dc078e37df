"""Judges of a scenario on a real NATS and PostgreSQL: opinions go through the core worker's service and come back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from coatcheck.bench.judges.composing import Surroundings, UnknownJudgeError
from coatcheck.bench.recording import read_recording
from coatcheck.bench.scenario_judges import ScenarioJudges
from coatcheck.errors import EventRefusedError
from coatcheck.events.intake import EventIntake
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.event_reports import report_events
from coatcheck.messaging.events import EventLog
from coatcheck.messaging.service import serve
from coatcheck.storage.database import Pool
from coatcheck.storage.state import known_runs, own_tasks
from schemas.config import Config
from schemas.event_payloads import Scored
from schemas.events import JUDGE, JudgeFailed, JudgesCompared, JudgeScored
from schemas.judging import JudgeConfig
from schemas.scenario import Scenario
from schemas.subjects import events_subject
from tests.integration.nats_clients import client_as
from tests.providers.gateway import record_task
from tests.unit.judge_cases import BRIEF, RUN, RunBuilder, good_run

CONFIG = Config(judges={"a": JudgeConfig(kind="scripted"), "b": JudgeConfig(kind="scripted", criteria=("clear",))})


def scenario(*thresholds: dict[str, object], tokens: int | None = None) -> Scenario:
    """A scenario with these thresholds."""
    expect = {"sequence": [{"event": "run.started"}], "judges": list(thresholds), "budget": {"tokens": tokens}}
    request = {"feature": "search", "brief": BRIEF}
    fields = {"id": "er_900", "title": "Judged.", "input": {"request": request}, "expect": expect}
    return Scenario.model_validate(fields)


@pytest.fixture
async def judge(nats_server: NatsStatus, core: NatsClient) -> AsyncIterator[NatsClient]:
    """NATS as the judge."""
    assert core
    async with client_as(nats_server, JUDGE) as client:
        yield client


@asynccontextmanager
async def recorded(run: RunBuilder, core: NatsClient, pool: Pool) -> AsyncIterator[None]:
    """The run is in the audit log and in the tables, and the core worker takes opinions."""
    await record_task(pool, run_key=RUN)
    await EventLog(core).publish(run.events)
    intake = EventIntake(EventLog(core), own_tasks=partial(own_tasks, pool), known_runs=partial(known_runs, pool))
    endpoints = {events_subject(JUDGE): partial(intake.handle, JUDGE)}
    async with serve(core, name="events", version="1.0.0", endpoints=endpoints):
        yield


async def test_a_scenarios_judges_speak_in_events(core: NatsClient, judge: NatsClient, owner: Pool) -> None:
    """Each by the criteria that were wanted of it, within the scenario's budget; twice tells nothing twice."""
    wanted = scenario(
        {"criterion": "rounds-bounded", "at_least": 1},
        {"criterion": "budget-kept", "at_least": 1},
        {"criterion": "clear", "judge": "b", "at_least": 0.5},
        tokens=500,
    )
    run = good_run()
    run.turn(1000, "0.1")
    async with recorded(run, core, owner):
        judges = ScenarioJudges(CONFIG, Surroundings({}.get), judge)
        assert judges.wanted(wanted) == {"checks": ["rounds-bounded", "budget-kept"], "b": ["clear"]}
        await judges(await read_recording(judge, RUN), wanted)
        after = await read_recording(judge, RUN)
        scores = [event.payload for _, event in after.of(JudgeScored)]
        by = {(said.judge, said.criterion): said for said in scores}
        assert by["checks", "rounds-bounded"].score == 1
        assert by["checks", "budget-kept"].score == 0.5
        assert {said.scenario for said in scores} == {"er_900"}
        # Its deliverables were never published: no score, and no zero.
        failures = [event.payload for _, event in after.of(JudgeFailed)]
        assert [(said.judge, said.criterion) for said in failures] == [("b", "clear")] * 3
        assert not after.of(JudgesCompared)
        for message, event in [*after.of(JudgeScored), *after.of(JudgeFailed)]:
            assert message.subject == event.subject
            assert message.subject.startswith("agog.events.judge.judge.")
            assert message.message_id == event.event_id
        await judges(after, wanted)
        assert (await read_recording(judge, RUN)).messages == after.messages


async def test_a_criterion_that_nobody_knows_is_told(judge: NatsClient) -> None:
    """Before anything is asked."""
    judges = ScenarioJudges(CONFIG, Surroundings({}.get), judge)
    with pytest.raises(UnknownJudgeError, match=r"er_900: no judge has the criterion 'beauty'"):
        judges.wanted(scenario({"criterion": "beauty", "at_least": 1}))


async def test_opinions_about_a_run_that_is_not_recorded_are_refused(
    core: NatsClient, judge: NatsClient, owner: Pool
) -> None:
    """Whoever judges cannot make runs up."""
    async with recorded(RunBuilder(), core, owner):
        made_up = JudgeScored.of(
            entity_id="feature/other/run",
            correlation_id="feature/other/run",
            session_id="feature/other",
            source=JUDGE,
            occurred_at="2026-11-21T09:00:00Z",
            payload=Scored(judge="a", kind="check", criterion="clear", score=1),
        )
        with pytest.raises(EventRefusedError):
            await report_events(judge, JUDGE, [made_up])
