"""The keeper over HTTP: what runs, workers and people ask of it. Answers are JSON; every request needs the farm's token.

    GET    /status                      `status.Status`
    GET    /workers?after=VERSION       `status.Roster`, as soon as it changed
    POST   /scale                       `status.Scale`

    GET    /pools/N/backend             which kind of boxes are leased: the name of a backend
    POST   /pools/N/leases              `status.LeaseRequest`: a box, as soon as there is one
    DELETE /pools/N/leases/BOX?holder=  it was used
    GET    /pools/N/leases/BOX/death    why it is gone: `remote_streams.Death`
    POST   /pools/N/beats               `status.Beats`: heartbeats of all leases of a worker

What goes wrong comes back as `{"kind": CLASS, "message": TEXT}` of `envfarm.errors`: 400 for what a person must mend, 503 else.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from envfarm.errors import EnvfarmError, UserError
from envfarm.farm.keeper import Keeper
from envfarm.farm.status import Beats, LeaseRequest, Scale
from envfarm.worker import protocol

TOKEN_HEADER = "X-Envfarm-Token"
"""Instead of `Authorization`, which a cluster's API server keeps for itself when it passes a request on."""

WAIT_S = 20.0
"""How long `GET /workers` waits for news."""

Handler = Callable[[web.Request], Awaitable[Any]]


class KeeperApi:
    """`listen` first, so that workers have an address to ask at; `serve` gives it a keeper. Who asks before that waits."""

    def __init__(self, token: str):
        self._token = token
        self._keeper: asyncio.Future[Keeper] = asyncio.get_running_loop().create_future()
        self._runner: web.AppRunner | None = None

    async def listen(self, host: str, port: int) -> str:
        """Returns the URL. Raises: UserError where the port is in use."""
        app = web.Application(middlewares=[self._guard])
        for method, path, handler in self._routes():
            app.router.add_route(method, path, handler)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, host, port)
            await site.start()
        except OSError as error:
            await self.close()
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"{host}:{port} is in use; choose another with --listen, or stop who listens there") from None
            raise UserError(f"the keeper cannot listen on {host}:{port}: {error.strerror or error}") from None
        return f"http://{host}:{self._runner.addresses[0][1]}"

    def serve(self, keeper: Keeper) -> None:
        self._keeper.set_result(keeper)

    async def close(self) -> None:
        """Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _routes(self) -> list[tuple[str, str, Handler]]:
        return [
            ("GET", "/status", self._status),
            ("GET", "/workers", self._workers),
            ("POST", "/scale", self._scale),
            ("GET", r"/pools/{pool:\d+}/backend", self._backend),
            ("POST", r"/pools/{pool:\d+}/leases", self._lease),
            ("DELETE", r"/pools/{pool:\d+}/leases/{box}", self._give_back),
            ("GET", r"/pools/{pool:\d+}/leases/{box}/death", self._death),
            ("POST", r"/pools/{pool:\d+}/beats", self._beats),
        ]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(TOKEN_HEADER) or request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return _answer(401, protocol.failed(UserError("the farm's token is missing or wrong")))
        await asyncio.shield(self._keeper)
        try:
            return _answer(200, await handler(request))
        except web.HTTPException:
            raise
        except (msgspec.MsgspecError, ValueError) as error:
            return _answer(400, protocol.failed(UserError(f"not a request: {error}")))
        except EnvfarmError as error:
            return _answer(400 if isinstance(error, UserError) else 503, protocol.failed(error))

    @property
    def _its(self) -> Keeper:
        return self._keeper.result()  # `_guard` has waited

    async def _status(self, request: web.Request) -> Any:
        return await self._its.status()

    async def _workers(self, request: web.Request) -> Any:
        return await self._its.roster(int(request.query.get("after", "-1")), WAIT_S)

    async def _scale(self, request: web.Request) -> Any:
        await self._its.scale(msgspec.json.decode(await request.read(), type=Scale))
        return await self._its.status()

    async def _backend(self, request: web.Request) -> Any:
        return self._its.backend_name

    async def _lease(self, request: web.Request) -> Any:
        """Whoever asked and went away again frees the place in the queue: then this is cancelled."""
        asked = msgspec.json.decode(await request.read(), type=LeaseRequest)
        return await self._its.lease(int(request.match_info["pool"]), asked)

    async def _give_back(self, request: web.Request) -> Any:
        await self._its.boxes.give_back(request.match_info["box"], request.query.get("holder", ""))

    async def _death(self, request: web.Request) -> Any:
        return await self._its.stock(int(request.match_info["pool"])).death(request.match_info["box"])

    async def _beats(self, request: web.Request) -> Any:
        asked = msgspec.json.decode(await request.read(), type=Beats)
        return await self._its.boxes.beat(asked.boxes, asked.holder)


def _answer(status: int, body: Any) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
