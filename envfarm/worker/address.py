"""Where a worker listens, and the connection to it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

_ALIVE_S, _AGAIN_S, _ATTEMPTS = 10, 5, 4
"""A machine that is gone, or cut off, ends no connection. Ours ends when it has acknowledged nothing for half a minute."""


@dataclass(frozen=True)
class Address:
    """Where a worker listens: a Unix socket, or host and port with a token."""

    unix: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None

    @classmethod
    def of(cls, said: str, token: str | None = None) -> Address:
        """Of what a worker says when it is ready."""
        if not said.startswith("http://"):
            return cls(unix=said)
        host, _, port = said.removeprefix("http://").rpartition(":")
        return cls(host=host.strip("[]"), port=int(port), token=token)

    def __str__(self) -> str:
        return self.unix or f"{self.host}:{self.port}"

    async def dial(self, protocol: asyncio.Protocol) -> None:
        """Raises: OSError."""
        loop = asyncio.get_running_loop()
        if self.unix is not None:
            await loop.create_unix_connection(lambda: protocol, self.unix)
            return
        transport, _ = await loop.create_connection(lambda: protocol, self.host, self.port)
        _notice_silence(transport.get_extra_info("socket"))


def _notice_silence(sock: socket.socket) -> None:
    """As far as this system can."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limits = {
        "TCP_KEEPIDLE": _ALIVE_S, "TCP_KEEPINTVL": _AGAIN_S, "TCP_KEEPCNT": _ATTEMPTS,
        "TCP_USER_TIMEOUT": 1000 * (_ALIVE_S + _ATTEMPTS * _AGAIN_S),
    }  # fmt: skip
    for name, value in limits.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
