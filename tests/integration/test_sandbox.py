"""The sandbox on real processes, at every level of isolation that this machine has."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from coatcheck.economy.grants import Grant
from coatcheck.errors import ChecksUnavailableError
from coatcheck.workspace.isolation import hides_files_by_landlock, refusal
from coatcheck.workspace.sandbox import Finished, Sandbox, detect_isolation
from schemas.config import CheckLimits
from schemas.evidence import MAX_OUTPUT_TAIL_CHARACTERS, CheckOutcome, Isolation

LEVELS = [level for level in Isolation if refusal(level) is None]
WITHOUT_NETWORK = [level for level in LEVELS if level is not Isolation.LIMITS]
HIDING = LEVELS if hides_files_by_landlock() else WITHOUT_NETWORK
MARK = "SANDBOX_TEST_MARK"

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("ready", "w").close()
        time.sleep(600)
    os._exit(0)
while not os.path.exists("ready"):
    time.sleep(0.01)
"""
"""Leaves a process behind that has a session of its own and no parent."""

WORKER = f"""
import asyncio, os, sys
from pathlib import Path
from coatcheck.workspace.sandbox import Sandbox
from schemas.config import CheckLimits
from schemas.evidence import Isolation

root = Path(sys.argv[1])
sandbox = Sandbox(CheckLimits(), isolation=Isolation(sys.argv[2]))
daemon_and_wait = {DAEMON!r} + "time.sleep(600)"
command = ["python", "-c", daemon_and_wait]
env = {{{MARK!r}: sys.argv[3]}}
asyncio.run(sandbox.run(command, cwd=root, root=root, env=env, timeout_seconds=600))
"""


@dataclass
class Lab:
    """A sandbox, a workspace, and a mark by which its processes are found wherever they hide."""

    root: Path
    sandbox: Sandbox
    mark: str

    async def python(self, code: str, *, timeout_seconds: float = 60, **options: object) -> Finished:
        """Run a program in the sandbox."""
        return await self.command("python", "-c", code, timeout_seconds=timeout_seconds, **options)

    async def command(self, *argv: str, timeout_seconds: float = 60, **options: object) -> Finished:
        """Run a command in the sandbox."""
        env = {MARK: self.mark, **options.pop("env", {})}  # type: ignore[dict-item]
        return await self.sandbox.run(
            argv, cwd=self.root, root=self.root, env=env, timeout_seconds=timeout_seconds, **options
        )  # type: ignore[arg-type]

    async def appears(self, name: str) -> None:
        """Wait for a file in the workspace."""
        while not (self.root / name).exists():
            await asyncio.sleep(0.01)


