"""Agents that are command lines: what they are told, what they may leave, and how their rounds end."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from temporalio.testing import ActivityEnvironment

from activities.agents import stage_activity_for
from coatcheck.agents.command import MAX_MESSAGE_CHARACTERS, CommandAuthor, Redeem
from coatcheck.agents.loop import Task
from coatcheck.agents.prompt import READING_RULES
from coatcheck.agents.proxy_model import TaskFinishedError
from coatcheck.errors import (
    AgentOutputError,
    ArtifactInvalidError,
    CoatcheckError,
    CommandFailedError,
    TurnRefusedError,
)
from coatcheck.gateway.claims import ClaimDesk, ClaimService
from coatcheck.localstack.status import NatsStatus
from coatcheck.messaging.client import NatsClient
from coatcheck.messaging.deliverables import DeliverableService
from coatcheck.messaging.service import serve
from coatcheck.storage.database import Pool, open_pool
from coatcheck.storage.state import finished_notice, read_brief
from coatcheck.workspace.sandbox import Sandbox
from schemas import errors
from schemas.activities import RunStageInput
from schemas.config import CheckLimits
from schemas.conversation import Claim, RedeemReply
from schemas.deliverable import MAX_ARTIFACTS, DeliverableRef
from schemas.notice import Notice, Verdict
from schemas.roles import DEFAULT_ROLES, Role
from schemas.streams import AGENTS
from schemas.subjects import claims_subject
from tests.integration.nats_clients import client_as
from tests.integration.round_lab import REPORT, RoundLab, submits
from tests.integration.storage_rows import NOTICE
from tests.integration.test_rounds import APP, TEST, lab
from tests.integration.test_sandbox import MARK, marked
from tests.providers.gateway import record_task
from workers.agent import _redeem

__all__ = ["lab"]

BRIEF = "Doubling for everybody."
BODY = "# Doubles numbers\n\n" + "What was done and why. " * 10
FIELDS = {"summary": "Doubled.", "complexity": "Low"}
PRELUDE = f"""
import json, os, signal, sys, time
from pathlib import Path

def hand_in(body={BODY!r}, **fields):
    Path("DELIVERABLE.md").write_text(body)
    Path("REPORT.json").write_text(json.dumps({FIELDS!r} | fields))

"""
DAEMON = """
signal.signal(signal.SIGTERM, lambda *_: (Path.home() / "terminated").touch())
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (Path.home() / "ready").touch()
    else:
        os._exit(0)
while True:
    time.sleep(600)
"""
"""Ignores SIGTERM, and so does the process that it leaves behind, which has a session of its own and no parent."""


def program(code: str, agent: str = "roy", **fields: Any) -> Role:
    """A default agent's job, done by a Python program."""
    ours = DEFAULT_ROLES[agent]
    known = {"kind": "command", "command": ("python", "-c", PRELUDE + code), "timeout_seconds": 120}
    return Role(agent=agent, task_type=ours.task_type, reports=ours.reports, **(known | fields))


def author(role: Role, redeem: Redeem) -> CommandAuthor:
    """The author of that job, in the limits that the worker gives it."""
    return CommandAuthor(role, redeem=redeem, sandbox=Sandbox(CheckLimits(memory_mb=32 * 1024, output_mb=256)))


@pytest.fixture
def redeem(core: NatsClient) -> Redeem:
    """The claims in a text, without asking whose task it is."""

    async def brief(_run_key: str) -> str:
        return BRIEF

    async def anybody(_task_key: str, _agent: str) -> None:
        pass

    service = ClaimService(ClaimDesk(deliverables=DeliverableService(core), read_brief=brief), finished_notice=anybody)

    async def answer(task_key: str, text: str, claims: list[Claim]) -> str:
        request = {"task_key": task_key, "text": text, "claims": [claim.model_dump() for claim in claims]}
        reply = RedeemReply.model_validate_json(await service.handle("roy", json.dumps(request).encode()))
        assert reply.text is not None, reply
        return reply.text

    return answer


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The worker's home; not in the workspaces' folder, which has to be empty at the end."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    return home


