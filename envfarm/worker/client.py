"""Sessions in a worker, as a rollout uses them: `AsyncSession`, and the connection under them.

Sessions share one connection per worker, each on a channel of its own, so that what many of them say at a time goes
out in one write. A connection that breaks raises `WorkerDied`: an infrastructure error, never a reward.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from envfarm.errors import EnvironmentFault, InfraError, WorkerDied
from envfarm.session import Turn
from envfarm.tools import Action
from envfarm.worker import protocol, websocket
from envfarm.worker.address import Address
from envfarm.worker.protocol import Attach, Bring, Finish, Fork, Leave, Oracle, Random, Reply, Request, Reset, Step
from envfarm.worker.websocket import BINARY, CLOSE, PING, PONG, FrameParser, WebSocketError

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec, Instance


class Wire(Protocol):
    """One session's channel: on a connection, or (`envfarm.worker.local`) without one."""

    async def ask(self, request: Request) -> Reply:
        """Raises: WorkerDied."""
        ...

    async def attach(self, session_id: str) -> Wire:
        """A second channel, to a forked session. Raises: WorkerDied, InfraError."""
        ...

    def close(self) -> None:
        """Free the session, whatever it is doing. Idempotent."""
        ...


class AsyncSession:
    """`envfarm.session.Session` with coroutines; plus `fork`. Close it, whatever happened."""

    def __init__(self, env_spec: EnvSpec, wire: Wire, closed: Callable[[], None] | None = None):
        self.env_spec = env_spec
        self._wire, self._on_close = wire, closed
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
        """End the episode, a request that is under way included, and free its box. Idempotent, raises nothing."""
        if not self._closed:
            self._closed = True
            self._wire.close()
            if self._on_close is not None:
                self._on_close()


class WorkerConnection(asyncio.Protocol):
    """A WebSocket to a worker in the binary encoding; `open` gives channels."""

    def __init__(self, address: Address, died: Callable[[], str]):
        self._address, self._died = address, died
        self._frames = FrameParser(masked=False, max_bytes=protocol.MAX_MESSAGE_BYTES)
        self._head: bytes | None = b""
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._channels: dict[bytes, Channel] = {}
        self._numbers = itertools.count()
        self._outbox: list[bytes] = []
        self.lost = ""
        """Why there is no connection any more."""

    def open(self) -> Channel:
        number = next(self._numbers).to_bytes(protocol.CHANNEL_BYTES, "little")
        self._channels[number] = Channel(self, number, self._loop)
        return self._channels[number]

    def post(self, number: bytes, message: bytes) -> None:
        """Send, together with whatever else is said in this round of the event loop."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(websocket.frame(number + message, masked=True))

    def _flush(self) -> None:
        frames, self._outbox = self._outbox, []
        if not self._transport.is_closing():
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def leave(self, number: bytes) -> None:
        if self._channels.pop(number, None) is not None and not self.lost:
            self.post(number, protocol.encode(Leave()))

    def close(self) -> None:
        self._transport.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        query, key = protocol.ENCODING_QUERY, base64.b64encode(secrets.token_bytes(16)).decode()
        lines = [f"GET /ws?{query} HTTP/1.1", "Host: worker", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        if self._address.token is not None:
            lines.append(f"Authorization: Bearer {self._address.token}")
        self._transport.write("\r\n".join([*lines, "", ""]).encode())

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
            self.ready.set_result(None)
        try:
            for opcode, payload in self._frames.feed(data):
                if opcode == BINARY:
                    channel = self._channels.get(payload[: protocol.CHANNEL_BYTES])
                    if channel is not None:  # else it was closed while this was on its way
                        channel.answer(protocol.decode_reply(memoryview(payload)[protocol.CHANNEL_BYTES :]))
                elif opcode == PING:
                    self._transport.write(websocket.frame(payload, PONG, masked=True))
                elif opcode == CLOSE:
                    self._lose("the worker closed the connection")
        except WebSocketError as error:
            self._lose(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(self._died())

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.lost = why
        self._transport.close()
        if not self.ready.done():
            self.ready.set_exception(WorkerDied(why))
        for channel in list(self._channels.values()):
            channel.fail(why)


class Channel:
    """One session's channel."""

    def __init__(self, connection: WorkerConnection, number: bytes, loop: asyncio.AbstractEventLoop):
        self._connection, self._number, self._loop = connection, number, loop
        self._due: asyncio.Future[Reply] | None = None

    async def ask(self, request: Request | Attach | Bring) -> Reply:
        if self._due is not None:
            raise EnvironmentFault("a session takes one request at a time; this one has not answered the last")
        if self._connection.lost:
            raise WorkerDied(self._connection.lost)
        self._due = self._loop.create_future()
        self._connection.post(self._number, protocol.encode(request))
        reply = await self._due  # where this is cancelled the answer stays due, and the session takes no more requests
        self._due = None
        return reply

    async def attach(self, session_id: str) -> Channel:
        channel = self._connection.open()
        try:
            protocol.as_words(await channel.ask(Attach(session_id)))
        except BaseException:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        self._connection.leave(self._number)
        self.fail("the session was closed")

    def answer(self, reply: Reply) -> None:
        if self._due is not None and not self._due.done():
            self._due.set_result(reply)

    def fail(self, why: str) -> None:
        if self._due is not None and not self._due.done():
            self._due.set_exception(WorkerDied(why))


async def connect(address: Address, *, died: Callable[[], str] = lambda: "the worker died") -> WorkerConnection:
    """A connection to a worker. Raises: WorkerDied, InfraError."""
    connection = WorkerConnection(address, died)
    try:
        await address.dial(connection)
    except OSError as error:
        raise InfraError(f"no worker at {address}: {error}") from error
    await connection.ready
    return connection
