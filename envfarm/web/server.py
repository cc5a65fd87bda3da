"""Where sites live: `PrivateServer`, a socket pair that only its owner holds, and `listening`, a TCP port for people.

An episode's site must be unreachable for everything but that episode's browser, cheap (thousands of episodes in
minutes) and the same every time. So it is served over a `socketpair`: real HTTP through real sockets, but no address,
no thread, no port left behind. Both ends are pumped in the caller's thread, without blocking, until the answer is
complete; the order of events is always the same.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from typing import Any

from envfarm.web.http import App, ServerConnection

CHUNK_BYTES = 64 << 10


class PrivateServer:
    """One site behind one keep-alive connection. Survives `fork` and `copy`: the sockets are made when first needed in
    a process, since between two requests no byte is under way."""

    def __init__(self, app: App):
        self._app = app
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._pid = 0

    def exchange(self, request: bytes) -> bytes:
        """Send one whole request, return the one whole response. Raises: ConnectionError where no answer comes of it."""
        client, server = self._connected()
        waiting, replies, answer = request, b"", b""
        while not _complete(answer):
            before = len(waiting), len(replies), len(answer)
            waiting = waiting[_send(client, waiting) :]
            asked = _receive(server)
            replies += self._protocol.receive(asked)
            replies = replies[_send(server, replies) :]
            answer += _receive(client)
            if not asked and before == (len(waiting), len(replies), len(answer)):
                self.close()
                raise ConnectionError("the request is not a whole one: no answer came")
        if self._protocol.closed:
            self.close()
        return answer

    def close(self) -> None:
        """Close the sockets; the next exchange makes new ones. Idempotent."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()

    def _connected(self) -> tuple[socket.socket, socket.socket]:
        if self._ends is None or self._pid != os.getpid():
            self.close()  # after a fork: only this process's copies
            self._ends, self._pid = socket.socketpair(), os.getpid()
            self._protocol = ServerConnection(self._app)
            for end in self._ends:
                end.setblocking(False)
        return self._ends

    def __getstate__(self) -> dict[str, Any]:
        return {"_app": self._app, "_ends": None, "_pid": 0}

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # where __init__ did not get far
            self.close()


def _send(end: socket.socket, data: bytes) -> int:
    try:
        return end.send(data) if data else 0
    except BlockingIOError:
        return 0


def _receive(end: socket.socket) -> bytes:
    try:
        return end.recv(CHUNK_BYTES)
    except BlockingIOError:
        return b""


def _complete(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    at = head.index(b"Content-Length: ") + len(b"Content-Length: ")
    return len(body) >= int(head[at:].split(b"\r\n", 1)[0])


@contextlib.contextmanager
def listening(app: App, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The same site on TCP, for a person's browser or another client, while the context lasts. Yields its URL.

    One thread serves all connections, one request at a time. Raises: OSError where the port is taken.
    """
    listener = socket.create_server((host, port))
    listener.setblocking(False)
    waker, wake = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(app, listener, waker), name="envfarm web", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        wake.close()
        thread.join()
        listener.close()


def _serve(app: App, listener: socket.socket, waker: socket.socket) -> None:
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        stack.enter_context(waker)
        selector.register(waker, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                end: Any = key.fileobj
                if end is waker:
                    return
                if end is listener:
                    connection, _ = listener.accept()
                    stack.enter_context(connection)
                    connection.settimeout(10)  # seconds for a client to take its answer
                    selector.register(connection, selectors.EVENT_READ, ServerConnection(app))
                    continue
                try:
                    data = end.recv(CHUNK_BYTES)
                    end.sendall(key.data.receive(data))
                except OSError:
                    data = b""
                if not data or key.data.closed:
                    selector.unregister(end)
                    end.close()
