"""`make bench`: measures everything that the README claims about speed and size, and fails when a limit is broken."""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import asyncpg
import nats
from rich.console import Console
from rich.table import Table

from coatcheck.localstack import DEFAULT_WORKERS, LocalStack, StackStatus, WorkerSpec
from coatcheck.messaging.accounts import load_user
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.storage.database import Pool, open_pool
from coatcheck.storage.events import ARCHIVER_LOCK, PROJECTOR_LOCK, sole_reader
from schemas.deliverable import DeliverableRef
from schemas.pipeline import Pipeline, Stage
from tests.benchmarks.ledger import measure_ledger
from tests.benchmarks.measure import disk_bytes, run_batch, run_once
from tests.benchmarks.noop import NAMESPACE
from tests.benchmarks.projector import measure_projector
from tests.benchmarks.silent import NAMESPACE as SILENT_NAMESPACE
from tests.benchmarks.storm import POLICIES, SHAPES, against, play_all
from tests.benchmarks.telemetry import measure_telemetry
from tests.benchmarks.tools import measure_tools
from workers.temporal import connect

ROUNDS: Final = 8
"""Of the default pipeline with one revise round: six stages, research and critique twice."""
REPORT_BYTES: Final = 19_700
"""With its metadata a deliverable of 20 KB, as in the comparison with other orchestrators."""
REAL: Final = ("temporal", "nats", "postgres", "core", "agents", "gateway")
NOOP: Final = ("temporal", "noop-core", "noop-agents")
SILENT: Final = ("temporal", "nats", "postgres", "silent-core", "silent-agents", "gateway")
SECTIONS: Final = ("noop", "fetch", "bytes", "flight", "events", "ledger", "tools", "telemetry", "market")
PROJECTED_PER_SECOND: Final = 3000
"""Events that the projector has to keep up with."""
TRANSFERS_PER_SECOND: Final = 900
"""Of 50 clients on one hot account."""


@dataclass(frozen=True)
class Figure:
    """One measured figure and its limit."""

    name: str
    value: float
    limit: float | None
    """`None` for one that is told for comparison."""
    unit: str
    detail: str

    @property
    def holds(self) -> bool:
        """Whether the figure is within its limit."""
        return self.limit is None or self.value <= self.limit


def _workers(module: str) -> tuple[WorkerSpec, ...]:
    return tuple(
        WorkerSpec(
            name=f"{module}-{kind}",
            argv=(sys.executable, "-m", f"tests.benchmarks.{module}", kind),
            access=("database",) if kind == "core" else (),
        )
        for kind in ("core", "agents")
    )


def _stack(
    folder: Path, latency_seconds: float, *beside: str, variables: Mapping[str, str] | None = None
) -> LocalStack:
    """The product's own stack, with a model that costs nothing in its gateway; beside it the workers of `beside`."""
    prepared = {"BENCH_LATENCY_SECONDS": str(latency_seconds), "BENCH_REPORT_BYTES": str(REPORT_BYTES)}
    workers = tuple(
        worker.model_copy(update={"argv": (sys.executable, "-m", "tests.benchmarks.gateway"), "env": prepared})
        if worker.name == "gateway"
        else worker
        for worker in DEFAULT_WORKERS
    )
    # The prepared model builds nothing that could be checked: what a check costs is its command's affair.
    config = folder.with_suffix(".toml")
    config.write_text('[roles.billy]\nevidence = "if_declared"\n')
    workers += tuple(worker for module in beside for worker in _workers(module))
    return LocalStack(
        folder, env={"COATCHECK_MODEL": "scripted", **(variables or {})}, workers=workers, config_file=config
    )


async def against_noop(stack: LocalStack) -> list[Figure]:
    """The whole pipeline with a zero-latency model against the same workflow with activities that do nothing."""
    address = stack.status().temporal.address  # type: ignore[union-attr]
    real, noop = await connect(address, "default"), await connect(address, NAMESPACE)
    real_pids, noop_pids = [stack.pid(name) for name in REAL], [stack.pid(name) for name in NOOP]
    await asyncio.gather(*(run_once(client) for client in (real, noop) for _ in range(5)))
    alone = [(await run_once(real), await run_once(noop)) for _ in range(20)]
    latency = statistics.median(ours / theirs for ours, theirs in alone)
    added = statistics.median((ours - theirs) / ROUNDS * 1000 for ours, theirs in alone)
    pairs = []
    for _ in range(4):
        ours = await run_batch(real, 24, in_flight=8, pids=real_pids)
        theirs = await run_batch(noop, 24, in_flight=8, pids=noop_pids)
        pairs.append((ours, theirs))
    cpu = statistics.median(a.cpu_milliseconds_per_run / b.cpu_milliseconds_per_run for a, b in pairs)
    busy = statistics.median(a.median_seconds / b.median_seconds for a, b in pairs)
    ours, theirs = pairs[-1]
    return [
        Figure(
            "latency of a run alone, against no-op", latency, 1.5, "x", f"{_ms(alone, 0)} against {_ms(alone, 1)} ms"
        ),
        Figure(
            "CPU of a run, against no-op",
            cpu,
            1.5,
            "x",
            f"{ours.cpu_milliseconds_per_run:.0f} against {theirs.cpu_milliseconds_per_run:.0f} ms",
        ),
        Figure("latency at 8 in flight, against no-op", busy, 1.5, "x", f"{24 / ours.wall_seconds:.1f} runs/s"),
        Figure("added time per round, alone", added, 25, "ms", "medians of 20 interleaved pairs"),
    ]


