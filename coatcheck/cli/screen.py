"""Draws the answer of `why`: 100 columns and 40 lines for the default pipeline, most urgent first.

Commands and addresses are never cut; other lines are, since `--json` has everything. Where there is more than fits,
events give way first.
"""

import math
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from coatcheck.cli.explanation import Explanation, Judgement, Message, StageLine, Wait
from coatcheck.cli.output import columns, cost, moment, one_line
from coatcheck.economy.units import format_credits
from coatcheck.storage.budgets import RunBudget
from schemas.pipeline import StageState
from schemas.workflow_ids import activity_id

WIDTH: Final = 100
HEIGHT: Final = 40
LEAST_EVENTS: Final = 3
MOST_ROWS: Final = 8
"""Judgements that are shown, the latest ones; a default run has 2 to 6."""
SHOWN_FILES: Final = 2
SHOWN_MODELS: Final = 2


def screen(explanation: Explanation, now: datetime) -> str:
    """The whole answer as text."""
    blocks = [
        _head(explanation, now),
        _waits(explanation.waits, now),
        _stages(explanation),
        _judgements(explanation),
        _messages(explanation.messages),
    ]
    foot = _foot(explanation)
    room = HEIGHT - _height([*blocks, foot]) - 1  # the events' header
    air = sum(map(bool, [*blocks, foot]))  # an empty line between blocks, where there is room for it
    gap = "\n\n" if room - air >= LEAST_EVENTS or (not explanation.events and room + 2 >= air) else "\n"
    events = _events(explanation, max(LEAST_EVENTS, room - air if gap == "\n\n" else room))
    return gap.join("\n".join(block) for block in [*blocks, events, foot] if block) + "\n"


def _height(blocks: Sequence[Sequence[str]]) -> int:
    """Lines on a terminal of `WIDTH` columns, which wraps what is longer."""
    return sum(math.ceil(len(line) / WIDTH) for block in blocks for line in block)


def _head(told: Explanation, now: datetime) -> list[str]:
    where = f" in {told.stage}, round {told.round}" if told.stage and told.round else ""
    since = f", for {age(told.since, now)} (since {moment(told.since)} UTC)" if told.since else ""
    if told.ended_at:
        since = f", {age(told.ended_at, now)} ago ({moment(told.ended_at)} UTC)"
    lines = [_clip(f"{told.feature or told.workflow_id}: {told.status}{where}{since}")]
    tenant = f", tenant {told.tenant}" if told.tenant else ""
    lines.append(f"run {told.run_key}{tenant}, started {moment(told.started_at)}")
    if told.budget:
        lines += _wrap(budget_line(told.budget), 3)
    if told.error:
        lines += _wrap(f"error: {one_line(told.error, 400)}", 3)
    return lines + [_clip(f"note: {one_line(text)}") for text in told.missing]


def budget_line(budget: RunBudget) -> str:
    """`budget: $0.31 of $0.50 spent, $0.04 held for calls under way, $0.15 left; 12 of 40 calls; roy 3 of 9 calls`."""
    parts = []
    if budget.credits is not None and budget.left is not None:
        held = f", {format_credits(budget.held)} held for calls under way" if budget.held else ""
        left = f", {format_credits(budget.left)} left"
        parts.append(f"{format_credits(budget.spent or 0)} of {format_credits(budget.credits)} spent{held}{left}")
    if budget.tokens is not None:
        parts.append(f"{budget.tokens_used:,} of {budget.tokens:,} tokens")
    if budget.calls is not None:
        parts.append(f"{budget.calls_used:,} of {budget.calls:,} calls")
    for own in budget.agents:
        if own.credits is not None:
            parts.append(f"{own.agent} {format_credits(own.credits_used)} of {format_credits(own.credits)}")
        if own.tokens is not None:
            parts.append(f"{own.agent} {own.tokens_used:,} of {own.tokens:,} tokens")
        if own.calls is not None:
            parts.append(f"{own.agent} {own.calls_used:,} of {own.calls:,} calls")
    return f"budget: {'; '.join(parts)}"


def _waits(waits: Sequence[Wait], now: datetime) -> list[str]:
    if not waits:
        return []
    lines = ["WAITS FOR"]
    for wait in waits:
        since = f" (for {age(wait.since, now)})" if wait.since else ""
        until = f", until {moment(wait.until)} UTC" if wait.until else ""
        lines += _wrap(f"{one_line(wait.what, 250)}{since}{until}", 3, indent="  ")
        lines += [f"    {remedy}" for remedy in wait.remedies]
    return lines