def marked(mark: str) -> list[int]:
    """Every living process of a test, in whatever namespace."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Isolation:
    """Each level in turn."""
    return request.param


@pytest.fixture
def lab(tmp_path: Path, level: Isolation) -> Iterator[Lab]:
    """A sandbox that hides the folder `data` of the test, except the workspace in it; nothing is left of it."""
    root = tmp_path / "data" / "workspaces" / "w1"
    root.mkdir(parents=True)
    sandbox = Sandbox(CheckLimits(), isolation=level, hidden=[tmp_path / "data"])
    lab = Lab(root=root, sandbox=sandbox, mark=uuid.uuid4().hex)
    yield lab
    left = marked(lab.mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def limited(lab: Lab, **limits: int) -> Lab:
    """The same with other limits."""
    return Lab(lab.root, Sandbox(CheckLimits(**limits), isolation=lab.sandbox.isolation), lab.mark)  # type: ignore[arg-type]


# --- levels -------------------------------------------------------------------------------------------------------


def test_some_level_was_tested() -> None:
    """The strongest level that works is chosen, and the weakest always works."""
    assert Isolation.LIMITS in LEVELS
    assert detect_isolation() is LEVELS[0]


def test_required_isolation_is_not_given_up() -> None:
    """A team that requires isolation gets an error where there is none, not an open network."""
    with pytest.raises(ChecksUnavailableError, match="require_isolation") as caught:
        Sandbox(CheckLimits(require_isolation=True), isolation=Isolation.LIMITS)
    assert "bubblewrap" in str(caught.value.hint)


def test_a_level_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody gets less than was asked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    refusal.cache_clear()
    with pytest.raises(ChecksUnavailableError, match="bwrap is not installed"):
        Sandbox(CheckLimits(), isolation=Isolation.BUBBLEWRAP)
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions to create a namespace; exit 1")
    (tmp_path / "bwrap").chmod(0o755)
    refusal.cache_clear()
    with pytest.raises(ChecksUnavailableError, match="No permissions to create a namespace"):
        Sandbox(CheckLimits(), isolation=Isolation.BUBBLEWRAP)
    assert detect_isolation() is not Isolation.BUBBLEWRAP
    refusal.cache_clear()


# --- what a command gets ------------------------------------------------------------------------------------------


async def test_surroundings(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our interpreter, the workspace as home, temporary files in it, and no variable of the worker."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    finished = await lab.python(
        "import os, sys, tempfile; print(sys.executable, os.getcwd(), tempfile.gettempdir(), *sorted(os.environ))",
        env={"GIVEN": "1"},
    )
    executable, cwd, temporary, *names = finished.output_tail.split()
    assert (executable, cwd) == (sys.executable, str(lab.root))
    assert temporary.startswith(f"{lab.root}/")
    assert set(names) - {"LC_CTYPE"} == {"PATH", "HOME", "LANG", "TMPDIR", "GIVEN", MARK}
    assert finished.outcome is CheckOutcome.PASSED
    assert finished.exit_code == 0
    assert 0 < finished.seconds < 60


async def test_python_in_a_script_is_ours(lab: Lab) -> None:
    """`python` is found by other programs, too."""
    finished = await lab.command("sh", "-c", "python -c 'import sys; print(sys.prefix)'")
    assert finished.output_tail.strip() == sys.prefix


async def test_the_workspace_is_writable(lab: Lab) -> None:
    """Files stay, with the worker's user as owner."""
    assert (await lab.python("import os; os.mkdir('a'); open('a/b', 'w').write('x')")).exit_code == 0
    assert (lab.root / "a" / "b").read_text() == "x"
    assert (lab.root / "a" / "b").stat().st_uid == os.getuid()
    assert [path.name for path in lab.root.iterdir()] == ["a"]


