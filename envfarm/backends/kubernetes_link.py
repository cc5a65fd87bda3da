"""The API server as an event loop sees it: streams of a pod's processes, and its watch. The official client blocks for both.

A stream is a WebSocket of subprotocol `v4.channel.k8s.io`: each message is one byte (0 standard input, 1 output, 2 error, 3 how
it ended) and data, binary-safe. Closing it closes the process's standard input.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

PROTOCOL = "v4.channel.k8s.io"
_CHUNK = 1 << 16
_CONNECT_S = 15.0
_CLOSE_S = 2.0
_ANSWER_S = 60.0
_LINE = 4 << 20  # of a watch: one pod


class Refused(Exception):
    """The API server said no: `status` as in HTTP, or 0 where it does not answer."""

    def __init__(self, status: int, said: str):
        super().__init__(status, said)
        self.status, self.said = status, said


@dataclass(frozen=True)
class Access:
    """Where the API server is, and how to speak to it."""

    url: str
    tls: ssl.SSLContext | None
    server_name: str | None
    proxy: str | None
    headers: Callable[[], Awaitable[dict[str, str]]]
    """Asked before every connection, as tokens are renewed."""


class Link:
    """Belongs to one event loop."""

    def __init__(self, access: Access):
        self._access = access
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            read_bufsize=_LINE,
        )
        self._closing: set[asyncio.Task[bool]] = set()

    async def stream(self, path: str, query: list[tuple[str, str]]) -> WebSocketPipe:
        """Raises: Refused."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                socket = await self._session.ws_connect(
                    self._access.url + path,
                    params=query,
                    protocols=(PROTOCOL,),
                    max_msg_size=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
                    **await self._options(),
                )
        except aiohttp.WSServerHandshakeError as error:
            raise Refused(error.status, error.message) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Refused(0, str(error) or type(error).__name__) from None
        return WebSocketPipe(socket, self._close_later)

    async def watch(self, path: str, query: list[tuple[str, str]]) -> AsyncIterator[dict[str, Any]]:
        """Events as they come, until the server ends it. Raises: Refused."""
        try:
            async with self._session.get(self._access.url + path, params=query, **await self._options()) as response:
                if response.status != 200:
                    raise Refused(response.status, await response.text())
                async for line in response.content:
                    yield json.loads(line)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Refused(0, str(error) or type(error).__name__) from None

    async def get(self, path: str, query: list[tuple[str, str]]) -> dict[str, Any]:
        """Raises: Refused."""
        async for answer in self.watch(path, query):
            return answer
        raise Refused(0, "an empty answer")

    async def ask(
        self, method: str, path: str, body: Any = None, *, query: list[tuple[str, str]] | None = None,
        kind: str = "application/json",
    ) -> dict[str, Any]:  # fmt: skip
        """One request about one object; `kind` is the body's. Raises: Refused."""
        options = await self._options()
        headers = {**options.pop("headers"), "Content-Type": kind}
        data = None if body is None else json.dumps(body)
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S, sock_connect=_CONNECT_S)
        try:
            async with self._session.request(
                method, self._access.url + path, params=query, data=data, headers=headers, timeout=timeout, **options
            ) as response:
                answer = await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Refused(0, str(error) or type(error).__name__) from None
        if response.status >= 300:
            raise Refused(response.status, _message(answer))
        return json.loads(answer)

    async def close(self) -> None:
        """Idempotent."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._session.close()

    async def _options(self) -> dict[str, Any]:
        access = self._access
        return {
            "headers": await access.headers(),
            "ssl": True if access.tls is None else access.tls,
            "server_hostname": access.server_name,
            "proxy": access.proxy,
        }

    def _close_later(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        task = asyncio.ensure_future(socket.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _message(answer: str) -> str:
    """What a `Status` of the API says."""
    try:
        return json.loads(answer)["message"]
    except (ValueError, KeyError, TypeError):
        return answer


class WebSocketPipe:
    """See `remote_streams.Pipe`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, close: Callable[[aiohttp.ClientWebSocketResponse], None]):
        self._socket, self._close = socket, close
        self._unsent = bytearray()
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._closed = False

    def listen(self, out: Callable[[bytes], None], err: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._reading = asyncio.ensure_future(self._read({1: out, 2: err}, ended))

    def send(self, data: bytes) -> None:
        if self._closed or self._socket.closed:
            return
        self._unsent += data
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write())

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for task in (self._reading, self._writing):
            if task is not None:
                task.cancel()
        self._close(self._socket)

    async def _read(self, listeners: dict[int, Callable[[bytes], None]], ended: Callable[[], None]) -> None:
        """What is not data is an end, whatever it is: why, is asked elsewhere."""
        while (message := await self._socket.receive()).type is aiohttp.WSMsgType.BINARY:
            listener = listeners.get(message.data[0]) if len(message.data) > 1 else None
            if listener is not None:
                listener(message.data[1:])
        ended()

    async def _write(self) -> None:
        while self._unsent:
            chunk = bytes(self._unsent[:_CHUNK])
            del self._unsent[:_CHUNK]
            try:
                await self._socket.send_bytes(b"\0" + chunk)
            except (aiohttp.ClientError, OSError):  # reading sees the end
                self._unsent.clear()
        self._writing = None
