"""A stack with a provider beside it, and the hands that start runs, arm failpoints, kill and measure.

Every failpoint is compiled into the workers as `kill*1`, and disarmed: a firing takes a file, and all files are taken
beforehand. Arming a point is giving its file back, so one stack serves every test and tells whether the point fired.
"""

import asyncio
import json
import ssl
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import nats
from nats.aio.client import Client as NatsConnection
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError

from coatcheck.failpoints import POINTS
from coatcheck.localstack import DEFAULT_WORKERS, LocalStack, WorkerSpec
from coatcheck.localstack.status import MemberState, NatsStatus
from tests.chaos.checker import Violation, violations
from tests.chaos.evidence import Evidence, Investigator, Run
from tests.nats_cluster import Cluster, nats_cluster
from tests.providers.bill import BillLine
from tests.providers.openai_server import OpenAIServer
from tests.providers.script import Step

RECOVERY_SECONDS = 10.0
"""From a worker or server being back to the end of the run that it belonged to."""
LATENCY_SECONDS = 0.1
"""Of a model call: long enough to arm a point while a certain call is under way."""
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.02

COMMAND = """
import pathlib, sys, subprocess, time
prompt = sys.stdin.read()
subprocess.Popen(['sleep', '987654'], start_new_session=True)
for _ in range(1000):
    if not pathlib.Path('../backend/slow.txt').exists():
        break
    pathlib.Path('started').touch()
    time.sleep(0.01)
pathlib.Path('made.txt').write_text('by a command')
pathlib.Path('DELIVERABLE.md').write_text('# Patch' + chr(10) + 'What the command did. ' * 20)
"""
"""A coding agent: leaves a daemon behind, takes 10 s where the backend has `slow.txt`, and hands in a file."""
CONFIG = """
[roles.codex]
kind = "command"
task_type = "patch"
command = {command}
"""

_STARTED = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED


@dataclass(frozen=True)
class Findings:
    """What an inspection of runs has found."""

    evidence: list[Evidence]
    violations: list[Violation]

    @property
    def rules(self) -> set[str]:
        """The broken rules."""
        return {violation.rule for violation in self.violations}


