"""HTTP/1.1 as bytes: one connection's protocol, with no socket in it.

Enough of HTTP for sites that environments serve: keep-alive, query strings, URL-encoded forms, cookies, redirects.
No chunked requests, no uploads, no TLS. Requests are limited in size; what is malformed gets a 4xx and is never raised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_HEAD_BYTES = 16 << 10
MAX_BODY_BYTES = 64 << 10

REASONS = {
    200: "OK", 303: "See Other", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    413: "Content Too Large", 431: "Request Header Fields Too Large",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What an app is asked. Of a name that comes twice the last value counts."""

    method: str
    path: str  # decoded, without the query
    query: dict[str, str]
    form: dict[str, str]
    cookies: dict[str, str]
    host: str = ""


@dataclass(frozen=True)
class Response:
    """What an app answers: HTML, or a redirect. Cookies last as long as the browser."""

    body: str = ""
    status: int = 200
    location: str = ""
    cookies: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        body = self.body.encode()
        head = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Status')}"]
        if self.location:
            head.append(f"Location: {self.location}")
        head.extend(f"Set-Cookie: {name}={value}; Path=/; HttpOnly" for name, value in self.cookies.items())
        head += ["Content-Type: text/html; charset=utf-8", f"Content-Length: {len(body)}"]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def redirect(location: str, cookies: dict[str, str] | None = None) -> Response:
    """303: whatever the method was, go on with GET."""
    return Response(status=303, location=location, cookies=cookies or {})


App = Callable[[Request], Response]
"""A site: a function from request to response. What it raises is its author's error, and passes through."""


class ServerConnection:
    """The server's side of one connection. Bytes in, bytes out; requests that come in pieces are waited for."""

    def __init__(self, app: App):
        self._app = app
        self._buffer = b""
        self.closed = False
        """After a malformed request nothing more is read."""

    def receive(self, data: bytes) -> bytes:
        """The answers to all requests that are complete now; empty while one is under way."""
        self._buffer += data
        answers = b""
        while not self.closed and (answer := self._next()) is not None:
            answers += answer.encode()
        return answers

    def _next(self) -> Response | None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return self._refuse(431) if len(self._buffer) > MAX_HEAD_BYTES else None
        if len(head) > MAX_HEAD_BYTES:
            return self._refuse(431)
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
        parts = line.split(" ")
        length = headers.get("content-length", "0")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not length.isdecimal() or not parts[1].startswith("/"):
            return self._refuse(400)
        if int(length) > MAX_BODY_BYTES:
            return self._refuse(413)
        if len(rest) < int(length):
            return None
        body, self._buffer = rest[: int(length)], rest[int(length) :]
        if parts[0] not in ("GET", "POST"):
            return Response("<p>Only GET and POST.</p>", 405)
        return self._app(_request(parts[0], parts[1], headers, body))

    def _refuse(self, status: int) -> Response:
        self.closed, self._buffer = True, b""
        return Response(f"<p>{REASONS[status]}.</p>", status)


def _request(method: str, target: str, headers: dict[str, str], body: bytes) -> Request:
    url = urlsplit(target)
    cookies = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
    return Request(
        method, unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True)),
        dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)),
        {name: value for name, found, value in cookies if found}, headers.get("host", ""),
    )  # fmt: skip
