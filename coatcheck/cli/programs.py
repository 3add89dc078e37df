"""`program run|status|watch|pause|resume|cancel|limit`: many features from one file."""

from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer()
program = typer.Typer(help="Many features from one file, so many at a time.")
app.add_typer(program, name="program")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A program's name, or its workflow id.")]


@program.command()
def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="TOML, JSON or JSON lines, by its ending; - is stdin.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the program. [default: the file's]")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, max=100, help="Features to be worked on at once. [default: the file's, else 5]")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Follow the program to its end.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Send many features through the team.

    With --wait the exit code is 0 when every feature completed, and 1 when one did not.

    Example: coatcheck program run docs/examples/program.toml --max-concurrent 3 --wait
    """
    from coatcheck.cli import program_file, program_steering, session  # noqa: PLC0415
    from coatcheck.config import load_config  # noqa: PLC0415

    config = load_config(session.load_settings(data_dir).config_file)
    request = program_file.read_program(file, name=name, max_concurrent=max_concurrent, config=config)
    session.run(program_steering.run_program(request, wait=wait, as_json=as_json, data_dir=data_dir))


@program.command()
def status(name: Name, *, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show where every feature is, and why one did not go through.

    Example: coatcheck program status spring --json
    """
    from coatcheck.cli import program_steering, session  # noqa: PLC0415

    session.run(program_steering.show_status(name, as_json=as_json, data_dir=data_dir))


@program.command()
def watch(name: Name, *, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Follow a program to its end; exits like `program run --wait`.

    Example: coatcheck program watch spring
    """
    from coatcheck.cli import program_steering, session  # noqa: PLC0415

    session.run(program_steering.watch(name, as_json=as_json, data_dir=data_dir))


@program.command()
def pause(name: Name, *, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Start no more features; those that have begun go on.

    Example: coatcheck program pause spring
    """
    from coatcheck.cli import program_steering, session  # noqa: PLC0415

    session.run(program_steering.pause(name, data_dir=data_dir))


@program.command()
def resume(name: Name, *, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Start features again.

    Example: coatcheck program resume spring
    """
    from coatcheck.cli import program_steering, session  # noqa: PLC0415

    session.run(program_steering.resume(name, data_dir=data_dir))


@program.command()
def cancel(name: Name, *, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """End a program and its runs; what they delivered stays.

    Example: coatcheck program cancel spring
    """
    from coatcheck.cli import program_steering, session  # noqa: PLC0415

    session.run(program_steering.cancel(name, data_dir=data_dir))


@program.command()
def limit(
    name: Name,
    max_concurrent: Annotated[int, typer.Argument(min=1, max=100, help="Features to be worked on at once.")],
    *,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Change how many features are worked on at once.

    None that has begun is stopped.

    Example: coatcheck program limit spring 10
    """
    from coatcheck.cli import program_steering, session  # noqa: PLC0415

    session.run(program_steering.limit(name, max_concurrent, data_dir=data_dir))