def _ms(pairs: Sequence[tuple[float, float]], index: int) -> str:
    return f"{statistics.median(pair[index] for pair in pairs) * 1000:.0f}"


async def telling(stack: LocalStack, *, alone: int, batches: int, in_flight: int) -> tuple[float, float, str, str]:
    """Runs that tell what happens against the same runs that tell nothing.

    The projector stands by meanwhile, since to fill the table is no part of a run (its cost is a figure of its own),
    and so does the archiver, which copies the deliverables of both.

    Returns:
        Ratios of latency and CPU, and what they were made of.
    """
    status = stack.status()
    assert status.temporal is not None
    assert status.postgres is not None
    clients = [await connect(status.temporal.address, namespace) for namespace in ("default", SILENT_NAMESPACE)]
    pids = [[stack.pid(name) for name in names] for names in (REAL, SILENT)]
    pairs = []
    async with (
        open_pool(status.postgres.dsn) as pool,
        _stands_by(pool, PROJECTOR_LOCK),
        _stands_by(pool, ARCHIVER_LOCK),
    ):
        await asyncio.gather(*(run_once(client) for client in clients for _ in range(5)))
        latencies = [(await run_once(clients[0]), await run_once(clients[1])) for _ in range(alone)]
        for _ in range(batches):
            both = [
                await run_batch(client, 16, in_flight=in_flight, pids=ids)
                for client, ids in zip(clients, pids, strict=True)
            ]
            pairs.append([batch.cpu_milliseconds_per_run for batch in both])
    latency = statistics.median(ours / theirs for ours, theirs in latencies)
    cpu = statistics.median(ours / theirs for ours, theirs in pairs)
    ours, theirs = (statistics.median(pair[index] for pair in pairs) for index in (0, 1))
    return (
        latency,
        cpu,
        f"{_ms(latencies, 0)} against {_ms(latencies, 1)} ms",
        f"{ours:.0f} against {theirs:.0f} ms",
    )


async def events_added(folder: Path) -> list[Figure]:
    """What telling adds to a run as `make demo` makes it, and to one whose model answers at once, which none does."""
    author = {"COATCHECK_MODEL": "scripted"}
    workers = (*DEFAULT_WORKERS, *_workers("silent"))
    async with LocalStack(folder / "demo", env=author, workers=workers) as stack:
        latency, cpu, times, work = await telling(stack, alone=3, batches=6, in_flight=16)
    async with _stack(folder / "events", 0, "silent") as stack:
        at_once = await telling(stack, alone=30, batches=8, in_flight=8)
    return [
        Figure("latency of a run that tells, against a silent one", latency, 1.05, "x", times),
        Figure("CPU of a run that tells, against a silent one", cpu, 1.05, "x", work),
        Figure("the same latency with a model that answers at once", at_once[0], None, "x", at_once[2]),
        Figure("the same CPU with a model that answers at once", at_once[1], None, "x", at_once[3]),
    ]


@asynccontextmanager
async def _stands_by(pool: Pool, lock: int) -> AsyncIterator[None]:
    """Hold the lock of a reader; the one that has it now is cut off."""
    while True:
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND pid <> pg_backend_pid() AND (classid::bigint << 32) + objid::bigint = $1",
            lock,
        )
        async with sole_reader(pool, lock) as connection:
            if connection is not None:
                yield
                return


async def projecting(folder: Path) -> Figure:
    """Events per second into the table, as the share of a second that the wanted number takes."""
    measured = await measure_projector(folder)
    detail = (
        f"{measured.backlog:,.0f}/s of a backlog; it kept pace with one publisher at {measured.live:,.0f}/s; "
        f"rebuilt at {measured.rebuilding:,.0f}/s"
    )
    return Figure(
        f"projecting {PROJECTED_PER_SECOND:,} events", PROJECTED_PER_SECOND / measured.backlog, 1, "s", detail
    )


