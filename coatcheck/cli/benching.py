"""What the commands of `bench` do."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from coatcheck.bench.catalogue import load_scenario, scenario_ids
from coatcheck.bench.forking import read_request
from coatcheck.bench.generalising import generalise, to_json
from coatcheck.bench.invariants import broken_invariants
from coatcheck.bench.judges.composing import Surroundings
from coatcheck.bench.matching import violations
from coatcheck.bench.recording import Recording, read_recording
from coatcheck.bench.reports import report_of
from coatcheck.bench.results import BenchReport, RunReport
from coatcheck.bench.running import Runner
from coatcheck.bench.scenario_judges import ScenarioJudges
from coatcheck.cli.output import columns, cost, emit, emit_json
from coatcheck.cli.runs import find, split_run_key
from coatcheck.cli.session import load_settings, open_nats, open_temporal, temporal_errors
from coatcheck.cli.voice import MisuseError, tell
from coatcheck.config import load_config
from coatcheck.errors import CoatcheckError
from coatcheck.telemetry.privacy import ContentCapture, Privacy
from schemas.config import Config
from schemas.events import JUDGE
from schemas.scenario import INVARIANTS, EventStep, Expect, Scenario

_HEADER: Final = ("scenario", "run", "status", "seconds", "events", "tokens", "cost", "calls", "result")
_ANY_RUN: Final = Expect(
    sequence=[EventStep(event="run.started")],  # not looked at
    invariants=[name for name in INVARIANTS if name != "calls"],
)
"""What every run has to be; a model of any kind may make calls that cannot be carried out."""


class BenchFailedError(CoatcheckError):
    """Something is wrong with a run."""

    code = "bench.failed"


class NothingRecordedError(CoatcheckError):
    """The audit log has no event of that run."""

    code = "bench.nothing_recorded"


@dataclass(frozen=True)
class Plan:
    """What to run."""

    names: Sequence[str]
    every: bool
    repeat: int
    concurrency: int
    judge: bool

    def scenarios(self) -> list[Scenario]:
        """The scenarios that are meant.

        Raises:
            MisuseError: none is named.
            ConfigError: one is not there, or is wrong.
        """
        names = [*self.names, *(name for name in (scenario_ids() if self.every else ()) if name not in self.names)]
        if not names:
            raise MisuseError("no SCENARIO is named", hint="`coatcheck bench list` shows them, --all runs all")
        return [load_scenario(name) for name in names]


@dataclass(frozen=True)
class Since:
    """The part of a run that is looked at."""

    sequence: int
    moment: datetime | None

    def of(self, recording: Recording) -> Recording:
        """That part; times without a zone are UTC."""
        moment = self.moment.replace(tzinfo=self.moment.tzinfo or UTC) if self.moment else None
        return recording.since(sequence=self.sequence, moment=moment)


# --- run ------------------------------------------------------------------------------------------------------------


async def run(plan: Plan, *, as_json: bool, data_dir: Path) -> None:
    """Run the scenarios and print what was found.

    Raises:
        MisuseError: none is named, or one needs an agent that the stack does not have.
        ConfigError: a scenario is wrong.
        BenchFailedError: something is wrong with a run.
        DependencyDownError: a server does not answer.
    """
    scenarios, settings = plan.scenarios(), load_settings(data_dir)
    config = load_config(settings.config_file)
    for scenario in scenarios:
        _check_agents(scenario, config)
    started, begun = datetime.now(UTC), time.monotonic()
    async with AsyncExitStack() as stack:
        temporal = await open_temporal(settings)
        nats = await stack.enter_async_context(open_nats(settings))
        judging = None
        if plan.judge and any(scenario.expect.judges for scenario in scenarios):
            client = await stack.enter_async_context(open_nats(settings, identity=JUDGE))
            judging = ScenarioJudges(config, Surroundings(os.environ.get, settings.openai_base_url), client)
            for scenario in scenarios:
                judging.wanted(scenario)  # before anything is paid
        with temporal_errors():
            runs = await _run_all(Runner(temporal, nats, judging), scenarios, plan)
    _show(BenchReport(started_at=started, seconds=round(time.monotonic() - begun, 3), runs=runs), as_json=as_json)


def _check_agents(scenario: Scenario, config: Config) -> None:
    missing = {stage.agent for stage in scenario.input.request.pipeline.stages} - config.roles.keys()
    if missing:
        raise MisuseError(
            f"{scenario.id} needs the agent {', '.join(sorted(missing))}, which this stack does not have",
            hint="coatcheck/bench/scenarios/coatcheck.toml has it: `coatcheck up --config FILE`",
        )


async def _run_all(runner: Runner, scenarios: Sequence[Scenario], plan: Plan) -> list[RunReport]:
    """All of them, so many at a time; then those that must be alone, one by one. In the order of the plan."""
    slots = asyncio.Semaphore(plan.concurrency)
    done: dict[tuple[str, int], RunReport] = {}

    async def one(scenario: Scenario, repeat: int) -> None:
        async with slots:
            report = done[scenario.id, repeat] = await runner.run(scenario, repeat)
        outcome = "passed" if report.passed else f"{len(report.violations)} violations"
        tell(f"{scenario.id} #{repeat}: {report.status or 'no end'} after {report.seconds:.1f} s, {outcome}")

    planned = [(scenario, number) for scenario in scenarios for number in range(1, plan.repeat + 1)]
    async with asyncio.TaskGroup() as group:
        for scenario, number in planned:
            if not scenario.alone:
                group.create_task(one(scenario, number))
    for scenario, number in planned:
        if scenario.alone:
            await one(scenario, number)
    return [done[scenario.id, number] for scenario, number in planned]


# --- replay and record ----------------------------------------------------------------------------------------------


async def replay(correlation: str, name: str | None, since: Since, *, as_json: bool, data_dir: Path) -> None:
    """Hold what was recorded of a run against a scenario, or against what every run has to be.

    Raises:
        MisuseError: the correlation id is no run key.
        NothingRecordedError: the audit log has nothing of that run, or of that part of it.
        BenchFailedError: something is wrong with the run.
        DependencyDownError: NATS does not answer.
    """
    if split_run_key(correlation) is None:
        raise MisuseError(
            f"{correlation!r} is no run key", hint="it is <workflow id>/<run id>, as `coatcheck runs --json` shows it"
        )
    scenario = load_scenario(name) if name else None
    started, begun = datetime.now(UTC), time.monotonic()
    async with open_nats(load_settings(data_dir)) as nats:
        recording = since.of(await read_recording(nats, correlation))
    if not recording.messages:
        raise NothingRecordedError(f"the audit log has no event of {correlation} there")
    if scenario is None:
        found = broken_invariants(recording, _ANY_RUN)
    else:
        found = violations(recording, scenario, is_judged=any(event.family == "judge" for event in recording.events))
    result = report_of(recording, found, scenario=scenario)
    _show(BenchReport(started_at=started, seconds=round(time.monotonic() - begun, 3), runs=[result]), as_json=as_json)


async def record(
    name: str, out: Path, *, scenario_id: str | None, title: str | None, force: bool, data_dir: Path
) -> None:
    """Write the scenario that a run, and any like it, keeps.

    Raises:
        MisuseError: the file is there already, or the id is none.
        RunNotFoundError: there is no such run.
        BenchFailedError: the run has not ended, or something is wrong with it.
        DependencyDownError: a server does not answer.
    """
    if not force and await asyncio.to_thread(out.exists):
        raise MisuseError(f"{out} exists", hint="--force overwrites it")
    settings = load_settings(data_dir)
    temporal = await open_temporal(settings)
    found = await find(temporal, name)
    with temporal_errors():
        request = await read_request(temporal, found.workflow_id, found.first_run_id)
    async with open_nats(settings) as nats:
        recording = await read_recording(nats, found.run_key)
    try:
        made = generalise(
            recording,
            request,
            scenario_id=scenario_id or out.stem.replace("-", "_").lower(),
            title=title or f"{request.feature}, as recorded",
        )
    except (ValidationError, ValueError) as error:
        raise MisuseError(f"no scenario can be made of it: {error}") from error
    if wrong := violations(recording, made):
        raise BenchFailedError(f"only a good run can be recorded: {wrong[0]}")
    await asyncio.to_thread(out.write_text, to_json(made), "utf-8")
    tell(f"wrote {out}; `coatcheck bench run {out}` runs it")


# --- what is shown --------------------------------------------------------------------------------------------------


def list_scenarios(*, as_json: bool) -> None:
    """Print what comes with Coatcheck."""
    scenarios = [load_scenario(name) for name in scenario_ids()]
    if as_json:
        emit_json([{"id": item.id, "title": item.title} for item in scenarios])
    else:
        emit(columns(("scenario", "title"), [(item.id, item.title) for item in scenarios]))


def report(result: Path, style: str, number: int) -> None:
    """Print a result in another form.

    Raises:
        MisuseError: the file is no result, or has no such run.
    """
    from coatcheck.bench.formats import to_junit, to_svg  # noqa: PLC0415  XML is only needed here

    told = _read(result)
    if style == "svg" and number > len(told.runs):
        raise MisuseError(f"{result} has {len(told.runs)} runs, none is number {number}")
    match style:
        case "json":
            emit_json(told)
        case "junit":
            emit(to_junit(told))
        case "svg":
            emit(to_svg(told.runs[number - 1]))
        case _:
            emit(_table(told))


async def experiment(result: Path, *, data_dir: Path) -> None:
    """Send a result to Phoenix.

    Raises:
        MisuseError: the file is no result, or no Phoenix is known.
        TelemetryUnavailableError: Phoenix does not answer.
        CoatcheckError: Phoenix refuses.
    """
    from coatcheck.bench.experiments import Experiments  # noqa: PLC0415

    told, settings = _read(result), load_settings(data_dir)
    if settings.phoenix_url is None:
        raise MisuseError("no Phoenix is known", hint="`coatcheck up --phoenix`, or set PHOENIX_COLLECTOR_ENDPOINT")
    key = settings.phoenix_api_key.get_secret_value() if settings.phoenix_api_key else None
    privacy = Privacy(ContentCapture(settings.content_capture), settings.secrets)
    async with Experiments(settings.phoenix_url, api_key=key, privacy=privacy) as phoenix:
        new = await phoenix.publish(told)
    tell(f"{new} of {len(told.runs)} runs were new to Phoenix at {settings.phoenix_url}")


def _read(result: Path) -> BenchReport:
    try:
        return BenchReport.model_validate_json(result.read_bytes())
    except (OSError, ValidationError) as error:
        raise MisuseError(f"{result} is no result of `coatcheck bench … --json`") from error


def print_schema() -> None:
    """Print the JSON schema of a scenario."""
    emit_json(scenario_schema())


def scenario_schema() -> dict[str, object]:
    """The JSON schema of a scenario."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Scenario.model_json_schema()}


def _show(told: BenchReport, *, as_json: bool) -> None:
    if as_json:
        emit_json(told)
    else:
        emit(_table(told))
    wrong = sum(not item.passed for item in told.runs)
    if wrong:
        raise BenchFailedError(f"{wrong} of {len(told.runs)} runs broke a rule")


def _table(told: BenchReport) -> str:
    rows = [
        (
            item.scenario,
            str(item.repeat),
            item.status or "-",
            f"{item.seconds:.1f}",
            str(item.events),
            f"{item.tokens:,}",
            cost(item.usd),
            str(item.calls),
            "passed" if item.passed else f"{len(item.violations)} violations",
        )
        for item in told.runs
    ]
    listed = [
        f"\n{item.scenario} #{item.repeat}, {item.run_key}\n" + "".join(f"  {wrong}\n" for wrong in item.violations)
        for item in told.runs
        if item.violations
    ]
    return columns(_HEADER, rows) + "".join(listed)
