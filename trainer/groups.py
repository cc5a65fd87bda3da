"""Groups of episodes as a batch: which rows, with which advantage. Pure functions of what was played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from rollout.advantages import Advantages, Baseline, advantages
from rollout.rows import Row, rows_of
from rollout.staleness import withhold
from rollout.types import Episode, Group
from trainer.batch import Datum, datum


@dataclass
class Batch:
    """A step's data and what it came from."""

    data: list[Datum] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)  # of all groups, also of those without a signal
    drawn: int = 0  # groups played
    kept: int = 0  # groups trained on
    groups: int = 0  # (group, seat) pairs with a reward
    zero_variance: int = 0  # of these, without a signal
    not_ok: int = 0  # episodes
    withheld: int = 0  # tokens too old to be trained on

    def extend(self, parts: Sequence[Batch], most: int) -> None:
        """Take in groups, those with a signal only as long as fewer than `most` are kept (the rest is counted)."""
        for part in parts:
            self.episodes += part.episodes
            self.groups += part.groups
            self.zero_variance += part.zero_variance
            self.not_ok += part.not_ok
            if self.kept == most:
                continue
            self.withheld += part.withheld
            if part.data:
                self.kept += 1
                self.data += part.data
                self.rows += part.rows

    def statistics(self, seat_of: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Means over the ok episodes of trained seats, as drawn; success also by environment."""
        fine = [e for e in self.episodes if e.ok]
        seats = [(e, s) for e in fine for s in seat_of[e.env]]
        out = {
            "reward": _mean([e.reward.get(s, 0.0) for e, s in seats]),
            "success": _mean([float(e.success.get(s, False)) for e, s in seats]),
            "turns": _mean([len(e.steps) for e in fine]),
            "malformed": _mean([e.malformed for e in fine]),
            "episodes": float(len(self.episodes)),
            "not_ok": float(self.not_ok),
            "groups_drawn": float(self.drawn),
            "groups_kept": float(self.kept),
            "zero_variance": float(self.zero_variance),
            "withheld_tokens": float(self.withheld),
        }
        for env in sorted({e.env for e, _ in seats}):
            out[f"success/{env}"] = _mean([float(e.success.get(s, False)) for e, s in seats if e.env == env])
        return out


def make_batch(
    group: Group, seats: Sequence[str], *, discount: float, baseline: Baseline, divide_by_std: bool, divisor: float,
    number: int | None = None, max_staleness: int = 0,
) -> Batch:  # fmt: skip
    """One group's rows that have an advantage, as data. `seats` are the trained ones.

    With `number`, the version that is about to be updated, tokens more than `max_staleness` versions older than it are
    withheld; the baseline is over all members all the same. `divisor` is constant over the run (Dr.GRPO): a long reply
    counts by its tokens, whatever it came with.
    """
    given = advantages([discounted(group, discount)], seats, baseline=baseline, divide_by_std=divide_by_std)
    fresh = _rows(group, seats, given)
    rows = fresh if number is None else [r for row in fresh if (r := withhold(row, number, max_staleness)).trained]
    return Batch(
        data=[_datum(row, divisor) for row in rows], rows=rows, episodes=list(group.episodes), groups=given.groups,
        zero_variance=given.zero_variance, not_ok=given.not_ok,
        withheld=sum(r.trained for r in fresh) - sum(r.trained for r in rows),
    )  # fmt: skip


def discounted(group: Group, discount: float) -> Group:
    """The group with rewards x discount^(turns - 1), for the baseline alone; the episodes stay as they are."""
    if discount == 1.0:
        return group

    def shorter(e: Episode) -> Episode:
        turns = {seat: sum(s.seat == seat for s in e.steps) for seat in e.reward}
        rewards = {seat: r * discount ** max(turns[seat] - 1, 0) for seat, r in e.reward.items()}
        return msgspec.structs.replace(e, reward=rewards)

    return msgspec.structs.replace(group, episodes=[shorter(e) for e in group.episodes])


def _rows(group: Group, seats: Sequence[str], given: Advantages) -> list[Row]:
    found = []
    for episode in group.episodes:
        if not episode.ok:
            continue
        for row in rows_of(episode, seats):
            row.advantage = given.get(row.episode_id, row.seat)
            if row.advantage != 0.0:
                found.append(row)
    return found


def _datum(row: Row, divisor: float) -> Datum:
    return datum(
        row.token_ids, row.mask, weight=1.0 / divisor, logprobs=row.logprobs, advantage=row.advantage,
        temperature=row.temperature,
    )  # fmt: skip


def with_old(data: Sequence[Datum], logprobs: Sequence[np.ndarray]) -> list[Datum]:
    """The data with the trainer's own logprobs, for several updates on one batch."""
    return [replace(d, old_logprobs=p) for d, p in zip(data, logprobs, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
