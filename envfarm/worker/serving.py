"""A worker: sessions behind a listening socket. `python -m envfarm.worker` runs one; a test may, in its own loop."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from envfarm.box import Backend
from envfarm.errors import UserError
from envfarm.spec import EnvSpec
from envfarm.worker import lifetime
from envfarm.worker.boxes import Boxes
from envfarm.worker.brought import Brought
from envfarm.worker.catalogue import Catalogue, Served
from envfarm.worker.process import Zygote
from envfarm.worker.seats import Sessions
from envfarm.worker.server import Connection
from envfarm.worker.sessions import preload


@dataclass(frozen=True)
class Listen:
    """Where to listen: a Unix socket, or TCP."""

    unix: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None

    def check(self) -> None:
        """Raises: UserError where anybody in the network could use the worker."""
        if self.token == "":
            raise UserError("the token is empty: give one that nobody guesses, or none at all")
        if self.unix is None and self.token is None and not _loopback(self.host):
            raise UserError(f"listening on {self.host} needs a token: --token SECRET. Without one only loopback is served")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Worker:
    """Serves `specs`. The zygote of environments with `isolation: process` is started here, before any loop runs."""

    def __init__(
        self,
        specs: list[EnvSpec],
        *,
        backend: str | Backend = "bubblewrap",
        max_sessions: int = 1024,
        served: Served | None = None,
        bundles: Path | None = None,
        tries: bool = False,
    ):
        """`bundles`: a folder for environments that clients bring; without it none are taken. `tries`: it does not start
        where a box of one environment cannot."""
        self.specs, self._served, self._bundles = specs, served, bundles
        forked = [spec for spec in specs if spec.isolation == "process"]
        for spec in specs:
            if spec not in forked:
                preload(spec)  # import now: errors come at the start, and sessions need not wait
        self._zygote = Zygote(forked) if forked else None
        self._boxes = Boxes(backend, owner=f"worker-{os.getpid()}")
        self._limit, self._tries = max_sessions, tries
        self._server: asyncio.Server | None = None
        self.sessions: Sessions | None = None

    async def prepare(self) -> Sessions:
        """Ready to make sessions, without a socket. Raises: BoxUnavailableError, SpecError, InfraError."""
        await self._boxes.probe(self.specs)
        if self._tries:
            await self._boxes.try_out(self.specs)
        if self._zygote is not None:
            await self._zygote.ready()
        catalogue = Catalogue(self.specs, Brought(self._bundles, self._boxes), self._served)
        self.sessions = Sessions(catalogue, self._boxes, zygote=self._zygote, limit=self._limit)
        return self.sessions

    async def start(self, listen: Listen) -> str:
        """Prepare and listen; returns the address. Raises: UserError (in use, no token), and as `prepare`."""
        listen.check()
        sessions = await self.prepare()
        loop = asyncio.get_running_loop()

        def connection() -> Connection:
            return Connection(sessions, token=listen.token)

        try:
            if listen.unix is not None:
                _clear_stale(listen.unix)
                self._server = await loop.create_unix_server(connection, listen.unix, backlog=1024)
                os.chmod(listen.unix, 0o600)
                return listen.unix
            self._server = await loop.create_server(connection, listen.host, listen.port, backlog=1024)
        except OSError as error:
            where = listen.unix or f"{listen.host}:{listen.port}"
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"{where} is in use; choose another, or stop who listens there") from error
            raise UserError(f"cannot listen on {where}: {error.strerror or error}") from error
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def close(self) -> None:
        """Stop listening, end all sessions, stop all boxes. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self.sessions is not None:
            await self.sessions.close()
        else:
            if self._zygote is not None:
                self._zygote.close()
            await self._boxes.close()


async def serve(worker: Worker, listen: Listen, announce: Callable[[str], None], *, owned: bool = False) -> None:
    """Serve until a signal or the owner's end (of standard input). `announce` gets the address, once it is listened on."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if owned:
        lifetime.end_with(0, partial(loop.call_soon_threadsafe, stop.set))
    try:
        address = await worker.start(listen)
        gc.collect()
        gc.freeze()  # what was imported stays; collections look at sessions only
        announce(address)
        await stop.wait()
    finally:
        await worker.close()


def _clear_stale(path: str) -> None:
    """Remove a socket that nobody listens on. Raises: OSError(EADDRINUSE) where somebody does."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "in use")
