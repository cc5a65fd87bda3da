"""Learning from a fixed set of logs: which rows, with what weight, in what order, and when to stop.

Imitation takes every row, filtered behaviour cloning the successes (the shorter ones, if asked), advantage-weighted
regression all of them with exponential weights. All three are `cross_entropy` with different data. Everything here is
a pure function of rows and a seed: what a killed run had drawn is drawn again from the step alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from envfarm.errors import UserError
from envfarm.seeding import generator
from rollout.rows import Row
from trainer.batch import Datum, datum
from trainer.losses import awr_weights


@dataclass(frozen=True)
class LogSplit:
    """Rows of the logs, some instances held out to tell when imitation has learned what it can."""

    train: list[Row]
    validation: list[Row]


def split_logs(rows: Sequence[Row], *, share: float, seed: int) -> LogSplit:
    """Hold out `share` of the groups (instances, not rows), at least one where it is above 0. The same rows give the
    same split in any order."""
    groups = sorted({row.group for row in rows})
    chosen = generator("log validation", seed).permutation(len(groups))[: max(share > 0, round(share * len(groups)))]
    held_out = {groups[i] for i in chosen}
    ordered = sorted(rows, key=lambda r: (r.episode_id, r.seat, r.branch))
    return LogSplit([r for r in ordered if r.group not in held_out], [r for r in ordered if r.group in held_out])


def returns(rows: Sequence[Row], discount: float) -> np.ndarray:
    """[R] reward x discount^(turns - 1): what was reached sooner is worth more. 1.0 does not discount."""
    return np.array([r.reward * discount ** max(r.turns - 1, 0) for r in rows])


def filtered(rows: Sequence[Row], *, shortest: float = 1.0) -> list[Row]:
    """Successes only, and of each environment's the given share with the fewest turns (ties are all kept).

    Raises: UserError where no row succeeded.
    """
    turns: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row.success:
            turns[row.env].append(row.turns)
    if not turns:
        raise UserError("no logged episode succeeded: filtered behaviour cloning has nothing to learn from; log more episodes")
    most = {env: float(np.quantile(values, shortest, method="inverted_cdf")) for env, values in turns.items()}
    return [r for r in rows if r.success and r.turns <= most[r.env]]


def advantage_weights(rows: Sequence[Row], *, beta: float, discount: float) -> np.ndarray:
    """[R] AWR's exp(A / beta), A = return minus the mean return of the environment's rows; scaled to a mean of 1, so
    that a step stays as large as one of imitation."""
    returns_R = returns(rows, discount)
    advantages_R = np.empty_like(returns_R)
    envs = np.array([r.env for r in rows])
    for env in set(envs):
        advantages_R[envs == env] = returns_R[envs == env] - returns_R[envs == env].mean()
    weights_R = awr_weights(torch.from_numpy(advantages_R), beta=beta).numpy()
    return weights_R / weights_R.mean()


def imitation_data(rows: Sequence[Row], weights_R: np.ndarray | None = None) -> list[Datum]:
    """Rows as data for `cross_entropy`, weighted per row."""
    weights = np.ones(len(rows)) if weights_R is None else weights_R
    return [datum(r.token_ids, r.mask, weight=float(w)) for r, w in zip(rows, weights, strict=True)]


class Batches:
    """Mini-batches of places in a data set, addressed by step: epoch after epoch, each in an order of its own."""

    def __init__(self, count: int, size: int, *names: str | int):
        """`names` spell the random stream. Raises: ValueError on an empty data set."""
        if count < 1:
            raise ValueError("no rows to train on")
        self.count, self.size, self.names = count, min(size, count), names
        self.per_epoch = count // self.size  # what is left over of an epoch is in another epoch's batches

    def at(self, step: int) -> np.ndarray:
        """[size] places, for steps that count from 0."""
        epoch, place = divmod(step, self.per_epoch)
        order = generator("batches", *self.names, epoch).permutation(self.count)
        return order[place * self.size : (place + 1) * self.size]


def normaliser(data: Sequence[Datum], batch: int) -> float:
    """What a batch's sum is divided by: its expected count of trained tokens. A constant of the data set, so that
    long rows are not held against the batch that they came with."""
    return batch * sum(d.trained for d in data) / max(len(data), 1)


def is_flat(history: Sequence[float], *, patience: int, min_gain: float) -> bool:
    """Whether the last `patience` validation losses brought no relative gain of `min_gain` over the best before."""
    if len(history) <= patience:
        return False
    before, recent = min(history[:-patience]), min(history[-patience:])
    return recent > before * (1.0 - min_gain)