async def test_a_workspace_by_another_name(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, or through a link that is hidden from the command."""
    (tmp_path / "link").symlink_to(lab.root)
    monkeypatch.chdir(tmp_path)
    finished = await lab.sandbox.run(["pwd"], cwd=Path("link"), root=Path("link"), timeout_seconds=60)
    assert finished.output_tail == f"{lab.root}\n"


async def test_exit_codes(lab: Lab) -> None:
    """Of the program, or of the signal that ended it."""
    finished = await lab.python("import sys; sys.exit(3)")
    assert (finished.outcome, finished.exit_code) == (CheckOutcome.FAILED, 3)
    finished = await lab.command("sh", "-c", "kill -TERM $$")
    assert (finished.outcome, finished.exit_code) == (CheckOutcome.FAILED, -signal.SIGTERM)


@pytest.mark.parametrize(("program", "reason"), [("no-such-program", "No such file"), ("./plain", "Permission denied")])
async def test_what_cannot_be_started(lab: Lab, program: str, reason: str) -> None:
    """Is a result with a reason."""
    (lab.root / "plain").write_text("text")
    finished = await lab.command(program)
    assert (finished.outcome, finished.exit_code) == (CheckOutcome.NOT_STARTED, None)
    assert program in finished.output_tail
    assert reason in finished.output_tail


async def test_standard_input(lab: Lab) -> None:
    """Is read whole, or not at all, without harm."""
    data = b"x" * 8_000_000
    assert (await lab.command("wc", "-c", stdin=data)).output_tail.strip() == "8000000"
    assert (await lab.command("true", stdin=data)).exit_code == 0


async def test_output(lab: Lab) -> None:
    """The tail is short and harmless; the caller gets all of it as it comes."""
    pieces: list[bytes] = []
    said = b"\x00\x1b[31mred\x1b[0m \xff\x07 \xe2\x80\xae\r\nend\n"
    code = f"import os; os.write(1, b'a' * 9000); os.write(2, {said!r})"
    finished = await lab.python(code, on_output=pieces.append)
    assert finished.output_tail.endswith("a\ufffdred \ufffd\ufffd \ufffd\nend\n")
    assert len(finished.output_tail) == MAX_OUTPUT_TAIL_CHARACTERS
    assert len(b"".join(pieces)) == 9000 + len(said)


async def test_a_caller_that_fails_ends_the_command(lab: Lab) -> None:
    """The error comes out when nothing is left of the command."""

    def fail(_: bytes) -> None:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        await lab.python(f"{DAEMON}\nprint('x', flush=True); time.sleep(600)", on_output=fail)


# --- what is kept from it -----------------------------------------------------------------------------------------


@dataclass
class Canary:
    """A server that counts who reaches it."""

    port: int
    visits: int = 0


@pytest.fixture
def canary() -> Iterator[Canary]:
    """A listening socket on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        canary = Canary(server.getsockname()[1])

        def count() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    if connection.recv(4) == b"stop":
                        return
                canary.visits += 1

        thread = threading.Thread(target=count)
        thread.start()
        yield canary
        with socket.create_connection(("127.0.0.1", canary.port)) as last:
            last.sendall(b"stop")
        thread.join()


@pytest.mark.parametrize("level", WITHOUT_NETWORK, indirect=True)
async def test_no_network(lab: Lab, canary: Canary) -> None:
    """The machine cannot be reached, the command's own servers can; with leave, everything can."""
    visit = f"import socket; socket.create_connection(('127.0.0.1', {canary.port}), timeout=5).close()"
    finished = await lab.python(visit)
    assert "ConnectionRefusedError" in finished.output_tail
    own = "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()); print('own')"
    assert (await lab.python(f"import socket; {own}")).output_tail == "own\n"
    out = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9))"
    assert "Network is unreachable" in (await lab.python(out)).output_tail
    assert canary.visits == 0
    assert (await lab.python(visit, network=True)).exit_code == 0
    assert canary.visits == 1


@pytest.mark.parametrize("level", HIDING, indirect=True)
async def test_keys_are_hidden(lab: Lab, tmp_path: Path) -> None:
    """The data folder has nothing but the workspace, however it is looked for."""
    keys = tmp_path / "data" / "nats" / "keys"
    keys.mkdir(parents=True)
    (keys / "roy.nk").write_text("SUSECRET")
    (lab.root / "link").symlink_to(keys)
    for command in (
        f"cat {keys}/roy.nk",
        "cat link/roy.nk",
        "cat ../../nats/keys/roy.nk",
        f"umount {tmp_path}/data; cat {keys}/roy.nk",
        f"unshare --user --map-root-user --mount sh -c 'umount -l {tmp_path}/data; cat {keys}/roy.nk'",
        f"mkdir up; mount --bind {tmp_path} up; cat up/data/nats/keys/roy.nk",
        f"cat /proc/1/root{keys}/roy.nk /proc/*/root{keys}/roy.nk /proc/*/cwd/../../nats/keys/roy.nk",
        f"rm -rf {tmp_path}/data/nats; rm -rf ../../nats",
    ):
        finished = await lab.command("sh", "-c", command)
        assert "SUSECRET" not in finished.output_tail
    assert (keys / "roy.nk").read_text() == "SUSECRET"


@pytest.mark.parametrize("level", HIDING, indirect=True)
async def test_homes_are_hidden(lab: Lab) -> None:
    """Logins of the worker's user are there."""
    home = Path.home()
    code = f"import os\ntry: print(os.listdir({str(home)!r}))\nexcept PermissionError: print([])"
    ours = {path for path in map(Path, (sys.prefix, sys.base_prefix, lab.root)) if path.is_relative_to(home)}
    seen = (await lab.python(code)).output_tail
    assert seen == f"{sorted({path.relative_to(home).parts[0] for path in ours})}\n" or seen == "[]\n"