async def accounting(folder: Path) -> list[Figure]:
    """The ledger's hot account, a reservation as an agent asks for it, and the auction."""
    measured = await measure_ledger(folder)
    detail = (
        f"{measured.transfers_per_second:,.0f}/s, 50 clients x 1,000; {measured.serializable_per_second:,.0f}/s under "
        "SERIALIZABLE; the books are right after both"
    )
    seconds = TRANSFERS_PER_SECOND / measured.transfers_per_second
    return [
        Figure(f"{TRANSFERS_PER_SECOND} transfers on one account", seconds, 1, "s", detail),
        Figure("reserve by request and reply", measured.reserve_milliseconds, 5, "ms", "median of 500, alone"),
        Figure("auction of 10,000 bids", measured.auction_milliseconds, 100, "ms", "median of 10"),
    ]


async def observing(folder: Path) -> list[Figure]:
    """What telemetry adds to a run whose model answers at once, and what a backend that is not well does to it."""
    found = await measure_telemetry(
        lambda name, variables: _stack(folder / f"telemetry-{name}", 0, variables=variables), REAL
    )
    detail = f"{found.cpu_without:.0f} ms without; traces, log lines and metrics over OTLP"
    return [
        Figure("CPU that telemetry adds to a run", found.cpu_milliseconds, 20, "ms", detail),
        Figure("spans of a run", found.spans, 45, "", "with one revise round"),
        Figure("traces of a run", found.kilobytes, 300, "KB", "uncompressed"),
        Figure("latency of a run alone with telemetry, against without", found.wall, 1.05, "x", "40 interleaved pairs"),
        *(
            Figure(f"the same with a backend that {how}", ratio, 1.05, "x", "40 interleaved pairs")
            for how, ratio in found.wall_by_backend.items()
        ),
        *(
            Figure(f"a worker ends while its backend {how}", seconds, 3, "s", "the slowest of three")
            for how, seconds in found.exit_seconds.items()
        ),
    ]


async def fetching(status: StackStatus) -> Figure:
    """Fetch a 20 KB deliverable, verified and parsed, against a bare nats-py get of the same message."""
    assert status.nats is not None
    user = load_user(status.data_dir / "nats" / "keys", "observer")
    password = user.password.get_secret_value() if user.password else ""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(NatsClient(status.nats.url, name="bench", user=user))
        service = DeliverableService(client)
        bare = await nats.connect(
            status.nats.url, user=user.user, password=password, inbox_prefix=user.inbox_prefix.encode()
        )
        stack.push_async_callback(bare.close)
        jetstream = bare.jetstream(prefix=user.js_prefix)
        last = await jetstream.stream_info("agog_features_research")
        sequence = last.state.last_seq
        message = await jetstream.get_msg("agog_features_research", sequence)
        assert message.headers is not None
        assert message.data is not None
        ref = DeliverableRef(
            stream="agog_features_research",
            sequence=sequence,
            sha256=message.headers["Content-SHA256"],
            bytes=len(message.data),
        )
        ours, theirs = [], []
        for _ in range(400):
            started = time.perf_counter()
            await service.fetch(ref)
            middle = time.perf_counter()
            await jetstream.get_msg("agog_features_research", sequence)
            ours.append(middle - started)
            theirs.append(time.perf_counter() - middle)
    ratio = statistics.median(ours) / statistics.median(theirs)
    detail = (
        f"{statistics.median(ours) * 1e6:.0f} against {statistics.median(theirs) * 1e6:.0f} µs, {ref.bytes:,} bytes"
    )
    return Figure("fetch of a deliverable, against a bare get", ratio, 2.0, "x", detail)


FIVE_STAGES: Final = Pipeline(
    name="five",
    stages=(
        Stage(name="research", agent="cynthia", task_type="research"),
        Stage(name="backend", agent="roy", task_type="backend", needs=("research",)),
        Stage(name="frontend", agent="jen", task_type="frontend", needs=("research", "backend")),
        Stage(name="statistics", agent="priya", task_type="statistics", needs=("research",)),
        Stage(name="summary", agent="priya", task_type="statistics", needs=("statistics",)),
    ),
)
"""Five rounds without a revision, as in the comparison with LangGraph and DBOS (20 KB x 5)."""


async def stored_bytes(stack: LocalStack, batches: int = 15, runs: int = 40) -> Figure:
    """Bytes that a run leaves behind in all three stores, five deliverables of 20 KB each.

    JetStream compresses a block of 8 MB once it is full: 600 runs fill one and a half for each agent, from an empty
    stack on, so what is not compressed yet has its usual share. Between the batches the tables are vacuumed, as
    autovacuum does every minute: what a row occupied before it was updated is used again.
    """
    status = stack.status()
    assert status.temporal is not None
    client = await connect(status.temporal.address, "default")
    await run_once(client, FIVE_STAGES)
    before = await _stored(status)
    for _ in range(batches):
        await run_batch(client, runs, in_flight=10, pids=[], pipeline=FIVE_STAGES)
        after = await _stored(status)
    parts = {name: (after[name] - before[name]) / (batches * runs) / 1000 for name in after}
    detail = ", ".join(f"{name} {value:.0f}" for name, value in parts.items())
    return Figure("stored per run, 5 x 20 KB", sum(parts.values()), 180, "KB", detail)


