"""WebSocket frames, RFC 6455: a parser that is fed bytes, and a writer. No extensions.

The common case, one whole frame per read, costs one pass and no buffer. Our own clients mask with the key 0 (legal,
and as much protection as a loopback or Unix socket needs), which leaves the payload as it is on both sides.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_CONTINUATION = 0x0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ZERO_KEY = b"\0\0\0\0"


class WebSocketError(Exception):
    """The peer broke the protocol. `code` is the close code to answer with."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def accept_key(key: str) -> str:
    """The `Sec-WebSocket-Accept` that answers `Sec-WebSocket-Key`."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def frame(payload: bytes, opcode: int = BINARY, *, masked: bool = False) -> bytes:
    """One unfragmented frame; `masked` as a client must."""
    size, flag = len(payload), 0x80 if masked else 0
    if size < 126:
        head = bytes((0x80 | opcode, flag | size))
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, flag | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, flag | 127, size)
    return head + _ZERO_KEY + payload if masked else head + payload


def close_payload(code: int, reason: str = "") -> bytes:
    return struct.pack("!H", code) + reason.encode()[:123]


class FrameParser:
    """Turns a stream of bytes into `(opcode, payload)`; fragments are put together, control frames pass between them.

    `masked` says whether the peer must mask (it is a client) or must not (it is a server).
    """

    def __init__(self, *, masked: bool, max_bytes: int):
        self._masked, self._max = masked, max_bytes
        self._pieces: list[bytes] = []  # of a frame that is not all there,
        self._missing = 0  # and how many bytes it lacks at least
        self._fragments: list[bytes] = []
        self._opcode = _CONTINUATION

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Messages that `data` completes. Raises: WebSocketError (1002 protocol, 1009 too large)."""
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data, self._pieces = b"".join(self._pieces), []
        start, end = 0, len(data)
        while start < end:
            found = self._frame(data, start, end)
            if found is None:
                self._pieces.append(data[start:] if start else data)
                return
            first, payload, start = found
            opcode, final = first & 0x0F, first & 0x80
            if opcode in (TEXT, BINARY) and final and not self._fragments:
                yield opcode, payload
            elif opcode >= CLOSE:
                if not final or len(payload) > 125:
                    raise WebSocketError(1002, "a control frame that is fragmented or too long")
                yield opcode, payload
            else:
                yield from self._fragment(opcode, bool(final), payload)

    def _frame(self, data: bytes, start: int, end: int) -> tuple[int, bytes, int] | None:
        """`(first byte, payload, where the next frame starts)`, or None where the frame is not all there."""
        self._missing = 1
        if end - start < 2:
            return None
        first, second = data[start], data[start + 1]
        if first & 0x70:
            raise WebSocketError(1002, "reserved bits are set, but no extension was agreed on")
        if (second >= 0x80) != self._masked:
            raise WebSocketError(1002, "a client masks its frames, a server does not")
        size, body = second & 0x7F, start + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if end < body + width:
                return None
            size, body = int.from_bytes(data[body : body + width]), body + width
        if size > self._max or sum(map(len, self._fragments)) + size > self._max:
            raise WebSocketError(1009, f"a message of more than {self._max} bytes")
        key = b""
        if self._masked:
            key, body = data[body : body + 4], body + 4
        if end < body + size:
            self._missing = body + size - end
            return None
        payload = data[body : body + size]
        return first, _unmask(payload, key) if key and key != _ZERO_KEY else payload, body + size

    def _fragment(self, opcode: int, final: bool, payload: bytes) -> Iterator[tuple[int, bytes]]:
        if (opcode == _CONTINUATION) != bool(self._fragments) or opcode not in (_CONTINUATION, TEXT, BINARY):
            raise WebSocketError(1002, f"frame with opcode {opcode} out of place")
        if not self._fragments:
            self._opcode = opcode
        self._fragments.append(payload)
        if final:
            whole, self._fragments = b"".join(self._fragments), []
            yield self._opcode, whole


def _unmask(payload: bytes, key: bytes) -> bytes:
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")
