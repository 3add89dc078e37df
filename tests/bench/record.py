"""Records good runs of every scenario: `python -m tests.bench.record [SCENARIO …]`, after a change to what runs tell.

Each recording is judged before it is kept: the corpus that the mutants are made of has to be good.
"""

import asyncio
import gzip
import sys
import tempfile
from importlib import resources
from pathlib import Path

from coatcheck.bench.catalogue import load_scenario, scenario_ids
from coatcheck.bench.recording import Recording, read_recording
from coatcheck.bench.running import Runner
from coatcheck.localstack import LocalStack
from coatcheck.messaging.accounts import load_user
from coatcheck.messaging.client import NatsClient
from tests.acceptance.program import environment
from workers.temporal import connect

RECORDED = Path(__file__).parent / "recorded"
RUNS_EACH = 3
CONFIG = Path(str(resources.files("coatcheck.bench").joinpath("scenarios", "coatcheck.toml")))


def recorded(scenario: str | None = None) -> list[tuple[str, Recording]]:
    """The corpus: scenario and recording, in the order of the files."""
    paths = sorted(RECORDED.glob(f"{scenario or '*'}-*.jsonl.gz"))
    return [(path.name.rpartition("-")[0], _load(path)) for path in paths]


def _load(path: Path) -> Recording:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return Recording.from_lines(file)


def _save(path: Path, recording: Recording) -> None:
    # Without a time in its header, the same recording is the same file.
    path.write_bytes(gzip.compress(recording.to_lines().encode(), 9, mtime=0))


async def record(names: list[str]) -> None:
    """Run each scenario so often on a stack of its own, and keep what was recorded."""
    RECORDED.mkdir(exist_ok=True)
    env = environment(COATCHECK_SCRIPTED_LATENCY_SECONDS="0.02")
    with tempfile.TemporaryDirectory() as folder:
        async with LocalStack(Path(folder) / "stack", env=env, config_file=CONFIG) as stack:
            status = stack.status()
            assert status.nats is not None
            assert status.temporal is not None
            temporal = await connect(status.temporal.address, status.temporal.namespace)
            keys = Path(folder) / "stack" / "nats" / "keys"
            async with NatsClient(status.nats.url, user=load_user(keys, "observer"), name="record") as nats:
                runner = Runner(temporal, nats)
                for name in names or scenario_ids():
                    for number in range(1, RUNS_EACH + 1):
                        report = await runner.run(load_scenario(name), number)
                        print(
                            f"{name} {number}: {report.status}, {report.events} events, {report.violations or 'good'}"
                        )
                        assert report.passed
                        recording = await read_recording(nats, report.run_key)
                        _save(RECORDED / f"{name}-{number}.jsonl.gz", recording)


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
