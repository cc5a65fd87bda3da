"""One look, many times a second, at every command under way: for what the kernel does not enforce by itself."""

from __future__ import annotations

import asyncio
from typing import Protocol

TICK_S = 0.05


class Watched(Protocol):
    def check(self, now: float) -> None:
        """One look, at loop time `now`."""
        ...


class Watch:
    """One timer for all running commands of a backend; it rests while there are none."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._shells: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, shell: Watched) -> None:
        self._shells.add(shell)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def discard(self, shell: Watched) -> None:
        self._shells.discard(shell)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._tick_s, self._tick) if self._shells else None
        for shell in list(self._shells):
            shell.check(loop.time())
