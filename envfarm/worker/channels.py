"""Many sessions over one WebSocket: binary messages, each with the number of its channel before it.

A channel is a seat: opened by its first request or by an `Attach`, ended by a `Leave` or with the connection. Channels do
not wait for each other.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

import msgspec

from envfarm.errors import EnvfarmError, InfraError
from envfarm.worker import protocol
from envfarm.worker.protocol import Attach, Bring, Failed, Leave, Reply, Request, Words
from envfarm.worker.seats import Seat, Sessions
from envfarm.worker.sessions import Done


class Channels:
    """Those of one connection. `send` takes a whole message."""

    def __init__(self, sessions: Sessions, send: Callable[[bytes], None]):
        self._sessions, self._send = sessions, send
        self._open: dict[bytes, tuple[Seat, Done]] = {}

    def message(self, payload: bytes) -> None:
        number = payload[: protocol.CHANNEL_BYTES]
        try:
            message = protocol.decode_message(memoryview(payload)[protocol.CHANNEL_BYTES :])
        except msgspec.DecodeError as error:
            self._send(number + protocol.encode(Failed("InfraError", f"not a request: {error}", "VALIDATION_ERROR")))
            return
        if isinstance(message, Bring):
            self._sessions.later(self._bring(number, message))
            return
        channel = self._open.get(number)
        if isinstance(message, Leave):
            if channel is not None:
                del self._open[number]
                channel[0].detach()
            return
        if channel is None or isinstance(message, Attach):
            opened = self._opened(number, message)
            if isinstance(opened, Failed | Words):
                self._send(number + protocol.encode(opened))
                return
            channel = opened
        assert not isinstance(message, Attach)
        channel[0].call(message, channel[1])

    async def _bring(self, number: bytes, message: Bring) -> None:
        reply: Reply
        try:
            reply = Words(await self._sessions.catalogue.bring(message.spec_hash, message.bundle))
        except EnvfarmError as error:
            reply = protocol.failed(error)
        except Exception as error:  # a bug: whoever waits must hear of it
            traceback.print_exc()
            reply = protocol.failed(InfraError(f"{type(error).__name__}: {error}"))
        self._send(number + protocol.encode(reply))

    def _opened(self, number: bytes, message: Request | Attach) -> tuple[Seat, Done] | Failed | Words:
        """A new seat for a request; the parked one for an `Attach`, answered with empty words."""

        def reply(reply: Reply) -> None:
            if number in self._open:
                self._send(number + protocol.encode(reply))

        if isinstance(message, Attach):
            seat = self._sessions.claim(message.session_id) if number not in self._open else None
            if seat is None:
                return Failed("InfraError", f"Unknown or attached session_id: {message.session_id}", "SESSION_ERROR")
            self._open[number] = seat, reply
            return Words("")
        if refusal := self._sessions.refusal:
            return Failed("InfraError", refusal, "CAPACITY_REACHED")
        self._open[number] = Seat(self._sessions), reply
        return self._open[number]

    def detach(self) -> None:
        """The connection ended."""
        channels, self._open = self._open, {}
        for seat, _ in channels.values():
            seat.detach()
