"""The requests that an engine has: those that wait for a place, those that every step gives a token, and when these end.

As a reply is known from the start, so is the step that ends it. Requests that are called off stay in the order of ends until they
come up there, and are passed over.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from rollout.engines.simulated.request import Request


class Batch:
    """At most `most` run at a time."""

    def __init__(self, most: int):
        self._most = most
        self._waiting: dict[Request, None] = {}
        self._running: dict[Request, None] = {}
        self._ends: list[tuple[int, int, Request]] = []  # a heap: (steps done when it ends, tie, request)
        self._tie = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def __iter__(self) -> Iterator[Request]:
        """Those of this moment: they may be dropped meanwhile."""
        return iter((*self._waiting, *self._running))

    def __contains__(self, request: Request) -> bool:
        return request in self._waiting or request in self._running

    @property
    def running(self) -> int:
        return len(self._running)

    def add(self, request: Request) -> None:
        self._waiting[request] = None

    def drop(self, request: Request) -> None:
        """Idempotent."""
        self._waiting.pop(request, None)
        self._running.pop(request, None)

    def admit(self, steps: int) -> int:
        """Take in what waits, as far as there is room, after so many steps; the prompt tokens of that."""
        prompts = 0
        while self._waiting and len(self._running) < self._most:
            request = next(iter(self._waiting))
            del self._waiting[request]
            self._running[request], request.first = None, steps
            heapq.heappush(self._ends, (steps + len(request.ids), next(self._tie), request))
            prompts += request.prompt
        return prompts

    def next_end(self) -> int | None:
        """After how many steps the next reply is complete; None where nothing runs."""
        while self._ends and self._ends[0][2] not in self._running:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None

    def ended(self, steps: int) -> list[Request]:
        """Those that are complete after so many steps; still in the batch."""
        ended = []
        while (end := self.next_end()) is not None and end <= steps:
            ended.append(heapq.heappop(self._ends)[2])
        return ended
