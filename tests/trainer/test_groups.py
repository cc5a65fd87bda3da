"""Groups as batches: which rows carry a signal, and what their tokens weigh."""

from __future__ import annotations

import numpy as np
import pytest

from rollout.types import Branch, Episode, Group, Message, Node, PolicyVersion, SamplingParams, Step, StopReason
from trainer.groups import Batch, make_batch

VERSION = PolicyVersion("learner", 0, 3, "abc")


def episode(member: int, reward: float, *, turns: int = 1, stop: StopReason = StopReason.TERMINATED) -> Episode:
    heard = Node(
        parent=-1, seat="agent", turn=0, message=Message(role="user", content="?"), token_ids=[1, 2], mask=[False] * 2,
        logprobs=[0.0] * 2,
    )  # fmt: skip
    said = Node(
        parent=0, seat="agent", turn=0, message=Message(role="assistant", content="!"), token_ids=[3, 4, 5, 6],
        mask=[False, True, True, False], logprobs=[0.0, -0.5, -0.25, 0.0], version=VERSION,
        sampling=SamplingParams(temperature=0.5),
    )  # fmt: skip
    return Episode(
        id=f"e{member}", run="r", stage="rl", step=0, group="g", member=member, attempt=0, env="a-v0", instance={},
        instance_hash="i", split="train", seats={"agent": VERSION},
        steps=[Step(seat="agent", observation="?", action="!") for _ in range(turns)], nodes=[heard, said],
        branches=[Branch(seat="agent", nodes=[0, 1])], reward={"agent": reward}, success={"agent": reward >= 1}, stop=stop,
    )  # fmt: skip


def batch_of(*episodes: Episode, discount: float = 1.0) -> Batch:
    group = Group(id="g", env="a-v0", instance_hash="i", episodes=list(episodes))
    return make_batch(group, ["agent"], discount=discount, baseline="group_mean", divide_by_std=False, divisor=10.0)


def test_sampled_tokens_alone_are_trained_with_the_advantage_of_their_episode() -> None:
    batch = batch_of(episode(0, 1.0), episode(1, 0.0))
    for datum, advantage in zip(batch.data, [0.5, -0.5], strict=True):
        assert datum.weights.tolist() == pytest.approx([0, 0, 0.1, 0.1, 0])
        assert datum.targets.tolist() == [2, 3, 4, 5, 6] and datum.advantages is not None
        assert datum.advantages.tolist() == pytest.approx([0, 0, advantage, advantage, 0])
        np.testing.assert_allclose(datum.logprobs, [0, 0, -0.5, -0.25, 0])
        np.testing.assert_allclose(datum.temperature, [1, 0.5, 0.5, 0.5, 0.5])


def test_a_group_that_agrees_is_counted_and_gives_no_row() -> None:
    batch = batch_of(episode(0, 1.0), episode(1, 1.0))
    assert (batch.data, batch.groups, batch.zero_variance) == ([], 1, 1)


def test_an_episode_that_is_not_ok_neither_trains_nor_moves_the_baseline() -> None:
    batch = batch_of(episode(0, 1.0), episode(1, 0.0), episode(2, 0.0, stop=StopReason.INFRA_ERROR))
    assert [r.episode_id for r in batch.rows] == ["e0", "e1"] and batch.not_ok == 1
    assert [r.advantage for r in batch.rows] == [0.5, -0.5]


def test_a_discount_tells_the_sooner_success_from_the_later() -> None:
    batch = batch_of(episode(0, 1.0, turns=1), episode(1, 1.0, turns=3), discount=0.9)
    assert [r.advantage for r in batch.rows] == pytest.approx([0.095, -0.095])
    assert batch.episodes[1].reward == {"agent": 1.0}, "the episode itself is not touched"


def test_a_full_batch_takes_no_more_groups_but_counts_them() -> None:
    signal, none = batch_of(episode(0, 1.0), episode(1, 0.0)), batch_of(episode(0, 0.0), episode(1, 0.0))
    batch = Batch()
    batch.extend([signal, none, signal, signal], most=2)
    assert (batch.kept, len(batch.data), batch.zero_variance, len(batch.episodes)) == (2, 4, 1, 8)
    assert batch.statistics({"a-v0": ["agent"]})["success"] == pytest.approx(3 / 8)


def test_tokens_beyond_the_bound_are_withheld_and_their_rewards_shape_the_baseline() -> None:
    group = Group(id="g", env="a-v0", instance_hash="i", episodes=[episode(0, 1.0), episode(1, 0.0), episode(2, 0.0)])
    old = PolicyVersion("learner", 0, 1, "old")
    group.episodes[0].nodes[1].versions = [(1, old), (2, VERSION)]
    group.episodes[1].nodes[1].version = old
    batch = make_batch(
        group, ["agent"], discount=1.0, baseline="group_mean", divide_by_std=False, divisor=1.0, number=4, max_staleness=1
    )
    assert [(r.episode_id, round(r.advantage, 3)) for r in batch.rows] == [("e0", 0.667), ("e2", -0.333)]
    assert [d.weights.tolist() for d in batch.data] == [[0, 0, 0, 1, 0], [0, 0, 1, 1, 0]]
    assert batch.withheld == 3 and len(batch.episodes) == 3
    taken = Batch()
    taken.extend([batch], most=1)
    assert taken.statistics({"a-v0": ["agent"]})["withheld_tokens"] == 3
