"""`doctor`, `reconcile`, `db migrate`, `worker`, `nats-config`, `certs`: what an operator needs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer()
db = typer.Typer(help="The database: `db migrate` brings it up to date.")
app.add_typer(db, name="db")
doctors = typer.Typer(invoke_without_command=True)
app.add_typer(doctors, name="doctor")


@doctors.callback()
def doctor(context: typer.Context, *, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Check everything that a run depends on, and say what to do about what is wrong.

    Exits with 3 when a server or worker is away, with 1 when something else is wrong.

    Example: coatcheck doctor --json
    """
    if context.invoked_subcommand is not None:
        return
    from coatcheck.cli import diagnosis, session  # noqa: PLC0415

    session.run(diagnosis.doctor(as_json=as_json, data_dir=data_dir))


@doctors.command()
def authz(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Try as every NATS identity what it may do and what it may not, and show what the server lets it.

    Changes nothing; needs every identity's key. Exits with 1 when anybody can do more or less than is declared.

    Example: coatcheck doctor authz --json
    """
    from coatcheck.cli import authorization, session  # noqa: PLC0415

    session.run(authorization.authz(as_json=as_json, data_dir=data_dir))


@app.command()
def reconcile(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Compare the recorded runs with Temporal now, and put right what differs.

    A schedule does the same every 30 s.

    Example: coatcheck reconcile --json
    """
    from coatcheck.cli import reconciling, session  # noqa: PLC0415

    session.run(reconciling.reconcile(as_json=as_json, data_dir=data_dir))


@db.command()
def migrate(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Bring the database up to date; safe to repeat.

    Example: coatcheck db migrate
    """
    from coatcheck.cli import deploying  # noqa: PLC0415

    deploying.migrate_database(as_json=as_json, data_dir=data_dir)


@app.command()
def worker(
    kind: Annotated[
        Literal["core", "agents", "gateway", "projector", "archiver"], typer.Argument(help="Which kind of worker.")
    ],
    agents: Annotated[list[str] | None, typer.Argument(help="For agents: only these.")] = None,
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run one worker process in the foreground until it is told to stop.

    Example: coatcheck worker agents roy jen
    """
    from coatcheck.cli import deploying  # noqa: PLC0415

    deploying.run_worker(kind, agents or [], data_dir=data_dir)


@app.command()
def nats_config(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write to.", file_okay=False)] = Path(),
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Write accounts.conf, for a NATS server of your own; makes the keys that are missing.

    Example: coatcheck nats-config --out /etc/nats
    """
    from coatcheck.cli import deploying  # noqa: PLC0415

    deploying.write_nats_config(out, data_dir=data_dir)


@app.command()
def rotate(
    who: Annotated[list[str], typer.Argument(help="Identities, such as roy or gateway; or all.", metavar="WHO...")],
    *,
    out: Annotated[Path | None, typer.Option(help="Where servers of your own read accounts.conf.")] = None,
    reload: Annotated[str | None, typer.Option(help="The command that has them read it again.")] = None,
    restart: Annotated[
        str | None, typer.Option(help="The command that gives workers the new keys, if they do not see the files.")
    ] = None,
    overlap: Annotated[float, typer.Option(min=0, help="Seconds for which both keys are good, at most.")] = 60,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Give NATS identities new keys while everything runs; what the old ones have signed stays good.

    Can be repeated at any point: it goes on where it stopped.

    Example: coatcheck rotate all
    """
    from coatcheck.cli import rotating, session  # noqa: PLC0415

    work = rotating.rotate(
        who,
        out=out,
        reload_command=reload,
        restart_command=restart,
        overlap_seconds=overlap,
        as_json=as_json,
        data_dir=data_dir,
    )
    session.run(work)


@app.command()
def codec_server(
    *,
    ui: Annotated[
        list[str] | None,
        typer.Option(help="Origin of a Temporal UI that may ask; that of the local stack's by default."),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.")] = 8234,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Decrypt payloads for Temporal's UI and program, where COATCHECK_PAYLOAD_KEYS encrypts them.

    Example: coatcheck codec-server --ui http://localhost:8080
    """
    from coatcheck.cli import codec_server as server  # noqa: PLC0415
    from coatcheck.cli import session  # noqa: PLC0415
    from coatcheck.localstack.status import load_status  # noqa: PLC0415

    temporal = load_status(data_dir).temporal
    own = temporal.ui_url if temporal and temporal.ui_url else None
    origins = ui or ([own, own.replace("127.0.0.1", "localhost")] if own else [])
    session.run(server.serve(session.load_settings(data_dir), host=host, port=port, origins=origins))


@app.command()
def certs(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write to.", file_okay=False)] = Path("certs"),
    host: Annotated[list[str] | None, typer.Option(help="One more name or address of the servers.")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificates hold.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Make an authority and certificates for NATS, PostgreSQL, Temporal, the collector and Phoenix, for development.

    Again renews the certificates under the same authority; remove ca.pem and ca.key for a new one.

    Example: coatcheck certs --out certs --host build-7.example.com
    """
    from coatcheck.cli import deploying  # noqa: PLC0415

    deploying.write_certificates(out, host or [], days=days, as_json=as_json)
