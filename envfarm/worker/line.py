"""The one connection that all sessions of a run in one worker share: made when first asked for, and again after it was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from envfarm.errors import EnvfarmError, WorkerDied
from envfarm.worker.address import Address
from envfarm.worker.client import WorkerConnection, connect


class Line:
    """`greet` is said on a new connection before anybody gets it; what it raises, whoever asked gets."""

    def __init__(
        self, address: Address, died: Callable[[], str],
        greet: Callable[[WorkerConnection], Awaitable[None]] | None = None,
    ):  # fmt: skip
        self._address, self._died, self._greet = address, died, greet
        self._connecting: asyncio.Future[WorkerConnection] | None = None

    async def connection(self) -> WorkerConnection:
        """Raises: InfraError."""
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
        connecting = self._connecting
        try:
            connection = await asyncio.shield(connecting)
        except EnvfarmError:
            self._forget(connecting)
            raise
        except asyncio.CancelledError:
            if connecting.cancelled():  # by `close`, and whoever waits for it was not asked to end
                raise WorkerDied(self._died()) from None
            raise
        if not connection.lost:
            return connection
        self._forget(connecting)
        raise WorkerDied(connection.lost)

    async def _connect(self) -> WorkerConnection:
        connection = await connect(self._address, died=self._died)
        if self._greet is not None:
            try:
                await self._greet(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _forget(self, connecting: asyncio.Future[WorkerConnection]) -> None:
        if self._connecting is connecting:
            self._connecting = None

    def close(self) -> None:
        """Idempotent."""
        connecting = self._connecting
        if connecting is None:
            return
        if not connecting.done():
            connecting.cancel()
        elif not connecting.cancelled() and connecting.exception() is None:
            connecting.result().close()
