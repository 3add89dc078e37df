"""A coding agent's command line as an author: prompt on standard input, the stage's folder as working directory.

The program is expected to leave its deliverable as a markdown file and may leave `REPORT.json` beside it with the
other fields of the report. It holds no journal, so an attempt that is cut off begins again from the same files and
may pay its own provider again; once its deliverable is published it is never run again: before every start, the rows
and then the stream are asked whether it is. What it did wrong is not retried either: it would be paid for again, and
nobody could tell it what to do better.
"""

import json
import signal
from collections.abc import Awaitable, Callable
from os import environ
from os.path import lexists
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from coatcheck.agents.author import Spent, Written, account_for
from coatcheck.agents.desk import Desk
from coatcheck.agents.instructions import load_instructions
from coatcheck.agents.prompt import READING_RULES
from coatcheck.agents.reports import Report, report_model
from coatcheck.errors import AgentOutputError, CommandFailedError
from coatcheck.failpoints import failpoint
from coatcheck.redaction import redacted
from coatcheck.workspace.files import Workspace
from coatcheck.workspace.sandbox import Finished, Sandbox
from schemas.conversation import Claim
from schemas.deliverable import StoredDeliverable
from schemas.evidence import CheckOutcome
from schemas.roles import FETCH_DELIVERABLE, SUBMIT_REPORT, Role
from schemas.streams import stream_name
from schemas.subjects import deliverable_subject

Redeem = Callable[[str, str, list[Claim]], Awaitable[str]]
"""Task key, text and its claims → the text with the brief and the deliverables in it.

Raises `TaskFinishedError` when the task is recorded as complete.
"""

REPORT_FILE: Final = "REPORT.json"
MAX_MESSAGE_CHARACTERS: Final = 1500
"""Of the output's tail in an error, and of what is wrong with a report: both go into the run's history."""
PASSED_ON: Final = ("PATH", "LANG", "TERM")
"""Besides HOME, where there is one (`_home`)."""
_HAND_IN: Final = """\
## How to hand in

You work in the folder of stage {stage!r}; its files are your deliverable. The folders beside it hold the files of the
other stages, to be read only. Leave in yours, at the end:

- `{deliverable}`: the whole report as markdown.
- `{report_file}`: one JSON object with the other fields, as in the JSON schema below.

Both must be regular files, and no link may be left in the folder. These files take the place of the tools
`{submit_report}` and `{fetch_deliverable}`, where a text names them: you have neither.

{schema}
"""


