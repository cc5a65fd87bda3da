"""Baselines of groups, in plain NumPy: the same numbers for our trainer and for every exporter.

Advantages are per seat. Members whose episode is not ok have no reward that means anything: they get no advantage and
do not move the baseline of the others. By default nothing is divided by a standard deviation (Dr.GRPO, Liu et al.
2025): the division gives too-easy and too-hard instances more weight than the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rollout.types import Group

Baseline = Literal["group_mean", "leave_one_out"]

STD_FLOOR = 1e-6
"""Added to the standard deviation, so that a group of equals divides by something."""


def group_mean(rewards_G: np.ndarray, *, divide_by_std: bool = False) -> np.ndarray:
    """Reward minus the group's mean; with `divide_by_std` as in GRPO (Shao et al. 2024), population deviation."""
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / (rewards_G.std() + STD_FLOOR) if divide_by_std else centred_G


def leave_one_out(rewards_G: np.ndarray) -> np.ndarray:
    """Reward minus the mean of the others (RLOO, Ahmadian et al. 2024); unbiased. A group of one gets 0."""
    size = len(rewards_G)
    if size < 2:
        return np.zeros_like(rewards_G)
    return (rewards_G - rewards_G.mean()) * (size / (size - 1))


@dataclass
class Advantages:
    """What a batch of groups gives. `by_seat` maps (episode id, seat) to an advantage."""

    by_seat: dict[tuple[str, str], float] = field(default_factory=dict)
    groups: int = 0  # (group, seat) pairs with at least one ok member
    zero_variance: int = 0  # of these, with all rewards equal: nothing to learn from
    not_ok: int = 0  # episodes left out

    def get(self, episode_id: str, seat: str) -> float:
        """0.0 for what was left out."""
        return self.by_seat.get((episode_id, seat), 0.0)


def advantages(
    groups: Iterable[Group], seats: Iterable[str] | None = None, *, baseline: Baseline = "group_mean",
    divide_by_std: bool = False,
) -> Advantages:  # fmt: skip
    """Advantages of every ok episode of `groups`, per seat (all seats by default)."""
    wanted = None if seats is None else set(seats)
    result = Advantages()
    for group in groups:
        fine = [e for e in group.episodes if e.ok]
        result.not_ok += len(group.episodes) - len(fine)
        for seat in sorted({s for e in fine for s in e.reward} if wanted is None else wanted):
            members = [e for e in fine if seat in e.reward]
            if not members:
                continue
            rewards_G = np.array([e.reward[seat] for e in members], dtype=np.float64)
            result.groups += 1
            result.zero_variance += bool(np.ptp(rewards_G) == 0.0)
            if baseline == "leave_one_out":
                advantages_G = leave_one_out(rewards_G)
            else:
                advantages_G = group_mean(rewards_G, divide_by_std=divide_by_std)
            result.by_seat.update({(e.id, seat): float(a) for e, a in zip(members, advantages_G, strict=True)})
    return result
