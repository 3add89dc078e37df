"""A result as JUnit XML, and a run as a picture.

JUnit through junitparser, which knows what the CI systems' readers expect. The picture by the standard library's
ElementTree: some twenty kinds of element need no drawing library, and text that comes from agents cannot break out of
an element that a serialiser writes.
"""

from typing import Final
from xml.etree import ElementTree as ET

from junitparser import Failure, JUnitXml, TestCase, TestSuite

from coatcheck.bench.results import BenchReport, RunReport, Span

_WIDTH: Final = 1000
_LEFT: Final = 170
_TOP: Final = 56
_ROW: Final = 34
_COLOURS: Final = {
    "completed": "#2e7d32",
    "failed": "#c62828",
    "cancelled": "#9e9e9e",
    "open": "#1565c0",
    "waiting": "#f9a825",
    "parked": "#8e24aa",
    "paused": "#b0bec5",
    "turn": "#ffffff",
}
_TICKS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600)
_MAX_TICKS: Final = 12


def to_junit(report: BenchReport) -> str:
    """One suite per scenario, one case per run, one failure per violation."""
    document = JUnitXml("coatcheck bench")
    suites: dict[str, TestSuite] = {}
    for run in report.runs:
        suite = suites.setdefault(run.scenario, TestSuite(run.scenario))
        case = TestCase(f"{run.scenario} #{run.repeat}", classname=f"bench.{run.scenario}", time=run.seconds)
        case.result = [Failure(_plain(str(item)), item.rule) for item in run.violations]
        case.system_out = _plain(f"{run.run_key}\n{run.status}, {run.events} events, {run.tokens} tokens")
        suite.add_testcase(case)
    for suite in suites.values():
        document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    return str(ET.tostring(document._elem, encoding="unicode", xml_declaration=False)) + "\n"  # noqa: SLF001  no way to text


def to_svg(run: RunReport) -> str:
    """When the run did what: a lane per stage, its rounds, waits and turns; violations below."""
    height = _TOP + _ROW * len(run.lanes) + 24 + 16 * len(run.violations)
    root = ET.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {height}",
        width=str(_WIDTH),
        height=str(height),
        role="img",
    )
    root.set("font-family", "system-ui, sans-serif")
    ET.SubElement(root, "title").text = _plain(f"{run.scenario} {run.run_key}")
    ET.SubElement(root, "rect", width="100%", height="100%", fill="#fafafa")
    end = max([run.seconds, *(span.end for span in run.spans), 0.001])
    outcome = "passed" if run.passed else f"{len(run.violations)} violations"
    heading = f"{run.scenario} {run.title} · {run.status or 'no end seen'} in {run.seconds:.1f} s · {outcome}"
    _text(root, 12, 20, heading, size=14, weight="bold")
    _axis(root, end, height)
    for row, lane in enumerate(run.lanes):
        y = _TOP + row * _ROW
        _text(root, 12, y + 20, f"{lane.name} · {lane.agent}" if lane.agent else lane.name)
        for span in (span for span in run.spans if span.lane == lane.name):
            _bar(root, span, y, end)
    for row, violation in enumerate(run.violations):
        _text(root, 12, _TOP + _ROW * len(run.lanes) + 24 + 16 * row, f"✗ {violation}", colour="#c62828")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _axis(root: ET.Element, end: float, height: float) -> None:
    step = next((tick for tick in _TICKS if end / tick <= _MAX_TICKS), end)
    for number in range(int(end / step) + 1):
        x = _x(number * step, end)
        line = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": str(_TOP - 10), "y2": str(height - 20), "stroke": "#e0e0e0"}
        ET.SubElement(root, "line", line)
        _text(root, x, _TOP - 14, f"{number * step:g} s", size=10, colour="#757575")


def _bar(root: ET.Element, span: Span, top: float, end: float) -> None:
    is_turn = span.kind == "turn"
    x, width = _x(span.start, end), max(_x(span.end, end) - _x(span.start, end), 1.5)
    shape = {"x": f"{x:.1f}", "y": str(top + (18 if is_turn else 6)), "width": f"{width:.1f}"}
    shape |= {"height": "5" if is_turn else "22", "rx": "2", "fill": _COLOURS[span.kind]}
    rect = ET.SubElement(root, "rect", shape)
    if is_turn:
        rect.set("opacity", "0.7")
    told = f"{span.lane}: {span.label or span.kind}, {span.kind}, {span.start:.2f} s to {span.end:.2f} s"
    ET.SubElement(rect, "title").text = _plain(told)


def _text(
    root: ET.Element, x: float, y: float, text: str, *, size: int = 12, weight: str = "normal", colour: str = "#212121"
) -> None:
    style = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": str(size), "font-weight": weight, "fill": colour}
    ET.SubElement(root, "text", style).text = _plain(text)


def _x(seconds: float, end: float) -> float:
    return _LEFT + seconds / end * (_WIDTH - _LEFT - 20)


def _plain(text: str) -> str:
    """Without what XML cannot hold, which no serialiser takes out."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
