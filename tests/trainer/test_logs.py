"""Which logged rows are learned from, with what weight, in what order, and when it is enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.errors import UserError
from rollout.rows import Row
from rollout.types import StopReason
from trainer.logs import Batches, advantage_weights, filtered, imitation_data, is_flat, normaliser, split_logs


def row(episode: int, *, env: str = "a-v0", reward: float = 1.0, turns: int = 3, group: str = "") -> Row:
    return Row(
        episode_id=f"e{episode:03d}", group=group or f"g{episode}", env=env, seat="agent", branch=0,
        token_ids=np.arange(5, dtype=np.int32), mask=np.array([False, False, True, True, False]),
        logprobs=np.zeros(5), versions=[], temperature=np.ones(5, np.float32), top_p=1.0, reward=reward,
        success=reward >= 1, stop=StopReason.TERMINATED, turns=turns,
    )  # fmt: skip


def test_validation_holds_whole_instances_and_does_not_depend_on_the_order() -> None:
    rows = [row(i, group=f"g{i // 3}") for i in range(60)]
    split, again = split_logs(rows, share=0.2, seed=1), split_logs(rows[::-1], share=0.2, seed=1)
    assert [r.episode_id for r in split.train] == [r.episode_id for r in again.train]
    assert {r.group for r in split.train}.isdisjoint(r.group for r in split.validation)
    assert len(split.validation) == 12 and len(split.train) == 48
    assert {r.group for r in split_logs(rows, share=0.2, seed=2).validation} != {r.group for r in split.validation}


def test_filtering_keeps_the_shorter_successes_of_each_environment() -> None:
    rows = [row(i, env=env, turns=i + base) for env, base in (("a-v0", 1), ("b-v0", 11)) for i in range(10)]
    rows += [row(50, reward=0.0, turns=1)]
    kept = filtered(rows, shortest=0.5)
    assert sorted(r.turns for r in kept) == [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]
    assert len(filtered(rows)) == 20
    with pytest.raises(UserError, match="no logged episode succeeded"):
        filtered([row(0, reward=0.5)])


def test_awr_prefers_the_better_and_the_sooner_within_an_environment() -> None:
    rows = [row(0, reward=0.0), row(1, turns=9), row(2, turns=2), row(3, env="b-v0", turns=1), row(4, env="b-v0", turns=1)]
    weights = advantage_weights(rows, beta=0.3, discount=0.95)
    assert weights[0] < weights[1] < weights[2] and weights[3] == weights[4]
    assert weights.mean() == pytest.approx(1.0)
    data = imitation_data(rows, weights)
    assert [float(d.weights.max()) for d in data] == pytest.approx(list(weights), rel=1e-6)


@settings(deadline=None)
@given(count=st.integers(1, 40), size=st.integers(1, 16))
def test_an_epoch_of_batches_shows_no_row_twice_and_any_step_can_be_asked_for_alone(count: int, size: int) -> None:
    batches = Batches(count, size, "stage", 7)
    epoch = [batches.at(step) for step in range(batches.per_epoch)]
    seen = np.concatenate(epoch)
    assert len(set(seen.tolist())) == len(seen) >= count - min(size, count) + 1
    assert [b.tolist() for b in map(Batches(count, size, "stage", 7).at, reversed(range(len(epoch))))] == [
        b.tolist() for b in reversed(epoch)
    ]


def test_the_normaliser_is_a_constant_of_the_data_set() -> None:
    data = imitation_data([row(i) for i in range(10)])
    assert normaliser(data, 4) == pytest.approx(4 * 2)


@pytest.mark.parametrize(
    ("history", "flat"),
    [
        ([1.0, 0.5, 0.4], False),  # too few checks to tell
        ([1.0, 0.9, 0.8, 0.7], False),
        ([1.0, 0.5, 0.499, 0.4999], True),
        ([1.0, 0.5, 0.6, 0.7], True),  # it rises again
        ([1.0, 0.5, 0.6, 0.4], False),  # a bump on the way
    ],
)
def test_imitation_ends_when_its_validation_loss_is_flat(history: list[float], flat: bool) -> None:
    assert is_flat(history, patience=2, min_gain=0.01) is flat
