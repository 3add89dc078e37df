"""What may leave a process: no secret, no content beyond the setting, nothing that a backend chokes on."""

import hashlib
import json
import logging
import sys
import time
from datetime import UTC, datetime

import pytest
from opentelemetry._logs import Logger, LogRecord

from coatcheck.events.dialogue import with_words
from coatcheck.storage.conversations import Said
from coatcheck.telemetry.log_lines import LogLine, readable
from coatcheck.telemetry.logs import ExportingHandler, JsonFormatter, TerminalFormatter
from coatcheck.telemetry.privacy import MAX_FULL_BYTES, PREVIEW_BYTES, ContentCapture, Privacy
from coatcheck.telemetry.scope import working_on, working_on_task
from coatcheck.telemetry.spans import Kind, Span, Words
from schemas.tracing import round_span_id, trace_id

SECRET = "sk-live-0123456789abcdefgh"
RUN = "feature/customer-search/0198c0de-0000-7000-8000-000000000001"
TASK = f"{RUN}/backend-1"
NOW = datetime(2026, 11, 27, tzinfo=UTC)


def span(**fields: object) -> Span:
    """Any span."""
    known = {"name": "backend", "kind": Kind.AGENT, "start": NOW, "end": NOW, "parent_id": None}
    return Span(trace_id="1" * 32, span_id="2" * 16, **(known | fields))  # type: ignore[arg-type]


def test_off_keeps_the_attributes_and_drops_what_was_written() -> None:
    """Also what went wrong, which repeats prompts and paths."""
    told = span(attributes={"agent.name": "roy"}, content={"input.value": "the brief"}, error="no such file: /a/b.py")
    exported = told.exported(Privacy(ContentCapture.OFF))
    assert exported.attributes == {"agent.name": "roy"}
    assert exported.error == ""


def test_a_preview_says_what_it_leaves_out() -> None:
    """The size and the sha256 of the whole, by which it is found where it is stored."""
    text = "wörd " * 5000
    shown = Privacy(ContentCapture.PREVIEW).content(text)
    assert shown is not None
    kept, _, cut = shown.partition("… [cut: ")
    assert text.startswith(kept)
    assert PREVIEW_BYTES - 4 <= len(kept.encode()) <= PREVIEW_BYTES
    assert cut == f"{len(text.encode()):,} bytes, sha256 {hashlib.sha256(text.encode()).hexdigest()}]"


@pytest.mark.parametrize("capture", [ContentCapture.PREVIEW, ContentCapture.FULL])
@pytest.mark.parametrize("before", ["", "x" * (PREVIEW_BYTES - 10), "x" * (PREVIEW_BYTES - 7)])
def test_secrets_never_leave(capture: ContentCapture, before: str) -> None:
    """Neither those with a known shape nor those of this environment, also where the cut goes through one."""
    shown = Privacy(capture, secrets=("hunter2-hunter2",)).content(f"{before} {SECRET} hunter2-hunter2 {'y' * 5000}")
    assert shown is not None
    assert "sk-l" not in shown
    assert "hunter2" not in shown


def test_errors_and_names_are_redacted_too() -> None:
    """An exception's text is content, and whatever else is text is looked over."""
    exported = span(error=f"401 for {SECRET}", attributes={"tool.name": SECRET}).exported(Privacy())
    assert SECRET not in f"{exported.error} {exported.attributes}"


@pytest.mark.parametrize("capture", list(ContentCapture))
def test_what_backends_choke_on(capture: ContentCapture) -> None:
    """NUL makes PostgreSQL drop the span, a lone surrogate makes the exporter drop the attribute."""
    exported = span(content={"input.value": "a\0b\ud800c"}, error="\0", attributes={"tool.id": "\udfff\0"}).exported(
        Privacy(capture)
    )
    json.dumps(exported.attributes, ensure_ascii=False).encode()
    assert "\0" not in f"{exported.attributes} {exported.error}"


@pytest.mark.parametrize("capture", list(ContentCapture))
def test_ten_megabytes(capture: ContentCapture) -> None:
    """Cheap where little of it leaves, bounded in any case."""
    text = "a line with a password=hunter2 in it\n" * 280_000
    started = time.process_time()
    shown = Privacy(capture).content(text) or ""
    assert len(shown.encode()) <= MAX_FULL_BYTES + 200
    assert "hunter2" not in shown
    assert time.process_time() - started < 2


