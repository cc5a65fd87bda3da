"""Sessions in a worker, as a rollout uses them: `AsyncSession`, and the connection under it.

A connection carries one session at a time, one request at a time; it is kept for the next session unless it ended
with a request under way. A connection that breaks raises `WorkerDied`: an infrastructure error, never a reward.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from envfarm.errors import EnvironmentFault, InfraError, WorkerDied
from envfarm.session import Turn
from envfarm.tools import Action
from envfarm.worker import protocol, websocket
from envfarm.worker.protocol import Failed, Finish, Fork, Oracle, Random, Reply, Request, Reset, Step
from envfarm.worker.websocket import CLOSE, PING, PONG, FrameParser, WebSocketError

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec, Instance


@dataclass(frozen=True)
class Address:
    """Where a worker listens: a Unix socket, or host and port with a token."""

    unix: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None

    def __str__(self) -> str:
        return self.unix or f"{self.host}:{self.port}"


class Wire(Protocol):
    """One session's connection: over a socket, or (`envfarm.worker.local`) without one."""

    async def ask(self, request: Request) -> Reply:
        """Raises: WorkerDied."""
        ...

    async def attach(self, session_id: str) -> Wire:
        """A second connection, to a forked session."""
        ...

    def reusable(self) -> bool:
        """Whether another session may use it: alive and with nothing under way."""
        ...

    def close(self) -> None: ...


class AsyncSession:
    """`envfarm.session.Session` with coroutines; plus `fork`. Close it, whatever happened."""

    def __init__(self, env_spec: EnvSpec, wire: Wire, give_back: Callable[[AsyncSession, Wire], Awaitable[None]] | None = None):
        self.env_spec = env_spec
        self._wire, self._give_back = wire, give_back
        self._closed = False

    async def reset(self, instance: Instance) -> Turn:
        return protocol.as_turn(await self._wire.ask(Reset(self.env_spec.id, instance)))

    async def step(self, action: Action, role: str | None = None) -> Turn:
        """`role`, where it is given, must be the one whose turn it is. Raises: EpisodeError, as all of these."""
        return protocol.as_turn(await self._wire.ask(Step(action, role)))

    async def finish(self, reason: str) -> Turn:
        return protocol.as_turn(await self._wire.ask(Finish(reason)))

    async def oracle(self) -> str:
        return protocol.as_words(await self._wire.ask(Oracle()))

    async def random(self, seed: int) -> str:
        return protocol.as_words(await self._wire.ask(Random(seed)))

    async def fork(self) -> AsyncSession:
        """A second session in the same state, box included (background processes are not). It must be closed, too.

        Raises: CapabilityError where the environment cannot be forked, InfraError.
        """
        session_id = protocol.as_words(await self._wire.ask(Fork()))
        return AsyncSession(self.env_spec, await self._wire.attach(session_id))

    async def close(self) -> None:
        """End the episode and give the connection back. Idempotent, never raises an `EpisodeError`."""
        if self._closed:
            return
        self._closed = True
        if self._give_back is None:
            self._wire.close()
        else:
            await self._give_back(self, self._wire)


class SocketWire(asyncio.Protocol):
    """A WebSocket to a worker with the binary encoding."""

    def __init__(self, address: Address, died: Callable[[], str]):
        self._address, self._died = address, died
        self._frames = FrameParser(masked=False, max_bytes=protocol.MAX_MESSAGE_BYTES)
        self._head: bytes | None = b""
        self._loop = asyncio.get_running_loop()
        self._open: asyncio.Future[None] = self._loop.create_future()
        self._answer: asyncio.Future[Reply] | None = None
        self._refused = ""

    # What a session calls.

    async def ask(self, request: Request) -> Reply:
        if self._answer is not None:
            raise EnvironmentFault("a session takes one request at a time; this one has not answered the last")
        if self._transport.is_closing():
            raise WorkerDied(self._refused or self._died())
        self._answer = self._loop.create_future()
        self._transport.write(websocket.frame(protocol.encode(request), masked=True))
        reply = await self._answer  # where this is cancelled, the answer stays due and the wire is not used again
        self._answer = None
        return reply

    async def attach(self, session_id: str) -> SocketWire:
        return await connect(self._address, session_id=session_id, died=self._died)

    def reusable(self) -> bool:
        return self._answer is None and not self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = None
            if not head.startswith(b"HTTP/1.1 101 "):
                status = head.split(b"\r\n", 1)[0].decode("latin-1")
                self._lose(f"{self._address} answered {status}: {data[:200].decode('utf-8', 'replace')}")
                return
            self._open.set_result(None)
        try:
            for opcode, payload in self._frames.feed(data):
                if opcode == PING:
                    self._transport.write(websocket.frame(payload, PONG, masked=True))
                elif opcode == CLOSE:
                    self._lose(self._refused or "the worker closed the connection")
                elif opcode != PONG:
                    self._received(protocol.decode_reply(payload))
        except WebSocketError as error:
            self._lose(str(error))

    def _received(self, reply: Reply) -> None:
        if self._answer is None:  # nobody asked: the worker has no room, or does not know the session
            self._refused = reply.message if isinstance(reply, Failed) else "an answer without a request"
        elif not self._answer.done():
            self._answer.set_result(reply)
        elif self._answer.cancelled():
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(self._refused or self._died())

    def _lose(self, why: str) -> None:
        self._refused = self._refused or why
        for waiting in (self._open, self._answer):
            if waiting is not None and not waiting.done():
                waiting.set_exception(WorkerDied(why))
                waiting.exception()  # nobody may be waiting
        self._transport.close()


async def connect(
    address: Address, *, session_id: str | None = None, died: Callable[[], str] = lambda: "the worker died"
) -> SocketWire:
    """A connection to a worker; with `session_id`, to the session of that id. Raises: WorkerDied, InfraError."""
    loop = asyncio.get_running_loop()
    try:
        if address.unix is not None:
            _, wire = await loop.create_unix_connection(lambda: SocketWire(address, died), address.unix)
        else:
            _, wire = await loop.create_connection(lambda: SocketWire(address, died), address.host, address.port)
    except OSError as error:
        raise InfraError(f"no worker at {address}: {error}") from error
    query = protocol.ENCODING_QUERY + (f"&session_id={session_id}" if session_id else "")
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    lines = [f"GET /ws?{query} HTTP/1.1", "Host: worker", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    if address.token is not None:
        lines.append(f"Authorization: Bearer {address.token}")
    wire._transport.write("\r\n".join([*lines, "", ""]).encode())
    await wire._open
    return wire
