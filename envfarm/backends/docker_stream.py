"""A connection that a Docker engine has handed over (attach, exec) as a `remote_streams.Pipe`.

What comes is in frames of eight bytes' head (which stream, length) and content; what goes is raw. Works over Unix sockets, TCP
and TLS, which is why the socket is read and written by hand: an event loop's transports cannot take over a TLS socket.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

_CHUNK = 1 << 16
_HEAD = struct.Struct(">BxxxI")
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SocketPipe:
    """Owns `sock` and whatever `keep` keeps alive."""

    def __init__(self, sock: socket.socket, keep: Any = None):
        sock.setblocking(False)
        self._sock, self._keep = sock, keep
        self._loop = asyncio.get_running_loop()
        self._rest = b""  # of a frame that has not come whole
        self._unsent = bytearray()
        self._writing = self._reading = self._closed = False

    def listen(self, out: Callable[[bytes], None], err: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._listeners, self._on_end = {0: out, 1: out, 2: err}, ended
        self._reading = True
        self._loop.add_reader(self._sock, self._read_ready)

    def send(self, data: bytes) -> None:
        if self._closed:
            return
        self._unsent += data
        if not self._writing:
            self._write_ready()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        if self._writing:
            self._loop.remove_writer(self._sock)
        self._sock.close()
        self._keep = None

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _write_ready(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent[: 1 << 20])]
        except _LATER:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._sock, self._write_ready)
            return
        except OSError:  # reading sees the end and tells why
            self._unsent.clear()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)

    def _read_ready(self) -> None:
        """Everything that is there: TLS may hold more than the descriptor shows."""
        while not self._closed:
            try:
                data = self._sock.recv(_CHUNK)
            except _LATER:
                return
            except OSError:
                data = b""
            if not data:
                self._stop_reading()
                self._on_end()
                return
            self._unframe(data)
            if not isinstance(self._sock, ssl.SSLSocket):
                return

    def _unframe(self, data: bytes) -> None:
        """Hand on what is complete, and keep the beginning of a frame that is not."""
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        while size - at >= _HEAD.size and not self._closed:
            stream, length = _HEAD.unpack_from(data, at)
            begin = at + _HEAD.size
            if size - begin < length:
                break
            at = begin + length
            listener = self._listeners.get(stream)
            if listener is not None:
                listener(data[begin:at])
        self._rest = data[at:]
