"""What every benchmark shares: ours and theirs in turns, medians, one table, one JSON file.

    rows = [measure("steps/s", ours, theirs, goal=">=5", unit="steps/s")]
    finish("serving", rows)                      # prints, and writes --json FILE

`ours` and `theirs` return one figure each time they are called; rounds alternate between them (and who goes first),
so that a machine that slows down slows both. A goal is of the ratio ours/theirs, or of ours where there is no peer.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

_GOALS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Row:
    name: str
    ours: float
    theirs: float | None
    ratio: float | None
    unit: str
    goal: str  # ">=3" or "<=1.3"; empty where the row is only shown

    @property
    def met(self) -> bool | None:
        if not self.goal:
            return None
        value = self.ours if self.ratio is None else self.ratio
        return bool(_GOALS[self.goal[:2]](value, float(self.goal[2:])))


def measure(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float] | None = None,
    *,
    goal: str = "",
    unit: str = "",
    rounds: int = 5,
    warm_up: int = 1,
) -> Row:
    """Medians of `rounds` alternating rounds, after `warm_up` that do not count."""
    sides = [ours] if theirs is None else [ours, theirs]
    figures: list[list[float]] = [[] for _ in sides]
    for number in range(warm_up + rounds):
        order = list(range(len(sides)))
        for side in order if number % 2 == 0 else reversed(order):
            figure = sides[side]()
            if number >= warm_up:
                figures[side].append(figure)
    return row(name, *(statistics.median(f) for f in figures), goal=goal, unit=unit)


def row(name: str, ours: float, theirs: float | None = None, *, goal: str = "", unit: str = "") -> Row:
    """A row from figures that were measured elsewhere."""
    return Row(name, ours, theirs, ours / theirs if theirs else None, unit, goal)


def finish(title: str, rows: Sequence[Row], argv: Sequence[str] | None = None) -> None:
    """Print the table and write the file named by `--json`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{title}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    path = parser.parse_args(argv).json
    table = Table(title=title)
    for column in ("", "ours", "theirs", "ratio", "unit", "goal", ""):
        table.add_column(column, justify="left" if column in ("", "unit", "goal") else "right")
    for r in rows:
        mark = {None: "", True: "[green]met", False: "[red]missed"}[r.met]
        table.add_row(r.name, _figure(r.ours), _figure(r.theirs), _figure(r.ratio), r.unit, r.goal, mark)
    Console(width=120).print(table)
    if path is not None:
        path.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
