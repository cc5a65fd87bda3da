"""Boxes as sessions use them: a `BoxRoom` per session, which starts boxes when the session asks and stops them.

Boxes live in the worker's event loop, wherever the session runs: a thread reaches them through `SyncBox`, a process
through the pipe to the worker.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from envfarm.backends.local import backend_class
from envfarm.backends.sync import SyncBox
from envfarm.box import Backend, Box, BoxSpec, Snapshot
from envfarm.errors import BoxDied, InfraError

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec

CALLS = frozenset({"exec", "read", "write", "list", "archive", "snapshot"})
"""The methods of a box that a session may call."""


class Boxes:
    """The worker's backend, loaded when the first spec needs a box."""

    def __init__(self, backend: str | Backend = "bubblewrap", *, owner: str = ""):
        self._named, self._owner = backend, owner
        self._backend: Backend | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._sessions = itertools.count()

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            self._backend = backend_class(self._named)() if isinstance(self._named, str) else self._named
        return self._backend

    async def probe(self, specs: list[EnvSpec]) -> None:
        """Refuse specs that need a box where none can be made. Raises: BoxUnavailableError."""
        if any(spec.sandbox.box for spec in specs):
            await self.backend.probe()

    async def try_out(self, specs: list[EnvSpec]) -> None:
        """One box of every kind that `specs` ask for, to be stopped at once: what is missing for it is told now, and not to
        the first client. Raises: BoxUnavailableError, InfraError."""
        for kind in dict.fromkeys(spec.sandbox.box_spec(spec.limits) for spec in specs if spec.sandbox.box):
            box = await self.backend.start(kind)
            await box.stop()

    def room(self, spec: EnvSpec) -> BoxRoom | None:
        """None for an environment without a box."""
        return BoxRoom(self, spec.sandbox.box_spec(spec.limits)) if spec.sandbox.box else None

    async def start(self, spec: BoxSpec, session: int, snapshot: Snapshot | None = None) -> Box:
        return await self.backend.start(spec, owner=f"{self._owner}-{session}", snapshot=snapshot)

    def next_session(self) -> int:
        return next(self._sessions)

    def later(self, stopping: Coroutine[Any, Any, None]) -> None:
        """Run `stopping` in the background; `close` waits for it."""
        task = asyncio.ensure_future(stopping)
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        """Stop every box. Idempotent."""
        await asyncio.gather(*self._stopping, return_exceptions=True)
        if self._backend is not None:
            await self._backend.close()


class BoxRoom:
    """The boxes of one session: number 0 is the agent's, later ones are fresh boxes that verification asks for.

    All methods but `make_box` belong to the event loop.
    """

    def __init__(self, boxes: Boxes, spec: BoxSpec):
        self._boxes, self.spec, self._session = boxes, spec, boxes.next_session()
        self._loop = asyncio.get_running_loop()
        self._live: dict[int, Box] = {}
        self._next = 0
        self._closed = False
        self.agent_box: RoomBox | None = None

    async def start(self, snapshot: Snapshot | None = None) -> int:
        """A new box; returns its number. Raises: InfraError, BoxUnavailableError."""
        number, self._next = self._next, self._next + 1
        box = await self._boxes.start(self.spec, self._session, snapshot)
        if self._closed:  # the session went away while its box came up
            await box.stop()
            raise InfraError("the session was closed before its box was up")
        self._live[number] = box
        return number

    def make_box(self, snapshot: Snapshot | None = None) -> RoomBox:
        """For the session's thread: a new box, with blocking methods. Raises: as `start`."""
        number = asyncio.run_coroutine_threadsafe(self.start(snapshot), self._loop).result()
        return self.as_sync(number)

    def as_sync(self, number: int) -> RoomBox:
        box = RoomBox(self, number, self._live[number], self._loop)
        if number == 0:
            self.agent_box = box
        return box

    async def call(self, number: int, method: str, arguments: dict[str, Any]) -> Any:
        """For a session in another process. Raises: as the box's method; BoxDied where it was stopped."""
        if method not in CALLS:
            raise InfraError(f"a box has no method {method!r}")
        if number not in self._live:
            raise BoxDied("the box was stopped")
        return await getattr(self._live[number], method)(**arguments)

    async def fork(self) -> BoxRoom:
        """A new room whose agent's box starts from a snapshot of this one's.

        Raises: ValueError (too large), InfraError, BoxDied."""
        other = BoxRoom(self._boxes, self.spec)
        if 0 in self._live:
            await other.start(await self._live[0].snapshot())
        return other

    def stop(self, number: int) -> None:
        """Stop one box, in the background. Idempotent."""
        box = self._live.pop(number, None)
        if box is not None:
            self._boxes.later(box.stop())

    def close(self) -> None:
        """Stop all boxes, in the background. Idempotent."""
        self._closed = True
        for number in list(self._live):
            self.stop(number)


class RoomBox(SyncBox):
    """A session's box, which it can also stop. Not to be used on the event loop's thread."""

    def __init__(self, room: BoxRoom, number: int, box: Box, loop: asyncio.AbstractEventLoop):
        super().__init__(box, loop)
        self._room, self._number = room, number

    def stop(self) -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it every box
            self.loop.call_soon_threadsafe(self._room.stop, self._number)
