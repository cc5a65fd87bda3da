"""The boxes of a whole farm: a stock per pool, made by one backend, and the looks that keep them true.

Every `LOOK_S` seconds: which boxes still run, and which leases have beaten. A free box that died is replaced; a lease that
expired ends with its box.

Where workers and book outlive their keeper (in a cluster) the next one inherits: boxes that are leased stay their workers', until
the lease is over; others are removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from envfarm.backends.remote_backend import RemoteBackend
from envfarm.box import BoxSpec
from envfarm.errors import InfraError
from envfarm.farm.file import BoxesFile
from envfarm.farm.leases import Book, LeaseLost, Leases
from envfarm.farm.stock import Stock

LOOK_S = 2.0


class Boxes:
    """`pools`: for each its sizes, and the kinds of box that its environments ask for. `inherited`: there is a next keeper."""

    def __init__(
        self, backend: RemoteBackend, book: Book, pools: Sequence[tuple[BoxesFile, list[BoxSpec]]], *, inherited: bool = False
    ):
        self._backend, self._leases, self._inherited = backend, Leases(book), inherited
        self.stocks = [Stock(backend, self._leases, sizes, specs) for sizes, specs in pools]
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Boxes are being made when this returns. Raises: BoxUnavailableError, MissingDependencyError."""
        await self._backend.probe()
        await self._inherit()
        for stock in self.stocks:
            stock.balance()
        self._looking = asyncio.create_task(self._look())

    async def _inherit(self) -> None:
        """Beside what nobody holds remove what no entry names: it was given back, and could not be deleted then."""
        entries = await self._leases.book.all()
        named, held = {entry.box for entry in entries}, {entry.box for entry in entries if entry.holder}
        for box in (named | await self._backend.live()) - held:
            await self._backend.delete(box)
            await self._leases.forget(box)

    async def give_back(self, box: str, holder: str) -> None:
        """It is used up: removed, and replaced. Raises: LeaseLost."""
        await asyncio.shield(asyncio.ensure_future(self._give_back(box, holder)))

    async def _give_back(self, box: str, holder: str) -> None:
        """To the end, also when whoever asked goes away: without its entry nobody would find the box."""
        await self._leases.give_back(box, holder)
        await self._end(box)

    async def _end(self, box: str) -> None:
        """Of a stock, or an earlier keeper's."""
        if not any([stock.end(box) for stock in self.stocks]):
            await self._backend.delete(box)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(InfraError):  # engine, cluster or book do not answer: the next look may
                async for entry in self._leases.expire():
                    await self._end(entry.box)
                free = [stock.free_names() for stock in self.stocks]
                live = await self._backend.live()
                for stock, names in zip(self.stocks, free, strict=True):
                    stock.replace(names - live)

    async def beat(self, boxes: Sequence[str], holder: str) -> list[str]:
        """Keep the holder's leases; returns those that are over."""
        lost = []
        for box in boxes:
            try:
                await self._leases.beat(box, holder)
            except LeaseLost:
                lost.append(box)
        return lost

    async def close(self) -> None:
        """Remove every box, or leave them to the next keeper. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
            self._looking = None
        await asyncio.gather(*(stock.leave() if self._inherited else stock.close() for stock in self.stocks))
        await self._backend.close()