@pytest.mark.parametrize("level", HIDING, indirect=True)
async def test_a_given_home_is_visible_but_for_the_keys(lab: Lab, tmp_path: Path) -> None:
    """A coding agent's login is in the home that it is given; the data folder may be there as well."""
    (tmp_path / ".agent").mkdir()
    (tmp_path / ".agent" / "login").write_text("login")
    (tmp_path / "data" / "key").write_text("SUSECRET")
    finished = await lab.command(
        "sh", "-c", f"cat ~/.agent/login; touch ~/.agent/session; cat {tmp_path}/data/key", env={"HOME": str(tmp_path)}
    )
    assert finished.output_tail.startswith("login")
    assert "SUSECRET" not in finished.output_tail
    assert (tmp_path / ".agent" / "session").exists()


@pytest.mark.parametrize("level", HIDING, indirect=True)
async def test_the_system_is_read_only(lab: Lab) -> None:
    """Also for root: its code, the settings of the kernel, our own interpreter."""
    paths = ("/etc/hosts", "/proc/sys/kernel/core_pattern", f"{sys.prefix}/pyvenv.cfg", __file__)
    for path in paths:
        if lab.sandbox.isolation is Isolation.LIMITS and path.startswith("/tmp/"):
            continue  # a checkout in there: that level shares the folder
        finished = await lab.python(f"open({path!r}, 'r+')")
        assert finished.exit_code == 1
        assert any(word in finished.output_tail for word in ("Read-only", "Permission denied", "No such file"))


@pytest.mark.parametrize("level", WITHOUT_NETWORK, indirect=True)
async def test_no_disks(lab: Lab) -> None:
    """Root in a namespace has the permissions of root on devices, so there are none."""
    finished = await lab.python(
        "import os, stat; print([n for n in os.listdir('/dev') if stat.S_ISBLK(os.lstat('/dev/' + n).st_mode)])"
    )
    assert finished.output_tail == "[]\n"
    assert (await lab.command("sh", "-c", "echo x > /dev/null && head -c 1 /dev/urandom > /dev/null")).exit_code == 0