async def _stored(status: StackStatus) -> dict[str, int]:
    assert status.postgres is not None
    database = await asyncpg.connect(status.postgres.dsn)
    for table in ("workflows", "task_executions", "events", "agent_playground_messages", "llm_turns"):
        await database.execute(f"VACUUM {table}")
    size = await database.fetchval("SELECT pg_database_size(current_database())")
    await database.close()
    folder = status.data_dir
    return {
        "JetStream": disk_bytes(folder / "nats"),
        "PostgreSQL": size,
        "Temporal": disk_bytes(folder / "temporal"),
    }


async def in_flight(stack: LocalStack, latency_seconds: float) -> Figure:
    """150 runs at once, each model call 2 s: how far the median is from no overhead at all."""
    status = stack.status()
    assert status.temporal is not None
    client = await connect(status.temporal.address, "default")
    await run_once(client)
    batch = await run_batch(client, 150, in_flight=150, pids=[stack.pid(name) for name in REAL])
    ideal = ROUNDS * latency_seconds
    detail = (
        f"median {batch.median_seconds:.1f} s, ideal {ideal:.0f} s, {batch.cpu_milliseconds_per_run:.0f} ms CPU per run"
    )
    return Figure("150 in flight with 2 s calls, against ideal", batch.median_seconds / ideal, 1.25, "x", detail)


async def tool_calls(folder: Path) -> list[Figure]:
    """What the gateway adds to a call of a tool that does nothing, and what 200 of them cost."""
    found = await measure_tools(folder)
    alone = f"{found.through_ms:.1f} against {found.direct_ms:.1f} ms, medians of interleaved pairs"
    busy = f"{found.cpu_ms:.1f} ms each, two cores have 10; {found.per_second:.0f} calls/s"
    return [
        Figure("added to a tool call by the gateway", found.added_ms, 8, "ms", alone),
        Figure("CPU of 200 tool calls, everything included", 200 * found.cpu_ms / 1000, 2, "s", busy),
    ]


def storms() -> list[Figure]:
    """The market in storms against other policies; where it stands against priority keys is told, and not limited."""
    outcomes = play_all(10)
    figures = []
    for shape in SHAPES:
        for policy in POLICIES[:-1]:
            ratio, detail = against(outcomes, shape, policy)
            limit = None if "priorities" in policy else 1
            figures.append(Figure(f"storm {shape}: {policy}, against the market", ratio, limit, "x", detail))
    missing = max(one.short for shape in SHAPES for one in outcomes[shape, POLICIES[-1]])
    detail = "of every agent that waited, in every minute of all storms"
    return [*figures, Figure("missing to a floor in the market, at the worst", missing, 2, "calls", detail)]


async def measure(sections: Sequence[str]) -> list[Figure]:
    """Run the named sections, all by default."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="coatcheck-bench-") as folder:
        async with _stack(Path(folder) / "zero", 0, "noop") as stack:
            if "noop" in sections:
                figures += await against_noop(stack)
            await run_once(await connect(stack.status().temporal.address, "default"))  # type: ignore[union-attr]
            if "fetch" in sections:
                figures.append(await fetching(stack.status()))
        if "bytes" in sections:
            async with _stack(Path(folder) / "bytes", 0) as stack:
                figures.append(await stored_bytes(stack))
        if "flight" in sections:
            async with _stack(Path(folder) / "slow", 2) as stack:
                figures.append(await in_flight(stack, 2))
        if "events" in sections:
            figures += await events_added(Path(folder))
            figures.append(await projecting(Path(folder) / "projector"))
        if "ledger" in sections:
            figures += await accounting(Path(folder) / "ledger")
        if "telemetry" in sections:
            figures += await observing(Path(folder))
        if "tools" in sections:
            figures += await tool_calls(Path(folder) / "tools")
        if "market" in sections:
            figures += await asyncio.to_thread(storms)
    return figures


def main() -> int:
    """Measure, print, and say by the exit code whether every limit holds."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    figures = asyncio.run(measure(arguments or list(SECTIONS)))
    if "--json" in sys.argv:
        print(json.dumps([{**asdict(figure), "holds": figure.holds} for figure in figures], indent=2))
    else:
        table = Table("figure", "measured", "limit", "", "detail")
        for figure in figures:
            limit = "" if figure.limit is None else f"{figure.limit:g} {figure.unit}"
            verdict = "" if figure.limit is None else "ok" if figure.holds else "OVER"
            table.add_row(figure.name, f"{figure.value:.2f} {figure.unit}", limit, verdict, figure.detail)
        Console(width=140).print(table)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
