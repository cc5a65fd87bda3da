"""How runs, workers and commands ask a keeper."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec

from envfarm.backends.remote_streams import Death
from envfarm.errors import InfraError, UserError
from envfarm.farm import TOKEN_VARIABLE
from envfarm.farm.home import Home
from envfarm.farm.keeper_api import TOKEN_HEADER
from envfarm.farm.status import Beats, LeaseRequest, Roster, Scale, Status
from envfarm.worker import protocol

T = TypeVar("T")
_CONNECT_S = 5.0
_ANSWER_S = 60.0


class KeeperLost(InfraError):
    """Nobody answers there any more."""


class Asking:
    """Use it as a context, or `close` it. Every question raises what the keeper raised, KeeperLost where nobody answers, and
    UserError where the token is wrong."""

    def __init__(self, url: str, token: str):
        self.url, self.token = url.rstrip("/"), token
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Idempotent."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def _ask(self, method: str, path: str, kind: type[T], body: Any = None, *, timeout_s: float = _ANSWER_S) -> T:
        if self._http is None:
            self._http = aiohttp.ClientSession(headers={TOKEN_HEADER: self.token}, connector=aiohttp.TCPConnector(limit=0))
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._http.request(method, self.url + path, data=data, timeout=limits) as response:
                answer = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise KeeperLost(f"the keeper at {self.url} does not answer: {error or type(error).__name__}") from None
        if response.status == 200:
            return msgspec.json.decode(answer, type=kind)
        raise _refusal(self.url, response.status, answer)


class KeeperClient(Asking):
    """For runs and commands."""

    @classmethod
    def of(cls, farm: str) -> KeeperClient:
        """By the name of a farm of this machine, or by its keeper's URL with the token in ENVFARM_TOKEN. Raises: UserError."""
        if not farm.startswith(("http://", "https://")):
            running = Home(farm).running()
            return cls(running.url, running.token)
        token = os.environ.get(TOKEN_VARIABLE)
        if not token:
            raise UserError(f"the farm at {farm} wants a token: set {TOKEN_VARIABLE}")
        return cls(farm, token)

    async def status(self) -> Status:
        return await self._ask("GET", "/status", Status)

    async def workers(self, after: int = -1) -> Roster:
        return await self._ask("GET", f"/workers?after={after}", Roster)

    async def scale(self, asked: Scale) -> Status:
        return await self._ask("POST", "/scale", Status, asked)


class LeaseClient(Asking):
    """For the workers of one pool; `url` is the pool's."""

    async def kind(self) -> str:
        """The name of the backend that made the boxes."""
        return await self._ask("GET", "/backend", str)

    async def lease(self, asked: LeaseRequest) -> str:
        """The name of a box. Raises, beside: BoxUnavailableError; NoRoomError where none was free in time."""
        return await self._ask("POST", "/leases", str, asked, timeout_s=asked.patience_s + _ANSWER_S)

    async def beat(self, boxes: list[str], holder: str) -> list[str]:
        """Returns those whose lease is over."""
        return await self._ask("POST", "/beats", list[str], Beats(boxes, holder))

    async def give_back(self, box: str, holder: str) -> None:
        """Raises, beside: InfraError where the lease is over."""
        await self._ask("DELETE", f"/leases/{box}?{urlencode({'holder': holder})}", type(None))

    async def death(self, box: str) -> Death:
        return await self._ask("GET", f"/leases/{box}/death", Death)


def _refusal(url: str, status: int, answer: bytes) -> Exception:
    if status == 401:
        return UserError(f"the keeper at {url} does not take this token: set {TOKEN_VARIABLE} to the farm's")
    try:
        said: Any = msgspec.json.decode(answer)
        return protocol.as_exception(protocol.Failed(*said[1:]))
    except (msgspec.DecodeError, TypeError, IndexError):
        return InfraError(f"{url} answered {status}, as no keeper does: {answer[:200].decode('utf-8', 'replace')}")
