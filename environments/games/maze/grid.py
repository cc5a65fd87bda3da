"""A maze as data: cells, the passages between them, doors, keys; and shortest ways through it.

A cell is `(x, y)`, counted from the north-west corner. `passages[cell]` holds the directions in which there is no wall;
it is symmetric. How mazes are made is in `carve.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

Cell = tuple[int, int]

STEPS: dict[str, Cell] = {"north": (0, -1), "east": (1, 0), "south": (0, 1), "west": (-1, 0)}
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def beyond(cell: Cell, direction: str) -> Cell:
    dx, dy = STEPS[direction]
    return cell[0] + dx, cell[1] + dy


@dataclass
class Grid:
    width: int
    height: int
    passages: dict[Cell, set[str]]
    doors: dict[tuple[Cell, str], str] = field(default_factory=dict)  # (cell, direction) -> colour; both sides are listed
    keys: dict[Cell, str] = field(default_factory=dict)  # where each key lies at the start

    @classmethod
    def walled(cls, width: int, height: int) -> Grid:
        return cls(width, height, {(x, y): set() for y in range(height) for x in range(width)})

    def neighbours(self, cell: Cell) -> Iterator[tuple[str, Cell]]:
        """The cells around `cell`, walls or not."""
        for direction in STEPS:
            other = beyond(cell, direction)
            if other in self.passages:
                yield direction, other

    def ways(self, cell: Cell) -> list[str]:
        """The directions without a wall, always in the order of `STEPS`."""
        return [d for d in STEPS if d in self.passages[cell]]

    def link(self, cell: Cell, direction: str) -> None:
        self.passages[cell].add(direction)
        self.passages[beyond(cell, direction)].add(OPPOSITE[direction])

    def unlink(self, cell: Cell, direction: str) -> None:
        self.passages[cell].discard(direction)
        self.passages[beyond(cell, direction)].discard(OPPOSITE[direction])

    def distances(self, start: Cell, without: Cell | None = None) -> dict[Cell, int]:
        """Steps from `start` to every cell that can be reached, doors taken as open; not through `without`."""
        found, queue = {start: 0}, deque([start])
        while queue:
            cell = queue.popleft()
            for direction in self.ways(cell):
                other = beyond(cell, direction)
                if other not in found and other != without:
                    found[other] = found[cell] + 1
                    queue.append(other)
        return found

    def lock(self, cell: Cell, direction: str, colour: str) -> None:
        self.doors[cell, direction] = colour
        self.doors[beyond(cell, direction), OPPOSITE[direction]] = colour

    def route(self, cell: Cell, held: frozenset[str], goal: Cell) -> list[str]:
        """The fewest actions from here to the goal: directions, and "take" where a key is picked up.

        A search over (cell, keys held). Empty when already there; every maze that `lay_out` makes has a way.
        """
        begin = (cell, held)
        came: dict[tuple[Cell, frozenset[str]], tuple[tuple[Cell, frozenset[str]], str]] = {}
        seen, queue = {begin}, deque([begin])
        while queue:
            state = queue.popleft()
            if state[0] == goal:
                return _walked(came, begin, state)
            for action, following in self._moves(*state):
                if following not in seen:
                    seen.add(following)
                    came[following] = (state, action)
                    queue.append(following)
        raise AssertionError("a maze without a way to its goal")

    def _moves(self, cell: Cell, held: frozenset[str]) -> Iterator[tuple[str, tuple[Cell, frozenset[str]]]]:
        key = self.keys.get(cell)
        if key is not None and key not in held:
            yield "take", (cell, held | {key})
        for direction in self.ways(cell):
            lock = self.doors.get((cell, direction))
            if lock is None or lock in held:
                yield direction, (beyond(cell, direction), held)


def _walked(came: dict, begin: tuple, state: tuple) -> list[str]:
    actions = []
    while state != begin:
        state, action = came[state]
        actions.append(action)
    return actions[::-1]
