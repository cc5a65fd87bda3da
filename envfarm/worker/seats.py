"""Who sits where: the sessions of one worker, and the seat that each connection holds."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envfarm.errors import EnvfarmError, EnvironmentFault, InfraError, UnknownIdError, WorkerDied, did_you_mean
from envfarm.scenes import scene_class
from envfarm.worker import protocol
from envfarm.worker.boxes import Boxes
from envfarm.worker.brought import Brought
from envfarm.worker.protocol import Fork, Release, Reply, Request, Reset, Said, Step, Words
from envfarm.worker.sessions import Done, Host, InlineHost, ThreadHost

if TYPE_CHECKING:
    from envfarm.bundle import Bundle
    from envfarm.session import Turn
    from envfarm.spec import EnvSpec, Instance
    from envfarm.tools import ToolSpec
    from envfarm.worker.process import Zygote


IDLE_S = 900.0
"""A fork that nobody attaches to, and a session over HTTP that nobody calls, is closed after this time."""


@dataclass(frozen=True)
class Served:
    """Which instances a client plays that does not say which."""

    split: str | None = None
    """None: an environment's first."""
    setting: dict[str, Any] = field(default_factory=dict)

    def split_of(self, spec: EnvSpec) -> str:
        return self.split or next(iter(spec.splits))

    def check(self, specs: list[EnvSpec]) -> None:
        """Raises: UserError where an environment has no such split or setting."""
        for spec in specs:
            spec.instance(self.split_of(spec), 0, self.setting)


class Sessions:
    """All sessions of one worker: makes hosts by what their spec asks for, and counts seats."""

    def __init__(
        self, specs: list[EnvSpec], boxes: Boxes, *, zygote: Zygote | None = None, limit: int = 1024,
        served: Served | None = None, bundles: Path | None = None,
    ):  # fmt: skip
        self.specs = {spec.id: spec for spec in specs}
        self.brought = Brought(bundles, boxes)
        self.served = served or Served()
        self.limit, self.boxes = limit, boxes
        self.seats: set[Seat] = set()
        self.parked: dict[str, Seat] = {}
        """Seats by id that wait for a connection: forks, and sessions made over HTTP."""
        self._zygote = zygote
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    @property
    def default(self) -> EnvSpec:
        """What a client plays that names no environment. Raises: UnknownIdError."""
        for spec in self.specs.values():
            return spec
        raise UnknownIdError("this worker serves only what clients bring")

    def spec(self, env_id: str, spec_hash: str | None = None) -> EnvSpec:
        """The one that was brought with that hash, else that of the id. Raises: UnknownIdError."""
        if spec_hash is not None and (brought := self.brought.get(spec_hash)) is not None:
            return brought
        if env_id not in self.specs:
            raise UnknownIdError(
                f"this worker does not serve {env_id!r}{did_you_mean(env_id, self.specs)}; it serves {', '.join(self.specs)}"
            )
        return self.specs[env_id]

    async def bring(self, spec_hash: str, bundle: Bundle | None) -> str:
        """Serve it from now on; returns its id, or nothing where it is not there and did not come. Raises: as `Brought.take`."""
        known = next((spec for spec in self.specs.values() if spec.hash == spec_hash), self.brought.get(spec_hash))
        if known is None and bundle is not None:
            known = await self.brought.take(bundle, spec_hash)
        return known.id if known is not None else ""

    def host(self, spec: EnvSpec) -> Host:
        """Raises: InfraError where the zygote is gone."""
        room = self.boxes.room(spec)
        if spec.isolation == "process":
            zygote = self.brought.zygote(spec) or self._zygote
            assert zygote is not None
            return zygote.host(spec, room)
        return ThreadHost(spec, room) if room is not None or scene_class(spec).blocking else InlineHost(spec)

    @property
    def full(self) -> bool:
        return len(self.seats) >= self.limit

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
        self.brought.close()
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
            self.host = self._sessions.host(self._sessions.spec(request.env_id, request.instance.spec_hash))
        except EnvfarmError as error:
            done(protocol.failed(error))
            return
        self.instance = request.instance
        self.episode_id = f"{request.instance.hash[:12]}-{self._sessions.next_number()}"
        self.host.call(request, done)

    async def _fork(self, host: Host, done: Done) -> None:
        try:
            if self._sessions.full:
                raise InfraError(f"the worker has {self._sessions.limit} sessions, its limit")
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