class CommandAuthor:
    """Runs the role's command once per attempt."""

    def __init__(self, role: Role, *, redeem: Redeem, sandbox: Sandbox) -> None:
        self._role = role
        self._redeem = redeem
        self._sandbox = sandbox

    async def write(self, task_key: str, prompt: str, desk: Desk) -> Written | StoredDeliverable:
        """Run the command and read what it left, unless an earlier attempt has published: then that is the result.

        Raises:
            TaskFinishedError: the task is recorded as complete; the command is not run.
            CommandFailedError: it ended with an error, ran out of time, or left no deliverable; not retried.
            AgentOutputError: what it left is not a valid report; not retried.
            ArtifactInvalidError: a file of the report is a link, a folder or too large; not retried.
            ChecksUnavailableError: the system refuses the isolation.
            TurnRefusedError: the prompt could not be had; carries whether to retry.
            MessagingUnavailableError: nobody answers; the command is not run.
        """
        text = await self._redeem(task_key, f"{self._instructions(desk)}\n\n{prompt}", desk.claims)
        if (published := await self._published(task_key, desk)) is not None:
            return published
        workspace = await desk.workspace()
        await failpoint("command.before_run")
        finished = await self._sandbox.run(
            self._role.command,
            cwd=workspace.root / workspace.own,
            root=workspace.root,
            stdin=text.encode("utf-8", "replace"),
            env=_home() | {name: environ[name] for name in (*PASSED_ON, *self._role.env) if name in environ},
            network=self._role.network,
            timeout_seconds=self._role.timeout_seconds,
        )
        await failpoint("command.after_run")
        if finished.outcome is not CheckOutcome.PASSED:
            raise CommandFailedError(self._told(_ending(finished), finished))
        report = self._read(workspace, finished)
        if (problem := account_for(report, await desk.last_round())) is not None:
            raise AgentOutputError(self._told(f"left no valid report ({problem})", finished))
        return Written(report=report, spent=Spent(models=frozenset({f"command:{self._role.command[0]}"})))

    async def _published(self, task_key: str, desk: Desk) -> StoredDeliverable | None:
        """What an attempt that did not live to tell has published; other runs may have published since."""
        stream = stream_name(self._role.task_type)
        subject = deliverable_subject(self._role.agent, self._role.task_type, desk.order.feature)
        # Whatever the task was handed had been stored before it began: for a later round, its own last deliverable.
        handed = max((item.ref.sequence for item in desk.order.inputs if item.ref.stream == stream), default=0)
        return await desk.stores.deliverables.fetch_by_task(subject, task_key, after=handed)

    def _instructions(self, desk: Desk) -> str:
        schema = report_model(self._role.reports).model_json_schema()
        schema["properties"].pop("report")
        schema["required"] = [name for name in schema["required"] if name != "report"]
        hand_in = _HAND_IN.format(
            stage=desk.order.stage,
            deliverable=self._role.deliverable,
            report_file=REPORT_FILE,
            submit_report=SUBMIT_REPORT,
            fetch_deliverable=FETCH_DELIVERABLE,
            schema=json.dumps(schema, indent=1),
        )
        return f"{load_instructions(self._role)}\n\n{READING_RULES}\n\n{hand_in}"

    def _read(self, workspace: Workspace, finished: Finished) -> Report:
        body = _take(workspace, self._role.deliverable)
        if body is None:
            raise CommandFailedError(self._told(f"left no {self._role.deliverable}", finished))
        text, said = body.decode("utf-8", "replace"), _take(workspace, REPORT_FILE)
        try:
            fields = _guessed(text) if said is None else _parse(said)
            return report_model(self._role.reports).model_validate({**fields, "report": text})
        except ValueError as error:
            problem = self._problem(error) if isinstance(error, ValidationError) else str(error)
            where = "" if said is not None else f"; there is no {REPORT_FILE}"
            what = f"left no valid report ({problem[:MAX_MESSAGE_CHARACTERS]}{where})"
            raise AgentOutputError(self._told(what, finished)) from error

    def _problem(self, error: ValidationError) -> str:
        """Each mistake by its file and field, without the values: a report may be long."""
        found = []
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            name = ".".join(map(str, item["loc"]))
            where = self._role.deliverable if name == "report" else f"{REPORT_FILE} {name}".rstrip()
            found.append(f"{where}: {item['msg']}")
        return "; ".join(found)

    def _told(self, what: str, finished: Finished) -> str:
        """What happened to the command, and the end of its output without the secrets that it was given."""
        secrets = [environ[name] for name in self._role.env if name in environ]
        tail = redacted(finished.output_tail, secrets)[-MAX_MESSAGE_CHARACTERS:].strip()
        return f"{self._role.command[0]} {what}: {tail or 'no output'}"


def _home() -> dict[str, str]:
    """The worker's home, which the command may write: its login is there.

    Not one that a service's user has in name only (`/`, `/nonexistent`): the command's home is the workspace then.
    """
    home = Path(environ.get("HOME", "/"))
    is_home = home.is_absolute() and home.is_dir() and home.resolve() != Path("/")
    return {"HOME": str(home)} if is_home else {}


def _ending(finished: Finished) -> str:
    match finished.outcome:
        case CheckOutcome.TIMED_OUT:
            return f"was killed after {finished.seconds:.0f} s"
        case CheckOutcome.NOT_STARTED:
            return "could not be started"
    if finished.exit_code is not None and finished.exit_code < 0:
        return f"was ended by {signal.strsignal(-finished.exit_code) or 'a signal'} (signal {-finished.exit_code})"
    return f"ended with exit code {finished.exit_code}"


def _take(workspace: Workspace, name: str) -> bytes | None:
    """Take a file of the report out of the own folder, so that it is no artifact; `None` when nothing has that name."""
    path = workspace.root / workspace.own / name
    if not lexists(path):
        return None
    data = workspace.read(f"{workspace.own}/{name}")
    path.unlink()  # no link is on the way to what could be read, and nothing of the command is left to make one
    return data


def _parse(said: bytes) -> dict[str, Any]:
    """Not by `json`, which raises other errors for deep nesting and long numbers, and takes half characters."""
    try:
        fields = from_json(said, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"{REPORT_FILE} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{REPORT_FILE} is not a JSON object")  # noqa: TRY004  one kind of mistake for the caller
    return fields


def _guessed(body: str) -> dict[str, Any]:
    """What a work report says besides its text when there is no file for it: the first line that says something."""
    lines = [line.strip("# \t*") for line in body.splitlines()]
    return {"summary": next((line for line in lines if line), "done")[:200], "complexity": "Medium"}
