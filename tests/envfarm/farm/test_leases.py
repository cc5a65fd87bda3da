"""The book's invariants, over two observers of one book: one holder at most, no lease without beats, no box twice."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from envfarm.errors import InfraError
from envfarm.farm.folder_book import FolderBook
from envfarm.farm.leases import EXPIRY_S, Conflict, Entry, LeaseLost, Leases

T = TypeVar("T")
BOXES = st.sampled_from(["box-0", "box-1", "box-2"])
HOLDERS = st.sampled_from(["worker-0", "worker-1"])
OBSERVERS = st.sampled_from([0, 1])


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def expired(leases: Leases) -> list[Entry]:
    return [entry async for entry in leases.expire()]


class TwoKeepers(RuleBasedStateMachine):
    """Two keepers share a book, each with a clock of its own; the model says who holds what and since when it beat."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now = [0.0, 1000.0]
        self.keepers = [Leases(FolderBook(Path(self.folder.name)), clock=lambda i=i: self.now[i]) for i in (0, 1)]
        self.free: set[str] = set()
        self.held: dict[str, str] = {}
        self.quiet: dict[str, float] = {}  # box -> seconds since its last beat
        self.looked: list[dict[str, float]] = [{}, {}]  # per keeper: box -> seconds since it first saw this state

    def changed(self, box: str) -> None:
        for looked in self.looked:
            looked.pop(box, None)

    @rule(box=BOXES, i=OBSERVERS)
    def add(self, box: str, i: int) -> None:
        there = box in self.free or box in self.held
        if there:
            with pytest.raises(Conflict):
                run(self.keepers[i].book.add(box))
        else:
            run(self.keepers[i].book.add(box))
            self.free.add(box)
            self.changed(box)

    @rule(box=BOXES, holder=HOLDERS, i=OBSERVERS)
    def take(self, box: str, holder: str, i: int) -> None:
        if box in self.free:
            assert run(self.keepers[i].take(box, holder)).holder == holder
            self.free.remove(box)
            self.held[box], self.quiet[box] = holder, 0.0
            self.changed(box)
        else:
            with pytest.raises(Conflict):
                run(self.keepers[i].take(box, holder))

    @rule(box=BOXES, holder=HOLDERS, i=OBSERVERS)
    def beat(self, box: str, holder: str, i: int) -> None:
        if self.held.get(box) == holder:
            run(self.keepers[i].beat(box, holder))
            self.quiet[box] = 0.0
            self.changed(box)
        else:
            with pytest.raises(LeaseLost):
                run(self.keepers[i].beat(box, holder))

    @rule(box=BOXES, holder=HOLDERS, i=OBSERVERS)
    def give_back(self, box: str, holder: str, i: int) -> None:
        if self.held.get(box) == holder:
            run(self.keepers[i].give_back(box, holder))
            del self.held[box]
            self.changed(box)
        else:
            with pytest.raises(LeaseLost):
                run(self.keepers[i].give_back(box, holder))

    @rule(seconds=st.floats(0.5, 40.0))
    def time_passes(self, seconds: float) -> None:
        self.now = [now + seconds for now in self.now]
        self.quiet = {box: quiet + seconds for box, quiet in self.quiet.items()}
        self.looked = [{box: t + seconds for box, t in looked.items()} for looked in self.looked]

    @rule(i=OBSERVERS)
    def expire(self, i: int) -> None:
        over = {entry.box for entry in run(expired(self.keepers[i]))}
        assert over == {box for box in self.held if self.looked[i].get(box, 0.0) >= EXPIRY_S}
        assert all(self.quiet[box] >= EXPIRY_S for box in over), "one that beat was ended"
        for box in over:
            del self.held[box]
            self.changed(box)
        for box in self.held:
            self.looked[i].setdefault(box, 0.0)

    @invariant()
    def the_book_is_as_the_model(self) -> None:
        if hasattr(self, "keepers"):
            found = {entry.box: entry.holder for entry in run(self.keepers[0].book.all())}
            assert found == {**dict.fromkeys(self.free, ""), **self.held}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestTwoKeepers = TwoKeepers.TestCase
TestTwoKeepers.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_of_two_that_saw_a_free_box_one_gets_it(tmp_path: Path) -> None:
    async def race() -> None:
        one, other = FolderBook(tmp_path), FolderBook(tmp_path)
        await one.add("box-0")
        seen, also = await one.get("box-0"), await other.get("box-0")
        assert seen is not None and also is not None
        taken = await one.change(seen, holder="a", beats=0)
        for attempt in (other.change(also, holder="b", beats=0), other.remove(also)):
            with pytest.raises(Conflict):
                await attempt
        assert await other.get("box-0") == taken and taken.holder == "a"

    run(race())


def test_what_expired_is_told_though_the_book_is_lost_in_the_middle(tmp_path: Path) -> None:
    class Book(FolderBook):
        answers = 1

        async def remove(self, entry: Entry) -> None:
            if not self.answers:
                raise InfraError("the book is away")
            self.answers -= 1
            await super().remove(entry)

    async def lose() -> None:
        now, book = 0.0, Book(tmp_path)
        leases = Leases(book, clock=lambda: now)
        for box in ("box-0", "box-1"):
            await book.add(box)
            await leases.take(box, "a")
        assert await expired(leases) == []
        now, looking = EXPIRY_S, leases.expire()
        assert (await anext(looking)).box == "box-0"
        with pytest.raises(InfraError):
            await anext(looking)
        book.answers = 1
        assert [entry.box for entry in await expired(leases)] == ["box-1"]

    run(lose())


def test_nobody_gives_back_a_box_that_is_free(tmp_path: Path) -> None:
    async def give_back() -> None:
        leases = Leases(FolderBook(tmp_path))
        free = await leases.book.add("box-0")
        with pytest.raises(LeaseLost):
            await leases.give_back("box-0", "")
        assert await leases.book.all() == [free]

    run(give_back())