@pytest.mark.parametrize("level", HIDING, indirect=True)
async def test_no_privileges(lab: Lab) -> None:
    """Not even as root."""
    finished = await lab.command("grep", "-E", "CapEff|CapPrm|NoNewPrivs", "/proc/self/status")
    assert finished.output_tail.split() == ["CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]


async def test_the_launcher_cannot_be_traced(lab: Lab) -> None:
    """Who could take its socket could forge the result."""
    finished = await lab.python("import os; os.readlink(f'/proc/{os.getppid()}/fd/0')")
    assert "PermissionError" in finished.output_tail


@pytest.mark.parametrize("level", HIDING, indirect=True)
async def test_the_worker_cannot_be_seen_or_killed(lab: Lab) -> None:
    """Neither it nor the launcher."""
    mine = os.getpid()
    signalled = await lab.python(f"import os; os.kill({mine}, 0)")
    assert signalled.exit_code == 1
    assert (await lab.command("sh", "-c", "kill -9 $PPID; sleep 0.1; echo alive")).output_tail.endswith("alive\n")
    code = (
        "import glob\nfor p in glob.glob('/proc/[0-9]*/environ'):\n try: print(open(p).read())\n except OSError: pass"
    )
    assert "PYTEST_CURRENT_TEST" not in (await lab.python(code)).output_tail


# --- limits -------------------------------------------------------------------------------------------------------


async def test_cpu_time(lab: Lab) -> None:
    """Ends a busy loop before its wall time."""
    finished = await limited(lab, cpu_seconds=1).python("while True: pass")
    assert (finished.outcome, finished.exit_code) == (CheckOutcome.TIMED_OUT, -signal.SIGXCPU)
    assert finished.output_tail == "[killed: limit of CPU time]\n"


async def test_the_cpu_is_divided_by_niceness(lab: Lab) -> None:
    """Two at once on one core, one of them five steps nicer: it gets about a third of what the other gets."""
    said = await lab.python("import os; print(os.nice(0))", grant=Grant(niceness=5))
    assert said.output_tail == "5\n"
    if lab.sandbox.isolation is Isolation.BUBBLEWRAP:
        return  # it begins a session of its own, whose niceness nobody sets (docs/adr/0044-shares-of-a-machine.md)
    busy = """if True:
        import os, pathlib, sys, time
        os.sched_setaffinity(0, {0})
        pathlib.Path(sys.argv[1]).touch()
        while not all(os.path.exists(name) for name in ("plain", "nice")): pass
        used, end = time.process_time(), time.time() + 1.5
        while time.time() < end: pass
        print(time.process_time() - used)
    """
    both = await asyncio.gather(
        lab.command("python", "-c", busy, "plain"), lab.command("python", "-c", busy, "nice", grant=Grant(niceness=5))
    )
    plain, nice = (float(finished.output_tail) for finished in both)
    assert 2 < plain / nice < 4.5


async def test_more_memory_by_grant(lab: Lab) -> None:
    """What does not fit into the usual limit fits into twice as much."""
    code = "bytearray(300 * 2**20)"
    lab = limited(lab, memory_mb=256)
    assert (await lab.python(code)).outcome is CheckOutcome.FAILED
    assert (await lab.python(code, grant=Grant(memory=2.0))).outcome is CheckOutcome.PASSED


async def test_memory(lab: Lab) -> None:
    """An allocation over the limit fails; one below it does not."""
    small = limited(lab, memory_mb=256)
    assert "MemoryError" in (await small.python("bytearray(300 * 2**20)")).output_tail
    assert (await small.python("bytearray(100 * 2**20)")).exit_code == 0


async def test_wall_time(lab: Lab) -> None:
    """Ends whatever waits, with all that it has started."""
    begin = time.monotonic()
    finished = await lab.python(f"{DAEMON}\nprint('begun', flush=True); time.sleep(600)", timeout_seconds=1.5)
    assert (finished.outcome, finished.exit_code) == (CheckOutcome.TIMED_OUT, -signal.SIGKILL)
    assert finished.output_tail == "begun\n[killed after 2 s]\n"
    assert time.monotonic() - begin < 20


async def test_output_bytes(lab: Lab) -> None:
    """A program that prints for ever is killed soon."""
    received = 0

    def count(piece: bytes) -> None:
        nonlocal received
        received += len(piece)

    finished = await limited(lab, output_mb=1).command("yes", on_output=count)
    assert (finished.outcome, finished.exit_code) == (CheckOutcome.TIMED_OUT, -signal.SIGKILL)
    assert finished.output_tail.endswith("y\n[killed: more than 1 MB of output]\n")
    assert len(finished.output_tail) <= MAX_OUTPUT_TAIL_CHARACTERS
    assert received <= 1024**2


async def test_output_bytes_of_a_program_that_ends_by_itself(lab: Lab) -> None:
    """The limit does not depend on who is faster."""
    finished = await limited(lab, output_mb=1).python("print('x' * 1_048_576)")
    assert finished.outcome is CheckOutcome.TIMED_OUT


async def test_file_size(lab: Lab) -> None:
    """One file cannot fill the disk."""
    finished = await lab.command("dd", "if=/dev/zero", "of=big", "bs=1M", "seek=600", "count=1")
    assert (finished.outcome, finished.exit_code) == (CheckOutcome.TIMED_OUT, -signal.SIGXFSZ)
    assert "file size" in finished.output_tail


async def test_open_files_and_core_dumps(lab: Lab) -> None:
    """Bounded for each process."""
    code = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(r.RLIMIT_CORE))"
    hard = (await lab.python(code)).output_tail
    assert hard == "(4096, 4096) (0, 0)\n"


