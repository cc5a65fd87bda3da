"""One connection to a worker: plain HTTP first, then, after an upgrade, a seat that speaks WebSocket messages.

Nothing is awaited on the hot path: a frame is decoded, performed and answered inside `data_received` where the
session lives in the event loop, and answered from a callback where it lives in a thread or a process.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import deque
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import msgspec

from envfarm.worker import openenv, protocol, routes, websocket
from envfarm.worker.channels import Channels
from envfarm.worker.http import HttpError, HttpParser, HttpRequest, json_response, response
from envfarm.worker.mcp import Mcp
from envfarm.worker.protocol import Failed
from envfarm.worker.seats import Seat, Sessions
from envfarm.worker.websocket import BINARY, CLOSE, PING, PONG, TEXT, FrameParser, WebSocketError

BATCH = 16
"""Answers per write at most: the client works on them while the next are made."""
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Connection(asyncio.Protocol):
    """HTTP requests one after the other; or one WebSocket."""

    def __init__(self, sessions: Sessions, *, token: str | None = None):
        self._sessions, self._token = sessions, token
        self._http: HttpParser | None = HttpParser()
        self._frames = FrameParser(masked=True, max_bytes=protocol.MAX_MESSAGE_BYTES)
        self._waiting: deque[bytes] = deque()
        self._busy = False
        self._seat: Seat | None = None
        self._channels = Channels(sessions, self._send)
        self._message: Callable[[bytes], None] = self._json_message
        self._opcode = TEXT
        self._outbox: list[bytes] | None = None
        """Frames that go out together at the end of a read."""

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self._http is not None:
            self._http.feed(data)
            self._next_request()
            return
        self._outbox = []
        try:
            for opcode, payload in self._frames.feed(data):
                if opcode in (BINARY, TEXT):
                    if self._busy:
                        self._waiting.append(payload)
                    else:
                        self._message(payload)
                elif opcode == PING:
                    self._send(payload, PONG)
                elif opcode == CLOSE:
                    self._end(1000)
                    break
        except WebSocketError as error:
            self._end(error.code, str(error))
        frames, self._outbox = self._outbox, None
        if frames and not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._seat is not None:
            self._seat.detach()
        self._channels.detach()

    # HTTP.

    def _next_request(self) -> None:
        if self._busy or self._http is None:
            return
        try:
            request = self._http.next()
            if request is None:
                return
            self._authorize(request)
            if request.wants_websocket:
                self._upgrade(request)
            else:
                self._busy = True
                self._sessions.later(self._answer(request))
        except HttpError as error:
            self._transport.write(json_response({"detail": str(error)}, error.status, keep_alive=False))
            self._transport.close()

    async def _answer(self, request: HttpRequest) -> None:
        answer = await routes.answer(self._sessions, request)
        self._transport.write(answer)
        self._busy = False
        if request.keep_alive:
            self._next_request()
        else:
            self._transport.close()

    def _authorize(self, request: HttpRequest) -> None:
        """Raises: HttpError 401 without the token, 403 where a page of another site is behind the request."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).hostname not in _LOOPBACK and self._token is None:
            raise HttpError(403, "requests from web pages need a worker with a token")
        if self._token is None or request.path == "/health":
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.query.get("token", "")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise HttpError(401, "give the worker's token as 'Authorization: Bearer TOKEN'")

    def _upgrade(self, request: HttpRequest) -> None:
        key = request.headers.get("sec-websocket-key")
        if request.path not in ("/ws", "/mcp"):
            raise HttpError(404, "WebSockets are served at /ws and /mcp")
        if request.method != "GET" or key is None or request.headers.get("sec-websocket-version") != "13":
            raise HttpError(400, "a WebSocket handshake needs GET, Sec-WebSocket-Key and Sec-WebSocket-Version: 13")
        accept = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": websocket.accept_key(key)}
        self._transport.write(response(101, headers=accept))
        assert self._http is not None
        rest, self._http = bytes(self._http.rest), None
        if request.query.get("encoding") == "msgpack":
            self._opcode, self._message = BINARY, self._channels.message
        else:
            if request.path == "/mcp":
                self._message = self._mcp_message
            self._take_seat(request.query.get("session_id"))
        if rest:
            self.data_received(rest)

    def _take_seat(self, session_id: str | None) -> None:
        """A new seat, or the parked one of that id. Else an error message, then the connection closes."""
        if session_id is not None:
            parked = self._sessions.claim(session_id)
            if parked is None:
                self._refuse(Failed("InfraError", f"Unknown or attached session_id: {session_id}", "SESSION_ERROR"))
            self._seat = parked
        elif refusal := self._sessions.refusal:
            self._refuse(Failed("InfraError", refusal, "CAPACITY_REACHED"))
        else:
            self._seat = Seat(self._sessions)

    def _refuse(self, failure: Failed) -> None:
        counts = {"active_sessions": len(self._sessions.seats), "max_sessions": self._sessions.limit}
        self._send(msgspec.json.encode({"type": "error", "data": {**openenv.error(failure), **counts}}))
        self._end(1013, failure.code)

    # WebSocket messages: one method per encoding; MessagePack is `envfarm.worker.channels`.

    def _json_message(self, payload: bytes) -> None:
        assert self._seat is not None
        seat = self._seat
        self._busy = True
        message = openenv.decode(payload)
        if isinstance(message, openenv.CloseMessage):
            self._end(1000)
            return
        if isinstance(message, openenv.McpMessage):
            self._sessions.later(self._json_mcp(message.data))
            return
        if isinstance(message, openenv.StateMessage):
            self._done(openenv.encode_state(seat))
            return
        request = message if isinstance(message, Failed) else openenv.as_request(message, self._sessions)
        first, actor = isinstance(message, openenv.ResetMessage), seat.turn.role if seat.turn else ""
        if isinstance(request, Failed):
            self._done(openenv.encode(request, seat, actor))
        else:
            tool = message.data.tool_name if isinstance(message, openenv.StepMessage) else None
            seat.call(request, lambda reply: self._done(openenv.encode(reply, seat, actor, first=first, tool=tool)))

    async def _json_mcp(self, data: dict[str, object]) -> None:
        assert self._seat is not None
        answer = await Mcp(self._sessions).answer(data, seat=self._seat)
        self._done(msgspec.json.encode({"type": "mcp", "data": answer}))

    def _mcp_message(self, payload: bytes) -> None:
        self._busy = True
        self._sessions.later(self._answer_mcp(payload))

    async def _answer_mcp(self, payload: bytes) -> None:
        assert self._seat is not None
        answer = await Mcp(self._sessions).answer_bytes(payload, seat=self._seat)
        self._done(answer)

    # Sending.

    def _done(self, payload: bytes) -> None:
        """Answer the message that is being worked on, and go on with the next."""
        self._busy = False
        if payload:
            self._send(payload)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next_waiting)

    def _next_waiting(self) -> None:
        if self._waiting and not self._busy and not self._transport.is_closing():
            self._message(self._waiting.popleft())

    def _send(self, payload: bytes, opcode: int = 0) -> None:
        frame = websocket.frame(payload, opcode or self._opcode)
        if self._outbox is not None:
            self._outbox.append(frame)
            if len(self._outbox) >= BATCH and not self._transport.is_closing():
                self._transport.write(b"".join(self._outbox))
                self._outbox.clear()
        elif not self._transport.is_closing():  # else nobody is there to read it
            self._transport.write(frame)

    def _end(self, code: int, reason: str = "") -> None:
        if not self._transport.is_closing():
            frames, self._outbox = self._outbox or [], None
            self._transport.write(b"".join([*frames, websocket.frame(websocket.close_payload(code, reason), CLOSE)]))
            self._transport.close()
