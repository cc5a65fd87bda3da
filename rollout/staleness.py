"""How old the tokens of a row are where it is consumed, and what is too old to be trained on.

The age of a token is the trainer's version number at the moment of use minus the number of the version that sampled it:
time in queues and stores is included, whoever admitted the episode, and whenever. Tokens older than a bound are
withheld, token by token, as weights may have changed in the middle of a row; the episode keeps its reward and with it
its say in the group's baseline, so that dropping what is old does not favour what was quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from rollout.rows import Row


def ages(row: Row, number: int) -> np.ndarray:
    """int64 [T]: age of every trained token when version `number` is about to be updated; -1 where nothing is trained.

    Raises: ValueError where a token is from a version that is still to come, or has none.
    """
    ages_T = np.full(len(row), -1, dtype=np.int64)
    for start, version in row.versions:  # ascending: each reaches to where the next begins
        ages_T[start:] = number - version.number
    trained_T = row.mask
    if trained_T[: row.versions[0][0] if row.versions else None].any():
        raise ValueError(f"{row.episode_id}: a sampled token has no version")
    if (ages_T[trained_T] < 0).any():
        raise ValueError(f"{row.episode_id}: a token was sampled by a version after {number}")
    return np.where(trained_T, ages_T, -1)


def withhold(row: Row, number: int, most: int) -> Row:
    """The row with the tokens that are older than `most` versions no longer marked for training. The same row where
    there are none; perhaps one without anything to train. Rewards and advantage stay."""
    too_old_T = ages(row, number) > most
    return replace(row, mask=row.mask & ~too_old_T) if too_old_T.any() else row


def histogram(rows: Iterable[Row], number: int) -> dict[int, int]:
    """Age -> count of the tokens marked for training, ascending."""
    counts: Counter[int] = Counter()
    for row in rows:
        found, tokens = np.unique(ages(row, number)[row.mask], return_counts=True)
        counts.update(dict(zip(found.tolist(), tokens.tolist(), strict=True)))
    return dict(sorted(counts.items()))
