"""Who sits where: the sessions of one worker, and the seat that each connection holds."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from envfarm.errors import EnvfarmError, EnvironmentFault, InfraError, WorkerDied
from envfarm.scenes import scene_class
from envfarm.worker import protocol
from envfarm.worker.boxes import Boxes
from envfarm.worker.catalogue import Catalogue
from envfarm.worker.protocol import Fork, Release, Reply, Request, Reset, Said, Step, Words
from envfarm.worker.sessions import Done, Host, InlineHost, ThreadHost

if TYPE_CHECKING:
    from envfarm.session import Turn
    from envfarm.spec import EnvSpec, Instance
    from envfarm.tools import ToolSpec
    from envfarm.worker.process import Zygote


IDLE_S = 900.0
"""A fork that nobody attaches to, and a session over HTTP that nobody calls, is closed after this time."""


class Sessions:
    """All sessions of one worker: makes hosts by what their spec asks for, and counts seats."""

    def __init__(self, catalogue: Catalogue, boxes: Boxes, *, zygote: Zygote | None = None, limit: int = 1024):
        self.catalogue, self.boxes, self.limit = catalogue, boxes, limit
        self.seats: set[Seat] = set()
        self.parked: dict[str, Seat] = {}
        """Seats by id that wait for a connection: forks, and sessions made over HTTP."""
        self._zygote = zygote
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    def host(self, spec: EnvSpec) -> Host:
        """Raises: InfraError where the zygote is gone."""
        room = self.boxes.room(spec)
        if spec.isolation == "process":
            zygote = self.catalogue.brought.zygote(spec) or self._zygote
            assert zygote is not None
            return zygote.host(spec, room)
        return ThreadHost(spec, room) if room is not None or scene_class(spec).blocking else InlineHost(spec)

    @property
    def refusal(self) -> str:
        """What one more is told; empty where there is room for it."""
        return f"the worker has {self.limit} sessions, its limit" if len(self.seats) >= self.limit else ""

    def next_number(self) -> int:
        """0, 1, 2, ...: names episodes, and picks instances for clients that do not care which."""
        self._count += 1
        return self._count - 1

    def park(self, seat: Seat) -> str:
        """An unguessable id under which one connection may claim `seat`."""
        key = secrets.token_urlsafe(16)
        self.parked[key] = seat
        self._expire_later(key, seat)
        return key

    def _expire_later(self, key: str, seat: Seat) -> None:
        """Close a parked seat that nobody used for `IDLE_S`."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            if self.parked.get(key) is not seat:
                return
            if seat.attached or loop.time() - seat.used_at < IDLE_S:
                self._expire_later(key, seat)
            else:
                del self.parked[key]
                seat.close()

        loop.call_later(IDLE_S, look)

    def claim(self, key: str) -> Seat | None:
        """The parked seat, for a connection to attach to: one made over HTTP stays parked, a fork does not."""
        seat = self.parked.get(key)
        if seat is None or seat.attached:
            return None
        seat.attached = True
        if not seat.kept:
            del self.parked[key]
        return seat

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for seat in list(self.seats):
            seat.close()
        if self._zygote is not None:
            self._zygote.close()
        self.catalogue.brought.close()
        await self.boxes.close()


class Seat:
    """What one connection holds: at most one host. Frees it when the connection ends."""

    def __init__(self, sessions: Sessions, host: Host | None = None, *, kept: bool = False):
        self._sessions, self.host = sessions, host
        self.kept, self.attached = kept, False
        """Made over HTTP: it outlives the WebSocket that attaches to it, and HTTP requests go on using it."""
        self.turn: Turn | None = None
        """The last turn of the running episode: whose turn it is, and whether it is over."""
        self.tools: tuple[ToolSpec, ...] = ()
        self.instance: Instance | None = None
        self.episode_id: str | None = None
        self.steps = 0
        self.used_at = asyncio.get_running_loop().time()
        self._busy = self._closed = False
        self._waiting: deque[tuple[Request, Done]] = deque()
        sessions.seats.add(self)

    async def ask(self, request: Request) -> Reply:
        """`call`, as a coroutine."""
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.call(request, partial(_resolve, answer))
        return await answer

    def call(self, request: Request, done: Done) -> None:
        """Run `request`, after those before it; `done` gets the reply, perhaps before this returns."""
        if self._busy:
            self._waiting.append((request, done))
            return
        self._busy = True
        if self.kept:
            self.used_at = asyncio.get_running_loop().time()

        def answered(reply: Reply) -> None:
            self._busy = False
            if type(reply) is Said:
                self.turn = reply.turn
                self.tools = reply.turn.tools or self.tools
            done(reply)
            if self._waiting and not self._busy:
                self.call(*self._waiting.popleft())

        self._start(request, answered)

    def _start(self, request: Request, done: Done) -> None:
        if isinstance(request, Reset):
            self._reset(request, done)
        elif isinstance(request, Release):
            self.release()
            done(Words(""))
        elif self.host is None:
            done(protocol.NO_EPISODE)
        elif isinstance(request, Fork):
            self._sessions.later(self._fork(self.host, done))
        elif isinstance(request, Step) and request.role is not None and self.turn and request.role != self.turn.role:
            done(protocol.failed(EnvironmentFault(f"it is {self.turn.role}'s turn, not {request.role}'s"), "VALIDATION_ERROR"))
        else:
            self.steps += isinstance(request, Step)
            self.host.call(request, done)

    def _reset(self, request: Reset, done: Done) -> None:
        self.release()
        try:
            self.host = self._sessions.host(self._sessions.catalogue.spec(request.env_id, request.instance.spec_hash))
        except EnvfarmError as error:
            done(protocol.failed(error))
            return
        self.instance = request.instance
        self.episode_id = f"{request.instance.hash[:12]}-{self._sessions.next_number()}"
        self.host.call(request, done)

    async def _fork(self, host: Host, done: Done) -> None:
        try:
            if refusal := self._sessions.refusal:
                raise InfraError(refusal)
            forked = await host.fork()
            if self._closed:
                forked.close()
                raise WorkerDied("the session was closed while it was forked")
        except (EnvfarmError, ValueError) as error:
            done(protocol.failed(error))
            return
        seat = Seat(self._sessions, forked)
        seat.turn, seat.tools, seat.steps = self.turn, self.tools, self.steps
        seat.instance, seat.episode_id = self.instance, self.episode_id
        done(Words(self._sessions.park(seat)))

    def release(self) -> None:
        """Close the episode; the seat stays."""
        host, self.host = self.host, None
        self.turn, self.tools, self.instance, self.episode_id, self.steps = None, (), None, None, 0
        if host is not None:
            host.close()

    def detach(self) -> None:
        """The connection ended."""
        self.attached = False
        if not self.kept:
            self.close()

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self.release()
        self._sessions.seats.discard(self)


def _resolve(answer: asyncio.Future[Reply], reply: Reply) -> None:
    if not answer.done():  # cancelled, else
        answer.set_result(reply)
