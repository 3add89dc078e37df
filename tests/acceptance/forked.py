"""The program `coatcheck` in a process that was forked (`tests.forks`)."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path


def run(arguments: Sequence[str], variables: Mapping[str, str], folder: Path, streams: Sequence[Path]) -> None:
    """Be `coatcheck ARGUMENTS` in `folder`, with these variables alone; `streams` are stdin, stdout and stderr."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, (path, flags) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        os.dup2(os.open(path, flags), number)
    sys.stdin = os.fdopen(0)
    sys.argv = ["coatcheck", *arguments]
    import_module("coatcheck.cli").main()
