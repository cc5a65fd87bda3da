"""Permits: one per episode in flight, handed out in dispatch order, a whole group at once."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress


class Permits:
    """Counted permits, handed out in order, several at once."""

    def __init__(self, capacity: int):
        self.capacity, self._free = capacity, capacity
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def admit(self, count: int) -> Lease:
        """Take `count` permits together. Raises: ValueError where there will never be as many."""
        if count > self.capacity:
            raise ValueError(f"a group of {count} episodes does not fit into max_in_flight={self.capacity}")
        if self._waiting or self._free < count:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((count, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    with suppress(ValueError):  # a release between the cancellation and this line took it off already
                        self._waiting.remove((count, turn))
                else:
                    self._free += count
                self._wake()
                raise
        else:
            self._free -= count
        return Lease(self, count)

    def release(self) -> None:
        self._free += 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if not turn.cancelled():
                if self._free < count:
                    return
                self._free -= count
                turn.set_result(None)
            self._waiting.popleft()


class Lease:
    """A group's permits: given back one by one as its members end, the rest when the group does."""

    def __init__(self, permits: Permits, count: int):
        self._permits, self._held = permits, count

    def give_one(self, _: object = None) -> None:
        if self._held:
            self._held -= 1
            self._permits.release()

    def close(self, _: object = None) -> None:
        while self._held:
            self.give_one()
