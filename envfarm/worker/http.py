"""Enough of HTTP/1.1 for a worker: requests with a Content-Length, answers with one, keep-alive, the WebSocket upgrade."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

MAX_HEAD_BYTES = 32 << 10
MAX_BODY_BYTES = 8 << 20


class HttpError(Exception):
    """Answered with `status`, then the connection is closed."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class HttpRequest:
    method: str
    path: str  # decoded, without the query
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes = b""
    keep_alive: bool = True

    @property
    def wants_websocket(self) -> bool:
        return "websocket" in self.headers.get("upgrade", "").lower()


@dataclass
class HttpParser:
    """Is fed bytes, gives whole requests; what follows an upgrade stays in `rest`."""

    rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        self.rest += data

    def next(self) -> HttpRequest | None:
        """The next whole request, or None. Raises: HttpError (400, 411, 413, 431)."""
        end = self.rest.find(b"\r\n\r\n")
        if end < 0:
            if len(self.rest) > MAX_HEAD_BYTES:
                raise HttpError(431, f"a request head of more than {MAX_HEAD_BYTES} bytes")
            return None
        method, target, version, headers = _head(bytes(self.rest[:end]))
        if "transfer-encoding" in headers:
            raise HttpError(411, "a body needs a Content-Length")
        size = headers.get("content-length", "0")
        if not size.isascii() or not size.isdigit():
            raise HttpError(400, f"Content-Length {size!r}")
        if int(size) > MAX_BODY_BYTES:
            raise HttpError(413, f"a body of more than {MAX_BODY_BYTES} bytes")
        total = end + 4 + int(size)
        if len(self.rest) < total:
            return None
        body = bytes(self.rest[end + 4 : total])
        del self.rest[:total]
        connection = headers.get("connection", "").lower()
        keep = "close" not in connection if version == "HTTP/1.1" else "keep-alive" in connection
        parts = urlsplit(target)
        return HttpRequest(method, unquote(parts.path), dict(parse_qsl(parts.query)), headers, body, keep)


def _head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise HttpError(400, f"no HTTP/1.1 request line: {lines[0][:80]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise HttpError(400, f"no header: {line[:80]!r}")
        headers[name.lower()] = value.strip()
    return words[0], words[1], words[2], headers


def response(status: int, body: bytes = b"", *, headers: dict[str, str] | None = None, keep_alive: bool = True) -> bytes:
    """A whole answer; the body is JSON."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    if status != 101:
        lines += [f"Content-Length: {len(body)}", f"Connection: {'keep-alive' if keep_alive else 'close'}"]
    if body:
        lines.append("Content-Type: application/json")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def json_response(value: object, status: int = 200, *, headers: dict[str, str] | None = None, keep_alive: bool = True) -> bytes:
    return response(status, msgspec.json.encode(value), headers=headers, keep_alive=keep_alive)
