"""The one side shell of a box that is in use, opened in the background and again where the agent has killed it."""

from __future__ import annotations

import asyncio

from envfarm.backends.remote_side import Answer, Side, SideLost
from envfarm.backends.remote_streams import Lost, NoRoom, Streams
from envfarm.backends.shell import START_TIMEOUT_S

_TRIES = 4
_AGAIN_S = 10.0  # for a shell that replaces another


class Second:
    def __init__(self, streams: Streams):
        self._streams = streams
        self._lock = asyncio.Lock()
        self._side: Side | None = None
        self._coming: Side | None = None  # has not answered yet
        self._closed = self._opened = self._crowded = self._silent = False
        self._opening: asyncio.Task[Side] | None = None

    def open_soon(self) -> None:
        """Begin to open it. Who asks waits for that, and learns what came of it."""
        self._opening = asyncio.ensure_future(self._have())

    @property
    def here(self) -> Side | None:
        """The one that answers, where there is one."""
        return self._side if self._side is not None and not self._side.over else None

    def require(self) -> None:
        """Raises: Lost, SideLost, BoxUnavailableError where the opening is over and came to that."""
        if self._opening is not None and self._opening.done():
            self._opening.result()

    def close(self) -> None:
        """Every later question raises Lost. Idempotent."""
        self._closed = True
        for side in (self._side, self._coming):
            if side is not None:
                side.close()

    async def ended(self) -> None:
        """Once it is closed and the container or pod is removed: until nothing is being opened any more. Never raises."""
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)

    async def ask(self, text: str, data: bytes = b"", *, timeout_s: float) -> Answer:
        """As `Side.ask`. Raises: Refused, Lost, SideLost where several shells in a row were killed or do not answer."""
        for _ in range(_TRIES):
            side = await self._have()
            try:
                return await side.ask(text, data, timeout_s=timeout_s)
            except SideLost:
                self._silent = not side.over
                side.close()
                if self._side is side:
                    self._side = None
        if self._closed:
            raise Lost
        raise SideLost

    async def _have(self) -> Side:
        async with self._lock:
            for _ in range(_TRIES):
                if self._closed:
                    raise Lost
                if self._side is None:
                    self._side = await self._open()
                if self._side is not None:
                    return self._side
        raise SideLost

    async def _open(self) -> Side | None:
        """None where it did not come up. Raises: Lost."""
        try:
            side = self._coming = Side(await self._streams.open_side(crowded=self._crowded, silent=self._silent))
        except NoRoom:
            self._crowded = True
            return None
        try:
            if self._closed:
                raise Lost
            await side.introduce(_AGAIN_S if self._opened else START_TIMEOUT_S)
        except SideLost:
            self._crowded, self._silent = True, not side.over
            side.close()
            return None
        except BaseException:
            side.close()
            raise
        self._crowded, self._silent, self._opened = False, False, True
        return side
