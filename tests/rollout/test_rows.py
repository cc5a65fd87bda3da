"""Training rows and baselines: every sampled token once, nothing that is not ok, no seat in another's mean."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.advantages import advantages, group_mean, leave_one_out
from rollout.policies import EnginePolicy, ScriptedPolicy
from rollout.renderers.compact import CompactRenderer
from rollout.renderers.thinking import ThinkingRenderer
from rollout.rows import rows_of, tokenize
from rollout.types import Episode, Group, PolicyVersion, StopReason
from tests.rollout.scenes import NIM, CharTokenizer, HashEngine
from tests.rollout.test_episode import play

TOKENIZER = CharTokenizer()
RENDERER = CompactRenderer(TOKENIZER)


def thinking_episode() -> Episode:
    engine = HashEngine(TOKENIZER, ["<think>\nhm\n</think>\n\nadd 1", "add 2"], end="<|im_end|>")
    return play({"agent": EnginePolicy(PolicyVersion("learner", 0, 3, "c"), engine, ThinkingRenderer(TOKENIZER))}, index=3)


def test_each_sampled_token_is_trained_in_exactly_one_row() -> None:
    episode = thinking_episode()
    rows = rows_of(episode)
    assert len(episode.branches) > 1 and episode.drift["template"] == len(episode.branches) - 1
    assert sum(r.trained for r in rows) == sum(sum(n.mask) for n in episode.nodes)
    for row in rows:
        assert len(row.token_ids) == len(row.mask) == len(row.logprobs) == len(row.temperature)
        assert not row.logprobs[~row.mask].any() and row.logprobs[row.mask].all()
        assert row.reward == episode.reward["agent"] and row.stop == episode.stop
        starts = [start for start, _ in row.versions]
        assert all(row.mask[s] and not row.mask[s - 1] for s in starts), "a span begins at a sampled token"


def test_a_branch_without_a_token_of_its_own_is_no_row() -> None:
    episode = thinking_episode()
    last = episode.branches[-1]
    episode.branches.append(msgspec.structs.replace(last, nodes=last.nodes[:2], forked_at=2, fork_reason="fork"))
    assert len(rows_of(episode)) == len(rows_of(thinking_episode()))


def test_rows_of_one_seat_only() -> None:
    engine = HashEngine(TOKENIZER, ["take 1", "take 2"])
    policy = EnginePolicy(PolicyVersion("learner"), engine, RENDERER)
    episode = play({"first": policy, "second": policy}, spec=NIM, index=4)
    assert {r.seat for r in rows_of(episode)} == {"first", "second"}
    (row,) = rows_of(episode, ["second"])
    assert row.seat == "second" and row.reward == episode.reward["second"]


def test_logs_become_rows_once_there_is_a_tokenizer() -> None:
    log = play({"agent": ScriptedPolicy("expert", "oracle", 0.3)}, index=5)
    assert rows_of(log) == []
    (row,) = rows_of(tokenize(log, RENDERER))
    end = RENDERER.stop_ids[0]
    said = [[*TOKENIZER.encode(s.action), end] for s in log.steps]
    assert row.token_ids[row.mask].tolist() == [t for reply in said for t in reply]
    assert not row.logprobs.any() and row.version == log.seats["agent"] and row.turns == len(log.steps)


def test_tokenizing_an_engines_episode_gives_the_tokens_it_had() -> None:
    engine = HashEngine(TOKENIZER, ["add 1", "add 2", "dance"])
    episode = play({"agent": EnginePolicy(PolicyVersion("learner"), engine, RENDERER)}, index=3)
    before, after = rows_of(episode), rows_of(tokenize(episode, RENDERER))
    assert [r.token_ids.tolist() for r in before] == [r.token_ids.tolist() for r in after]
    assert [r.mask.tolist() for r in before] == [r.mask.tolist() for r in after]


# Advantages.


def group(rewards: list[dict[str, float]], stops: list[StopReason] | None = None, name: str = "g") -> Group:
    stops = stops or [StopReason.TERMINATED] * len(rewards)
    base: dict[str, Any] = {
        "run": "r", "stage": "s", "step": 0, "group": name, "attempt": 0, "env": "e", "instance": {}, "instance_hash": "h",
        "split": "train", "seats": {}, "steps": [],
    }  # fmt: skip
    episodes = [
        Episode(id=f"{name}{i}", member=i, reward=r, stop=s, **base) for i, (r, s) in enumerate(zip(rewards, stops, strict=True))
    ]
    return Group(id=name, env="e", instance_hash="h", episodes=episodes)


REWARDS = st.lists(st.floats(-2, 2), min_size=2, max_size=9).map(np.array)


@given(REWARDS)
def test_baselines_are_centred_and_leave_one_out_is_the_mean_of_the_others(rewards: np.ndarray) -> None:
    assert abs(group_mean(rewards).sum()) < 1e-9
    expected = [r - np.delete(rewards, i).mean() for i, r in enumerate(rewards)]
    np.testing.assert_allclose(leave_one_out(rewards), expected, atol=1e-9)
    scaled = group_mean(rewards, divide_by_std=True)
    np.testing.assert_allclose(scaled * (rewards.std() + 1e-6), group_mean(rewards), atol=1e-9)


def test_a_group_of_one_has_no_others() -> None:
    assert leave_one_out(np.array([3.0])).tolist() == [0.0] == group_mean(np.array([3.0])).tolist()


def test_what_is_not_ok_has_no_advantage_and_moves_no_baseline() -> None:
    rewards = [{"agent": 1.0}, {"agent": 0.0}, {}]
    stops = [StopReason.TERMINATED, StopReason.TURN_LIMIT, StopReason.INFRA_ERROR]
    result = advantages([group(rewards, stops)])
    assert result.by_seat == {("g0", "agent"): 0.5, ("g1", "agent"): -0.5}
    assert (result.groups, result.zero_variance, result.not_ok) == (1, 0, 1)
    assert result.get("g2", "agent") == 0.0


def test_seats_have_baselines_of_their_own_and_agreeing_groups_are_counted() -> None:
    zero_sum = group([{"first": 1.0, "second": 0.0}, {"first": 1.0, "second": 0.0}], name="a")
    mixed = group([{"first": 1.0, "second": 0.0}, {"first": 0.0, "second": 1.0}], name="b")
    result = advantages([zero_sum, mixed])
    assert (result.groups, result.zero_variance) == (4, 2)
    assert result.get("a0", "first") == 0.0 and result.get("b0", "first") == 0.5 and result.get("b0", "second") == -0.5
    assert set(advantages([mixed], ["second"]).by_seat) == {("b0", "second"), ("b1", "second")}


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_advantages_do_not_depend_on_a_constant_added_to_all_rewards(baseline: Any) -> None:
    rewards = [0.0, 0.25, 1.0]
    plain = advantages([group([{"agent": r} for r in rewards])], baseline=baseline)
    shifted = advantages([group([{"agent": r + 7.0} for r in rewards])], baseline=baseline)
    assert all(math.isclose(plain.by_seat[k], shifted.by_seat[k], abs_tol=1e-9) for k in plain.by_seat)
