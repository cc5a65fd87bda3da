"""Shares with intervals, pairs on the same instances, and nothing that is not ok among them."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.errors import InfraError
from rollout.evaluate import EvalResult, Outcome, eval_requests, evaluate, paired, wilson
from rollout.plan import RunPlan
from rollout.policies import EnginePolicy, Policy, ScriptedPolicy
from rollout.renderers.compact import CompactRenderer
from rollout.requests import EnvChoice
from rollout.scheduler import Rollouts
from rollout.types import PolicyVersion, SamplingParams
from tests.rollout.scenes import COUNT, NIM, SPECS, CharTokenizer, HashEngine, local_pool
from tests.rollout.test_scheduler import FaultyPool


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals_are_the_published_ones(successes: int, episodes: int, low: float, high: float) -> None:
    assert wilson(successes, episodes) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(0, 50), st.integers(1, 50))
def test_an_interval_holds_its_share_and_shrinks(successes: int, more: int) -> None:
    episodes = successes + more
    low, high = wilson(successes, episodes)
    assert 0 <= low <= successes / episodes <= high <= 1
    wide, narrow = high - low, wilson(4 * successes, 4 * episodes)
    assert narrow[1] - narrow[0] < wide


def play(policy: Policy, choices: list[EnvChoice], episodes: int = 20, pool: Any = None, stage: str = "eval") -> EvalResult:
    async def go() -> EvalResult:
        plan = RunPlan("r", 0, SPECS, retries=0, error_budget=1.0)
        async with Rollouts(plan, pool or local_pool(), {"p": policy}) as rollouts:
            return await evaluate(rollouts, choices, "heldout", episodes, "p", sampling=SamplingParams(), stage=stage)

    return asyncio.run(go())


BOTH = [EnvChoice(COUNT, {"agent": "p"}), EnvChoice(NIM, {"first": "p", "second": "p"})]


def engine_policy(*replies: str) -> EnginePolicy:
    tokenizer = CharTokenizer()
    return EnginePolicy(PolicyVersion("p"), HashEngine(tokenizer, replies), CompactRenderer(tokenizer))


def test_policies_get_the_same_instances_evenly_over_environments() -> None:
    requests = eval_requests(BOTH, "heldout", 21, stage="e", step=0, sampling=SamplingParams())
    assert [r.env for r in requests].count(COUNT.id) == 11 and len(requests) == 21
    assert len({r.instance.hash for r in requests}) == 21 and all(r.instance.split == "heldout" for r in requests)
    assert [r.index for r in requests] == list(range(21))
    small = eval_requests(BOTH, "heldout", 5000, stage="e", step=0, sampling=SamplingParams())
    assert len(small) == 1000, "a split is played once through"


def test_success_by_environment_and_in_self_play_by_seat() -> None:
    result = play(ScriptedPolicy("p", "oracle"), BOTH)
    assert result.by_env[COUNT.id].success == 1.0 and result.by_env[COUNT.id].episodes == 10
    assert result.by_env[NIM.id].success == 0.5 and result.by_env[NIM.id].episodes == 20
    shown = result.to_json()
    assert shown["episodes"] == 30 and shown["by_env"][COUNT.id]["ci95"] == list(wilson(10, 10)) and shown["not_ok"] == {}


def test_the_same_weights_give_the_same_figures_under_another_stages_name() -> None:
    policy = engine_policy("add 1", "add 2", "add 3")
    first, again = (play(policy, BOTH[:1], 40, stage=s) for s in ("eval/rl", "eval"))
    assert first.outcomes == again.outcomes and 0 < first.success < 1


def test_what_is_not_ok_is_counted_apart() -> None:
    def dies(number: int) -> None:
        if number % 2:
            raise InfraError("gone")

    result = play(ScriptedPolicy("p", "oracle"), BOTH[:1], pool=FaultyPool(dies))
    assert result.episodes == 10 and result.success == 1.0 and result.not_ok == {"infra_error": 10}


def test_pairs_are_of_one_instance_each() -> None:
    better = play(ScriptedPolicy("p", "oracle"), BOTH[:1], 40)
    worse = play(engine_policy("add 1", "add 2", "add 3"), BOTH[:1], 40)
    both = paired(better, worse)
    assert both.episodes == 40 and both.mean == pytest.approx(better.success - worse.success)
    assert both.ci95[0] < both.mean < both.ci95[1] and both.ci95[0] > 0
    assert both.by_env[COUNT.id].mean == both.mean
    del worse.outcomes[10:]
    assert paired(better, worse).episodes == 10
    flipped = paired(worse, better)
    assert flipped.mean == pytest.approx(-paired(better, worse).mean)


def test_a_paired_interval_is_that_of_the_mean_difference() -> None:
    def result(*successes: bool) -> EvalResult:
        return EvalResult("s", "p", [Outcome("e", str(i), s, float(s), 1, "terminated", 0) for i, s in enumerate(successes)])

    both = paired(result(True, True, True, False), result(True, False, False, False))
    deviation = math.sqrt(sum((d - 0.5) ** 2 for d in (0, 1, 1, 0)) / 3)
    half = 1.959963984540054 * deviation / 2
    assert both.mean == 0.5 and both.ci95 == (pytest.approx(0.5 - half), pytest.approx(min(1.0, 0.5 + half)))


def test_a_policy_that_sits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="sits in no seat"):
        play(ScriptedPolicy("p", "oracle"), [EnvChoice(COUNT, {"agent": "q"})])
