"""The boxes of one pool: some free, some leased, some in the making, and the sessions that wait for one.

Between `min` and `max` are live, `warm` free ones are kept ready, evenly over the kinds of box that the pool's environments ask
for. Sessions that find none wait in a queue; where the pool is full of free boxes of other kinds one of those makes room.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from envfarm.backends.remote_backend import Bare
from envfarm.backends.remote_streams import Death
from envfarm.box import BoxSpec
from envfarm.errors import EnvfarmError, InfraError
from envfarm.farm.file import BoxesFile
from envfarm.farm.leases import Conflict, Leases
from envfarm.farm.queue import Queue
from envfarm.farm.status import BoxCounts
from envfarm.farm.troubles import Troubles, is_final

MAKING_AT_ONCE = 8


class Maker(Protocol):
    """`envfarm.backends.remote_backend.RemoteBackend`."""

    def bare(self, spec: BoxSpec) -> Bare: ...


@dataclass
class Stock:
    maker: Maker
    leases: Leases
    sizes: BoxesFile
    specs: list[BoxSpec]
    """The kinds that are kept warm; those that are asked for later join."""
    _free: dict[BoxSpec, deque[Bare]] = field(default_factory=dict)
    _leased: dict[str, Bare] = field(default_factory=dict)
    _making: Counter[BoxSpec] = field(default_factory=Counter)
    _leaving: int = 0
    _queue: Queue = field(default_factory=Queue)
    _troubles: Troubles = field(default_factory=Troubles)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _closed: bool = False

    # --- leasing --------------------------------------------------------------------------------------------------------

    async def lease(self, spec: BoxSpec, holder: str, *, further: bool = False) -> Bare:
        """A box of that kind; waits for one. Raises: BoxUnavailableError where none can ever be made."""
        if spec not in self.specs:
            self.specs.append(spec)
        while True:
            bare = await self._next(spec, further)
            try:
                await self.leases.take(bare.name, holder)
            except Conflict:  # another keeper of this farm was faster
                self._release(bare.name)
            except BaseException:
                self.end(bare.name)
                raise
            else:
                return bare

    async def _next(self, spec: BoxSpec, further: bool) -> Bare:
        """A box that counts as leased from now on."""
        waiting = self._queue.join(spec, further=further)
        self.balance()
        try:
            return await waiting.box
        except asyncio.CancelledError:
            if (bare := waiting.handed_over) is not None:
                self._release(bare.name)
                self._shelf(spec).appendleft(bare)
            raise
        finally:
            self._queue.leave(waiting)
            self.balance()

    async def death(self, box: str) -> Death:
        bare = self._leased.get(box)
        return Death("its lease is over: no heartbeat came in time") if bare is None else await bare.made.death()

    def end(self, box: str) -> bool:
        """A leased box whose lease is over is removed and replaced. Returns whether it was one of these."""
        bare = self._release(box)
        if bare is not None:
            self._leave(bare)
        return bare is not None

    def _release(self, box: str) -> Bare | None:
        self._queue.given_back(box)
        return self._leased.pop(box, None)

    # --- keeping --------------------------------------------------------------------------------------------------------

    def resize(self, sizes: BoxesFile) -> None:
        self.sizes = sizes
        while self._staying() > sizes.max and (shelf := next(filter(None, self._free.values()), None)):
            self._leave(shelf.pop())
        self.balance()

    def replace(self, dead: set[str]) -> None:
        """Also those that have too little time left for an episode."""
        for spec, shelf in self._free.items():
            for bare in [b for b in shelf if b.name in dead or b.until < time.time() + spec.lifetime_s]:
                shelf.remove(bare)
                self._leave(bare)
        self.balance()

    def free_names(self) -> set[str]:
        return {bare.name for shelf in self._free.values() for bare in shelf}

    def balance(self) -> None:
        """Hand out what is free, and have made what is missing."""
        for waiting in self._queue.admitted(self.sizes.max):
            shelf = self._shelf(waiting.spec)
            if shelf and not waiting.box.done():
                bare = shelf.popleft()
                self._leased[bare.name] = bare
                self._queue.hand_over(bare, waiting)
        while not self._closed and self._making.total() < MAKING_AT_ONCE and (spec := self._wanted()) is not None:
            self._making[spec] += 1
            self._later(self._make(spec))

    def _wanted(self) -> BoxSpec | None:
        """Of which kind a box is to be made next; None where there are enough, or no more may be."""
        admitted = self._queue.admitted(self.sizes.max)
        asked = Counter(waiting.spec for waiting in admitted)
        for spec in dict.fromkeys(waiting.spec for waiting in admitted):
            if asked[spec] > self._making[spec] and not self._troubles.pauses(spec, asked=True):
                if self._count() >= self.sizes.max:
                    self._make_room(asked)
                    return None
                return spec
        if self._count() >= self.sizes.max:
            return None
        share = -(-self.sizes.warm // max(len(self.specs), 1))
        free = {spec: len(self._shelf(spec)) + self._making[spec] - asked[spec] for spec in self.specs}
        kept = [spec for spec in self.specs if not self._troubles.pauses(spec, asked=False)]
        few = [spec for spec in kept if free[spec] < share] if sum(free.values()) < self.sizes.warm else []
        if not few and self._count() < self.sizes.min:
            few = kept
        return min(few, key=lambda spec: free[spec]) if few else None

    def _make_room(self, asked: Counter[BoxSpec]) -> None:
        """Have a free box of a kind that nobody waits for ended; there is room once it is gone."""
        for spec, shelf in self._free.items():
            if shelf and not asked[spec]:
                self._leave(shelf.pop())
                break

    async def _make(self, spec: BoxSpec) -> None:
        bare = self.maker.bare(spec)
        try:
            await self.leases.book.add(bare.name)  # first: whoever keeps this farm after us finds it there
            await bare.made.create()
        except EnvfarmError as error:
            await self._forget(bare)
            self._failed(spec, error)
        except BaseException:
            await self._forget(bare)
            raise
        else:
            self._troubles.end(spec)
            self._shelf(spec).append(bare)
        finally:
            self._making[spec] -= 1
            self.balance()

    def _failed(self, spec: BoxSpec, error: EnvfarmError) -> None:
        pause_s = self._troubles.begin(spec, error)
        asyncio.get_running_loop().call_later(pause_s + 0.01, self.balance)
        if is_final(error):
            self._queue.refuse(spec, error)

    # --- small things ---------------------------------------------------------------------------------------------------

    def counts(self) -> BoxCounts:
        said = self._troubles.said()
        waiting, admitted = len(self._queue), len(self._queue.admitted(self.sizes.max))
        if admitted < waiting or (waiting and self._count() >= self.sizes.max):
            said.insert(0, f"all {self.sizes.max} boxes are in use, or left to sessions that have one: {waiting} wait")
        return BoxCounts(
            self.sizes.min, self.sizes.max, self.sizes.warm, len(self.free_names()), len(self._leased), self._making.total(),
            waiting, "; ".join(dict.fromkeys(said)),
        )  # fmt: skip

    def _count(self) -> int:
        return self._staying() + self._leaving

    def _staying(self) -> int:
        return sum(map(len, self._free.values())) + len(self._leased) + self._making.total()

    def _shelf(self, spec: BoxSpec) -> deque[Bare]:
        return self._free.setdefault(spec, deque())

    def _leave(self, bare: Bare) -> None:
        """Counted until it is gone."""
        self._leaving += 1
        self._later(self._remove(bare))

    async def _remove(self, bare: Bare) -> None:
        """The box, and what the book still says of it."""
        try:
            await self._forget(bare)
        finally:
            self._leaving -= 1
            self.balance()

    async def _forget(self, bare: Bare) -> None:
        await bare.made.remove()
        with suppress(InfraError):  # an entry without a box is removed when the book is looked at
            await self.leases.forget(bare.name)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def leave(self) -> None:
        """Make and hand out no more; what is there is the next keeper's. Idempotent."""
        self._closed = True
        self._queue.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Remove every box. Idempotent."""
        self._closed = True
        self._queue.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # those in the making are on a shelf then
        for box in list(self._leased):
            self.end(box)
        for shelf in self._free.values():
            while shelf:
                self._leave(shelf.pop())
        await asyncio.gather(*self._tasks, return_exceptions=True)
