"""What a format of others is here: one small class per format, `name` -> class in `rollout.export.EXPORTERS`.

    class Exporter:                                            # rollout/export/yourformat.py
        name = "yourformat"                                    # as in `envfarm export STORE --to yourformat --output DIR`
        extra = "trl"                                          # what must be installed to write it; "" for nothing
        def write(self, groups, folder) -> int: ...            # files into `folder`, which is there and empty
        def select(self, group) -> list[Row]: ...              # the rows of one group that this format keeps
        def totals(self, folder) -> Totals: ...                # counted from the files that `write` wrote, nothing else

Whoever exports (`rollout.export.export`) reads the store, makes groups and advantages, checks the extra, makes the folder
and drops all of it where `write` raises: an exporter only turns groups into files. A group is given as `Played`: its
episodes in member order, not-ok ones included, and the training rows of the ok ones, advantages filled in.

The test of them all (`tests/rollout/export/test_conformance.py`): the same groups give, in every format, as many trained
tokens and the same sum of advantage x mask as `totals` of the rows that the format keeps. So every record keeps what
`totals` needs (token ids with their mask, or a count), in extra columns where the other side has no place for it.

Imports: nothing of `extra` at the module's top; `package("trl", extra="trl")` inside the methods. Raise `lacks(...)` where
a store holds nothing of what the format needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from envfarm.errors import MissingDependencyError, UserError
from rollout.advantages import Baseline, advantages
from rollout.rows import Row, rows_of
from rollout.types import Episode, Group


@dataclass(frozen=True, eq=False)
class Played:
    """A group as exporters see it."""

    group: Group
    rows: list[Row]  # of ok episodes, in member and branch order; none where nothing was sampled by an engine (logs)

    def episode(self, row: Row) -> Episode:
        """The episode that a row is of."""
        return next(e for e in self.group.episodes if e.id == row.episode_id)


@dataclass(frozen=True)
class Totals:
    """What must not change on the way into a format."""

    tokens: int = 0  # trained
    advantage: float = 0.0  # sum of advantage x mask over all tokens

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.tokens + other.tokens, self.advantage + other.advantage)


class Exporter(Protocol):
    """One format. Made without arguments; holds no state."""

    name: str
    extra: str

    def write(self, groups: Iterable[Played], folder: Path) -> int:
        """Write files into `folder` and return the number of records. Groups come one by one and in dispatch order: a
        store may be larger than memory. Raises: UserError where there is nothing for this format (`lacks`); OSError."""

    def select(self, group: Played) -> list[Row]:
        """Which of a group's rows end up in the files, in that order; a row twice where it is written twice (a chosen
        reply against two rejected ones). `group.rows` for a format that keeps everything."""

    def totals(self, folder: Path) -> Totals:
        """Read back what `write` wrote, as the other side would, and add it up."""


def totals(rows: Iterable[Row]) -> Totals:
    """Of rows: what a format that keeps them must give again."""
    result = Totals()
    for row in rows:
        result += Totals(row.trained, row.advantage * row.trained)
    return result


def totals_of_arrays(mask: Sequence[bool] | np.ndarray, advantage: float | Sequence[float] | np.ndarray) -> Totals:
    """Of one written record: a mask and an advantage, either one number or one per token."""
    trained = np.asarray(mask, dtype=bool)
    return Totals(int(trained.sum()), float((np.asarray(advantage, dtype=np.float64) * trained).sum()))


def played(episodes: Iterable[Episode], *, policy: str | None = None, baseline: Baseline = "group_mean") -> Iterator[Played]:
    """Groups of episodes that come in dispatch order, as a store gives them. Of a member's attempts the last one counts.

    With `policy`, only seats where it sat have rows (self-play against a frozen rival). Advantages as our own trainer
    takes them by default (`rollout.advantages`): reward minus the group's mean, per seat; rows of a group without a
    signal have 0.
    """
    for (_, _, group_id), members in groupby(episodes, key=lambda e: (e.stage, e.step, e.group)):
        last = list({e.member: e for e in members}.values())
        group = Group(id=group_id, env=last[0].env, instance_hash=last[0].instance_hash, episodes=last)
        seats = None if policy is None else [role for role, v in last[0].seats.items() if v.policy == policy]
        given = advantages([group], seats, baseline=baseline)
        rows = [row for e in last if e.ok for row in rows_of(e, seats)]
        for row in rows:
            row.advantage = given.get(row.episode_id, row.seat)
        yield Played(group, rows)


def package(name: str, *, extra: str) -> ModuleType:
    """Import a package of an extra. Raises: MissingDependencyError naming the command that installs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise MissingDependencyError(f"this needs {name}, which is not installed: pip install 'envfarm[{extra}]'") from error


def lacks(name: str, what: str, how: str) -> UserError:
    """The error of a store that has nothing for a format: `raise lacks("trl-dpo", "groups with ...", "roll out ...")`."""
    return UserError(f"nothing to write as {name!r}: it needs {what}, and the store holds none; {how}")


NO_TOKENS = ("episodes that an engine sampled (token ids)", "roll out with a model, as scripted policies leave no tokens")
"""For `lacks(name, *NO_TOKENS)`."""
