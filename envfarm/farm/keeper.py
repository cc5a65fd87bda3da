"""The keeper: one process that owns a farm's lifetimes. See `envfarm.farm`.

    keeper = Keeper(farm, token, folder)
    await keeper.start()          # workers are up, boxes are being made
    ...                           # `keeper_api` speaks for it
    await keeper.close()

It holds no session and sees no episode: runs and workers speak to each other, workers and boxes too.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from envfarm.errors import UserError
from envfarm.farm import KEEPER_VARIABLE
from envfarm.farm.file import FarmFile
from envfarm.farm.places import Place
from envfarm.farm.places.processes import Processes
from envfarm.farm.status import PoolStatus, Roster, Scale, Status
from envfarm.registry import default_registry
from envfarm.spec import EnvSpec


class Keeper:
    """`folder`: its own, for what lies on disk while it runs. `url`: where workers reach it."""

    def __init__(self, farm: FarmFile, token: str, folder: Path, url: str):
        self.farm, self._token, self._folder, self._url = farm, token, folder, url
        self._wanted = [pool.workers for pool in farm.pools]
        self._changed = asyncio.Condition()
        self._version = 0
        self._telling: set[asyncio.Task[None]] = set()
        self._place = self._make_place()

    def _make_place(self) -> Place:
        specs = [self._specs(number) for number in range(len(self.farm.pools))]
        return Processes(
            specs, self._wanted, self._folder, backend="bubblewrap", token=self._token, variables=self._variables,
            changed=self._change,
        )  # fmt: skip

    def _specs(self, pool: int) -> list[EnvSpec]:
        """The known environments that a pool serves; others may be brought."""
        found = default_registry().matching(self.farm.pools[pool].environments)
        return [spec for spec in found if self.farm.pool_of(spec.id) == pool]

    def _variables(self, pool: int) -> dict[str, str]:
        return {KEEPER_VARIABLE: f"{self._url}/pools/{pool}"}

    async def start(self) -> None:
        """Raises: UserError where the farm cannot be here, InfraError."""
        await self._place.start()

    async def close(self) -> None:
        """End workers and boxes. Idempotent."""
        await self._place.close()

    # --- asked over HTTP --------------------------------------------------------------------------------------------

    def status(self) -> Status:
        workers = self._place.workers()
        pools = [
            PoolStatus(pool.environments, [w for w in workers if w.pool == number], self._wanted[number])
            for number, pool in enumerate(self.farm.pools)
        ]
        return Status(self.farm.farm, self.farm.kind, pools)

    async def roster(self, after: int, wait_s: float) -> Roster:
        """As soon as something changed since the version `after`, or as it is when the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._version > after)
        return Roster(self._version, self.farm.model_dump(mode="json", exclude_none=True), self._place.workers())

    async def scale(self, asked: Scale) -> None:
        """Raises: UserError for a pool that is not there, or sizes that do not fit together."""
        if not 0 <= asked.pool < len(self.farm.pools):
            raise UserError(
                f"the farm {self.farm.farm!r} has no pool {asked.pool}: its pools are 0 to {len(self.farm.pools) - 1}"
            )
        if asked.workers is not None:
            if asked.workers < 0:
                raise UserError(f"expected a number of workers from 0, found {asked.workers}")
            await self._place.scale(asked.pool, asked.workers)
            self._wanted[asked.pool] = asked.workers
        self._change()

    def _change(self) -> None:
        """Whoever waits for news gets them."""
        self._version += 1
        task = asyncio.ensure_future(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
