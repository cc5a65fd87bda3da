"""Where a live session is kept, and the one function that every place runs: `perform`.

- `InlineHost`: in the event loop. For pure environments: a step costs microseconds, a thread would cost more.
- `ThreadHost`: in a thread of its own, from the first call to the last. For environments with a box.
- `envfarm.worker.process.ProcessHost`: in a forked process of its own.

A host serves one episode. `envfarm.worker.seats.Seat` makes one for each reset and frees the last.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from envfarm.errors import CapabilityError, EnvfarmError, InfraError
from envfarm.session import LocalSession, Session
from envfarm.worker import protocol
from envfarm.worker.boxes import BoxRoom
from envfarm.worker.protocol import Finish, Oracle, Random, Reply, Request, Reset, Said, Step, Words

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec

Done = Callable[[Reply], None]


def new_session(spec: EnvSpec, make_box: Callable[..., Any] | None) -> Session:
    """A fresh scene in a session with its channels: an environment object lives for one episode."""
    from envfarm.perturbation import perturbed
    from envfarm.registry import make_scene

    return perturbed(LocalSession(spec, make_scene(spec), make_box=make_box))


def preload(spec: EnvSpec) -> None:
    """Import all that a session of `spec` imports late, so that no session waits for it. Raises: SpecError and such."""
    from envfarm.formats import FORMATS, writer
    from envfarm.perturbation import channel_class
    from envfarm.perturbation import wrapper as _wrapper
    from envfarm.scenes import scene_class

    scene_class(spec)
    for key in spec.perturb:
        channel_class(key)
    for name in FORMATS:
        writer(name)
    assert _wrapper


def perform(session: Session, request: Request) -> Reply:
    """Run one request. This is the boundary of a session: whatever goes wrong becomes one recorded failure."""
    try:
        if isinstance(request, Step):
            return Said(session.step(request.action))
        if isinstance(request, Reset):
            return Said(session.reset(request.instance))
        if isinstance(request, Finish):
            return Said(session.finish(request.reason))
        if isinstance(request, Oracle):
            return Words(session.oracle())
        assert isinstance(request, Random)
        return Words(session.random(request.seed))
    except EnvfarmError as error:
        return protocol.failed(error)
    except Exception as error:
        traceback.print_exc()  # ours, not the environment's: that was caught closer to it
        return protocol.failed(InfraError(f"{type(error).__name__}: {error}"))


class Host(Protocol):
    """Keeps one session. One request at a time; `done` is called in the event loop, perhaps before `call` returns."""

    spec: EnvSpec

    def call(self, request: Request, done: Done) -> None: ...
    async def fork(self) -> Host:
        """A second host with the same state. Raises: CapabilityError, InfraError."""
        ...

    def close(self) -> None:
        """Free everything, soon. Idempotent; a call that is under way is abandoned."""
        ...


class InlineHost:
    """A session in the event loop: no box, nothing that blocks."""

    def __init__(self, spec: EnvSpec, session: Session | None = None):
        self.spec, self._session = spec, session

    def call(self, request: Request, done: Done) -> None:
        if self._session is None:
            try:
                self._session = new_session(self.spec, None)
            except EnvfarmError as error:
                done(protocol.failed(error))
                return
        done(perform(self._session, request))

    async def fork(self) -> InlineHost:
        assert self._session is not None
        return InlineHost(self.spec, copy_session(self._session, {}))

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class ThreadHost:
    """A session in its own thread; its box lives in the event loop."""

    def __init__(self, spec: EnvSpec, room: BoxRoom | None, session: Session | None = None):
        self.spec, self._room, self._session = spec, room, session
        self._loop = asyncio.get_running_loop()
        self._work: SimpleQueue[tuple[Request, Done] | None] = SimpleQueue()
        self._closed = False
        threading.Thread(target=self._run, name=f"session of {spec.id}", daemon=True).start()

    def call(self, request: Request, done: Done) -> None:
        self._work.put((request, done))

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            request, done = item
            reply = self._perform(request)
            if not self._closed:
                self._loop.call_soon_threadsafe(self._answer, done, reply)
        if self._session is not None:
            self._session.close()

    def _perform(self, request: Request) -> Reply:
        if self._session is None:
            try:
                self._session = new_session(self.spec, self._room.make_box if self._room else None)
            except EnvfarmError as error:
                return protocol.failed(error)
        return perform(self._session, request)

    def _answer(self, done: Done, reply: Reply) -> None:
        if not self._closed:
            done(reply)

    async def fork(self) -> ThreadHost:
        assert self._session is not None
        _refuse_unforkable(self._session)
        if self._room is None:
            return ThreadHost(self.spec, None, copy_session(self._session, {}))
        room = await self._room.fork()
        swaps: dict[int, Any] = {id(self._room): room}
        if self._room.agent_box is not None:
            swaps[id(self._room.agent_box)] = room.as_sync(0)
        return ThreadHost(self.spec, room, copy_session(self._session, swaps))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._work.put(None)
            if self._room is not None:
                self._room.close()  # at once, so that a command under way ends and the thread with it


def copy_session(session: Session, swaps: dict[int, Any]) -> Session:
    """A deep copy, wrappers included, in which the object of id `k` is replaced by `swaps[k]` (the box by the new box).

    Raises: CapabilityError where the scene does not declare `forkable`.
    """
    _refuse_unforkable(session)
    return copy.deepcopy(session, {id(session.env_spec): session.env_spec, **swaps})


def _refuse_unforkable(session: Session) -> None:
    inner: Any = session
    while not isinstance(inner, LocalSession):
        inner = inner.inner
    if not inner.scene.forkable:
        raise CapabilityError(
            f"{session.env_spec.id} cannot be forked: {type(inner.scene).__name__}.forkable is False. Set it to True where "
            "a deep copy is a faithful snapshot, or declare `isolation: process` in the YAML"
        )
