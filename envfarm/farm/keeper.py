"""The keeper: one process that owns a farm's lifetimes. See `envfarm.farm`.

    keeper = Keeper(farm, token, folder, url)
    await keeper.start_boxes()    # they are being made
    ...                           # `keeper_api` speaks for it from now on
    await keeper.start_workers()  # they are up
    await keeper.close()

It holds no session and sees no episode: runs and workers speak to each other, workers and boxes too.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from envfarm.errors import BoxUnavailableError, NoRoomError, UserError
from envfarm.farm.boxes import Boxes
from envfarm.farm.file import FarmFile
from envfarm.farm.site import Site
from envfarm.farm.status import LeaseRequest, PoolStatus, Roster, Scale, Status
from envfarm.farm.stock import Stock


class Keeper:
    """`folder`: its own, for what lies on disk while it runs. `url`: where workers reach it."""

    def __init__(self, farm: FarmFile, token: str, folder: Path, url: str):
        self.farm = farm
        self._wanted = [pool.workers for pool in farm.pools]
        self._started = asyncio.Event()
        self._changed = asyncio.Condition()
        self._version = 0
        self._telling: set[asyncio.Task[None]] = set()
        site = Site(farm, token, folder, url, self._change)
        self.backend_name = site.backend_name
        self._boxes, self._place = site.boxes(), site.place()

    async def start_boxes(self) -> None:
        """Raises: UserError where they cannot be here, InfraError."""
        if self._boxes is not None:
            await self._boxes.start()

    async def start_workers(self) -> None:
        """Raises: UserError where they cannot run here, InfraError."""
        await self._place.start()
        self._started.set()

    async def close(self) -> None:
        """End workers and boxes; in a cluster those that work go on with the next keeper. Idempotent."""
        await self._place.close()
        if self._boxes is not None:
            await self._boxes.close()

    # --- asked by runs and people ---------------------------------------------------------------------------------------

    async def status(self) -> Status:
        """As soon as its workers are known."""
        await self._started.wait()
        pools = [self._status_of(number) for number in range(len(self.farm.pools))]
        return Status(self.farm.farm, self.farm.kind, pools)

    def _status_of(self, number: int) -> PoolStatus:
        workers = [worker for worker in self._place.workers() if worker.pool == number]
        boxes = self._boxes.stocks[number].counts() if self._boxes is not None else None
        return PoolStatus(self.farm.pools[number].environments, workers, self._wanted[number], boxes)

    async def roster(self, after: int, wait_s: float) -> Roster:
        """As soon as something changed since the version `after`, or as it is when the time is over.

        Not before its workers are known: whoever does not find his in a roster takes them for dead.
        """
        await self._started.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._version > after)
        return Roster(self._version, self.farm.model_dump(mode="json", exclude_none=True), self._place.workers())

    async def scale(self, asked: Scale) -> None:
        """As soon as the farm is up. Raises: UserError for a pool that is not there, or sizes that do not fit together."""
        self._check(asked.pool)
        await self._started.wait()
        sizes = {name: size for name in ("min", "max", "warm") if (size := getattr(asked, name)) is not None}
        if sizes:
            stock = self.stock(asked.pool)
            try:
                stock.resize(type(stock.sizes).model_validate({**stock.sizes.model_dump(), **sizes}))
            except ValueError as error:
                raise UserError(f"boxes of pool {asked.pool}: {error.errors()[0]['msg']}") from None  # type: ignore[attr-defined]
        if asked.workers is not None:
            if asked.workers < 0:
                raise UserError(f"expected a number of workers from 0, found {asked.workers}")
            await self._place.scale(asked.pool, asked.workers)
            self._wanted[asked.pool] = asked.workers
        self._change()

    def _check(self, pool: int) -> None:
        if not 0 <= pool < len(self.farm.pools):
            raise UserError(f"the farm {self.farm.farm!r} has no pool {pool}: its pools are 0 to {len(self.farm.pools) - 1}")

    def _change(self) -> None:
        """Whoever waits for news gets them."""
        self._version += 1
        task = asyncio.ensure_future(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- asked by workers -----------------------------------------------------------------------------------------------

    @property
    def boxes(self) -> Boxes:
        """Raises: BoxUnavailableError where workers make their own."""
        if self._boxes is None:
            raise BoxUnavailableError(
                f"the farm {self.farm.farm!r} has no boxes of its own: on {self.farm.kind} workers make theirs"
            )
        return self._boxes

    def stock(self, pool: int) -> Stock:
        """Raises: UserError."""
        self._check(pool)
        return self.boxes.stocks[pool]

    async def lease(self, pool: int, asked: LeaseRequest) -> str:
        """Raises: BoxUnavailableError; NoRoomError where none was free in time."""
        stock = self.stock(pool)
        try:
            async with asyncio.timeout(asked.patience_s):
                return (await stock.lease(asked.spec, asked.holder, further=asked.further)).name
        except TimeoutError:
            why = stock.counts().said or f"all {stock.sizes.max} boxes are in use"
            raise NoRoomError(f"pool {pool} had no box to lease for {asked.patience_s:.0f} s: {why}") from None
