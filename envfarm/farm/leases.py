"""Leases: who holds which box. Taken by compare-and-swap, kept by heartbeat, and over when no beat came for `EXPIRY_S`.

A box serves one lease, ever: free, held, gone. A `Book` keeps one entry per box and changes it only for whoever knows its
version, so that of two that want a box one gets it, whatever processes they live in. `Leases` are the rules on top.

Nobody's wall clock counts: a lease has expired for an observer when its entry has not changed for `EXPIRY_S` of the observer's
own time. So a keeper that starts anew gives everybody the whole time again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from envfarm.errors import InfraError

EXPIRY_S = 30.0
BEAT_S = 8.0


class Entry(msgspec.Struct, frozen=True):
    box: str
    holder: str = ""
    """Empty: the box is free."""
    beats: int = 0
    version: str = ""
    """The book's; another one after every change."""


class Conflict(Exception):
    """The entry is not as it was seen: somebody was faster."""


class LeaseLost(InfraError):
    """The lease is over: it expired, was given back, or is somebody else's."""


class Book(Protocol):
    """`FolderBook`, `lease_objects.ObjectBook`. Every method may raise InfraError where the book cannot be reached."""

    async def add(self, box: str) -> Entry:
        """Raises: Conflict where there is an entry of that name."""
        ...

    async def get(self, box: str) -> Entry | None: ...

    async def all(self) -> list[Entry]: ...

    async def change(self, entry: Entry, *, holder: str, beats: int) -> Entry:
        """`entry` as it was seen, with something else in it. Raises: Conflict."""
        ...

    async def remove(self, entry: Entry) -> None:
        """Raises: Conflict."""
        ...


class Leases:
    """`clock`: seconds of this observer's, for expiry."""

    def __init__(self, book: Book, clock: Callable[[], float] = time.monotonic):
        self.book, self._clock = book, clock
        self._seen: dict[str, tuple[str, float]] = {}  # box -> version, and since when

    async def take(self, box: str, holder: str) -> Entry:
        """Raises: Conflict where it is not free any more."""
        assert holder
        entry = await self.book.get(box)
        if entry is None or entry.holder:
            raise Conflict(box)
        return await self.book.change(entry, holder=holder, beats=0)

    async def beat(self, box: str, holder: str) -> Entry:
        """Raises: LeaseLost."""
        while True:
            entry = await self._held(box, holder)
            try:
                return await self.book.change(entry, holder=holder, beats=entry.beats + 1)
            except Conflict:
                continue  # another beat of the same holder, or it is lost: the next look says

    async def give_back(self, box: str, holder: str) -> None:
        """The box is used up. Raises: LeaseLost where it was not the holder's any more."""
        while True:
            entry = await self._held(box, holder)
            try:
                return await self.book.remove(entry)
            except Conflict:
                continue

    async def forget(self, box: str) -> None:
        """Its entry, whatever stands there. Idempotent."""
        entry = await self.book.get(box)
        while entry is not None:
            try:
                return await self.book.remove(entry)
            except Conflict:
                entry = await self.book.get(box)

    async def _held(self, box: str, holder: str) -> Entry:
        entry = await self.book.get(box)
        if entry is None or not holder or entry.holder != holder:
            raise LeaseLost(f"the lease of box {box} is over: no heartbeat came for {EXPIRY_S:.0f} s, or it was given back")
        return entry

    async def expire(self) -> AsyncIterator[Entry]:
        """End the leases that have not beaten for too long. To be called every now and then. Each comes as soon as it is over:
        once its entry is gone nobody else will say so, and the book may not answer for the next one."""
        now, entries = self._clock(), await self.book.all()
        for entry in entries:
            version, since = self._seen.get(entry.box, ("", now))
            if version != entry.version:
                self._seen[entry.box] = entry.version, now
            elif entry.holder and now - since >= EXPIRY_S:
                try:
                    await self.book.remove(entry)
                except Conflict:
                    continue  # it beat just now
                yield entry
        for box in self._seen.keys() - {entry.box for entry in entries}:
            del self._seen[box]
