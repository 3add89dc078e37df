"""`up`, `down` and `status`: the local stack.

What a command needs is imported when it is called, so that `coatcheck --help` answers at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, ConfigFile, DataDir
from coatcheck.cli.voice import EXIT_DEPENDENCY_DOWN, tell

if TYPE_CHECKING:
    from coatcheck.localstack.config import StackConfig
    from coatcheck.localstack.status import MemberStatus, StackStatus
    from coatcheck.settings import Settings
    from schemas.mcp import ServerHealth

app = typer.Typer()


def stack_config(
    data_dir: Path,
    settings: "Settings",
    *,
    config: Path | None,
    phoenix: bool = False,
    metrics: bool = False,
    tls: bool = False,
) -> "StackConfig":
    """The stack in `data_dir`; servers that the environment points to are used, the others are started.

    Args:
        data_dir: Where its data are or will be.
        settings: From the environment.
        config: The `coatcheck.toml` that is given; else that of the current folder, if there is one.
        metrics: Whether the workers offer metrics; they also do when the environment names a port for them.
        phoenix: Whether Phoenix is started too.
        tls: Whether clients speak TLS with the servers; they also do when the environment says so.

    Raises:
        ConfigError: it is wrong; nothing was started.
    """
    from coatcheck.cli.session import config_file  # noqa: PLC0415
    from coatcheck.config import load_config  # noqa: PLC0415
    from coatcheck.localstack.config import ALL_SERVERS, SERVERS, External, StackConfig  # noqa: PLC0415

    file = config_file(config)
    load_config(file)
    database, gateway = settings.database_url, settings.gateway_database_url
    return StackConfig(
        data_dir=data_dir.absolute(),
        config_file=file,
        metrics=metrics or settings.metrics_port is not None,
        tls=tls or settings.tls,
        servers=ALL_SERVERS if phoenix else SERVERS,
        nats_keys_dir=settings.nats_keys_dir.absolute() if settings.nats_keys_dir else None,
        external=External(
            temporal_address=settings.temporal_address,
            temporal_namespace=settings.temporal_namespace,
            nats_url=settings.nats_url,
            nats_monitor_url=settings.nats_monitor_url,
            database_url=database.get_secret_value() if database else None,
            gateway_database_url=gateway.get_secret_value() if gateway else None,
        ),
    )


@app.command()
def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything is ready.")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="Offer the workers' metrics to Prometheus.")] = False,
    phoenix: Annotated[
        bool, typer.Option("--phoenix", help="Also Arize Phoenix, which shows each run's trace.")
    ] = False,
    tls: Annotated[bool, typer.Option("--tls", help="With TLS, by certificates made for it.")] = False,
    config: ConfigFile = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Start Temporal, NATS, PostgreSQL and the workers, and keep them running."""
    import asyncio  # noqa: PLC0415

    from coatcheck.localstack.foreground import supervise  # noqa: PLC0415
    from coatcheck.localstack.phoenix import interpreter  # noqa: PLC0415
    from coatcheck.localstack.stack import start_detached  # noqa: PLC0415
    from coatcheck.localstack.status import StackState, load_status  # noqa: PLC0415
    from coatcheck.settings import Settings  # noqa: PLC0415

    status = load_status(data_dir)
    if status.state == StackState.RUNNING:
        tell(f"already running in {status.data_dir} (supervisor pid {status.supervisor.pid})")
        warn_of_other_config(status, config)
        if phoenix and status.phoenix is None:
            tell("warning: it was started without Phoenix")
            tell("hint: `coatcheck down` and `coatcheck up --phoenix` start it with the stack")
        if metrics and not any(worker.metrics_url for worker in status.workers):
            tell("warning: it was started without metrics")
            tell("hint: `coatcheck down` and `coatcheck up --metrics` offer them")
        if tls and not (status.nats and status.nats.ca_file):
            tell("warning: it was started without TLS")
            tell("hint: `coatcheck down` and `coatcheck up --tls` speak it")
        return
    if phoenix:
        interpreter()  # before anything is started
    wanted = stack_config(data_dir, Settings(), config=config, phoenix=phoenix, metrics=metrics, tls=tls)
    if not detach:
        raise typer.Exit(asyncio.run(supervise(wanted)))
    status = start_detached(wanted)
    tell(f"running in {status.data_dir} (supervisor pid {status.supervisor.pid})")
    tell("hint: `coatcheck status` shows where everything is, `coatcheck down` stops it")
    if wanted.metrics:
        tell(f"hint: `prometheus --config.file={status.data_dir / 'prometheus' / 'prometheus.yml'}` watches it")


