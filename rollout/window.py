"""Which groups were consumed, and which may be next: dispatch order, within a bounded window.

Groups of one stage are dispatched in an endless order, 0, 1, 2, ... and finish in another one, short ones first. A
`Window` reaches from the oldest group that is still played over `size` places. Nothing beyond it is dispatched, and a
batch takes what is complete, oldest first. So a long episode holds up nobody for a while, every group that was
dispatched is consumed, and no short one gets more than `size` places ahead of a long one.

The width decides between idle slots and wasted tokens. With B groups in a batch a window of (bound + 1) x B is about
the best at every spread of lengths that `benchmarks.async_training` tries: what is dispatched further ahead is mostly
too old when its turn comes. While a batch is trained on, the next one will already be one version older, so then no
more than bound x B groups may be out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rollout.types import Group


@dataclass
class Cursor:
    """The groups that were consumed: all below `low`, and above it those in `ahead`."""

    low: int = 0
    ahead: set[int] = field(default_factory=set)

    def __contains__(self, number: int) -> bool:
        return number < self.low or number in self.ahead

    @property
    def count(self) -> int:
        return self.low + len(self.ahead)

    def consume(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            assert number not in self, f"group {number} was consumed already"
            self.ahead.add(number)
        while self.low in self.ahead:
            self.ahead.remove(self.low)
            self.low += 1


@dataclass(frozen=True)
class WindowTerms:
    """In groups. A batch takes `wanted` groups that have a signal (something to learn from), out of `most` at the most;
    a group without one costs no place: `size` and `training` grow as their share does."""

    wanted: int
    most: int
    size: int
    training: int  # how many may be out while a batch is trained on
    last: int | None = None  # where dispatch ends


class Window:
    """What is dispatched and not consumed."""

    def __init__(self, cursor: Cursor, terms: WindowTerms):
        self.cursor, self.terms = cursor, terms
        self.running: set[int] = set()
        self.training = False  # whether a batch was taken, and no other one asked for since
        self._complete: dict[int, tuple[Group, bool]] = {}
        self._next = cursor.low
        self._seen, self._seen_signals = 0, 0

    @property
    def waiting(self) -> int:
        """Complete groups that nobody took yet."""
        return len(self._complete)

    @property
    def signals(self) -> int:
        """Those of them that have something to learn from."""
        return sum(signal for _, signal in self._complete.values())

    def next(self) -> int | None:
        """The group to dispatch now; None where there is no room, or nothing left."""
        while self._next in self.cursor:
            self._next += 1
        terms, rate = self.terms, self._rate()
        if terms.last is not None and self._next >= terms.last:
            return None
        if self._next - min(self.running, default=self._next) >= terms.size / rate:
            return None
        if self.training and self.signals + len(self.running) * rate >= terms.training:
            return None
        return self._next

    def dispatch(self, number: int) -> None:
        assert number == self._next
        self.running.add(number)
        self._next += 1

    def complete(self, number: int, group: Group, *, signal: bool) -> None:
        self.running.remove(number)
        self._complete[number] = (group, signal)
        self._seen += 1
        self._seen_signals += signal

    def enough(self) -> bool:
        """Whether a batch can be taken: complete, or as large as it will ever get."""
        if self.signals >= self.terms.wanted or self.waiting >= self.terms.most:
            return True
        return not self.running and self.next() is None

    def take(self) -> list[Group]:
        """A batch in dispatch order, now consumed."""
        taken: list[int] = []
        found = 0
        for number in sorted(self._complete):
            if found == self.terms.wanted or len(taken) == self.terms.most:
                break
            found += self._complete[number][1]
            taken.append(number)
        self.cursor.consume(taken)
        return [self._complete.pop(n)[0] for n in taken]

    def _rate(self) -> float:
        """The share of groups with a signal so far; one at first."""
        return max((1 + self._seen_signals) / (1 + self._seen), self.terms.wanted / self.terms.most)