async def test_processes_that_flee(lab: Lab) -> None:
    """Each forks a successor in a session of its own and exits: never the same number twice, no parent, no group."""
    flee = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        while True:
            if os.fork():
                os._exit(0)
            os.setsid()
time.sleep(600)
"""
    finished = await lab.python(flee, timeout_seconds=1)
    assert finished.outcome is CheckOutcome.TIMED_OUT


async def test_many_processes(lab: Lab) -> None:
    """A tree of processes that all fork (bounded here for the machine's sake) dies at once."""
    finished = await lab.python("import os, time\nfor _ in range(7): os.fork()\ntime.sleep(600)", timeout_seconds=2)
    assert finished.outcome is CheckOutcome.TIMED_OUT


# --- nothing is left ----------------------------------------------------------------------------------------------


async def test_nothing_is_left_at_the_end(lab: Lab) -> None:
    """A daemon does not outlive the command that started it, and does not hold up its result."""
    begin = time.monotonic()
    assert (await lab.python(DAEMON)).exit_code == 0
    assert marked(lab.mark) == []
    assert time.monotonic() - begin < 30


async def test_cancellation_asks_first(lab: Lab) -> None:
    """SIGTERM, and time to clean up."""
    polite = """
import signal, sys, time
def leave(*_):
    open("left", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, leave)
open("begun", "w").close()
time.sleep(600)
"""
    running = asyncio.create_task(lab.python(polite))
    await lab.appears("begun")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (lab.root / "left").exists()


async def test_cancellation_insists(lab: Lab) -> None:
    """A program that does not listen, and its daemon, are killed after 2 s."""
    running = asyncio.create_task(
        lab.python(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{DAEMON}\ntime.sleep(600)")
    )
    await lab.appears("ready")
    begin = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert marked(lab.mark) == []
    assert 1.9 < time.monotonic() - begin < 20


async def test_a_second_cancellation_does_not_wait(lab: Lab) -> None:
    """Nor does it leave anything."""
    running = asyncio.create_task(
        lab.python(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{DAEMON}\ntime.sleep(600)")
    )
    await lab.appears("ready")
    running.cancel()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert marked(lab.mark) == []


async def test_cancellation_while_it_starts(lab: Lab) -> None:
    """At any moment."""
    before = set(psutil.Process().children(recursive=True))
    for pause in (0.0, 0.005, 0.02, 0.05, 0.1):
        running = asyncio.create_task(lab.python("import time; time.sleep(600)"))
        await asyncio.sleep(pause)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert set(psutil.Process().children(recursive=True)) <= before


async def test_kill_9_of_the_worker(lab: Lab) -> None:
    """Nothing could clean up, and nothing is left: no command, no daemon, no launcher."""
    worker, family = await started_worker(lab)
    worker.kill()
    worker.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=10)
    assert alive == []


@pytest.mark.parametrize("level", WITHOUT_NETWORK, indirect=True)
async def test_kill_9_of_the_launcher(lab: Lab) -> None:
    """With a process namespace the kernel ends the command even then, and the worker hears of it."""
    running = asyncio.create_task(lab.python(f"{DAEMON}\ntime.sleep(600)"))
    await lab.appears("ready")
    [launcher] = [child for child in psutil.Process().children() if "coatcheck.workspace.launcher" in child.cmdline()]
    launcher.kill()
    finished = await running
    assert finished.outcome is CheckOutcome.FAILED
    assert finished.output_tail == "[killed: its launcher was killed]\n"


async def started_worker(lab: Lab) -> "tuple[subprocess.Popen[bytes], list[psutil.Process]]":
    """A process that runs a command with a daemon as a worker does, and all that it has started."""
    command = [sys.executable, "-c", WORKER, str(lab.root), lab.sandbox.isolation, lab.mark]
    worker = await asyncio.to_thread(subprocess.Popen, command)
    await lab.appears("ready")
    family = psutil.Process(worker.pid).children(recursive=True)
    assert len(marked(lab.mark)) >= 2
    assert family
    return worker, family