def test_a_turn_shows_what_was_said_in_it() -> None:
    """Its new messages and its answer; a report that was compacted is its ticket."""
    call = {"part_kind": "tool-call", "tool_name": "write_file", "args": '{"path": "a.py"}', "tool_call_id": "c1"}
    conversation = [
        Said(1, False, {"parts": [{"part_kind": "user-prompt", "content": "Do it."}]}),
        Said(1, True, {"parts": [{"part_kind": "text", "content": "I will."}, call]}),
        Said(2, False, {"parts": [{"part_kind": "tool-return", "content": "wrote a.py", "tool_call_id": "c1"}]}),
        Said(2, True, {"deliverable": {"stream": "s", "sequence": 7}}),
    ]
    first = with_words(span(words=Words(TASK, turn=1)), conversation).content
    assert first == {
        "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "Do it.",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "I will.",
        "llm.output_messages.0.message.tool_calls.0.tool_call.id": "c1",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "write_file",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"path": "a.py"}',
    }
    second = with_words(span(words=Words(TASK, turn=2)), conversation).content
    assert second["llm.input_messages.0.message.role"] == "tool"
    assert json.loads(second["llm.output_messages.0.message.content"]) == {
        "deliverable": {"stream": "s", "sequence": 7}
    }
    tool = with_words(span(words=Words(TASK, call_id="c1")), conversation).content
    assert tool == {
        "input.value": '{"path": "a.py"}',
        "tool.parameters": '{"path": "a.py"}',
        "output.value": "wrote a.py",
    }


class Kept(Logger):
    """A logger of OpenTelemetry that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("test")
        self.records: list[LogRecord] = []

    def enabled(self, **_: object) -> bool:
        """Always."""
        return True

    def emit(self, record: LogRecord | None = None, **_: object) -> None:
        """Keep it."""
        assert record is not None
        self.records.append(record)


def line(name: str, message: str, *values: object, error: Exception | None = None) -> logging.LogRecord:
    """One line as `logging` makes it."""
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    return logging.LogRecord(name, logging.WARNING, "x.py", 1, message, values, info)


def exported(capture: ContentCapture, record: logging.LogRecord) -> LogRecord:
    """What leaves of a line."""
    kept = Kept()
    with working_on_task(TASK):
        ExportingHandler(kept, Privacy(capture)).emit(record)
    [found] = kept.records
    return found


def test_a_log_line_leaves_with_its_run_and_without_its_values() -> None:
    """With content off: the constant of the message, the type of the error, the ids."""
    record = line("coatcheck.gateway", "turn %d: %s", 1, "the prompt was …", error=ValueError("/srv/x.py"))
    found = exported(ContentCapture.OFF, record)
    assert found.body == "turn %d: %s"
    assert f"{found.trace_id:032x}" == trace_id(RUN)
    assert f"{found.span_id:016x}" == round_span_id(TASK)
    assert found.attributes == {
        "logger.name": "coatcheck.gateway",
        "coatcheck.run.key": RUN,
        "coatcheck.task.key": TASK,
        "exception.type": "ValueError",
    }
    assert (
        exported(ContentCapture.OFF, line("nats.aio", f"cannot read {SECRET}")).body
        == "a message that may hold content"
    )


def test_lines_about_exporting_are_not_exported() -> None:
    """Each failed export would make the next one."""
    kept = Kept()
    ExportingHandler(kept, Privacy()).emit(line("opentelemetry.exporter.otlp", "failed"))
    assert kept.records == []


def test_a_log_line_leaves_redacted() -> None:
    """With a preview: the text and the stack, without secrets."""
    found = exported(ContentCapture.PREVIEW, line("coatcheck.x", "with %s", SECRET, error=ValueError(SECRET)))
    assert found.body == "with ***"
    assert found.attributes is not None
    stack = str(found.attributes["exception.stacktrace"])
    assert "ValueError: ***" in stack
    assert SECRET not in stack


def test_lines_in_files_can_be_read_again() -> None:
    """JSON for programs; the same for people."""
    with working_on_task(TASK):
        written = JsonFormatter("agents").format(line("coatcheck.x", "half a %s", "\ud800", error=KeyError("k")))
    read = LogLine.parse(written.encode())
    assert read is not None
    assert (read.run, read.task, read.process) == (RUN, TASK, "agents")
    assert read.is_about("customer-search")
    assert read.is_about("feature/customer-search")
    assert not read.is_about("customer")
    assert "agents WARNING backend-1: half a" in readable(written)
    assert "KeyError: 'k'" in readable(written)
    assert readable("a word in C") == "a word in C"


def test_lines_on_a_terminal() -> None:
    """The run in front, where there is one."""
    formatter = TerminalFormatter("core")
    with working_on(RUN):
        assert f"core WARNING coatcheck.x: [{RUN}] hello" in formatter.format(line("coatcheck.x", "hello"))
    assert formatter.format(line("coatcheck.x", "hello")).endswith("core WARNING coatcheck.x: hello")
