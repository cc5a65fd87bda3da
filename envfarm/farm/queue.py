"""Sessions that wait for a box of a pool, in the order in which they came, and which of them may have one now.

A session that has a box may ask for a further one, to verify in, and holds the first one meanwhile. Would first boxes be let take
up the whole pool, all sessions could wait for each other for ever: so a share is left to further ones, which are soon free again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from envfarm.backends.remote_backend import Bare
from envfarm.box import BoxSpec
from envfarm.errors import EnvfarmError

FURTHER_SHARE = 8
"""One box in so many, and one at least, is left to sessions that have one."""


@dataclass(eq=False)
class Waiting:
    spec: BoxSpec
    further: bool
    box: asyncio.Future[Bare]

    @property
    def handed_over(self) -> Bare | None:
        """The box, where it was handed over before the session that waits was called off."""
        done = self.box.done() and not self.box.cancelled() and self.box.exception() is None
        return self.box.result() if done else None


class Queue:
    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._first: set[str] = set()  # of the boxes that were handed over, those that are their session's first

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, spec: BoxSpec, *, further: bool) -> Waiting:
        waiting = Waiting(spec, further, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """Idempotent."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def admitted(self, most: int) -> list[Waiting]:
        """Those that may have a box of a pool of `most` now, were there one: sessions that have one first."""
        room = most - max(1, most // FURTHER_SHARE) - len(self._first)
        further = [waiting for waiting in self._waiting if waiting.further]
        return further + [waiting for waiting in self._waiting if not waiting.further][: max(room, 0)]

    def hand_over(self, bare: Bare, waiting: Waiting) -> None:
        self._waiting.remove(waiting)
        if not waiting.further:
            self._first.add(bare.name)
        waiting.box.set_result(bare)

    def given_back(self, box: str) -> None:
        self._first.discard(box)

    def refuse(self, spec: BoxSpec, error: EnvfarmError) -> None:
        """Tell all that wait for that kind."""
        for waiting in [w for w in self._waiting if w.spec == spec]:
            self._waiting.remove(waiting)
            waiting.box.set_exception(error)

    def end(self) -> None:
        """Call off all that wait."""
        for waiting in self._waiting:
            waiting.box.cancel()
