"""An event loop whose clock jumps to the next timer: hours of waiting in milliseconds, the same each time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class _Selector(selectors.SelectSelector):
    """Lets the time pass that it was to wait for."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits, and nobody for a time: this would never end")
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at 0 s."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Seconds since the beginning."""
        return self._virtual.now


def run_virtually(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run it to its end in virtual time; it may wait for times and for its own tasks, and for nothing else."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