def _stages(told: Explanation) -> list[str]:
    if not told.stages:
        return []
    header = ("stage", "agent", "state", "round", "verdict", "calls", "tokens", "cached", "cost", "models")
    rows = [_stage(row) for row in told.stages]
    if total := told.total:
        tokens = f"{total.tokens_in + total.tokens_out:,}"
        unpriced = f"{total.unpriced} turns unpriced" if total.unpriced else ""
        cells = [f"{total.calls:,}", tokens, f"{total.tokens_cached:,}", cost(total.cost_usd), unpriced]
        rows.append(["total", "", "", "", "", *cells])
    return _table(header, rows)


def _stage(row: StageLine) -> list[str]:
    begun = row.round > 0
    more = f" +{len(row.models) - SHOWN_MODELS}" if len(row.models) > SHOWN_MODELS else ""
    return [
        row.stage,
        row.agent,
        row.state,
        str(row.round or ""),
        row.verdict or "",
        "" if row.calls is None or not begun else f"{row.calls:,}",
        f"{row.tokens:,}" if begun else "",
        "" if row.tokens_cached is None or not begun else f"{row.tokens_cached:,}",
        cost(row.cost_usd) if begun else "",
        ", ".join(row.models[:SHOWN_MODELS]) + more,
    ]


def _judgements(told: Explanation) -> list[str]:
    shown = told.judgements[-MOST_ROWS:]
    if not shown:
        return []
    accepted = {
        activity_id(row.stage, row.round): row.reason
        for row in told.stages
        if row.state == StageState.DONE and not row.reason.startswith(row.verdict or " ")
    }
    rows = [[item.task, item.verdict, _why(item, accepted.get(item.task, ""))] for item in shown]
    return _table(("judged", "verdict", "why"), rows)


def _why(item: Judgement, accepted: str) -> str:
    parts = [f"accepted: {accepted}"] if accepted else []
    if item.findings:
        parts.append(f"findings {' '.join(item.findings)}")
    if item.rework:
        parts.append(f"back to {' and '.join(item.rework)}")
    if item.checks_failed is not None:
        failed = f" ({', '.join(item.failed_checks)})" if item.failed_checks else ""
        parts.append(f"checks: {item.checks_passed} passed, {item.checks_failed} failed{failed}")
    return "; ".join([*parts, one_line(item.summary)])


def _messages(messages: Sequence[Message]) -> list[str]:
    if not messages:
        return []
    rows = [[item.task, item.message, size(item.bytes), _files(item)] for item in messages]
    return _table(("round", "message", "size", "files"), rows)


def _files(item: Message) -> str:
    if item.problem is not None:
        return one_line(item.problem)
    if item.files is None:
        return "?"
    first = [f"{file.path} ({size(file.bytes)})" for file in item.files[:SHOWN_FILES]]
    if len(item.files) > SHOWN_FILES:
        rest = sum(file.bytes for file in item.files[SHOWN_FILES:])
        return f"{len(item.files):,}: " + ", ".join(first) + f", … ({size(rest)} more)"
    return ", ".join(first)


def _events(told: Explanation, room: int) -> list[str]:
    if not told.events:
        return []
    rows = [
        [moment(event.when), event.event, event.stage or "", event.agent or "", one_line(event.reason)]
        for event in told.events[-room:]
    ]
    return _table(("last events (UTC)", "event", "round", "agent", "what"), rows)


def _foot(told: Explanation) -> list[str]:
    lines = [f"Temporal: {told.ui_url}"] if told.ui_url else []
    trace = told.trace_url or told.trace_id
    return [*lines, f"Trace: {trace}"] if trace else lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_clip(line) for line in columns(header, rows).splitlines()]


def _clip(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def _wrap(line: str, most_lines: int, *, indent: str = "") -> list[str]:
    """The line in as many as it takes, the rest cut."""
    return textwrap.wrap(
        line,
        WIDTH,
        subsequent_indent=f"{indent}  ",
        max_lines=most_lines,
        placeholder=" …",
        drop_whitespace=True,
        initial_indent=indent,
    )


def age(then: datetime | None, now: datetime) -> str:
    """How long ago, in the two units that matter."""
    seconds = max(0, int((now - then.astimezone(UTC)).total_seconds())) if then else 0
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def size(count: int) -> str:
    """Bytes in the unit that a person would use."""
    if count < 1000:  # noqa: PLR2004  a kilobyte
        return f"{count} B"
    return f"{count / 1000:.1f} KB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"  # noqa: PLR2004  a megabyte
