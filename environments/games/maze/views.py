"""What of a maze can be seen: the exits of a cell, along the corridors, a square around, a torn map."""

from __future__ import annotations

import numpy as np

from .grid import STEPS, Cell, Grid, beyond

Pairs = list[tuple[str, str]]

WORDS: dict[str, dict[str, str]] = {
    "plain": {"place": "maze", "goal": "goal", "open": "open"},
    "cave": {"place": "cave", "goal": "daylight", "open": "tunnels"},
    "garden": {"place": "hedge garden", "goal": "fountain", "open": "paths"},
    "ship": {"place": "wreck", "goal": "hatch", "open": "passages"},
    "library": {"place": "library", "goal": "reading room", "open": "aisles"},
    "market": {"place": "night market", "goal": "tea house", "open": "lanes"},
}


def compass(kind: str, cell: Cell, goal: Cell) -> str:
    """Where the goal is: `north east`, or `2 north 1 east`; nothing for `none`."""
    dx, dy = goal[0] - cell[0], goal[1] - cell[1]
    parts = [(abs(dy), "north" if dy < 0 else "south"), (abs(dx), "west" if dx < 0 else "east")]
    if kind == "none":
        return ""
    return " ".join(word if kind == "bearing" else f"{count} {word}" for count, word in parts if count)


def exits(grid: Grid, cell: Cell, keys: dict[Cell, str], goal: Cell, words: dict[str, str]) -> Pairs:
    """The directions without a wall, doors named apart."""
    open_ways = [d for d in grid.ways(cell) if (cell, d) not in grid.doors]
    doors = [f"{d} {grid.doors[cell, d]}" for d in grid.ways(cell) if (cell, d) in grid.doors]
    return [(words["open"], " ".join(open_ways) or "none"), *([("door", ", ".join(doors))] if doors else [])]


def sight(grid: Grid, cell: Cell, keys: dict[Cell, str], goal: Cell, words: dict[str, str]) -> Pairs:
    """For each direction how many steps are free, and what stands out along the way."""
    pairs = []
    for direction in STEPS:
        steps, at, marks = 0, cell, []
        while direction in grid.passages[at]:
            if (at, direction) in grid.doors:
                marks.append(f"{grid.doors[at, direction]} door after {steps}")
                break
            at, steps = beyond(at, direction), steps + 1
            if at in keys:
                marks.append(f"{keys[at]} key at {steps}")
            if at == goal:
                marks.append(f"{words['goal']} at {steps}")
        pairs.append((direction, ", ".join([str(steps) if steps else "wall", *marks]) if steps or not marks else marks[0]))
    return pairs


def drawing(
    grid: Grid, start: Cell, size: Cell, centre: Cell | None, keys: dict[Cell, str], goal: Cell | None, unknown: set[Cell]
) -> str:
    """Cells as a character grid: `#` wall, `.` free, `@` you, `G` goal, `r b` keys, `R B` doors, `?` not known.

    `start` is the north-west cell, `size` the number of cells; cells outside the maze are walls all over.
    """
    width, height = size
    canvas = [["#"] * (2 * width + 1) for _ in range(2 * height + 1)]
    for dx in range(width):
        for dy in range(height):
            cell = (start[0] + dx, start[1] + dy)
            if cell not in grid.passages:
                continue
            x, y = 2 * dx + 1, 2 * dy + 1
            hidden = cell in unknown
            canvas[y][x] = "?" if hidden else _mark(cell, centre, keys, goal)
            for direction, (sx, sy) in STEPS.items():
                if hidden:
                    canvas[y + sy][x + sx] = "?"
                elif direction in grid.passages[cell]:
                    canvas[y + sy][x + sx] = grid.doors.get((cell, direction), ".")[0].upper()
                elif beyond(cell, direction) not in unknown:
                    canvas[y + sy][x + sx] = "#"
    return "\n".join("".join(row) for row in canvas)


def _mark(cell: Cell, centre: Cell | None, keys: dict[Cell, str], goal: Cell | None) -> str:
    if cell == centre:
        return "@"
    return "G" if cell == goal else keys[cell][0] if cell in keys else "."


def window(grid: Grid, cell: Cell, keys: dict[Cell, str], goal: Cell) -> str:
    """The three by three cells around `cell`."""
    return drawing(grid, (cell[0] - 1, cell[1] - 1), (3, 3), cell, keys, goal, set())


def torn_map(grid: Grid, start: Cell, goal: Cell, share: float, rng: np.random.Generator) -> str:
    """The whole maze, without keys; a `share` of its cells is torn off. Start and goal can always be read."""
    cells = [c for c in grid.passages if c not in (start, goal)]
    unknown = {cells[int(i)] for i in rng.permutation(len(cells))[: round(share * len(cells))]}
    return drawing(grid, (0, 0), (grid.width, grid.height), start, {}, goal, unknown)
