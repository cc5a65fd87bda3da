"""`episodes.jsonl`: one episode per line, everything in it: what `rollout.types.Episode` holds, as JSON.

`read` gives the episodes back, and `rollout.export.base.played` their groups, rows and advantages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from envfarm.errors import StoreError
from rollout.export.base import Played, Totals, played, totals
from rollout.rows import Row
from rollout.types import Episode

FILE = "episodes.jsonl"


class Jsonl:
    """Keeps everything, logs and episodes that are not ok included."""

    name = "jsonl"
    extra = ""

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        encode, count = msgspec.json.Encoder().encode, 0
        with (folder / FILE).open("wb") as file:
            for group in groups:
                for episode in group.group.episodes:
                    file.write(encode(episode) + b"\n")
                    count += 1
        return count

    def select(self, group: Played) -> list[Row]:
        return group.rows

    def totals(self, folder: Path) -> Totals:
        return totals(row for group in played(read(folder / FILE)) for row in group.rows)


def read(path: Path) -> Iterator[Episode]:
    """Raises: StoreError naming the line that is no episode."""
    decode = msgspec.json.Decoder(Episode).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield decode(line)
            except msgspec.DecodeError as error:
                raise StoreError(f"{path}, line {number}: {error}") from error
