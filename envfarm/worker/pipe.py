"""The pipe between a worker and a session in another process: length-prefixed MessagePack over a socket pair.

Down go requests (a `Fork` with the file descriptor of a new pipe) and the results of box calls; up come a `Hello`,
box calls and replies.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import msgspec

from envfarm.box import Entry, ExecResult, Snapshot
from envfarm.errors import WorkerDied
from envfarm.worker.protocol import MAX_MESSAGE_BYTES, Failed, Message, Reply, Request, Said, Words

_LENGTH_BYTES = 4
NOW, SPARE = "now", "spare"
"""What the zygote is asked: `NOW ID`, a session for somebody who waits; `SPARE ID`, one for the next who comes."""


class Hello(Message, frozen=True, tag="hello"):
    """The first message of a session's process."""

    pid: int


class BoxCall(Message, frozen=True, tag="box"):
    """`method` of box `number`; `start` makes a new one and returns its number, `stop` stops one."""

    number: int
    method: str
    arguments: dict[str, Any] = {}


class BoxResult(Message, frozen=True, tag="result"):
    value: Any


Upward = Said | Words | Failed | Hello | BoxCall
RESULTS: dict[str, Any] = {
    "start": int, "stop": None, "exec": ExecResult, "read": bytes, "write": None, "list": list[Entry],
    "archive": dict[str, bytes], "snapshot": Snapshot,
}  # fmt: skip
"""What a box's method returns."""

encode = msgspec.msgpack.Encoder().encode
decode_upward = msgspec.msgpack.Decoder(Upward).decode
decode_downward = msgspec.msgpack.Decoder(Request | BoxResult | Failed).decode


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(_LENGTH_BYTES, "little") + message


class Pipe:
    """The worker's end: never blocks."""

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop, received: Callable[[bytes], None], lost: Callable[[], None]
    ):
        sock.setblocking(False)
        self._sock, self._loop, self._received, self._lost = sock, loop, received, lost
        self._in, self._out = bytearray(), bytearray()
        self._closed = False
        loop.add_reader(sock.fileno(), self._readable)

    def send(self, message: bytes, fd: int = -1) -> None:
        """Send, with a file descriptor where `fd` is one (nothing else may be under way then)."""
        data = framed(message)
        if self._closed:
            return
        if self._out:
            self._out += data
            return
        try:
            sent = socket.send_fds(self._sock, [data], [fd]) if fd >= 0 else self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the other end is gone; reading says so
        if sent < len(data):
            self._out += data[sent:]
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._out)
        del self._out[:sent]
        if not self._out:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data = self._sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._lost()
            return
        self._in += data
        while not self._closed and len(self._in) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._in[:_LENGTH_BYTES], "little")
            if len(self._in) < end:
                return
            message = bytes(self._in[_LENGTH_BYTES:end])
            del self._in[:end]
            self._received(message)

    def close(self) -> None:
        """Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())
            if self._out:
                self._loop.remove_writer(self._sock.fileno())
            self._sock.close()


class ChildPipe:
    """The session's end: blocks. `sock` is replaced when the process forks."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self._in = bytearray()
        self.fd = -1
        """The file descriptor that came with the last message, -1 for none."""

    def send(self, message: Reply | Hello | BoxCall) -> None:
        self.sock.sendall(framed(encode(message)))

    def receive(self) -> Request | BoxResult | Failed:
        """Raises: WorkerDied at the end of the pipe."""
        self.fd = -1
        while True:
            if len(self._in) >= _LENGTH_BYTES:
                end = _LENGTH_BYTES + int.from_bytes(self._in[:_LENGTH_BYTES], "little")
                if end > MAX_MESSAGE_BYTES:
                    raise WorkerDied("a message without end")
                if len(self._in) >= end:
                    message = bytes(self._in[_LENGTH_BYTES:end])
                    del self._in[:end]
                    return decode_downward(message)
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, 1)
            if not data:
                raise WorkerDied("the worker closed the pipe")
            self._in += data
            for fd in fds:
                os.set_inheritable(fd, False)
                self.fd = fd