class Lab:
    """Hands on one stack. `provider` is the judge's own, in this process: no kill reaches it."""

    def __init__(
        self,
        stack: LocalStack,
        *,
        provider: OpenAIServer,
        temporal: Client,
        investigator: Investigator,
        failpoints_dir: Path,
        cluster: Cluster | None = None,
    ) -> None:
        self.stack = stack
        self.cluster = cluster
        self.provider = provider
        self.temporal = temporal
        self._investigator = investigator
        self._failpoints_dir = failpoints_dir
        self._bill_lines: list[BillLine] = []
        self._bill_bytes = 0

    # --- runs ---------------------------------------------------------------------------------------------------

    async def start(
        self,
        feature: str,
        *,
        workflow_id: str | None = None,
        brief: str = "Build it.",
        long: bool = True,
        **more: object,
    ) -> Run:
        """Start a run; a `long` one has ten rounds and twelve turns, any other six of each unless scripted."""
        if long and not any(step.feature == feature for step in self.provider.script._steps):
            self.provider.script.add(*rework(feature))
        handle = await self.temporal.start_workflow(
            "FeaturePipeline",
            {"feature": feature, "brief": brief, **more},
            id=workflow_id or f"chaos/{feature}/{uuid.uuid4().hex[:8]}",
            task_queue="coatcheck",
        )
        assert handle.first_execution_run_id is not None
        return Run(handle.id, handle.first_execution_run_id, feature)

    async def calls(self, run: Run, count: int) -> None:
        """Wait until so many model calls of the run's feature have been begun."""
        await self._until(run, lambda: self.calls_begun(run.feature) >= count, f"{count} calls of {run.feature}")

    async def call_in_flight(self, run: Run) -> None:
        """Wait until a model call of the run's feature is under way."""

        def begun_and_not_finished() -> bool:
            events = Counter(line.event for line in self._bill() if line.feature == run.feature)
            return events["started"] > events["finished"]

        await self._until(run, begun_and_not_finished, f"a call of {run.feature} in flight")

    async def _until(self, run: Run, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that only a run under way can bring about."""
        ended = asyncio.create_task(self.ended(run))
        try:
            await until(lambda: condition() or ended.done(), what)
        finally:
            ended.cancel()
        if not condition():
            raise AssertionError(f"the run ended before {what}: {(await self.inspect(run)).violations}")

    def calls_begun(self, feature: str) -> int:
        """Model calls of the feature so far, finished or not."""
        return sum(line.event == "started" and line.feature == feature for line in self._bill())

    async def more_calls(self, count: int) -> None:
        """Wait until so many more model calls have been finished, whoever's they are."""
        before = self._calls_finished()
        await until(lambda: self._calls_finished() >= before + count, f"{count} more calls")

    async def ended(self, run: Run, *, patience_seconds: float = PATIENCE_SECONDS) -> float:
        """Wait for the end of a run, whatever happens to the server meanwhile; returns when it came (monotonic)."""
        handle = self.temporal.get_workflow_handle(run.workflow_id, run_id=run.last_run_id or run.first_run_id)
        async with asyncio.timeout(patience_seconds):
            while True:
                try:
                    await handle.result(follow_runs=False)
                except WorkflowFailureError:
                    return time.monotonic()
                except RPCError:
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    return time.monotonic()

    async def inspect(self, *runs: Run, may_be_repeated: int = 0) -> Findings:
        """Collect the evidence of runs that have ended, and judge it."""
        evidence = [await self._investigator.collect(run) for run in runs]
        found = violations(evidence, self._bill(), may_be_repeated=may_be_repeated)
        return Findings(evidence, found)

    # --- deaths -------------------------------------------------------------------------------------------------

    def arm(self, point: str) -> None:
        """Let the next process that comes to `point` die there."""
        self._taken(point).unlink()

    @contextmanager
    def armed(self, point: str) -> Iterator[Callable[[], bool]]:
        """Keep a point armed while the block runs that nobody should come to; yields whether somebody did."""
        self.arm(point)
        try:
            yield lambda: self.fired(point)
        finally:
            self._taken(point).touch()

    def fired(self, point: str) -> bool:
        """Whether an armed point has killed somebody."""
        return self._taken(point).exists()

    async def death(self, member: str, point: str) -> int:
        """Arm a point and wait until it has killed `member`; returns the pid that died."""
        pid = self.stack.pid(member)
        self.arm(point)
        await until(lambda: self.fired(point), f"a death at {point}")
        return pid

    async def back(self, member: str, dead: int) -> float:
        """Wait until the supervisor has brought a member back; returns when that was (monotonic)."""

        def running_again() -> bool:
            status = self.stack.status().member(member)
            return status.state == MemberState.RUNNING and status.pid not in (None, dead)

        await until(running_again, f"the {member} to be back")
        return time.monotonic()

    async def recovery(self, member: str, dead: int, *runs: Run) -> float:
        """Seconds from the member being back to the end of the last of the runs."""
        back = await self.back(member, dead)
        ends = await asyncio.gather(*(self.ended(run) for run in runs))
        return max(ends) - back

    async def restart(self, member: str) -> None:
        """Stop a member in order and start it again."""
        await asyncio.to_thread(self.stack.restart_member, member)

    @asynccontextmanager
    async def calls_held(self) -> AsyncIterator[None]:
        """Keep every model call in flight while the block runs."""
        self.provider.gate.clear()
        try:
            yield
        finally:
            self.provider.gate.set()

    async def attempt(self, run: Run, number: int) -> None:
        """Wait until an activity of the run has been started for the `number`th time."""
        handle = self.temporal.get_workflow_handle(run.workflow_id)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                pending = (await handle.describe()).raw_description.pending_activities
                if any(item.attempt == number and item.state == _STARTED for item in pending):
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def in_flight(self) -> int:
        """Turns in flight in the gateway that lived last, as the journal knows them: after its death, what it lost."""
        postgres = self.stack.status().postgres
        assert postgres is not None
        connection = await asyncpg.connect(postgres.dsn)
        try:
            count: int = await connection.fetchval(
                "SELECT count(*) FROM llm_turns WHERE status = 'in_flight' AND gateway_id ="
                " (SELECT gateway_id FROM llm_gateways ORDER BY seen_at DESC LIMIT 1)"
            )
        finally:
            await connection.close()
        return count

    def _calls_finished(self) -> int:
        return sum(line.event == "finished" for line in self._bill())

    def _bill(self) -> list[BillLine]:
        """Every line so far; only the new ones are read."""
        with self.provider.bill.open("rb") as file:
            file.seek(self._bill_bytes)
            for line in file:
                self._bill_bytes += len(line)
                self._bill_lines.append(BillLine.model_validate_json(line))
        return self._bill_lines

    def _taken(self, point: str) -> Path:
        return self._failpoints_dir / f"{point}.0"


def rework(feature: str) -> list[Step]:
    """Twelve turns instead of six: a revision, a failed test, and a tool call in the backend stage."""
    finding = {"id": "F1", "severity": "major", "where": "R1", "claim": "It is vague.", "wanted_change": "Say when."}
    revise = {"verdict": "revise", "findings": [finding]}
    return [
        Step(do="fetch", feature=feature, stage="backend", turn=1, times=None, arguments={"stage": "research"}),
        Step(feature=feature, stage="critique", round=1, times=None, arguments=revise),
        Step(feature=feature, stage="qa", round=1, times=None, arguments={"verdict": "fail", "rework": ["backend"]}),
    ]


LONG_TURNS = 12
SHORT_TURNS = 6


@asynccontextmanager
async def open_lab(
    folder: Path,
    *,
    workers: Sequence[WorkerSpec] = DEFAULT_WORKERS,
    env: dict[str, str] | None = None,
    settings: str = "",
    clustered: bool = False,
) -> AsyncIterator[Lab]:
    """Start provider and stack in `folder`; everything is stopped in the end. `settings` go before the role's.

    A `clustered` one has three NATS servers with TLS, and three replicas of every stream.
    """
    failpoints_dir = folder / "failpoints"
    failpoints_dir.mkdir()
    for point in POINTS:
        (failpoints_dir / f"{point}.0").touch()
    async with OpenAIServer(bill=folder / "bill.jsonl", latency_seconds=LATENCY_SECONDS) as provider:
        told = {
            "OPENAI_BASE_URL": provider.base_url,
            "COATCHECK_MODEL": "openai:test",
            "COATCHECK_FAILPOINTS": ",".join(f"{point}=kill*1" for point in sorted(POINTS)),
            "COATCHECK_FAILPOINTS_DIR": str(failpoints_dir),
        }
        config = folder / "coatcheck.toml"
        config.write_text(settings + CONFIG.format(command=json.dumps([sys.executable, "-c", COMMAND])))
        async with AsyncExitStack() as exits:
            cluster = exits.enter_context(nats_cluster(folder / "stack", config)) if clustered else None
            stack = await exits.enter_async_context(
                LocalStack(
                    folder / "stack",
                    workers=workers,
                    env=told | (cluster.environment if cluster else {}) | (env or {}),
                    external=cluster.external if cluster else None,
                    config_file=config,
                )
            )
            status = stack.status()
            assert status.temporal is not None
            assert status.nats is not None
            assert status.postgres is not None
            temporal = await Client.connect(status.temporal.address, namespace=status.temporal.namespace)
            async with _observer(status.nats, cluster) as observer:
                investigator = Investigator(
                    database_dsn=status.postgres.dsn,
                    observer=observer,
                    js_prefix=status.nats.users["observer"].js_prefix,
                    temporal=temporal,
                )
                yield Lab(
                    stack,
                    provider=provider,
                    temporal=temporal,
                    investigator=investigator,
                    failpoints_dir=failpoints_dir,
                    cluster=cluster,
                )


@asynccontextmanager
async def _observer(status: NatsStatus, cluster: Cluster | None) -> AsyncIterator[NatsConnection]:
    """A raw client that survives the kills of its server."""

    async def quiet(_: Exception) -> None:
        """Lost connections are the purpose here."""

    user = status.users["observer"]
    assert user.password_file is not None
    tls = {"tls": ssl.create_default_context(cafile=cluster.ca_file)} if cluster else {}
    connection = await nats.connect(
        status.url.split(","),
        user=user.user,
        password=user.password_file.read_text().strip(),
        inbox_prefix=user.inbox_prefix,
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        error_cb=quiet,
        **tls,
    )
    try:
        yield connection
    finally:
        await connection.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Look at the world from outside until it is so.

    Raises:
        TimeoutError: it did not come to that within a minute.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s for {what}")
        await asyncio.sleep(POLL_SECONDS)
