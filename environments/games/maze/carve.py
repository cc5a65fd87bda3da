"""How mazes are made: three ways to carve, loops, closets behind doors, and where start, goal and keys are.

All draws come from the generator that the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from .grid import Cell, Grid, beyond

T = TypeVar("T")

MOST_ACTIONS = 48
"""No maze needs more: layouts that would are drawn again, so that twice the shortest way fits the limit of turns."""

COLOURS = ("red", "blue")


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def backtrack(grid: Grid, rng: np.random.Generator) -> None:
    """Long winding corridors: walk at random to unvisited cells, go back where there are none."""
    cell = _pick(rng, list(grid.passages))
    path, seen = [cell], {cell}
    while path:
        fresh = [(d, c) for d, c in grid.neighbours(path[-1]) if c not in seen]
        if not fresh:
            path.pop()
            continue
        direction, other = _pick(rng, fresh)
        grid.link(path[-1], direction)
        seen.add(other)
        path.append(other)


def prim(grid: Grid, rng: np.random.Generator) -> None:
    """Many short dead ends: open a random wall between what is reached and what is not, until all is reached."""
    first = _pick(rng, list(grid.passages))
    seen, edge = {first}, [(first, d, c) for d, c in grid.neighbours(first)]
    while edge:
        at = int(rng.integers(len(edge)))
        edge[at], edge[-1] = edge[-1], edge[at]
        cell, direction, other = edge.pop()
        if other in seen:
            continue
        grid.link(cell, direction)
        seen.add(other)
        edge.extend((other, d, c) for d, c in grid.neighbours(other) if c not in seen)


def division(grid: Grid, rng: np.random.Generator) -> None:
    """Long straight walls: split the open field by a wall with one gap, then each half again."""
    for cell in grid.passages:
        grid.passages[cell] = {d for d, _ in grid.neighbours(cell)}
    rooms = [(0, 0, grid.width, grid.height)]
    while rooms:
        x, y, w, h = rooms.pop()
        if w == 1 or h == 1:
            continue
        upright = w > h or (w == h and bool(rng.integers(2)))
        at = 1 + int(rng.integers((w if upright else h) - 1))
        gap = int(rng.integers(h if upright else w))
        for i in range(h if upright else w):
            if i != gap:
                cell = (x + at - 1, y + i) if upright else (x + i, y + at - 1)
                grid.unlink(cell, "east" if upright else "south")
        rooms += [(x, y, at, h), (x + at, y, w - at, h)] if upright else [(x, y, w, at), (x, y + at, w, h - at)]


CARVERS: dict[str, Callable[[Grid, np.random.Generator], None]] = {
    "backtrack": backtrack, "prim": prim, "division": division,
}  # fmt: skip

LOOP_SHARE = {"none": 0.0, "few": 0.1, "many": 0.3}
"""Walls that are opened again, per cell; at least one unless none."""


def add_loops(grid: Grid, share: float, rng: np.random.Generator) -> None:
    walls = [(c, d) for c in grid.passages for d in ("east", "south") if beyond(c, d) in grid.passages]
    walls = [(c, d) for c, d in walls if d not in grid.passages[c]]
    count = max(1, round(share * len(grid.passages))) if share else 0
    for at in rng.permutation(len(walls))[:count]:
        grid.link(*walls[int(at)])


def closet(grid: Grid, rng: np.random.Generator, taken: set[Cell], colour: str) -> Cell:
    """A cell made into a closet: one entrance, behind a door of `colour`; the rest of the maze stays connected.

    Every connected maze has at least two cells whose removal leaves the rest connected, so one is always found
    while at most one cell is taken; closets made before are dead ends and do not count as ways.
    """
    cells = list(grid.passages)
    for at in rng.permutation(len(cells)):
        cell = cells[int(at)]
        if cell in taken:
            continue
        outside = next(c for c in cells if c != cell)
        if len(grid.distances(outside, without=cell)) == len(cells) - 1:
            ways = [d for d in grid.ways(cell) if (cell, d) not in grid.doors]
            if not ways:
                continue
            keep = _pick(rng, ways)
            for direction in [d for d in grid.ways(cell) if d != keep]:
                grid.unlink(cell, direction)
            grid.lock(cell, keep, colour)
            return cell
    raise AssertionError("no cell can be closed off")


def lay_out(
    width: int, height: int, carve: str, loops: str, reach: str, doors: int, rng: np.random.Generator
) -> tuple[Grid, Cell, Cell]:
    """A maze with its start and its goal, at least one and at most `MOST_ACTIONS` actions apart."""
    for _ in range(1000):
        grid = Grid.walled(width, height)
        CARVERS[carve](grid, rng)
        add_loops(grid, LOOP_SHARE[loops], rng)
        start, goal = _furnish(grid, reach, doors, rng)
        if 0 < len(grid.route(start, frozenset(), goal)) <= MOST_ACTIONS:
            return grid, start, goal
    raise AssertionError(f"no maze of {width} by {height} with {doors} doors is short enough")


def _furnish(grid: Grid, reach: str, doors: int, rng: np.random.Generator) -> tuple[Cell, Cell]:
    """Doors and keys, then start and goal. The goal stands behind the first door, the first key behind the second."""
    places: list[Cell] = []
    for colour in COLOURS[:doors]:
        places.append(closet(grid, rng, set(places), colour))
        if len(places) > 1:
            grid.keys[places[-1]] = COLOURS[len(places) - 2]
    if places:
        goal = places[0]
    else:
        away = grid.distances(_pick(rng, list(grid.passages)))
        goal = _pick(rng, [c for c, d in away.items() if d == max(away.values())])
    away = grid.distances(goal)
    top = max(d for c, d in away.items() if c not in places)
    low, high = (0.8 * top, top) if reach == "far" else (0.4 * top, 0.8 * top)
    start = _pick(rng, [c for c, d in away.items() if max(low, min(3, top)) <= d <= max(high, min(3, top)) and c not in places])
    if doors:
        free = [c for c in grid.passages if c != start and c not in places]
        grid.keys[_pick(rng, free)] = COLOURS[doors - 1]
    return start, goal
