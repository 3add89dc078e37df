"""Has judges speak of a recorded run, and shows what they said.

The events come from the audit log as NATS's `judge`, who may read everything and have its opinions stored; the brief,
which events do not carry, comes from PostgreSQL. Keys are read here, from the variables that the configuration names.
"""

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from coatcheck.bench.judges.composing import Surroundings, UnknownJudgeError, default_judges, open_judges
from coatcheck.bench.judges.questions import AskedJudge, ending_of
from coatcheck.bench.judging import JudgeCase
from coatcheck.bench.panel import Hearing, hear
from coatcheck.cli.output import columns, cost, emit, emit_json, one_line
from coatcheck.cli.runs import find_record
from coatcheck.cli.session import load_settings, open_database, open_nats
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.event_reports import report_events
from coatcheck.messaging.events import EventLog
from coatcheck.settings import Settings
from coatcheck.storage import state
from schemas.config import Config
from schemas.event_payloads import AgreementMeasured
from schemas.events import JUDGE, UnknownEvent

_SCORES: Sequence[str] = ("judge", "criterion", "round", "score", "label", "why")
_AGREEMENT: Sequence[str] = ("criterion", "judges", "measure", "value", "compared")


class RunNotOverError(CoatcheckError):
    """Only what has ended can be judged."""

    code = "judge.run_not_over"


class JudgesFailedError(CoatcheckError):
    """A score is missing."""

    code = "judge.failed"


@dataclass(frozen=True)
class Wanted:
    """Who is asked what."""

    judges: Sequence[str] | None
    """`None`: those that are there by default."""
    criteria: Sequence[str] | None
    again: bool


async def judge_run(name: str, wanted: Wanted, *, as_json: bool, data_dir: Path) -> None:
    """Judge a run and print what the judges say; every opinion is stored before it is printed.

    Raises:
        RunNotFoundError: the run is not recorded.
        RunNotOverError: it has not ended.
        MisuseError: there is no judge or criterion of that name.
        JudgesFailedError: a judge gave no score; the others' are printed.
        CoatcheckError: a key is not set, or phoenix-evals is not installed; nobody was asked.
        DependencyDownError: NATS, PostgreSQL or the core worker does not answer.
    """
    settings = load_settings(data_dir)
    config = load_config(settings.config_file)
    names = wanted.judges or default_judges(config)
    around = Surroundings(os.environ.get, settings.openai_base_url)
    async with AsyncExitStack() as stack:
        try:
            opening = open_judges(config, names, around, criteria=wanted.criteria)
            judges = await stack.enter_async_context(opening)
        except UnknownJudgeError as error:
            raise MisuseError(str(error), hint=error.hint) from error
        client = await stack.enter_async_context(open_nats(settings, identity=JUDGE))
        case = await _case(name, settings, config, client)
        report = partial(report_events, client, JUDGE)
        hearing = await hear(case, judges, report, criteria=wanted.criteria, again=wanted.again)
        spent = _spent(judges)
    if as_json:
        emit_json(_document(case, hearing, spent))
    else:
        _show(hearing, spent)
    if hearing.failures:
        asked = len(hearing.scores) + len(hearing.failures)
        raise JudgesFailedError(
            f"{len(hearing.failures)} of {asked} scores could not be had: an error is not a zero",
            hint="what was scored is kept; the same command asks only for what is missing",
        )


async def _case(name: str, settings: Settings, config: Config, client: NatsClient) -> JudgeCase:
    async with open_database(settings) as pool:
        record = await find_record(pool, name)
        brief = await state.read_brief(pool, record.run_key)
    stored = [item.event async for item in EventLog(client).read_run(record.run_key)]
    events = [event for event in stored if not isinstance(event, UnknownEvent)]
    case = JudgeCase(
        run_key=record.run_key,
        feature=record.feature,
        brief=brief,
        scenario=None,
        events=events,
        fetch=DeliverableService(client, streams=config.streams).fetch,
    )
    if ending_of(case) is None:
        raise RunNotOverError(
            f"{record.run_key} has not ended, as far as its events tell", hint="`coatcheck watch` waits until it has"
        )
    return case


def _spent(judges: Sequence[AskedJudge]) -> list[dict[str, Any]]:
    """What each judge took that asks a model."""
    return [
        {
            "judge": judge.name,
            "model": judge.model,
            "calls": spent.calls,
            "tokens_in": spent.tokens_in,
            "tokens_out": spent.tokens_out,
            "cost_usd": spent.cost_usd,
        }
        for judge in judges
        if (spent := judge.spent) is not None
    ]


def _document(case: JudgeCase, hearing: Hearing, spent: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "run_key": case.run_key,
        "scores": [
            {**event.payload.model_dump(mode="json"), "event_id": event.event_id, "is_new": is_new}
            for event in hearing.scores
            for is_new in [event.event_id not in hearing.earlier]
        ],
        "failures": [event.payload for event in hearing.failures],
        "agreement": [event.payload for event in hearing.agreement],
        "spent": spent,
    }


def _show(hearing: Hearing, spent: list[dict[str, Any]]) -> None:
    scores = [event.payload for event in hearing.scores]
    rows = [
        [said.judge, said.criterion, _round(said), f"{said.score:.2f}", said.label, one_line(said.explanation, 100)]
        for said in scores
    ]
    if rows:
        emit(columns(_SCORES, rows))
    else:
        tell("note: no judge has a score for this run")
    if hearing.agreement:
        emit("\n" + columns(_AGREEMENT, [_agreement(event.payload) for event in hearing.agreement]))
    for failed in (event.payload for event in hearing.failures):
        tell(f"no score: {failed.judge}, {failed.criterion} {_round(failed)}: {one_line(failed.error)}")
    if hearing.earlier:
        tell(f"note: {len(hearing.earlier)} of {len(scores)} scores were there before; --again asks once more")
    if any(said.model == "scripted" for said in scores):
        tell("note: the scripted judge compares words and asks no model; [judges.NAME] in coatcheck.toml names one")
    for item in spent:
        calls = "1 call" if item["calls"] == 1 else f"{item['calls']} calls"
        tokens = f"{item['tokens_in']:,} tokens in, {item['tokens_out']:,} out"
        paid: Decimal | None = item["cost_usd"]
        tell(f"{item['judge']} ({item['model']}): {calls}, {tokens}, {cost(paid)}")


def _agreement(measured: AgreementMeasured) -> list[str]:
    value = "not defined" if measured.value is None else f"{measured.value:.3f}"
    return [measured.criterion, ", ".join(measured.judges), measured.measure, value, str(measured.compared)]


def _round(said: Any) -> str:
    return "run" if said.stage is None else f"{said.stage}-{said.round}"
