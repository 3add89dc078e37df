"""`logs`: the workers' log files, filtered by run."""

from pathlib import Path

from coatcheck.cli.output import emit, emit_json
from coatcheck.cli.runs import RunNotFoundError
from coatcheck.localstack.status import load_status
from coatcheck.telemetry.log_lines import LogLine, read_lines


def show_logs(run: str, *, every: bool, as_json: bool, data_dir: Path) -> None:
    """Print the lines about a run.

    Args:
        run: A run key, a workflow id or a feature.
        every: All runs that go by that name; else the one of the latest line.
        as_json: One JSON object per line.
        data_dir: Of the stack.

    Raises:
        RunNotFoundError: no line is about it.
    """
    paths = [path for worker in load_status(data_dir).workers for path in _files(worker.log)]
    lines = sorted((line for line in read_lines(paths) if line.is_about(run)), key=lambda line: line.time)
    if not lines:
        raise RunNotFoundError(
            f"no log line in {data_dir.absolute() / 'logs'} is about {run!r}",
            hint="`coatcheck why RUN` asks the servers",
        )
    shown = [line for line in lines if every or line.run == lines[-1].run]
    for line in shown:
        _show(line, as_json=as_json)


def _show(line: LogLine, *, as_json: bool) -> None:
    if as_json:
        emit_json(line.model_dump(mode="json", exclude_none=True), indent=None)
    else:
        emit(line.shown())


def _files(log: Path) -> list[Path]:
    """The older part first."""
    return [log.with_name(log.name + ".1"), log]
