"""The local stack: data survive, deaths are noticed and mended, nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from temporalio.client import Client

from coatcheck.errors import CoatcheckError, DependencyDownError
from coatcheck.localstack import LocalStack, StackConfig, WorkerSpec, load_status
from coatcheck.localstack.config import External
from coatcheck.localstack.leftovers import MARK
from coatcheck.localstack.stack import start_detached, stop_detached
from coatcheck.localstack.status import MemberState, StackState, alive

NewStack = Callable[..., LocalStack]

READY_THEN_WAIT = """
import os, pathlib, signal
pathlib.Path(os.environ["COATCHECK_READY_FILE"]).touch()
signal.sigwait({signal.SIGTERM})
"""
COATCHECK = (sys.executable, "-c", "from coatcheck.cli import main; main()")


def worker(code: str = READY_THEN_WAIT, **options: object) -> WorkerSpec:
    """A worker that runs `code`."""
    return WorkerSpec(name="probe", argv=(sys.executable, "-c", code), **options)  # type: ignore[arg-type]


def processes_of(data_dir: Path) -> list[int]:
    """Pids of everything that carries the stack's mark, found without the product's own code."""
    mark = f"{MARK}={data_dir}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_gone(pid: int) -> None:
    """Wait until `pid` has ended; our own child is reaped."""
    psutil.Process(pid).wait(30)


@pytest.fixture
def orphan_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose stack may outlive its supervisor; ended after the test whatever happened."""
    yield tmp_path / "orphan"
    stop_detached(tmp_path / "orphan")


async def test_data_survive_a_restart(tmp_path: Path) -> None:
    """What was written to PostgreSQL and Temporal is there after the stack was stopped and started again."""
    stack = LocalStack(tmp_path, servers=("postgres", "temporal"), workers=())
    async with stack:
        first = stack.status()
        assert first.postgres is not None
        assert first.temporal is not None
        connection = await asyncpg.connect(first.postgres.dsn)
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        await connection.close()
        client = await Client.connect(first.temporal.address)
        await client.start_workflow("Nothing", id="kept", task_queue="nobody")
    async with stack:
        second = stack.status()
        assert (second.postgres, second.temporal) == (first.postgres, first.temporal)
        connection = await asyncpg.connect(first.postgres.dsn)
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        await connection.close()
        client = await Client.connect(first.temporal.address)
        assert (await client.get_workflow_handle("kept").describe()).workflow_type == "Nothing"


@pytest.mark.parametrize("name", ["nats", "postgres", "temporal"])
def test_a_killed_server_comes_back_on_its_port(new_stack: NewStack, name: str) -> None:
    """A server that is killed with -9 is noticed and started again at the same address, and the status says so."""
    stack = new_stack(servers=(name,), workers=())
    before = stack.status()
    killed = stack.kill(name)
    stack.wait_running(name, other_than=killed, timeout_seconds=10)
    after = stack.status()
    assert (after.member(name).restarts, after.member(name).last_exit) == (1, "killed by SIGKILL")
    assert (after.nats, after.postgres, after.temporal) == (before.nats, before.postgres, before.temporal)
    assert f"{name} died (killed by SIGKILL)" in (stack.config.logs_dir / "supervisor.log").read_text()


def test_nobody_can_take_the_port_of_a_server_that_is_down(new_stack: NewStack) -> None:
    """The port is held while the server is away, so it comes back at the address that its clients know."""
    stack = new_stack(servers=("nats",), workers=())
    nats = stack.status().nats
    assert nats is not None
    stack.stop_member("nats")
    taker = (sys.executable, "-c", f"import socket; socket.socket().bind(('127.0.0.1', {nats.url.rpartition(':')[2]}))")
    assert b"Address already in use" in subprocess.run(taker, capture_output=True, check=False).stderr
    stack.start_member("nats", timeout_seconds=10)


def test_a_dying_worker_is_started_again_with_back_off(new_stack: NewStack) -> None:
    """A worker that keeps dying after it was ready is started again, each time a little later."""
    code = READY_THEN_WAIT.replace("signal.sigwait({signal.SIGTERM})", "import time; time.sleep(0.2); os._exit(7)")
    stack = new_stack(servers=(), workers=(worker(code),))
    member = stack.wait_member("probe", lambda member: member.restarts >= 3, timeout_seconds=20)
    assert member.last_exit == "exit code 7"
    log = (stack.config.logs_dir / "supervisor.log").read_text()
    for delay in ("0.2", "0.4", "0.8"):
        assert f"(exit code 7); starting it again in {delay} s" in log


