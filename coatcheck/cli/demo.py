"""`demo`: the main job in one command."""

from typing import Annotated, Final

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, ConfigFile, DataDir

app = typer.Typer()

FEATURE: Final = "customer-search"
BRIEF: Final = (
    "Sales people must find a customer by name, city or tax number within one second. "
    "The search forgives one typing error. "
    "Results come twenty to a page, the best match first. "
    "Every search is logged with who searched and when. "
    "The page can be used without a mouse."
)


@app.command()
def demo(
    *,
    kill: Annotated[
        bool, typer.Option("--kill", help="Kill the agent worker in the middle of a model call; the run resumes.")
    ] = False,
    feature: Annotated[str, typer.Option(help="Slug of the feature.")] = FEATURE,
    brief: Annotated[str, typer.Option(help="What is wanted.", show_default=False)] = BRIEF,
    config: ConfigFile = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Take one feature through the five agents on real servers, and show what it left behind.

    Starts the stack if it is not running, and leaves it running.

    Example: coatcheck demo --kill
    """
    from coatcheck.cli.demonstration import demonstrate  # noqa: PLC0415  `--help` must not wait for it
    from coatcheck.cli.request import build_request  # noqa: PLC0415
    from coatcheck.cli.session import run  # noqa: PLC0415

    request = build_request({"feature": feature, "brief": brief})
    run(demonstrate(request, kill=kill, config=config, data_dir=data_dir))
