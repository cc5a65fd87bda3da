"""An event loop whose clock jumps: what sleeps for an hour takes no time, and the order of events is always the same.

    result = run(work())        # like asyncio.run

Time passes only where everything waits: the clock is then set to the next timer. For simulations in one process: time
that passes elsewhere (sockets, other processes) is not on this clock, and a loop that waits for these while a timer is
set does not wait long enough. What is meant for a thread (`asyncio.to_thread`) is done on the spot.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Never waits where the loop has a timer: it moves the loop's clock instead."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self.loop.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual, in seconds from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Jumping()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # as an executor's future does
            future.set_exception(error)
        return future


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run(work)` on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
