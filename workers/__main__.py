"""`python -m workers core|agents|gateway|projector|archiver`: starts one worker; settings come from the environment."""

import functools
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from coatcheck.settings import Settings
from workers.runner import Lifecycle, run_main

KINDS = ("core", "agents", "gateway", "projector", "archiver")


def main(argv: Sequence[str]) -> NoReturn:
    """Run the worker that `argv` names; `agents roy jen` hosts only those agents."""
    kind = argv[0] if argv else ""
    if kind not in KINDS:
        sys.exit(f"usage: python -m workers {'|'.join(KINDS)} [AGENT …]")
    settings = Settings()
    run_main(kind, _entry(kind, settings, argv[1:]), settings)


def _entry(kind: str, settings: Settings, only: Sequence[str]) -> Callable[[Lifecycle], Awaitable[None]]:
    """Import only what this kind of process may hold: an agent worker never loads a database driver."""
    if kind == "core":
        from workers import core  # noqa: PLC0415

        return functools.partial(core.run, settings)
    if kind == "gateway":
        from workers import gateway  # noqa: PLC0415

        return functools.partial(gateway.run, settings)
    if kind == "projector":
        from workers import projector  # noqa: PLC0415

        return functools.partial(projector.run, settings)
    if kind == "archiver":
        from workers import archiver  # noqa: PLC0415

        return functools.partial(archiver.run, settings)
    from workers import agent  # noqa: PLC0415

    return functools.partial(agent.run, settings, only=only)


if __name__ == "__main__":
    main(sys.argv[1:])
