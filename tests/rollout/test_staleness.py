"""Ages of tokens where they are consumed, and what is withheld: token by token, never more, never less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.rows import Row
from rollout.staleness import ages, histogram, withhold
from rollout.types import PolicyVersion, StopReason

NUMBER = 9


def row_of(versions: list[int | None]) -> Row:
    """One token per entry: the number of the version that sampled it, or None where it was not sampled."""
    spans: list[tuple[int, PolicyVersion]] = []
    for at, number in enumerate(versions):
        if number is not None and (not spans or spans[-1][1].number != number):
            spans.append((at, PolicyVersion("learner", 0, number)))
    count = len(versions)
    return Row(
        episode_id="e", group="g", env="a-v0", seat="agent", branch=0, token_ids=np.arange(count, dtype=np.int32),
        mask=np.array([v is not None for v in versions], dtype=np.bool_), logprobs=np.zeros(count), versions=spans,
        temperature=np.ones(count, np.float32), top_p=1.0, reward=1.0, success=True, stop=StopReason.TERMINATED, turns=1,
        advantage=0.5,
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[int | None]:
    """Versions never grow older along a row."""
    numbers = sorted(draw(st.lists(st.integers(0, NUMBER), max_size=12)))
    gaps = draw(st.lists(st.integers(0, 12), max_size=6))
    history: list[Any] = list(numbers)
    for gap in gaps:
        history.insert(min(gap, len(history)), None)
    return history


@given(versions=histories(), most=st.integers(0, NUMBER + 1))
def test_exactly_the_tokens_beyond_the_bound_are_withheld(versions: list[int | None], most: int) -> None:
    row = row_of(versions)
    kept = withhold(row, NUMBER, most)
    assert kept.mask.tolist() == [v is not None and NUMBER - v <= most for v in versions]
    assert (kept.reward, kept.advantage, kept.versions) == (row.reward, row.advantage, row.versions)
    assert row.mask.tolist() == [v is not None for v in versions], "the row that was given is as it was"
    counts = histogram([row, row], NUMBER)
    assert sum(counts.values()) == 2 * row.trained and list(counts) == sorted(counts)
    assert counts == {a: 2 * versions.count(NUMBER - a) for a in counts}
    assert max(histogram([kept], NUMBER), default=0) <= most
    assert withhold(kept, NUMBER, most) is kept


def test_what_was_not_sampled_has_no_age() -> None:
    assert ages(row_of([None, 7, 7, None, 9]), NUMBER).tolist() == [-1, 2, 2, -1, 0]


def test_a_token_of_a_version_to_come_or_of_none_is_no_data() -> None:
    with pytest.raises(ValueError, match="after 9"):
        ages(row_of([10]), NUMBER)
    row = row_of([3])
    row.versions.clear()
    with pytest.raises(ValueError, match="has no version"):
        ages(row, NUMBER)
