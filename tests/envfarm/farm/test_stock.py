"""Boxes of a pool: kept between their sizes, handed out in order, replaced when they die; no session waits for ever."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envfarm.backends.remote_backend import Bare
from envfarm.backends.remote_streams import Death
from envfarm.box import BoxSpec
from envfarm.errors import BoxUnavailableError, EnvfarmError, InfraError, NoRoomError
from envfarm.farm.file import BoxesFile
from envfarm.farm.folder_book import FolderBook
from envfarm.farm.leases import Leases
from envfarm.farm.stock import Stock

ONE, OTHER = BoxSpec(), BoxSpec(image="envfarm/python")


class PaperMaker:
    """Makes nothing, and counts. `refuse`: what making the next box raises."""

    def __init__(self) -> None:
        self.live: dict[str, BoxSpec] = {}
        self.most = 0
        self.refuse: Callable[[], EnvfarmError | None] = lambda: None
        self.lifetime_s = 1e6
        self._count = itertools.count()

    def bare(self, spec: BoxSpec) -> Bare:
        name = f"box-{next(self._count)}"
        return Bare(name, PaperMade(self, name, spec), time.time() + self.lifetime_s)  # type: ignore[arg-type]


class PaperMade:
    def __init__(self, maker: PaperMaker, name: str, spec: BoxSpec):
        self._maker, self._name, self._spec = maker, name, spec

    async def create(self) -> None:
        await asyncio.sleep(0)
        if (error := self._maker.refuse()) is not None:
            raise error
        self._maker.live[self._name] = self._spec
        self._maker.most = max(self._maker.most, len(self._maker.live))

    async def death(self) -> Death:
        return Death("on paper")

    async def remove(self) -> None:
        await asyncio.sleep(0)
        self._maker.live.pop(self._name, None)


def stock_of(folder: Path, *specs: BoxSpec, min: int = 0, max: int = 8, warm: int = 0) -> tuple[Stock, PaperMaker]:
    maker = PaperMaker()
    return Stock(maker, Leases(FolderBook(folder)), BoxesFile(min=min, max=max, warm=warm), list(specs)), maker


async def give_back(stock: Stock, bare: Bare, holder: str) -> None:
    await stock.leases.give_back(bare.name, holder)
    assert stock.end(bare.name) and not stock.end(bare.name)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


def test_warm_boxes_are_kept_for_every_kind_and_at_least_min_are_there(tmp_path: Path) -> None:
    async def keep() -> None:
        stock, maker = stock_of(tmp_path, ONE, OTHER, min=5, warm=4)
        stock.balance()
        await until(lambda: len(maker.live) == 5)
        assert sorted(list(maker.live.values()).count(spec) for spec in (ONE, OTHER)) == [2, 3]
        taken = await stock.lease(ONE, "worker")
        assert maker.live[taken.name] == ONE
        await until(lambda: stock.counts().free == 4 and stock.counts().making == 0)
        assert stock.counts().leased == 1 and len(maker.live) == 5
        await give_back(stock, taken, "worker")
        await until(lambda: taken.name not in maker.live and len(maker.live) == 5)
        await stock.close()
        assert not maker.live and not await stock.leases.book.all()

    asyncio.run(keep())


def test_a_kind_that_nobody_waits_for_makes_room(tmp_path: Path) -> None:
    async def make_room() -> None:
        stock, maker = stock_of(tmp_path, ONE, max=2, warm=2)
        stock.balance()
        await until(lambda: stock.counts().free == 2)
        taken = await stock.lease(OTHER, "worker")
        assert maker.live[taken.name] == OTHER and maker.most <= 2
        await stock.close()

    asyncio.run(make_room())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(most=st.integers(2, 9), sessions=st.integers(1, 24), warm=st.integers(0, 2), kinds=st.integers(1, 2))
def test_sessions_that_verify_in_a_second_box_all_end(
    tmp_path_factory: pytest.TempPathFactory, most: int, sessions: int, warm: int, kinds: int
) -> None:
    async def play() -> int:
        stock, maker = stock_of(tmp_path_factory.mktemp("book"), ONE, max=most, warm=warm)

        async def session(number: int) -> None:
            spec = (ONE, OTHER)[number % kinds]
            first = await stock.lease(spec, f"worker-{number}")
            await asyncio.sleep(0)
            second = await stock.lease(spec, f"worker-{number}", further=True)
            assert len({first.name, second.name}) == 2
            for bare in (second, first):
                await give_back(stock, bare, f"worker-{number}")

        async with asyncio.timeout(30):
            await asyncio.gather(*(session(number) for number in range(sessions)))
        await stock.close()
        assert not maker.live
        return maker.most

    assert asyncio.run(play()) <= most


def test_waiting_in_order_and_said_in_the_status(tmp_path: Path) -> None:
    async def wait() -> None:
        stock, _ = stock_of(tmp_path, ONE, max=2)
        first = await stock.lease(ONE, "a")
        order: list[int] = []

        async def later(number: int) -> None:
            bare = await stock.lease(ONE, "a")
            order.append(number)
            await give_back(stock, bare, "a")

        tasks = [asyncio.create_task(later(number)) for number in range(3)]
        await asyncio.sleep(0.01)
        assert stock.counts().waiting == 3 and "3 wait" in stock.counts().said
        tasks[1].cancel()
        await give_back(stock, first, "a")
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 2] and stock.counts().said == ""
        await stock.close()

    asyncio.run(wait())


def test_a_lease_that_is_called_off_as_it_comes_leaves_its_box_for_the_next(tmp_path: Path) -> None:
    async def call_off() -> None:
        stock, maker = stock_of(tmp_path, ONE, max=2)
        task = asyncio.create_task(stock.lease(ONE, "a"))
        while not stock.counts().leased:  # looked at in every turn of the loop: handed over, and not yet received
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        again = await stock.lease(ONE, "b")
        assert [entry.holder for entry in await stock.leases.book.all() if entry.holder] == ["b"] and again.name in maker.live
        assert stock.counts().leased == 1
        await stock.close()

    asyncio.run(call_off())


def test_free_boxes_that_died_or_are_old_are_replaced(tmp_path: Path) -> None:
    async def replace() -> None:
        stock, maker = stock_of(tmp_path, ONE, warm=2, max=2)
        maker.lifetime_s = ONE.lifetime_s - 1
        stock.balance()
        await until(lambda: stock.counts().free == 2)
        old = stock.free_names()
        maker.lifetime_s = 1e6
        stock.replace(dead=set())
        assert stock.counts().making == 0  # not before there is room
        await until(lambda: stock.counts().free == 2 and not old & maker.live.keys())
        (dead, alive) = sorted(stock.free_names())
        stock.replace(dead={dead})
        await until(lambda: stock.counts().free == 2 and dead not in maker.live)
        assert alive in stock.free_names() and maker.most <= 2
        await stock.close()

    asyncio.run(replace())


def test_what_a_person_must_mend_is_told_at_once_and_what_may_pass_is_waited_for(tmp_path: Path) -> None:
    async def fail() -> None:
        stock, maker = stock_of(tmp_path, ONE)
        maker.refuse = lambda: BoxUnavailableError("no image")
        for _ in range(2):  # also while it pauses
            with pytest.raises(BoxUnavailableError, match="no image"):
                await stock.lease(ONE, "a")
        assert "no image" in stock.counts().said
        errors = [NoRoomError("exceeded quota"), InfraError("the engine stumbled")]
        maker.refuse = lambda: errors.pop(0) if errors else None
        other = msgspec.structs.replace(ONE, pids=7)
        bare = await stock.lease(other, "a")
        assert not errors and maker.live == {bare.name: other}
        await stock.close()

    asyncio.run(fail())


def test_fewer_boxes_than_there_are(tmp_path: Path) -> None:
    async def shrink() -> None:
        stock, maker = stock_of(tmp_path, ONE, warm=6)
        stock.balance()
        await until(lambda: len(maker.live) == 6)
        stock.resize(BoxesFile(max=3, warm=1))
        await until(lambda: len(maker.live) == 3)
        await stock.close()

    asyncio.run(shrink())