async def stored(core: NatsClient, agent: str = "roy", task_type: str = "backend") -> tuple[int, int]:
    """How many messages were ever written to the agent's stream and bucket."""
    streams = (f"agog_features_{task_type}", f"OBJ_artifacts_{agent}")
    states = [(await core.api(f"STREAM.INFO.{name}"))["state"] for name in streams]
    return states[0]["last_seq"], states[1]["last_seq"]


async def runs(lab: RoundLab, redeem: Redeem, role: Role, *needs: str) -> Notice:
    """The next round of the job's stage."""
    return await lab.perform(role, author(role, redeem), lab.task(role.task_type, needs))


# --- what it is told ----------------------------------------------------------------------------------------------

LOOK = """
Path("seen.json").write_text(json.dumps({
    "prompt": sys.stdin.read(),
    "cwd": os.path.basename(os.getcwd()),
    "beside": sorted(path.as_posix() for path in Path("..").rglob("*") if path.is_file() and ".tmp-" not in str(path)),
    "app": Path("../backend/app.py").read_text(),
}))
hand_in()
"""


async def test_the_prompt_and_the_folders(lab: RoundLab, redeem: Redeem) -> None:
    """The role's instructions, how to hand in, the brief and the deliverables; the other stages' files beside it."""
    await lab.round("cynthia", submits())
    await lab.round("roy", [("write_file", APP)], submits())
    role = program(LOOK, "jen", instructions="You are a translator.", prompt="x.md")
    notice = await runs(lab, redeem, role, "research", "backend")
    seen = json.loads((await lab.files(notice))["seen.json"])
    assert (seen["cwd"], seen["app"]) == ("frontend", APP["content"])
    assert seen["beside"] == ["../backend/app.py"]
    prompt: str = seen["prompt"]
    assert prompt.startswith(f"You are a translator.\n\n{READING_RULES}\n\n## How to hand in")
    assert BRIEF in prompt
    assert prompt.count(REPORT["report"]) == 2
    assert "[[" not in prompt
    assert "`DELIVERABLE.md`: the whole report as markdown" in prompt
    schema, _ = json.JSONDecoder().raw_decode(prompt[prompt.index("{\n") :])
    assert {"summary", "complexity", "checks"} <= schema["properties"].keys()
    assert schema["required"] == ["summary", "complexity"]
    assert "report" not in schema["properties"]


async def test_a_prompt_that_nobody_reads(lab: RoundLab, core: NatsClient) -> None:
    """A command need not read it, however long it is."""
    assert core

    async def long(_task_key: str, text: str, _claims: list[Claim]) -> str:
        return text + "x" * 5_000_000

    assert (await runs(lab, long, program("hand_in()"))).summary == "Doubled."


