"""The socket to a box's supervisor: commands go down in frames, answers come up and wake who waits for them.

A frame that is not expected is the agent's own invention, or late: ignored. An answer counts by its nonce.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable

from envfarm.backends import shell_loop
from envfarm.backends.shell_loop import Answer, ShellEnded, SupervisorUp
from envfarm.errors import BoxDied

_CHUNK = 1 << 16


class Control:
    """One command at a time. `ended` is called with the reason when the other end is gone."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, ended: Callable[[str], None]):
        self._sock, self._loop, self._ended = sock, loop, ended
        self._nonce = self._pending = b""
        self._answer: asyncio.Future[Answer | ShellEnded] | None = None
        self.up: asyncio.Future[None] = loop.create_future()
        """Done when the supervisor is there."""
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done when a shell is."""
        self.shell_ended = False
        """The agent's shell is gone and the supervisor waits for `renew`."""

    @property
    def answering(self) -> bool:
        """Whether a command was sent and its answer has not come."""
        return self._answer is not None and not self._answer.done()

    async def converse(self, command: str, stdin_path: str = "/dev/null") -> Answer | ShellEnded:
        """Send a command; its answer, or the news that it took the shell with it. Raises: BoxDied."""
        nonce = secrets.token_hex(8)
        frame = shell_loop.encode(nonce, command, stdin_path)
        self._nonce = nonce.encode()
        self._answer = self._loop.create_future()
        await self._send(frame)
        return await self._answer

    async def renew(self) -> None:
        """Ask for a new shell: `ready` is new as well."""
        self.shell_ended = False
        self.ready = self._loop.create_future()
        await self._send(shell_loop.GO)

    async def _send(self, data: bytes) -> None:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except (BrokenPipeError, ConnectionResetError):
            return  # reading sees the end and tells why
        if sent < len(data):
            await self._loop.sock_sendall(self._sock, data[sent:])

    def fail(self, why: str) -> None:
        """Tell everybody who waits."""
        for waiter in (self.up, self.ready, self._answer):
            if waiter is not None and not waiter.done():
                waiter.set_exception(BoxDied(why))
                waiter.exception()  # seen: nobody may be waiting for it

    def read_ready(self) -> None:
        """Called by the event loop."""
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._ended("its processes ended, and no limit explains it")
            return
        *frames, rest = (self._pending + data).split(b"\0")
        self._pending = rest[-_CHUNK:]
        for frame in frames:
            self._on_answer(shell_loop.decode(frame))

    def _on_answer(self, answer: Answer | ShellEnded | SupervisorUp | None) -> None:
        if isinstance(answer, SupervisorUp) or (isinstance(answer, Answer) and not answer.nonce):
            waiting = self.up if isinstance(answer, SupervisorUp) else self.ready
            if not waiting.done():
                waiting.set_result(None)
            return
        if isinstance(answer, ShellEnded):
            self.shell_ended = True
        elif answer is None or answer.nonce != self._nonce:
            return
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)