def test_a_worker_that_cannot_start_ends_the_start_with_its_words(tmp_path: Path) -> None:
    """A stack whose worker fails says why, from the worker's log, and leaves nothing running."""
    stack = LocalStack(tmp_path, servers=(), workers=(worker("raise SystemExit('no such model')"),))
    with pytest.raises(DependencyDownError, match=r"probe failed to start \(exit code 1\)(?s:.*)no such model"):
        stack.start()
    assert stack.status().state == StackState.FAILED
    assert processes_of(tmp_path) == []


def test_a_clean_stop_leaves_no_process(tmp_path: Path) -> None:
    """After a stop nothing of the stack runs, not even a worker's child in a session of its own."""
    child = "import subprocess, sys; subprocess.Popen(['sleep', '300'], start_new_session=True)"
    stack = LocalStack(tmp_path, workers=(worker(child + READY_THEN_WAIT),))
    with stack:
        postgres = [child.pid for child in psutil.Process(stack.pid("postgres")).children()]
        running = [psutil.Process(pid) for pid in (*processes_of(tmp_path), *postgres)]
        # Three servers, PostgreSQL's own processes (checkpointer, writers, …), the worker and its child.
        assert len(running) > 5 + 3
    # An orphan is a zombie until the system's init collects it.
    assert [process for process in running if alive(process.pid, process.create_time())] == []
    assert processes_of(tmp_path) == []
    status = stack.status()
    assert status.state == StackState.STOPPED
    assert {member.state for member in (*status.servers, *status.workers)} == {MemberState.STOPPED}


def test_a_stack_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    """A test process that is killed leaves no servers behind."""
    code = f"""
import pathlib, sys
from coatcheck.localstack import LocalStack
stack = LocalStack(pathlib.Path({str(tmp_path)!r}), servers=("nats",), workers=())
stack.start()
print(stack.supervisor_pid, flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen((sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        supervisor = int(holder.stdout.readline())
        assert processes_of(tmp_path)
        holder.kill()
    wait_gone(supervisor)
    assert processes_of(tmp_path) == []


def test_two_stacks_side_by_side(new_stack: NewStack, tmp_path: Path) -> None:
    """Two stacks share no port, no key and no password, and one stops without the other."""
    one = new_stack(data_dir=tmp_path / "one", servers=("nats", "postgres"), workers=())
    with LocalStack(tmp_path / "two", servers=("nats", "postgres"), workers=()) as two:
        ports = [set(json.loads((stack.config.data_dir / "ports.json").read_text()).values()) for stack in (one, two)]
        assert ports[0].isdisjoint(ports[1])
        first, second = one.status(), two.status()
        assert first.nats is not None
        assert second.nats is not None
        assert first.nats.users["roy"].user != second.nats.users["roy"].user
    assert one.status().state == StackState.RUNNING
    with urllib.request.urlopen(f"{first.nats.monitor_url}/healthz") as answer:
        assert answer.status == 200


def test_up_after_the_supervisor_was_killed(orphan_dir: Path) -> None:
    """A supervisor killed with -9 orphans its members; the next start ends them and comes up on the same ports."""
    config = StackConfig(data_dir=orphan_dir, servers=("nats", "postgres"), workers=(worker(),))
    first = start_detached(config)
    assert first.supervisor.pid is not None
    orphans = processes_of(orphan_dir)
    os.kill(first.supervisor.pid, signal.SIGKILL)
    wait_gone(first.supervisor.pid)
    assert load_status(orphan_dir).state == StackState.CRASHED
    second = start_detached(config)
    assert (second.nats, second.postgres) == (first.nats, first.postgres)
    assert set(orphans).isdisjoint(processes_of(orphan_dir))
    assert "left behind" in (orphan_dir / "logs" / "supervisor.log").read_text()


def test_down_after_the_supervisor_was_killed(orphan_dir: Path) -> None:
    """`down` ends the members that a killed supervisor left, and the status says stopped."""
    first = start_detached(StackConfig(data_dir=orphan_dir, servers=("nats",), workers=(worker(),)))
    assert first.supervisor.pid is not None
    os.kill(first.supervisor.pid, signal.SIGKILL)
    wait_gone(first.supervisor.pid)
    assert stop_detached(orphan_dir)
    assert processes_of(orphan_dir) == []
    assert load_status(orphan_dir).state == StackState.STOPPED
    assert not stop_detached(orphan_dir)


def test_a_second_supervisor_is_refused(new_stack: NewStack) -> None:
    """Two supervisors never run one stack; the refused one does not touch the first one's servers."""
    stack = new_stack(servers=("nats",), workers=())
    before = stack.status()
    with pytest.raises(CoatcheckError, match="another `coatcheck up`"):
        LocalStack(stack.config.data_dir, servers=("nats",), workers=()).start()
    assert stack.status() == before