async def test_only_listed_variables(
    lab: RoundLab, redeem: Redeem, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider's key that is not listed is invisible; the worker's home is the command's, with the login in it."""
    for name in ("OPENAI_API_KEY", "MY_AGENT_KEY", "NATS_URL", "COATCHECK_DATA_DIR"):
        monkeypatch.setenv(name, "sk-0123456789")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    (home / "login").write_text("token")
    code = """
        Path("environment.json").write_text(json.dumps(dict(os.environ)))
        Path("login").write_text((Path.home() / "login").read_text())
        (Path.home() / "session").touch()
        hand_in()
    """
    role = program("\n".join(line.strip() for line in code.splitlines()), env=("MY_AGENT_KEY", "NOT_SET"))
    files = await lab.files(await runs(lab, redeem, role))
    environment = json.loads(files["environment.json"])
    assert environment.keys() - {"TERM", "LC_CTYPE"} == {"PATH", "HOME", "LANG", "TMPDIR", "MY_AGENT_KEY"}
    assert (environment["HOME"], environment["LANG"]) == (str(home), "de_DE.UTF-8")
    assert environment["MY_AGENT_KEY"] == "sk-0123456789"
    assert files["login"] == b"token"
    assert (home / "session").exists()


@pytest.mark.parametrize("value", ["/", "/nonexistent", "", "relative"])
async def test_a_home_in_name_only(
    lab: RoundLab, redeem: Redeem, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a service's user: not made writable, and no reason to fail; the workspace is the command's home."""
    (tmp_path.parent / "outside").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("HOME", value)
    outside = tmp_path.parent / "outside" / "x"
    code = f"""
Path("home").write_text(f"{{Path.home() == Path.cwd().parent}}")
try:
    Path({str(outside)!r}).touch()
except OSError:
    pass
hand_in()
"""
    assert (await lab.files(await runs(lab, redeem, program(code))))["home"] == b"True"
    assert not outside.exists()


# --- what it leaves -----------------------------------------------------------------------------------------------


async def test_the_report_and_its_files(lab: RoundLab, redeem: Redeem) -> None:
    """The text is the content, `REPORT.json` the fields; both are no artifacts; what was spent is unknown, not 0."""
    checks = [{"name": "tests", "command": ["python", "test_app.py"]}]
    code = f"""
os.makedirs("src/__pycache__")
Path("src/app.py").write_text("x = 1")
Path("src/__pycache__/app.pyc").write_text("")
hand_in(checks={checks!r}, files_analyzed=3, blockers="n/a")
"""
    notice = await runs(lab, redeem, program(code))
    deliverable = await lab.deliverable(notice)
    said = deliverable.metadata.model_dump()
    assert deliverable.content == BODY
    assert await lab.files(notice) == {"src/app.py": b"x = 1"}
    assert (said["model"], said["files_analyzed"]) == ("command:python", 3)
    assert said["checks"][0]["command"] == ["python", "test_app.py"]
    assert (notice.summary, notice.complexity, notice.status) == ("Doubled.", "Low", "complete")
    assert notice.files_modified == 1
    assert (notice.metadata.tokens_in, notice.metadata.tokens_out) == (0, 0)
    assert b"cost_usd" not in notice.to_wire()


async def test_a_deliverable_of_another_name_without_fields(lab: RoundLab, redeem: Redeem) -> None:
    """Its first line is the summary; no earlier round's report is taken for this round's."""
    role = program(f"os.mkdir('out'); Path('out/report.md').write_text({BODY!r})", deliverable="out/report.md")
    notice = await runs(lab, redeem, role)
    assert (notice.summary, notice.complexity) == ("Doubles numbers", "Medium")
    assert await lab.files(notice) == {}
    with pytest.raises(CommandFailedError, match=r"left no out/report\.md"):
        await runs(lab, redeem, role.model_copy(update={"command": ("true",)}))


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.md", "a/../x.md", ""])
def test_a_deliverable_outside_is_a_mistake_of_the_configuration(path: str) -> None:
    """Told when the file is loaded, not when the agent has worked for half an hour."""
    with pytest.raises(ValidationError, match="path"):
        program("", deliverable=path)


FINDING = {"id": "F1", "severity": "major", "where": "R1", "claim": "no limit", "wanted_change": "name one"}


async def test_a_review(lab: RoundLab, redeem: Redeem) -> None:
    """Verdict and findings are typed as a model's are, and a later round has to account for them."""
    await lab.round("cynthia", submits())
    revise = program(f"hand_in(verdict='revise', findings=[{FINDING!r}])", "sylvia")
    notice = await runs(lab, redeem, revise, "research")
    assert notice.metadata.verdict is Verdict.REVISE
    assert [mark[:3] for mark in notice.metadata.findings or []] == ["F1!"]
    other = FINDING | {"id": "F2"}
    forgets = program(f"hand_in(verdict='revise', findings=[{other!r}]); print('the last words')", "sylvia")
    with pytest.raises(AgentOutputError, match=r"python left no valid report .*F1.*the last words"):
        await runs(lab, redeem, forgets, "research")
    settles = program("hand_in(verdict='approve', fixed=['F1'])", "sylvia")
    assert (await runs(lab, redeem, settles, "research")).metadata.verdict is Verdict.APPROVE


@pytest.mark.parametrize(("command", "verdict"), [("test_app.py", Verdict.PASS), ("no_such.py", Verdict.FAIL)])
async def test_a_tester_is_bound_to_the_evidence(lab: RoundLab, redeem: Redeem, command: str, verdict: Verdict) -> None:
    """A command cannot talk a failing check away, either."""
    checks = [{"name": "tests", "command": ["python", command]}]
    await lab.round("roy", [("write_file", APP), ("write_file", TEST)], submits(checks=checks))
    notice = await runs(lab, redeem, program("hand_in(verdict='pass')", "billy"), "backend")
    assert notice.metadata.verdict is verdict
    assert notice.metadata.rework == (["backend"] if verdict is Verdict.FAIL else None)
    assert notice.metadata.evidence is not None
    assert (notice.metadata.evidence.passed, notice.metadata.evidence.failed) == (
        (1, 0) if verdict is Verdict.PASS else (0, 1)
    )


async def test_a_tester_sends_back(lab: RoundLab, redeem: Redeem) -> None:
    """The stages that it names."""
    await lab.round("roy", submits())
    notice = await runs(lab, redeem, program("hand_in(verdict='fail', rework=['backend'])", "billy"), "backend")
    assert (notice.metadata.verdict, notice.metadata.rework) == (Verdict.FAIL, ["backend"])


# --- how it fails -------------------------------------------------------------------------------------------------

LAST = "print('the last words', flush=True)\n"
FAILURES: dict[str, tuple[str, type[CoatcheckError], str]] = {
    "exit code": ("hand_in(); sys.exit(3)", CommandFailedError, "ended with exit code 3"),
    "signal": ("hand_in(); os.kill(os.getpid(), signal.SIGTERM)", CommandFailedError, "(signal 15)"),
    "time": ("hand_in(); time.sleep(600)", CommandFailedError, "was killed after 2 s"),
    "no deliverable": ("", CommandFailedError, "left no DELIVERABLE.md"),
    "no folder": (
        "import shutil; shutil.rmtree(os.getcwd())",
        CommandFailedError,
        "left no DELIVERABLE.md",
    ),
    "empty": ("hand_in('')", AgentOutputError, "DELIVERABLE.md: String should have at least 200 characters"),
    "short": ("hand_in('x' * 199)", AgentOutputError, "DELIVERABLE.md: String should have at least 200"),
    "no JSON": ("hand_in(); Path('REPORT.json').write_text('{')", AgentOutputError, "REPORT.json is no JSON"),
    "not UTF-8": ("hand_in(); Path('REPORT.json').write_bytes(b'\\xff')", AgentOutputError, "REPORT.json is no JSON"),
    "deep": ("hand_in(); Path('REPORT.json').write_text('[' * 10**5)", AgentOutputError, "REPORT.json is no JSON"),
    "long": ("hand_in(); Path('REPORT.json').write_text('1' * 10**4)", AgentOutputError, "REPORT.json is no JSON"),
    "half": (
        """hand_in(); Path('REPORT.json').write_text('{"summary": "\\\\ud800"}')""",
        AgentOutputError,
        "REPORT.json is no JSON",
    ),
    "no object": ("hand_in(); Path('REPORT.json').write_text('[]')", AgentOutputError, "is not a JSON object"),
    "wrong": ("hand_in(complexity='Huge')", AgentOutputError, "REPORT.json complexity: Input should be 'Low'"),
    "unknown": ("hand_in(mood='good')", AgentOutputError, "REPORT.json mood: Extra inputs are not permitted"),
    "many": ("hand_in(**{f'x{n}': n for n in range(1000)})", AgentOutputError, "REPORT.json x0: Extra inputs"),
    "long value": ("hand_in(summary='x' * 10**6)", AgentOutputError, "REPORT.json summary: String should have at most"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_failures_end_the_stage(lab: RoundLab, redeem: Redeem, core: NatsClient, name: str) -> None:
    """At once: nobody could tell the command what to do better. The message names it and has its last output."""
    code, kind, words = FAILURES[name]
    before = await stored(core)
    with pytest.raises(kind) as caught:
        await runs(lab, redeem, program(LAST + code, timeout_seconds=2 if name == "time" else 120))
    message = str(caught.value)
    assert message.startswith("python ")
    assert words in message
    assert "the last words" in message
    assert len(message) < 2 * MAX_MESSAGE_CHARACTERS + 200
    assert caught.value.retryable is False
    assert caught.value.code == (errors.COMMAND_FAILED if kind is CommandFailedError else errors.AGENT_INVALID_OUTPUT)
    assert await stored(core) == before


async def test_a_review_without_fields(lab: RoundLab, redeem: Redeem) -> None:
    """A verdict cannot be guessed; the message says where it is expected."""
    role = program(f"Path('DELIVERABLE.md').write_text({BODY!r})", "sylvia")
    with pytest.raises(AgentOutputError, match=r"REPORT\.json verdict: Field required; there is no REPORT\.json"):
        await runs(lab, redeem, role)


async def test_a_program_that_is_not_there(lab: RoundLab, redeem: Redeem) -> None:
    """Is named."""
    role = program("", command=("no-such-agent", "--stdin"))
    with pytest.raises(CommandFailedError, match=r"^no-such-agent could not be started: .*No such file") as caught:
        await runs(lab, redeem, role)
    assert not caught.value.retryable


async def test_the_output_is_bounded_and_without_keys(
    lab: RoundLab, redeem: Redeem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of it is shown; a key that the command was given, and printed, is not."""
    monkeypatch.setenv("MY_AGENT_KEY", "correct-horse-battery")
    code = "print('x' * 10**6); print('wrong key', os.environ['MY_AGENT_KEY']); sys.exit(1)"
    with pytest.raises(CommandFailedError, match=r"x\nwrong key \*\*\*$") as caught:
        await runs(lab, redeem, program(code, env=("MY_AGENT_KEY",)))
    assert len(str(caught.value)) < MAX_MESSAGE_CHARACTERS + 100


LINKS = {
    "file": "os.symlink('/etc/passwd', 'users.txt')",
    "folder": "os.symlink('/etc', 'etc')",
    "other stage": "os.symlink('../research', 'research')",
    "deliverable": "os.remove('DELIVERABLE.md'); os.symlink('/etc/passwd', 'DELIVERABLE.md')",
    "broken": "os.remove('DELIVERABLE.md'); os.symlink('/nonexistent', 'DELIVERABLE.md')",
    "fields": "os.remove('REPORT.json'); os.symlink('/etc/passwd', 'REPORT.json')",
    "second name": "os.link('DELIVERABLE.md', 'copy.md')",
    "own folder": "os.rename('../backend', '../moved'); os.symlink('moved', '../backend')",
}


@pytest.mark.parametrize("name", LINKS)
async def test_links_are_refused(lab: RoundLab, redeem: Redeem, core: NatsClient, name: str) -> None:
    """Whatever they lead to: nothing of it is read, nothing is stored, and the stage ends."""
    before = await stored(core)
    with pytest.raises(ArtifactInvalidError, match="link") as caught:
        await runs(lab, redeem, program(f"Path('app.py').write_text('x'); hand_in(); {LINKS[name]}"))
    assert not caught.value.retryable
    assert "root:" not in str(caught.value)
    assert await stored(core) == before


# --- cut off, and tried again -------------------------------------------------------------------------------------


async def test_cancellation_leaves_no_process(
    lab: RoundLab, redeem: Redeem, home: Path, core: NatsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The activity is cancelled: SIGTERM first, then all of it is killed, also what has left its parent and session."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    role = program(DAEMON, env=(MARK,), timeout_seconds=600)
    before = await stored(core)
    activity = stage_activity_for(role, lab.runner(role, author(role, redeem)))
    environment = ActivityEnvironment()
    environment.info = replace(
        environment.info, activity_id="backend-1", workflow_id="feature/search", workflow_run_id=str(uuid.uuid4())
    )
    running = asyncio.create_task(environment.run(activity, RunStageInput()))
    while not (home / "ready").exists() and not running.done():
        await asyncio.sleep(0.01)
    assert len(marked(mark)) >= 2
    environment.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (home / "terminated").exists()
    assert marked(mark) == []
    assert await stored(core) == before


async def test_a_second_attempt_runs_nothing(lab: RoundLab, redeem: Redeem, home: Path) -> None:
    """Once published, the command is not run again: the notice is that of what is stored."""
    role, task = program("open(Path.home() / 'runs', 'a').write('x'); hand_in(files_modified=4)"), lab.task("backend")
    first = await lab.perform(role, author(role, redeem), task)
    second = await lab.perform(role, author(role, redeem), replace(task, attempt=2))
    assert (home / "runs").read_text() == "x"
    assert second.metadata.attempt == 2
    changes = {"completion_time": first.completion_time, "metadata": first.metadata}
    assert second.model_copy(update=changes) == first
    assert second.metadata.model_copy(update={"attempt": None}) == first.metadata
    assert (second.metadata.tokens_in, second.metadata.cost_usd) == (0, None)


def other_run(task: Task) -> Task:
    """The same round of another run of the feature, which nothing was handed."""
    run_key = f"feature/search/{uuid.uuid4()}"
    order = task.order.model_copy(update={"run_key": run_key, "inputs": []})
    return replace(task, order=order, task_key=f"{run_key}/backend-{order.round}")


@pytest.mark.parametrize("rounds", [1, 2])
async def test_a_second_attempt_after_another_runs_publish(
    lab: RoundLab, redeem: Redeem, home: Path, rounds: int
) -> None:
    """Both runs deliver under one subject, and the other one's message is the last: each keeps its own."""
    role = program("open(Path.home() / 'runs', 'a').write('x'); hand_in(summary=str(Path.cwd()))")
    for _ in range(rounds - 1):
        await runs(lab, redeem, role)
    mine = lab.task("backend", ["backend"] if rounds > 1 else [])
    tasks = (mine, other_run(mine), other_run(mine))  # the first one's message follows at once on what it was handed
    notices = {task.task_key: await lab.perform(role, author(role, redeem), task) for task in tasks}
    count = len((home / "runs").read_text())
    assert count == rounds - 1 + len(notices)
    for task in tasks:
        again = await lab.perform(role, author(role, redeem), replace(task, attempt=2))
        assert (again.ref, again.summary) == (notices[task.task_key].ref, notices[task.task_key].summary)
    assert len((home / "runs").read_text()) == count


async def test_what_other_runs_published_is_not_taken(lab: RoundLab, redeem: Redeem, home: Path) -> None:
    """A task that has published nothing is worked, whatever lies under its subject, also an earlier round of it."""
    role = program("open(Path.home() / 'runs', 'a').write('x'); hand_in()")
    first = await runs(lab, redeem, role)
    other = await lab.perform(role, author(role, redeem), other_run(lab.task("backend")))
    lab.shelf["backend"] = lab.shelf["backend"].model_copy(update={"ref": first.ref})
    second = await runs(lab, redeem, role)
    assert len({first.ref, other.ref, second.ref}) == 3
    assert (home / "runs").read_text() == "xxx"


async def test_the_next_round_begins_with_the_files_of_the_last(lab: RoundLab, redeem: Redeem) -> None:
    """It is run, with its own last files, and without its last report."""
    await runs(lab, redeem, program("Path('app.py').write_text('1'); hand_in()"))
    code = "Path('b.py').write_text(' '.join(sorted(os.listdir()))); hand_in(summary='Round two.')"
    notice = await runs(lab, redeem, program(code))
    assert notice.summary == "Round two."
    assert await lab.files(notice) == {"app.py": b"1", "b.py": b"app.py"}


# --- how much -----------------------------------------------------------------------------------------------------

PLENTY = {
    "a thousand files": "os.mkdir('src'); [Path(f'src/{n}.txt').write_text(f'file {n}') for n in range(1000)]",
    "nine megabytes": "Path('blob.bin').write_bytes(os.urandom(9_000_000))",
}


@pytest.mark.parametrize("name", PLENTY)
async def test_plenty_goes_through(lab: RoundLab, redeem: Redeem, name: str) -> None:
    """Into the bucket, out of it for another stage, and into the next round."""
    notice = await runs(lab, redeem, program(f"{PLENTY[name]}; hand_in()"))
    files = await lab.files(notice)
    if name == "a thousand files":
        assert files == {f"src/{number}.txt": f"file {number}".encode() for number in range(1000)}
        assert notice.files_modified == 1000
    else:
        assert [(path, len(data)) for path, data in files.items()] == [("blob.bin", 9_000_000)]
    again = await runs(lab, redeem, program("hand_in(summary='Nothing new.')"))
    assert (await lab.deliverable(again)).artifacts == (await lab.deliverable(notice)).artifacts


async def test_the_report_is_not_counted(lab: RoundLab, redeem: Redeem) -> None:
    """As many artifacts as a deliverable may have, and the two files of the report."""
    notice = await runs(lab, redeem, program("[Path(f'{n}.txt').touch() for n in range(10_000)]; hand_in()"))
    assert len((await lab.deliverable(notice)).artifacts) == MAX_ARTIFACTS == 10_000


TOO_MUCH = {
    "files": ("[Path(f'{n}.txt').touch() for n in range(10_001)]", "10,001 files; a stage has at most 10,000"),
    "1 GB": (
        "[open(f'{n}.bin', 'wb').truncate(64 * 1024**2) for n in range(16)]",
        "1,073,741,824 bytes of files; a stage has at most 268,435,456",
    ),
    "one file": (
        "open('big.bin', 'wb').truncate(400_000_000)",
        "'big.bin' has 400,000,000 bytes; a file has at most 67,108,864",
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_too_much_is_refused(lab: RoundLab, redeem: Redeem, core: NatsClient, name: str) -> None:
    """With the number and the limit, before anything is read or stored, and not tried again."""
    code, words = TOO_MUCH[name]
    before = await stored(core)
    with pytest.raises(ArtifactInvalidError, match=f"^{words}$") as caught:
        await runs(lab, redeem, program(f"{code}; hand_in()"))
    assert not caught.value.retryable
    assert await stored(core) == before


async def test_a_file_over_the_limit_of_the_disk(lab: RoundLab, redeem: Redeem) -> None:
    """One file of 1 GB cannot even be made: the command is told, and the stage ends as it does."""
    with pytest.raises(CommandFailedError, match="File too large"):
        await runs(lab, redeem, program("open('big.bin', 'wb').truncate(10**9)"))


# --- the claims of the prompt -------------------------------------------------------------------------------------


@pytest.fixture
async def owner(postgres_dsn: str) -> AsyncIterator[Pool]:
    """The core worker's pool."""
    async with open_pool(postgres_dsn) as pool:
        yield pool


@pytest.fixture
async def ask(nats_server: NatsStatus, core: NatsClient, gateway_dsn: str) -> AsyncIterator[Redeem]:
    """Roy's way to the claims service, which is served as the gateway worker does."""
    assert core
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(gateway_dsn))
        gateway = await stack.enter_async_context(client_as(nats_server, "gateway"))
        roy = await stack.enter_async_context(client_as(nats_server, "roy"))
        desk = ClaimDesk(deliverables=DeliverableService(gateway), read_brief=partial(read_brief, pool))
        service = ClaimService(desk, finished_notice=partial(finished_notice, pool))
        endpoints = {claims_subject(agent): partial(service.handle, agent) for agent in AGENTS}
        await stack.enter_async_context(serve(gateway, name="claims", version="1.0.0", endpoints=endpoints))
        yield partial(_redeem, roy, "roy")


async def refused(ask: Redeem, task_key: str) -> TurnRefusedError:
    """Why the brief of that task cannot be had."""
    with pytest.raises(TurnRefusedError) as caught:
        await ask(task_key, "[[brief]]", [Claim(marker="[[brief]]", limit=1000)])
    return caught.value


async def test_another_agents_brief_is_out_of_reach(ask: Redeem, owner: Pool) -> None:
    """Nor is that of a task which nobody has recorded; neither is tried again."""
    key = await record_task(owner, agent="jen", stage="frontend", brief="The key is under the doormat.")
    for name in (key, "feature/search/unknown/backend-1", "backend-1", ""):
        error = await refused(ask, name)
        assert (error.turn_code, error.turn_retryable) == (errors.NOT_AUTHORIZED, False)
        assert str(error) == f"the agent 'roy' has no task {name!r}"


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_a_task_that_does_not_run_has_no_brief(ask: Redeem, owner: Pool, status: str) -> None:
    """A round that was cancelled or has failed starts no command."""
    key = await record_task(owner, agent="roy", stage="backend", status=status)
    error = await refused(ask, key)
    assert (error.turn_code, error.turn_retryable) == (errors.TASK_CLOSED, False)


async def test_a_finished_task_has_its_notice(ask: Redeem, owner: Pool) -> None:
    """Whatever it claims: a week later that may be gone. Another agent's is out of reach."""
    notice = NOTICE | {"completion_time": "2026-03-01T12:01:30Z"}
    key = await record_task(owner, agent="roy", stage="backend", status="completed", output_data=notice)
    gone = DeliverableRef(stream="agog_features_research", sequence=10**9, sha256="0" * 64, bytes=1)
    with pytest.raises(TaskFinishedError) as caught:
        await ask(key, "[[gone]]", [Claim(marker="[[gone]]", deliverable=gone, limit=1000)])
    assert caught.value.notice == Notice.model_validate(notice)
    key = await record_task(owner, agent="jen", stage="frontend", status="completed", output_data=notice)
    assert (await refused(ask, key)).turn_code == errors.NOT_AUTHORIZED


async def test_a_recorded_round_is_not_run_again(lab: RoundLab, ask: Redeem, owner: Pool, home: Path) -> None:
    """As after a reset: the notice is the recorded one to the letter, and the command has run once."""
    lab.run_key = f"feature/search/{uuid.uuid4()}"
    role, task = program("open(Path.home() / 'runs', 'a').write('x'); hand_in()"), lab.task("backend")
    recorded = partial(record_task, owner, agent="roy", stage="backend", run_key=lab.run_key, brief=BRIEF)
    await recorded()
    first = await lab.perform(role, author(role, ask), task)
    await recorded(revision=2, status="completed", output_data=first.model_dump(mode="json", exclude_none=True))
    again = await lab.perform(role, author(role, ask), task)
    assert again == first
    assert (home / "runs").read_text() == "x"


async def test_a_prompt_that_fits_into_no_message(lab: RoundLab, ask: Redeem, owner: Pool) -> None:
    """Two deliverables of 6 MB in full: refused with the figures and what to do, at once and for good."""
    notice = await lab.round("cynthia", submits(report="x" * 6_000_000))
    key = await record_task(owner, agent="roy", stage="backend")
    claims = [Claim(marker=f"[[{name}]]", deliverable=notice.ref, limit=10**7) for name in ("a", "b")]
    assert len(await ask(key, "[[a]]", claims)) == 6_000_000
    with pytest.raises(TurnRefusedError, match=r"12,\d{3},\d{3} bytes .* at most 10,420,224 .*need fewer") as caught:
        await ask(key, "[[a]][[b]]", claims)
    assert (caught.value.turn_code, caught.value.turn_retryable) == (errors.DELIVERABLE_TOO_LARGE, False)


async def test_a_refused_prompt_starts_nothing(lab: RoundLab, ask: Redeem, home: Path) -> None:
    """The command of a round that is not recorded is not run."""
    with pytest.raises(TurnRefusedError, match="has no task"):
        await runs(lab, ask, program("(Path.home() / 'ran').touch(); hand_in()"))
    assert not (home / "ran").exists()


async def test_a_round_with_the_real_service(lab: RoundLab, ask: Redeem, owner: Pool) -> None:
    """The brief of the run and the deliverable of research come back; markers that others wrote stay text."""
    lab.run_key = f"feature/search/{uuid.uuid4()}"
    await lab.round("cynthia", submits(report="See [[brief]] and R1. " * 20))
    task: Task = lab.task("backend", ["research"])
    await record_task(owner, agent="roy", stage="backend", run_key=lab.run_key, brief=BRIEF)
    role = program("Path('prompt.txt').write_text(sys.stdin.read()); hand_in()")
    notice = await lab.perform(role, author(role, ask), task)
    prompt = (await lab.files(notice))["prompt.txt"].decode()
    assert prompt.count(BRIEF) == 1
    assert prompt.count("See [[brief]] and R1.") == 20


async def test_a_request_that_is_none(core: NatsClient) -> None:
    """Is answered: a caller waits."""

    async def nobody(*_: str) -> Any:
        raise AssertionError

    service = ClaimService(ClaimDesk(deliverables=DeliverableService(core), read_brief=nobody), finished_notice=nobody)
    reply = RedeemReply.model_validate_json(await service.handle("roy", b'{"task_key": 1}'))
    assert (reply.text, reply.code, reply.retryable) == (None, errors.REQUEST_INVALID, False)
