"""What a person sees while a run is under way: bars, the latest numbers, and a table that fills up with results.

On a terminal this is one live picture; elsewhere (a log, CI) it is a line now and then.
"""

from __future__ import annotations

import math
import time
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rollout.evaluate import NO_FIGURE

_LINES_PER_BAR = 8


class Screen:
    def __init__(self, console: Console, title: str):
        self.console, self.title = console, title
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=36), MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._name, self._unit, self._total, self._done, self._printed = "", "", 0, 0, 0
        self._numbers: dict[str, float] = {}
        self._results: dict[str, dict[str, str]] = {}
        self._live = Live(self, console=console, refresh_per_second=4) if console.is_terminal else None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def begin(self, name: str, total: int, unit: str, done: int = 0) -> None:
        """A new bar takes the place of the one before."""
        if self._task is not None:
            self._bar.update(self._task, completed=self._total, visible=True)
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(name, total=total, completed=done, unit=unit, note="")
        self._name, self._unit, self._total, self._done, self._printed = name, unit, total, done, done
        self._numbers = {}
        if self._live is None:
            self.console.print(f"[{time.monotonic() - self._began:6.0f} s] {name}: {total} {unit}")

    def advance(self, count: int = 1, **numbers: float) -> None:
        assert self._task is not None, "begin first"
        self._done += count
        self._numbers |= numbers
        note = "  ".join(f"{k} {NO_FIGURE if math.isnan(v) else f'{v:.4g}'}" for k, v in self._numbers.items())
        self._bar.update(self._task, advance=count, note=note)
        if self._live is None and self._done - self._printed >= self._total / _LINES_PER_BAR:
            self._printed = self._done
            self.console.print(
                f"[{time.monotonic() - self._began:6.0f} s] {self._name}: {self._done}/{self._total} {self._unit}  {note}"
            )

    def end(self, text: str = "") -> None:
        """The bar is done, sooner than planned perhaps; `text` says why."""
        if self._task is not None:
            self._bar.update(self._task, total=self._done or 1, completed=self._done or 1, note=text)
            self._bar.stop_task(self._task)
            self._task = None
        if self._live is None and text:
            self.console.print(f"[{time.monotonic() - self._began:6.0f} s] {self._name}: {text}")

    def result(self, stage: str, split: str, shown: str) -> None:
        self._results.setdefault(stage, {})[split] = shown
        if self._live is None:
            self.console.print(f"[{time.monotonic() - self._began:6.0f} s] {stage}, {split}: {shown}")

    def __rich__(self) -> Group:
        parts: list[object] = [f"[bold]{self.title}[/]", self._bar]
        if self._results:
            splits = list(dict.fromkeys(s for row in self._results.values() for s in row))
            table = Table("policy", *splits, title="success so far", title_justify="left")
            for stage, row in self._results.items():
                table.add_row(stage, *(row.get(s, "") for s in splits))
            parts.append(table)
        return Group(*parts)  # type: ignore[arg-type]