def test_a_server_hard_to_stop_is_killed_after_its_grace(new_stack: NewStack) -> None:
    """A worker that ignores SIGTERM is killed once its grace is over."""
    deaf = READY_THEN_WAIT.replace("signal.sigwait({signal.SIGTERM})", "signal.pause()").replace(
        "pathlib.Path", "signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path", 1
    )
    stack = new_stack(servers=(), workers=(worker(deaf, grace_seconds=0.3),))
    started = time.monotonic()
    stack.stop_member("probe", timeout_seconds=10)
    assert time.monotonic() - started < 5
    assert stack.status().member("probe").last_exit == "killed by SIGKILL"


def test_an_external_server_is_used_and_not_started(new_stack: NewStack, tmp_path: Path) -> None:
    """A server named by the environment is not started; workers are told its address."""
    told = READY_THEN_WAIT.replace("import", "import json,", 1).replace(
        "pathlib.Path", "pathlib.Path('told.json').write_text(json.dumps(dict(os.environ))); pathlib.Path", 1
    )
    told = f"import os; os.chdir({str(tmp_path)!r})\n" + told
    stack = new_stack(
        servers=("temporal", "nats"),
        workers=(worker(told),),
        external=External(temporal_address="temporal.example:7233"),
        env={"OPENAI_API_KEY": "secret", "DATABASE_URL": "postgresql://secret"},
    )
    status = stack.status()
    assert [server.name for server in status.servers] == ["nats"]
    assert status.temporal is not None
    assert status.temporal.ui_url is None
    environment = json.loads((tmp_path / "told.json").read_text())
    assert environment["TEMPORAL_ADDRESS"] == "temporal.example:7233"
    assert status.nats is not None
    assert environment["NATS_URL"] == status.nats.url
    assert not {"OPENAI_API_KEY", "DATABASE_URL", "GATEWAY_DATABASE_URL"} & environment.keys()


def test_status_json_has_every_documented_key(new_stack: NewStack) -> None:
    """`coatcheck status --json` is a contract: names as documented, files that exist, secrets only in 0600 files."""
    stack = new_stack(workers=(worker(),))
    data_dir = stack.config.data_dir
    done = subprocess.run(
        (*COATCHECK, "status", "--json", "--data-dir", str(data_dir)), capture_output=True, text=True, check=True
    )
    status = json.loads(done.stdout)
    assert {"address", "namespace", "ui_url", "cli"} <= status["temporal"].keys()
    assert {"url", "monitor_url", "users"} <= status["nats"].keys()
    assert {"observer", "cynthia", "sylvia", "roy", "jen", "billy", "priya"} <= status["nats"]["users"].keys()
    for name, user in status["nats"]["users"].items():
        secret = Path(user["password_file"] or user["nkey_file"])
        assert secret.stat().st_mode & 0o777 == 0o600, name
        assert user["user"]
        assert user["inbox_prefix"]
        assert user["js_prefix"]
    assert status["nats"]["users"]["observer"]["password_file"]
    assert status["postgres"]["dsn"].startswith("postgresql://coatcheck:")
    assert [(row["name"], row["state"]) for row in status["workers"]] == [("probe", "running")]
    assert status["workers"][0]["pid"] == stack.pid("probe")
    assert status["data_dir"] == str(data_dir)
    assert (data_dir / "status.json").stat().st_mode & 0o777 == 0o600
    assert os.access(status["temporal"]["cli"], os.X_OK)


def test_up_on_a_running_stack_is_harmless(new_stack: NewStack) -> None:
    """A second `coatcheck up`, detached or not, says that the stack runs and exits with 0."""
    stack = new_stack(servers=("nats",), workers=())
    before = stack.status()
    for flags in ([], ["--detach"]):
        command = (*COATCHECK, "up", *flags, "--data-dir", str(stack.config.data_dir))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")
        assert "already running" in done.stderr
    assert stack.status() == before


def test_status_of_nothing(tmp_path: Path) -> None:
    """Where nothing was ever started, `status` says stopped and exits with 3, `down` with 0."""
    status = subprocess.run(
        (*COATCHECK, "status", "--json", "--data-dir", str(tmp_path)), capture_output=True, text=True, check=False
    )
    assert (status.returncode, json.loads(status.stdout)["state"]) == (3, "stopped")
    down = subprocess.run(
        (*COATCHECK, "down", "--data-dir", str(tmp_path)), capture_output=True, text=True, check=False
    )
    assert (down.returncode, down.stdout) == (0, "")
    assert "nothing runs" in down.stderr
