"""What a keeper owes to those who ask while it starts, while it ends, and when they go away in the middle; on paper boxes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from envfarm.farm import KEEPER_VARIABLE, TOKEN_VARIABLE, backend
from envfarm.farm.backend import LeasedBackend
from envfarm.farm.boxes import Boxes
from envfarm.farm.client import KeeperClient
from envfarm.farm.file import BoxesFile, read_farm
from envfarm.farm.folder_book import FolderBook
from envfarm.farm.keeper import Keeper
from envfarm.farm.keeper_api import KeeperApi
from envfarm.farm.leases import Entry
from envfarm.farm.status import LeaseRequest, Status
from tests.envfarm.farm.helpers import write_farm
from tests.envfarm.farm.test_stock import ONE, PaperMaker, until


class PaperBackend:
    """`made`: what it has made."""

    def __init__(self) -> None:
        self._maker = PaperMaker()
        self.bare, self.made = self._maker.bare, self._maker.live

    async def probe(self) -> None:
        pass

    async def live(self) -> set[str]:
        return set(self.made)

    async def delete(self, name: str) -> None:
        self.made.pop(name, None)

    async def close(self) -> None:
        pass


def boxes_of(cluster: PaperBackend, book: FolderBook, *, inherited: bool = False) -> Boxes:
    return Boxes(cluster, book, [(BoxesFile(max=4, warm=1), [ONE])], inherited=inherited)  # type: ignore[arg-type]


def test_what_is_given_back_is_gone_though_who_gave_it_went_away(tmp_path: Path) -> None:
    class Book(FolderBook):
        removed = asyncio.Event()
        goes_on = asyncio.Event()

        async def remove(self, entry: Entry) -> None:
            await super().remove(entry)
            self.removed.set()
            await self.goes_on.wait()

    async def give_back() -> None:
        cluster, book = PaperBackend(), Book(tmp_path)
        boxes = boxes_of(cluster, book)
        (stock,) = boxes.stocks
        box = (await stock.lease(ONE, "a")).name
        giving = asyncio.ensure_future(boxes.give_back(box, "a"))
        await book.removed.wait()
        giving.cancel()
        await asyncio.wait([giving])
        book.goes_on.set()
        await until(lambda: stock.counts().leased == 0 and box not in cluster.made)
        await boxes.close()

    asyncio.run(give_back())


def test_the_next_keeper_inherits_what_is_leased_and_nothing_else(tmp_path: Path) -> None:
    async def inherit() -> None:
        cluster, book = PaperBackend(), FolderBook(tmp_path)
        first = boxes_of(cluster, book, inherited=True)
        await first.start()
        leased = (await first.stocks[0].lease(ONE, "a")).name
        await until(lambda: first.stocks[0].counts().free == 1)
        await first.close()
        assert len(cluster.made) == 2 and leased in cluster.made
        cluster.made["box-without-an-entry"] = ONE
        free = set(cluster.made) - {leased}
        second = boxes_of(cluster, book)
        await second.start()
        assert leased in cluster.made and not free & set(cluster.made)
        assert [entry.box for entry in await book.all() if entry.holder] == [leased]
        await second.give_back(leased, "a")
        assert leased not in cluster.made
        await second.close()
        assert not cluster.made and not await book.all()

    asyncio.run(inherit())


class PaperKeeper:
    """Has one box, or none."""

    backend_name = "docker"

    def __init__(self, box: str = ""):
        self._box, self.asked = box, asyncio.Event()

    async def status(self) -> Status:
        return Status("lab", "docker", [])

    async def lease(self, pool: int, asked: LeaseRequest) -> str:
        self.asked.set()
        while not self._box:
            await asyncio.sleep(3600)
        return self._box


async def served(api: KeeperApi, port: int, keeper: PaperKeeper) -> str:
    url = await api.listen("127.0.0.1", port)
    api.serve(keeper)  # type: ignore[arg-type]
    return url


def test_who_asks_before_the_farm_is_up_waits() -> None:
    async def ask() -> None:
        api = KeeperApi("sesame")
        async with KeeperClient(await api.listen("127.0.0.1", 0), "sesame") as client:
            asking = asyncio.ensure_future(client.status())
            assert not (await asyncio.wait([asking], timeout=0.3))[0]
            api.serve(PaperKeeper())  # type: ignore[arg-type]
            assert (await asking).farm == "lab"
        await api.close()

    asyncio.run(ask())


def test_a_keeper_that_does_not_know_its_workers_yet_lists_none(tmp_path: Path) -> None:
    """Whoever asks waits, as a run that has sessions in them must."""

    async def ask() -> None:
        api = KeeperApi("sesame")
        async with KeeperClient(await api.listen("127.0.0.1", 0), "sesame") as client:
            keeper = Keeper(read_farm(write_farm(tmp_path)), "sesame", tmp_path, client.url)
            await keeper.start_boxes()
            api.serve(keeper)
            asking = asyncio.ensure_future(client.workers()), asyncio.ensure_future(client.status())
            assert not (await asyncio.wait(asking, timeout=0.3))[0]
            await keeper.start_workers()
            assert [worker.up for worker in (await asking[0]).workers] == [True]
            assert [worker.up for worker in (await asking[1]).pools[0].workers] == [True]
            await keeper.close()
        await api.close()

    asyncio.run(ask())


def test_a_session_that_waits_for_a_box_outlasts_its_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it had waited for longer than a keeper may be away."""
    monkeypatch.setattr(backend, "EXPIRY_S", 2.0)
    monkeypatch.setattr(backend, "_AGAIN_S", 0.05)

    async def wait() -> None:
        first, second, full = KeeperApi("sesame"), KeeperApi("sesame"), PaperKeeper()
        url = await served(first, 0, full)
        monkeypatch.setenv(KEEPER_VARIABLE, f"{url}/pools/0")
        monkeypatch.setenv(TOKEN_VARIABLE, "sesame")
        worker = LeasedBackend()
        waiting = asyncio.ensure_future(worker.lease(ONE, "session"))
        await full.asked.wait()
        await asyncio.wait([waiting], timeout=2.1)
        await first.close()
        await served(second, int(url.rpartition(":")[2]), PaperKeeper("box-0"))
        assert await waiting == "box-0"
        await worker._keeper.close()
        await second.close()

    asyncio.run(wait())
