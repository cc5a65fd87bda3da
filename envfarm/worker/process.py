"""Sessions in processes of their own, as the worker sees them (their side: `envfarm.worker.zygote`).

The `Zygote` is a child with the environments imported and no threads; each session is a fork of it, reached over a
socket pair whose other end travels to it as a file descriptor. A session's box stays here: its calls come up that pipe.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from envfarm.box import Snapshot
from envfarm.errors import EnvfarmError, InfraError, WorkerDied
from envfarm.worker import pipe, protocol
from envfarm.worker.boxes import BoxRoom
from envfarm.worker.pipe import BoxCall, BoxResult, Hello
from envfarm.worker.protocol import Failed, Fork, Reply, Request
from envfarm.worker.sessions import Done

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec

SPARES = 2
"""Processes kept ready per environment, once it was asked for: forked and warm, so that a session starts by being handed
a socket. Each serves one session and is of about 3 MiB beside what it shares."""
KILL_AFTER_S = 2.0
"""How long a session's process may take to end once its pipe is closed."""


class Zygote:
    """Started before the event loop; forks sessions on request. Its death ends all of them; the next one is started anew."""

    def __init__(self, specs: list[EnvSpec]):
        self._specs = specs
        self._spares: dict[str, deque[socket.socket]] = {}
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life, self._life = os.pipe()  # its end tells the kernel to kill the zygote's process group
        self._process = subprocess.Popen(
            [sys.executable, "-m", "envfarm.worker.zygote", str(theirs.fileno()), str(life)],
            stdin=subprocess.PIPE, stdout=sys.stderr, pass_fds=(theirs.fileno(), life), start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self._specs))
        self._process.stdin.close()
        theirs.close()
        os.close(life)

    async def ready(self) -> None:
        """Wait until everything is imported. Raises: what an import raised, InfraError where the zygote died."""
        answer = await asyncio.to_thread(self._control.recv, 1 << 16)
        if not answer:
            raise InfraError("the zygote, which imports environments with `isolation: process`, died while it started")
        reply = protocol.decode_reply(answer)
        if isinstance(reply, Failed):
            raise protocol.as_exception(reply)

    def host(self, spec: EnvSpec, room: BoxRoom | None) -> ProcessHost:
        """A fork of the zygote. Raises: InfraError where there is no zygote to fork."""
        if self._process.poll() is not None:
            self.close()
            self._start()
            raise InfraError("the zygote died; it is started again")
        spares = self._spares.setdefault(spec.id, deque())
        sock = next((spare for spare in _taken(spares) if _alive(spare)), None) or self._fork(spec, pipe.NOW)
        return ProcessHost(spec, room, sock, self._refill)

    def _refill(self, spec: EnvSpec) -> None:
        """Have spares made. Called when a session has given its first answer: before, they would take its time."""
        spares = self._spares.setdefault(spec.id, deque())
        with suppress(InfraError):  # a session that is asked for says what is wrong
            while len(spares) < SPARES:
                spares.append(self._fork(spec, pipe.SPARE))

    def _fork(self, spec: EnvSpec, kind: str) -> socket.socket:
        """Our end of the pipe to a process that is being made."""
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._control, [f"{kind} {spec.id}".encode()], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise InfraError(f"the zygote does not listen: {error.strerror}") from error
        finally:
            theirs.close()
        return ours

    def close(self) -> None:
        """End the zygote and every session that came from it. Idempotent."""
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
            self._control.close()
            for spares in self._spares.values():
                for spare in _taken(spares):
                    spare.close()
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _taken(spares: deque[socket.socket]) -> Iterator[socket.socket]:
    while spares:
        yield spares.popleft()


def _alive(spare: socket.socket) -> bool:
    """Whether a process that nobody watched still has its end open, whatever it has said. Closes ours otherwise."""
    poll = select.poll()
    poll.register(spare, select.POLLRDHUP)
    if not poll.poll(0):
        return True
    spare.close()
    return False


class ProcessHost:
    """A session in a process of its own. `settled` is called once: after its first answer, or when there will be none."""

    def __init__(
        self, spec: EnvSpec, room: BoxRoom | None, sock: socket.socket, settled: Callable[[EnvSpec], None] | None = None
    ):
        self.spec, self._room, self._settled = spec, room, settled
        self._loop = asyncio.get_running_loop()
        self._pipe = pipe.Pipe(sock, self._loop, self._received, self._lost)
        self._done: Done | None = None
        self._pidfd = -1
        self.pid = 0
        self._closed = False
        self._dead = ""
        self._calls: set[asyncio.Task[None]] = set()

    def call(self, request: Request, done: Done) -> None:
        if self._dead:
            done(protocol.failed(WorkerDied(self._dead)))
            return
        self._done = done
        self._pipe.send(protocol.encode(request))

    async def fork(self) -> ProcessHost:
        room = await self._room.fork() if self._room else None
        ours, theirs = socket.socketpair()
        answer: asyncio.Future[Reply] = self._loop.create_future()
        try:
            self._done = answer.set_result
            self._pipe.send(protocol.encode(Fork()), theirs.fileno())
        finally:
            theirs.close()
        try:
            protocol.as_words(await answer)
        except EnvfarmError:
            ours.close()
            if room is not None:
                room.close()
            raise
        return ProcessHost(self.spec, room, ours)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pipe.close()
        self._answer(f"{self.spec.id}: the session was closed")
        if self._room is not None:
            self._room.close()
        self._loop.call_later(KILL_AFTER_S, self._kill)

    def _kill(self) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._pidfd = -1

    def _received(self, message: bytes) -> None:
        upward = pipe.decode_upward(message)
        if isinstance(upward, Hello):
            self.pid = upward.pid
            with suppress(ProcessLookupError):  # it died already; the pipe will say so
                self._pidfd = os.pidfd_open(upward.pid)
        elif isinstance(upward, BoxCall):
            task = asyncio.ensure_future(self._box_call(upward))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        elif self._done is not None:
            done, self._done = self._done, None
            done(upward)
            self._settle()

    async def _box_call(self, call: BoxCall) -> None:
        """Do for the session what it cannot: use its boxes."""
        result: BoxResult | Failed
        try:
            if self._room is None:
                raise InfraError(f"{self.spec.id} declares no box")
            if call.method == "start":
                snapshot = msgspec.convert(call.arguments["snapshot"], Snapshot | None)
                result = BoxResult(await self._room.start(snapshot))
            elif call.method == "stop":
                self._room.stop(call.number)
                result = BoxResult(None)
            else:
                result = BoxResult(await self._room.call(call.number, call.method, call.arguments))
        except (EnvfarmError, OSError, ValueError) as error:
            result = protocol.failed(error)
        if not self._dead and not self._closed:
            self._pipe.send(pipe.encode(result))

    def _lost(self) -> None:
        self._dead = f"{self.spec.id}: the session's process {self.pid or ''} died"
        if self._room is not None:
            self._room.close()
        self._answer(self._dead)

    def _answer(self, why: str) -> None:
        """Whoever waits for an answer gets none."""
        done, self._done = self._done, None
        if done is not None:
            done(protocol.failed(WorkerDied(why)))
        self._settle()

    def _settle(self) -> None:
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(self.spec)