def warn_of_other_config(status: "StackStatus", config: Path | None) -> None:
    """Say so when a stack that runs was started with another `coatcheck.toml` than the one that is meant now."""
    from coatcheck.cli.session import config_file  # noqa: PLC0415

    wanted = config_file(config)
    if wanted is not None and wanted != status.config_file:
        tell(f"warning: it was started with {status.config_file or 'no coatcheck.toml'}, not with {wanted}")
        tell("hint: `coatcheck down` and `coatcheck up` take the other one")


@app.command()
def down(*, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Stop the stack. Its data stay."""
    from coatcheck.localstack.stack import stop_detached  # noqa: PLC0415

    stopped = stop_detached(data_dir)
    tell(f"stopped; the data stay in {data_dir.absolute()}" if stopped else f"nothing runs in {data_dir.absolute()}")


@app.command()
def status(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show what runs and where, how the MCP servers are and how far the archive is. Exits with 3 when nothing runs."""
    from coatcheck.cli import archiving  # noqa: PLC0415
    from coatcheck.localstack.status import StackState, load_status  # noqa: PLC0415

    found = load_status(data_dir)
    is_running = found.state == StackState.RUNNING
    tools = _tools(data_dir) if is_running and found.config_file else []
    unarchived = archiving.unarchived(data_dir) if is_running and found.nats else None
    if as_json:
        from coatcheck.cli.output import emit_json  # noqa: PLC0415

        emit_json(found.model_dump(mode="json") | {"unarchived": unarchived} | ({"tools": tools} if tools else {}))
    else:
        sys.stdout.write(_table(found, unarchived) + "".join(f"{_health(server)}\n" for server in tools))
    if found.state != StackState.RUNNING:
        raise typer.Exit(EXIT_DEPENDENCY_DOWN)


def _table(found: "StackStatus", unarchived: int | None) -> str:
    lines = [f"stack     {found.state}  {found.data_dir}"]
    if found.config_file:
        lines.append(f"config    {found.config_file}")
    if found.supervisor.error:
        lines.append(f"error     {found.supervisor.error}")
    if found.temporal:
        lines.append(f"temporal  {found.temporal.address}  {found.temporal.ui_url or ''}".rstrip())
    if found.nats:
        lines.append(f"nats      {found.nats.url}  {found.nats.monitor_url or ''}".rstrip())
    if found.postgres:
        lines.append(f"postgres  {found.postgres.dsn.rpartition('@')[2]}")
    if unarchived is not None:
        lines.append(f"archive   {unarchived:,} deliverables are not in it yet")
    lines += [f"metrics   {worker.metrics_url}  {worker.name}" for worker in found.workers if worker.metrics_url]
    if found.phoenix:
        lines.append(f"phoenix   {found.phoenix.url}")
    lines += ["", *(_row(member) for member in (*found.servers, *found.workers))]
    return "\n".join(lines).rstrip() + "\n"


def _tools(data_dir: Path) -> "list[ServerHealth]":
    from coatcheck.cli import toolbench  # noqa: PLC0415

    return toolbench.glance(data_dir)


def _health(server: "ServerHealth") -> str:
    return f"{f'mcp {server.server}':<9} {server.state:<11} {server.reason}".rstrip()


def _row(member: "MemberStatus") -> str:
    pid = f"pid {member.pid}" if member.pid else ""
    restarts = f"restarts {member.restarts}, last {member.last_exit}" if member.restarts else ""
    return f"{member.name:<9} {member.state:<11} {pid:<12} {restarts}".rstrip()
